"""How a queue goes from one reactor to another: the calls that Queue.move makes.

Threads:  queue_leave: the queue's reactor, at the end of an iteration, with nothing in flight.
"""
from libc.stdint cimport uint32_t
from vhostrt.bdev.core cimport bdev_channel_t
from vhostrt.event.control cimport call_t
from vhostrt.vhost.queue cimport queue_t

cdef struct move_t:
    # Where a queue goes; the control thread's again after the answer.
    queue_t *q
    uint32_t lcore
    bdev_channel_t *channel     # there; NULL: none

cdef int move_call(call_t *call) noexcept nogil
cdef int stay_call(call_t *call) noexcept nogil
cdef void queue_leave(queue_t *q) noexcept nogil
