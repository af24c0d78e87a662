"""The end of a reactor: what it has taken is run, or counted.

Threads:  run_to_the_end: the reactor.  events_drop: the control thread, when that has ended.
"""
from libc.stdint cimport uint64_t
from vhostrt.event.reactor cimport reactor_t

cdef void run_to_the_end(reactor_t *r) noexcept nogil
cdef uint64_t events_drop(reactor_t *r) noexcept
