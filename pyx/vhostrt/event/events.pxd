"""Events: functions sent to a reactor, to run there once.

Owner:    an event of event_allocate belongs to who allocated it until event_call has taken it; an
          event_t of the caller's own, given to event_send, until it has run.
Threads:  any.  Events of one sender run in their order.
Fails:    NULL or -errno: the event was not taken, and that was counted.  None is lost silently.
"""
from cython cimport likely, unlikely
from libc.errno cimport EAGAIN, ENODEV, ENOMEM
from libc.stdint cimport uint32_t, uint64_t
from vhostrt.base.atomics cimport fetch_add_u64, load_relaxed_u32, store_relaxed_u64
from vhostrt.env.lcore cimport LCORE_NONE
from vhostrt.env.mempool cimport mempool_cache, mempool_cache_t, mempool_get_one, mempool_put
from vhostrt.env.ring cimport ring_count, ring_mp_enqueue, ring_sc_dequeue
from vhostrt.event.loop_trace cimport traced_event
from vhostrt.event.pools cimport pool_low
from vhostrt.event.reactor cimport (EVENT_RING_SLOTS, REACTOR_STOPPED, event_fn, event_t,
                                    reactor_current, reactor_is_here, reactor_of, reactor_t,
                                    reactor_wake)

cdef enum:
    EVENT_BATCH = 8             # events that run in one iteration
    EVENT_SPARE = 256           # that a reactor keeps for those to itself


cdef inline bint reactor_takes(reactor_t *r) noexcept nogil:
    """Whether there is a reactor that has not ended."""
    return r is not NULL and load_relaxed_u32(<uint32_t *>&r.state) != REACTOR_STOPPED


cdef inline reactor_t *reactor_here(reactor_t *there) noexcept nogil:
    """Return the reactor that the caller runs on, which may be `there`, or NULL."""
    return there if reactor_is_here(there) else reactor_current()


cdef inline event_t *event_from_pool(reactor_t *here, reactor_t *there) noexcept nogil:
    """Return an event of a reactor's pool; NULL when there is none."""
    cdef uint32_t lcore = here.lcore if here is not NULL else <uint32_t>LCORE_NONE
    cdef mempool_cache_t *cache = mempool_cache(there.pool, lcore)
    cdef event_t *event
    if unlikely(cache is NULL or cache.len == 0):
        pool_low(there.pool)
    event = <event_t *>mempool_get_one(there.pool, lcore)
    if unlikely(event is NULL):
        fetch_add_u64(&there.events_refused, 1)
        return NULL
    event.reactor = there
    event.pooled = 1
    return event


cdef inline event_t *event_take(reactor_t *here, reactor_t *there, event_fn fn, void *arg1,
                                void *arg2) noexcept nogil:
    """Return an event for a reactor; NULL when there is none."""
    cdef event_t *event
    if here is there and there.spare is not NULL:
        event = there.spare
        there.spare = event.next
        there.spare_count -= 1
    else:
        event = event_from_pool(here, there)
        if unlikely(event is NULL):
            return NULL
    event.fn = fn
    event.arg1 = arg1
    event.arg2 = arg2
    return event


cdef inline int event_push(event_t *event) noexcept nogil:
    """Have an event run on event.reactor.

    0: it will run, or the reactor refuses to end before it has.  -EAGAIN: 65535 are waiting.
    """
    cdef reactor_t *there = event.reactor
    if reactor_is_here(there):
        # Only we look at these, so nothing has to be atomic.
        if unlikely(there.own_count >= EVENT_RING_SLOTS - 1):
            fetch_add_u64(&there.events_refused, 1)
            return -EAGAIN
        event.next = NULL
        if there.own_first is NULL:
            there.own_first = event
        else:
            there.own_last.next = event
        there.own_last = event
        there.own_count += 1
        return 0
    if unlikely(ring_mp_enqueue(there.events, <void **>&event, 1) == 0):
        fetch_add_u64(&there.events_refused, 1)
        return -EAGAIN
    reactor_wake(there)
    return 0


cdef inline event_t *event_allocate(uint32_t lcore, event_fn fn, void *arg1,
                                    void *arg2) noexcept nogil:
    """Return an event for the reactor of an lcore, to be given to event_call once.

    NULL: there is no reactor there, or the pool is empty: more are made, so try again later.
    """
    cdef reactor_t *there = reactor_of(lcore)
    if unlikely(there is NULL):
        return NULL
    return event_take(reactor_here(there), there, fn, arg1, arg2)


