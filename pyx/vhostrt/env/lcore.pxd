"""Logical cores: one pthread each, given work over a pipe.

Owner:    the control thread, by init and fini; they may be repeated in one process.
Threads:  lcore_current, lcore_state and lcore_socket from any; launch and wait from any that is
          not an lcore.
Fails:    -errno, as told at each function.
"""
from libc.stdint cimport uint32_t

cdef enum:
    LCORE_MAX = 1024            # lcore ids and CPU numbers are below this
    LCORE_NONE = 0xFFFFFFFF     # the id of a thread that is no lcore

cdef enum:
    LCORE_OFF = 0               # not enabled
    LCORE_WAIT = 1              # in its blocking read, takes work
    LCORE_RUNNING = 2
    LCORE_FINISHED = 3          # the function has returned and nobody has waited for it yet

ctypedef int (*lcore_fn)(void *arg) noexcept nogil

cdef int lcore_launch(uint32_t lcore, lcore_fn fn, void *arg) noexcept nogil
cdef int lcore_wait(uint32_t lcore, int *ret) noexcept nogil
cdef uint32_t lcore_current() noexcept nogil
cdef int lcore_state(uint32_t lcore) noexcept nogil
cdef int lcore_socket(uint32_t lcore) noexcept nogil
cdef uint32_t lcore_count() noexcept nogil
cdef uint32_t lcore_main() noexcept nogil
cdef uint32_t lcore_next(uint32_t lcore) noexcept nogil
