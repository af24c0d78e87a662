"""The lcores that run services: which they are, and when they run.

Owner:    the control thread, by service_init and service_fini.
Threads:  any that is not running a service of that lcore.
Fails:    -errno, as told at each function.
"""
from libc.stdint cimport uint32_t, uint64_t

cdef int service_init(bint spin) noexcept nogil
cdef void service_fini() noexcept nogil
cdef int service_lcore_add(uint32_t lcore) noexcept nogil
cdef int service_lcore_del(uint32_t lcore) noexcept nogil
cdef int service_lcore_start(uint32_t lcore) noexcept nogil
cdef int service_lcore_stop(uint32_t lcore) noexcept nogil
cdef int service_lcore_loops(uint32_t lcore, uint64_t *loops) noexcept nogil
cdef int service_start_with_defaults() noexcept nogil
