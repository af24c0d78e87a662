"""The end of a reactor: what it has taken is run, or counted.

Nothing that was taken is dropped: what is left is run, and what that sends.  Only what sends
something every time that it runs would go on for ever: after a second nothing more is taken, who
sends is told, and messages that wait in threads even then are counted.
"""
from libc.stdint cimport uint32_t, uint64_t
from vhostrt.base.atomics cimport fence_full, store_relaxed_u32
from vhostrt.base.ticks cimport ticks_from_us, ticks_now
from vhostrt.env.lcore cimport LCORE_NONE
from vhostrt.env.mempool cimport mempool_put
from vhostrt.env.ring cimport ring_count, ring_sc_dequeue
from vhostrt.event.events cimport run_events
from vhostrt.event.message cimport thread_drain, thread_drop
from vhostrt.event.reactor cimport (REACTOR_STOPPED, event_t, reactor_t, run_deferred,
                                    thread_detach, thread_t)

cdef enum:
    EXIT_US = 1_000_000                 # time for what is left, and what that sends


cdef bint run_messages_left(reactor_t *r) noexcept nogil:
    """Run a batch of each thread that is still here; False when none has any."""
    cdef uint32_t left = r.thread_count
    cdef thread_t *thread = r.threads
    cdef bint any_ = False
    while left and thread is not NULL:
        left -= 1
        r.cursor = thread.next
        r.thread = thread
        any_ |= thread_drain(r, thread)
        r.thread = NULL
        thread = r.cursor
    return any_


cdef bint run_events_left(reactor_t *r) noexcept nogil:
    """Run a batch of events, and what was put off; False when there is none."""
    cdef bint any_ = run_events(r, False) > 0 or r.deferred is not NULL or ring_count(r.events) > 0
    run_deferred(r)
    return any_


cdef void run_to_the_end(reactor_t *r) noexcept nogil:
    """Run what is left, let go of the threads, which should have ended before us, and be
    stopped."""
    cdef uint64_t end = ticks_now() + ticks_from_us(EXIT_US)
    while (run_events_left(r) or run_messages_left(r)) and ticks_now() < end:
        pass
    store_relaxed_u32(<uint32_t *>&r.state, REACTOR_STOPPED)
    fence_full()                        # who has not seen that has sent already, as a rule
    while run_events_left(r):
        pass
    while r.threads is not NULL:
        r.dropped += thread_drop(r.threads)
        thread_detach(r.threads)


cdef uint64_t events_drop(reactor_t *r) noexcept:
    """Give back the events that the reactor keeps, and those that came too late; return how many
    events and messages were never run."""
    cdef uint64_t lost = r.dropped
    cdef event_t *event
    while r.spare is not NULL:
        event = r.spare
        r.spare = event.next
        mempool_put(r.pool, <uint32_t>LCORE_NONE, <void **>&event, 1)
    while r.events is not NULL and ring_sc_dequeue(r.events, <void **>&event, 1):
        lost += 1
        if event.pooled:
            mempool_put(r.pool, <uint32_t>LCORE_NONE, <void **>&event, 1)
    return lost
