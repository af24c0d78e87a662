"""Logical cores: one pthread each, given work over a pipe.

Owner:    the control thread, by init and fini; they may be repeated in one process.
Threads:  lcore_current, lcore_state, lcore_role and lcore_socket from any; launch and wait from any
          that is not the lcore itself; lcore_set_role from the control thread.
Fails:    -errno, as told at each function.
"""
from libc.stdint cimport uint32_t
from vhostrt.env.affinity cimport cpu_set_t

cdef enum:
    LCORE_MAX = 1024            # lcore ids and CPU numbers are below this
    LCORE_NONE = 0xFFFFFFFF     # the id of a thread that is no lcore

cdef enum:
    LCORE_OFF = 0               # not enabled
    LCORE_WAIT = 1              # in its blocking read, takes work
    LCORE_RUNNING = 2
    LCORE_FINISHED = 3          # the function has returned and nobody has waited for it yet

cdef enum:
    # What an lcore is for; the numbers are those of DPDK.
    LCORE_ROLE_RTE = 0          # the work of the application
    LCORE_ROLE_OFF = 1          # not enabled
    LCORE_ROLE_SERVICE = 2      # services alone; it goes back to WAIT, never to FINISHED

ctypedef int (*lcore_fn)(void *arg) noexcept nogil

cdef int lcore_launch(uint32_t lcore, lcore_fn fn, void *arg) noexcept nogil
cdef int lcore_launch_all(lcore_fn fn, void *arg, bint main_too) noexcept nogil
cdef int lcore_wait(uint32_t lcore, int *ret) noexcept nogil
cdef void lcore_wait_all() noexcept nogil
cdef uint32_t lcore_current() noexcept nogil
cdef int lcore_state(uint32_t lcore) noexcept nogil
cdef int lcore_socket(uint32_t lcore) noexcept nogil
cdef int lcore_set_cpus(const cpu_set_t *wanted) noexcept nogil
cdef int lcore_role(uint32_t lcore) noexcept nogil
cdef int lcore_set_role(uint32_t lcore, int role) noexcept nogil
# These count and visit the lcores of the application; lcore_next_service those of services.
cdef uint32_t lcore_count() noexcept nogil
cdef uint32_t lcore_main() noexcept nogil
cdef uint32_t lcore_index(uint32_t lcore) noexcept nogil
cdef uint32_t lcore_next(uint32_t lcore) noexcept nogil
cdef uint32_t lcore_next_service(uint32_t lcore) noexcept nogil
