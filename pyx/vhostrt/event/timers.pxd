"""Timed pollers in the order of their deadlines: an intrusive pairing heap.

Owner:    the thread whose `timers` is the root; a poller lies in at most one heap.
Threads:  the reactor of that thread.
"""
from vhostrt.event.reactor cimport poller_t

cdef void timers_insert(poller_t **root, poller_t *poller) noexcept nogil
cdef void timers_remove(poller_t **root, poller_t *poller) noexcept nogil
