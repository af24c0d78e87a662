"""The memory of the environment: a heap over segments that grows when asked.

Owner:    memory.init and memory.fini, by the control thread; a block belongs to its caller.
Threads:  any, under the lock of the record: set-up time only, never the data path.
Fails:    NULL or -errno; OSError with a sentence from the Python face.
"""
from libc.stdint cimport uint64_t
from vhostrt.env.growth cimport segment_fn
from vhostrt.env.shared cimport env_config_t

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
# The same to look, for Python: with the GIL.
cdef env_config_t *env_look(int *rc)
cdef void env_looked(env_config_t *c)
cdef void env_view(int more) noexcept nogil

# For those who start and stop it.
cdef int env_begin(env_config_t *c, bint primary, bint shared, object end) except -1
cdef str env_sentence(int rc)
