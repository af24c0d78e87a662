"""The memory of the environment: a heap over segments that grows when asked.

Owner:    memory.init and memory.fini, by the control thread; a block belongs to its caller.
Threads:  any, under a mutex: set-up time only, never the data path.
Fails:    NULL or -errno; OSError with a sentence from the Python face.
"""

cdef void *env_zalloc(size_t size, size_t align, int node) noexcept nogil
cdef int env_free(void *block) noexcept nogil
cdef bint env_owns(const void *at) noexcept nogil
cdef bint env_ready() noexcept nogil
