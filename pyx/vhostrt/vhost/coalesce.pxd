"""When a driver is interrupted: at once, at most so often, or when enough has been done.

Owner:    the queue_t that embeds a coalesce_t.
Threads:  the queue's reactor.
"""
from libc.stdint cimport uint32_t, uint64_t
from vhostrt.event.control cimport call_t
from vhostrt.event.reactor cimport poller_t
from vhostrt.vhost.queue cimport queue_t

cdef enum:
    COALESCE_OFF = 0
    COALESCE_RATE = 1           # above a rate of requests, not before a time since the last one
    COALESCE_AUTO = 2           # when a part of what is in flight is done

cdef struct coalesce_t:
    uint32_t mode               # COALESCE_...
    uint32_t called             # q.answered at the last interrupt
    bint waiting                # the driver wants one, and will get it later
    bint timed                  # the timer is registered
    uint64_t due                # ticks: when it is called, if it waits, at the latest ...
    uint64_t delay              # ... and how long after the last one; COALESCE_RATE
    uint64_t base               # ticks; the delay at twice the threshold
    uint64_t threshold          # requests of a window above which there is a delay
    uint64_t window             # ticks; when the present one began
    uint32_t answered           # q.answered then
    uint32_t period_us          # of the timer
    poller_t timer

cdef struct coalescing_t:
    # What set_coalescing brings to the reactor.
    queue_t *q
    uint32_t mode
    uint32_t delay_base_us
    uint32_t iops_threshold

cdef void coalesce_init(queue_t *q) noexcept nogil
cdef void coalesce_signal(queue_t *q) noexcept nogil
cdef void coalesce_flush(queue_t *q) noexcept nogil
cdef void coalesce_set(const coalescing_t *c) noexcept nogil
cdef int coalesce_call(call_t *call) noexcept nogil
