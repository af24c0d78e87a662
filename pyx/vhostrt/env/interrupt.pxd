"""The interrupt thread: it sleeps until a descriptor has an event, and calls back.

Owner:    the thread starts with the first registration and ends in interrupt.fini.
Threads:  any may register and unregister; callbacks run on the interrupt thread, one at a time.
Fails:    -errno, as told at each function.
"""
from libc.stdint cimport uint32_t

cdef enum:
    # What a descriptor is: how it is read before its callbacks are called.
    INTERRUPT_OTHER = 0         # 1 byte
    INTERRUPT_UIO = 1           # 4 bytes
    INTERRUPT_VFIO = 2          # 8 bytes, as of any eventfd
    INTERRUPT_ALARM = 3         # 8 bytes, of a timerfd
    INTERRUPT_EXT = 4           # not at all: a callback has to, or it is called again at once

cdef extern from *:
    """
    #include <stdint.h>
    #define VH_ANY_ARG ((void *)(intptr_t)-1)
    """
    void *ANY_ARG "VH_ANY_ARG"          # stands for every argument where callbacks are taken away

ctypedef void (*interrupt_fn)(void *arg) noexcept nogil

cdef int interrupt_register(int fd, uint32_t kind, interrupt_fn fn, void *arg) noexcept nogil
cdef int interrupt_unregister(int fd, interrupt_fn fn, void *arg) noexcept nogil
cdef int interrupt_unregister_sync(int fd, interrupt_fn fn, void *arg) noexcept nogil
cdef int interrupt_start() noexcept nogil
cdef uint32_t interrupt_epoch() noexcept nogil
cdef bint interrupt_is_here() noexcept nogil

cdef void deliver(object callback, object loop) noexcept
