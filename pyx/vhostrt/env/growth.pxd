"""The heap of a record as it grows and shrinks, and those who are told of its segments.

Owner:    the primary process grows and shrinks it; each process has watches of its own.
Threads:  any, under the lock of the record.
Fails:    NULL or -errno.
"""
from vhostrt.env.heap cimport region_t, want_t
from vhostrt.env.shared cimport env_config_t
from vhostrt.env.supply cimport supply_t

# Told of each segment when it comes and when it goes, under the lock of the record: it must not
# call back into vhostrt.env.memory.  An errno below 0 refuses a segment that comes.
ctypedef int (*segment_fn)(void *ctx, void *at, size_t size, bint added) noexcept nogil

cdef supply_t *growth_supply() noexcept nogil
cdef void growth_share(bint shared) noexcept nogil
cdef void tell_gone(region_t *region) noexcept nogil
cdef int tell_come(region_t *region) noexcept nogil
cdef int tell_all_come(env_config_t *c) noexcept nogil
cdef int watch_add(env_config_t *c, segment_fn fn, void *ctx) noexcept nogil
cdef void watch_remove(segment_fn fn, void *ctx) noexcept nogil
cdef void *take_on(env_config_t *c, const want_t *want, int node) noexcept nogil
cdef void *growth_take(env_config_t *c, const want_t *want, int node) noexcept nogil
cdef int growth_give(env_config_t *c, void *block) noexcept nogil