cdef inline void event_free(event_t *event) noexcept nogil:
    """Give back an event of event_allocate that event_call has not taken."""
    cdef reactor_t *here = reactor_current()
    mempool_put(event.reactor.pool, here.lcore if here is not NULL else <uint32_t>LCORE_NONE,
                <void **>&event, 1)


cdef inline int event_send(uint32_t lcore, event_t *event) noexcept nogil:
    """Run event.fn(arg1, arg2) on a reactor.  The event is the caller's until it has run.

    0, -EAGAIN as event_push.  -ENODEV: no reactor runs there.
    """
    event.reactor = reactor_of(lcore)
    if unlikely(not reactor_takes(event.reactor)):
        return -ENODEV
    return event_push(event)


cdef inline int event_call(event_t *event) noexcept nogil:
    """Have an event of event_allocate run; it goes back to the pool by itself afterwards.

    As event_send; an event that was not taken is still the caller's, to be sent again or freed.
    """
    if unlikely(not reactor_takes(event.reactor)):
        return -ENODEV
    return event_push(event)


cdef inline int event_call_on(uint32_t lcore, event_fn fn, void *arg1, void *arg2) noexcept nogil:
    """Run fn(arg1, arg2) on a reactor: event_allocate and event_call in one.

    As event_send, and -ENOMEM: the pool of events is empty.
    """
    cdef reactor_t *there = reactor_of(lcore)
    cdef event_t *event
    cdef int rc
    if unlikely(not reactor_takes(there)):
        return -ENODEV
    event = event_take(reactor_here(there), there, fn, arg1, arg2)
    if unlikely(event is NULL):
        return -ENOMEM
    rc = event_push(event)
    if unlikely(rc < 0):
        event_free(event)
    return rc


cdef inline void event_keep(reactor_t *r, event_t *event) noexcept nogil:
    """Keep an event of the reactor's pool that has run, or give it back when there are enough."""
    if likely(r.spare_count < EVENT_SPARE):
        event.next = r.spare
        r.spare = event
        r.spare_count += 1
    else:
        mempool_put(r.pool, r.lcore, <void **>&event, 1)


cdef inline void event_run(reactor_t *r, event_t *event, bint traced) noexcept nogil:
    cdef uint32_t pooled = event.pooled
    if traced:
        traced_event(event)
        if pooled:
            event_keep(r, event)
    elif likely(pooled):
        event.fn(event.arg1, event.arg2)
        event_keep(r, event)
    else:
        event.fn(event.arg1, event.arg2)        # the sender may free it at once


cdef inline uint32_t run_own(reactor_t *r, uint32_t n, bint traced) noexcept nogil:
    """Run the first n events of the reactor's own list, which has as many; return n."""
    cdef event_t *event
    cdef uint32_t left = n
    while left:
        left -= 1
        event = r.own_first
        r.own_first = event.next
        r.own_count -= 1
        event_run(r, event, traced)
    return n


cdef inline uint32_t run_sent(reactor_t *r, uint32_t most, bint traced) noexcept nogil:
    """Run up to `most` of the events that others have sent; return how many."""
    cdef event_t *batch[EVENT_BATCH]
    cdef uint32_t n = ring_sc_dequeue(r.events, <void **>batch, most)
    cdef uint32_t i
    for i in range(n):
        event_run(r, batch[i], traced)
    return n


cdef inline uint32_t run_events(reactor_t *r, bint traced) noexcept nogil:
    """Run one batch; an event sent by one of them is not part of it.  Return how many ran.

    Where the reactor's own events and those of others compete, each have half of it.  traced: a
    constant; what is True is in a function of its own, run_events_traced.
    """
    cdef uint32_t own = r.own_count
    cdef uint32_t n
    if own == 0:
        n = run_sent(r, EVENT_BATCH, traced)
    else:
        n = run_sent(r, EVENT_BATCH // 2, traced) if ring_count(r.events) else 0
        n += run_own(r, min(own, EVENT_BATCH - n), traced)
    if n:
        store_relaxed_u64(&r.events_run, r.events_run + n)
    return n
