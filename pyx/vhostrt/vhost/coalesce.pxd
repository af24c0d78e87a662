"""When a driver is interrupted: at once, at most so often, or when enough has been done.

Owner:    the queue_t, whose field `when` this is about.
Threads:  the queue's reactor.
"""
from libc.stdint cimport uint32_t
from vhostrt.vhost.queue cimport queue_t

cdef enum:
    COALESCE_OFF = 0
    COALESCE_RATE = 1           # above a rate of requests, not before a time since the last one
    COALESCE_AUTO = 2           # when a part of what is in flight is done

cdef struct coalescing_t:
    # What Queue.set_coalescing brings to the reactor.
    queue_t *q
    uint32_t mode
    uint32_t delay_base_us
    uint32_t iops_threshold

cdef void coalesce_init(queue_t *q) noexcept nogil
cdef void coalesce_signal(queue_t *q) noexcept nogil
cdef void coalesce_flush(queue_t *q) noexcept nogil
cdef void coalesce_set(const coalescing_t *c) noexcept nogil
cdef uint32_t coalesce_mode(str mode) except? 99
