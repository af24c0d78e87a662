"""How a reactor without work goes to sleep, and what wakes it.

Threads:  the reactor itself.
"""
from libc.stdint cimport uint64_t
from vhostrt.event.reactor cimport poller_t, reactor_t

cdef void unwatch(poller_t *poller) noexcept nogil
cdef void poller_set_fd(poller_t *poller, int fd) noexcept nogil
cdef void reactor_sleep(reactor_t *r) noexcept nogil
