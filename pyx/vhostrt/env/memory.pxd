"""The memory of the environment: a heap over segments that grows when asked.

Owner:    memory.init and memory.fini, by the control thread; a block belongs to its caller.
Threads:  any, under the lock of the record: set-up time only, never the data path.
Fails:    NULL or -errno; OSError with a sentence from the Python face.
"""
from libc.stdint cimport uint64_t
from vhostrt.env.heap cimport want_t
from vhostrt.env.shared cimport env_config_t
from vhostrt.env.supply cimport supply_t

# Told of each segment when it comes and when it goes, under the lock: it must not call back into
# this module.  An errno below 0 refuses a segment that comes.
ctypedef int (*segment_fn)(void *ctx, void *at, size_t size, bint added) noexcept nogil

cdef void *env_zalloc(size_t size, size_t align, int node) noexcept nogil
cdef void *env_realloc(void *block, size_t size, size_t align) noexcept nogil
cdef int env_free(void *block) noexcept nogil
cdef bint env_owns(const void *at) noexcept nogil
cdef bint env_ready() noexcept nogil
cdef int env_watch_segments(segment_fn fn, void *ctx) noexcept nogil
cdef void env_unwatch_segments(segment_fn fn, void *ctx) noexcept nogil
cdef uint64_t env_iova(const void *at) noexcept nogil

# For the tables of the record, between env_lock and env_unlock.
cdef env_config_t *env_lock(bint change, int *rc) noexcept nogil
cdef void env_unlock(env_config_t *c) noexcept nogil
cdef void *env_take(env_config_t *c, const want_t *want, int node) noexcept nogil
cdef int env_give(env_config_t *c, void *block) noexcept nogil
cdef void env_view(int more) noexcept nogil

# For those who start and stop it.
cdef supply_t *env_supply() noexcept nogil
cdef int env_begin(env_config_t *c, bint primary, bint shared, object end) except -1
cdef str env_sentence(int rc)
