"""C functions for tests of vhostrt.app; each is in __pyx_capi__ as a capsule."""
from libc.stdint cimport int64_t, uint32_t, uint64_t

cdef struct pair_t:
    int64_t given
    int64_t lcore
    uint64_t order

cdef int give_int(void *arg) noexcept nogil
cdef void give_nothing(void *arg) noexcept nogil
cdef int64_t give_i64(void *arg) noexcept nogil
cdef uint64_t give_u64(void *arg) noexcept nogil
cdef uint32_t give_u32(const void *arg) noexcept nogil
cdef double give_double(void *arg) noexcept nogil
cdef int give_sum(void *a, void *b) noexcept nogil
cdef int fill_pair(pair_t *pair) noexcept nogil
cdef int stop_with(void *arg) noexcept nogil
cdef int wait_for_flag(void *arg) noexcept nogil
cdef uint64_t count_iterations(void *arg) noexcept nogil
