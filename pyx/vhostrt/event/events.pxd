"""Events: functions sent to a reactor, to run there once.

Owner:    an event of event_allocate belongs to who allocated it until event_call has taken it; an
          event_t of the caller's own, given to event_send, until it has run.
Threads:  any.  Events of one sender run in their order.
Fails:    NULL or -errno: the event was not taken, and that was counted.  None is lost silently.
"""
from cython cimport unlikely
from libc.errno cimport EAGAIN, ENODEV, ENOMEM
from libc.stdint cimport uint32_t, uint64_t
from vhostrt.base.atomics cimport fetch_add_u64, load_relaxed_u32, store_relaxed_u64
from vhostrt.env.lcore cimport lcore_current
from vhostrt.env.mempool cimport mempool_cache, mempool_get_one, mempool_put
from vhostrt.env.ring cimport ring_mp_enqueue, ring_sc_dequeue
from vhostrt.event.pools cimport pool_low
from vhostrt.event.reactor cimport (EVENT_RING_SLOTS, REACTOR_STOPPED, event_fn, event_t,
                                    reactor_current, reactor_of, reactor_t, reactor_wake)

cdef enum:
    EVENT_BATCH = 8             # events that run in one iteration


cdef inline event_t *event_take(reactor_t *r, uint32_t here) noexcept nogil:
    """Return an event of a reactor's pool; NULL when there is none.  here: the calling lcore."""
    cdef event_t *event
    if unlikely(mempool_cache(r.pool, here) is NULL or mempool_cache(r.pool, here).len == 0):
        pool_low(r.pool)
    event = <event_t *>mempool_get_one(r.pool, here)
    if unlikely(event is NULL):
        fetch_add_u64(&r.events_refused, 1)
    return event


cdef inline int event_push(reactor_t *here, reactor_t *there, event_t *event) noexcept nogil:
    """Have an event run on a reactor.  here: the one that the caller runs on, or NULL.

    0: it will run, or the reactor refuses to end before it has.  -EAGAIN: 65535 are waiting.
    """
    event.lcore = there.lcore
    if here is there:
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


cdef inline bint reactor_takes(reactor_t *r) noexcept nogil:
    """Whether there is a reactor that has not ended."""
    return r is not NULL and load_relaxed_u32(<uint32_t *>&r.state) != REACTOR_STOPPED


cdef inline event_t *event_allocate(uint32_t lcore, event_fn fn, void *arg1,
                                    void *arg2) noexcept nogil:
    """Return an event for the reactor of an lcore, to be given to event_call once.

    NULL: there is no reactor there, or the pool is empty: more are made, so try again later.
    """
    cdef reactor_t *r = reactor_of(lcore)
    cdef event_t *event
    if unlikely(r is NULL):
        return NULL
    event = event_take(r, lcore_current())
    if event is not NULL:
        event.fn = fn
        event.arg1 = arg1
        event.arg2 = arg2
        event.lcore = lcore
        event.pooled = 1
    return event


cdef inline void event_free(event_t *event) noexcept nogil:
    """Give back an event of event_allocate that event_call has not taken."""
    mempool_put(reactor_of(event.lcore).pool, lcore_current(), <void **>&event, 1)


cdef inline int event_send(uint32_t lcore, event_t *event) noexcept nogil:
    """Run event.fn(arg1, arg2) on a reactor.  The event is the caller's until it has run.

    0, -EAGAIN as event_push.  -ENODEV: no reactor runs there.
    """
    cdef reactor_t *r = reactor_of(lcore)
    if unlikely(not reactor_takes(r)):
        return -ENODEV
    return event_push(reactor_current(), r, event)


cdef inline int event_call(event_t *event) noexcept nogil:
    """Have an event of event_allocate run; it goes back to the pool by itself afterwards.

    As event_send; an event that was not taken is still the caller's, to be sent again or freed.
    """
    return event_send(event.lcore, event)


cdef inline int event_call_on(uint32_t lcore, event_fn fn, void *arg1, void *arg2) noexcept nogil:
    """Run fn(arg1, arg2) on a reactor: event_allocate and event_call in one.

    As event_send, and -ENOMEM: the pool of events is empty.
    """
    cdef reactor_t *r = reactor_of(lcore)
    cdef event_t *event
    cdef int rc
    if unlikely(not reactor_takes(r)):
        return -ENODEV
    event = event_allocate(lcore, fn, arg1, arg2)
    if unlikely(event is NULL):
        return -ENOMEM
    rc = event_push(reactor_current(), r, event)
    if unlikely(rc < 0):
        event_free(event)
    return rc


cdef inline uint32_t take_own(reactor_t *r, event_t **batch, uint32_t most) noexcept nogil:
    """Take up to `most` of the events that the reactor has sent to itself; return how many."""
    cdef uint32_t n = 0
    while n < most and r.own_first is not NULL:
        batch[n] = r.own_first
        r.own_first = r.own_first.next
        n += 1
    r.own_count -= n
    return n


cdef inline uint32_t run_events(reactor_t *r) noexcept nogil:
    """Run one batch; an event sent by one of them is not part of it.  Return how many ran.

    Where the reactor's own events and those of others compete, each have half of it.
    """
    cdef event_t *batch[EVENT_BATCH]
    cdef event_t *event
    cdef uint32_t i, n
    cdef uint32_t pooled = 0
    n = ring_sc_dequeue(r.events, <void **>batch,
                        EVENT_BATCH if r.own_count == 0 else EVENT_BATCH // 2)
    if r.own_count:
        n += take_own(r, &batch[n], EVENT_BATCH - n)
        if n < EVENT_BATCH:
            n += ring_sc_dequeue(r.events, <void **>&batch[n], EVENT_BATCH - n)
    for i in range(n):
        event = batch[i]
        if event.pooled:
            batch[pooled] = event       # pooled <= i: that slot has been read
            pooled += 1
            event.fn(event.arg1, event.arg2)
        else:
            event.fn(event.arg1, event.arg2)    # the sender may free it at once
    if pooled:
        mempool_put(r.pool, r.lcore, <void **>batch, pooled)
    if n:
        store_relaxed_u64(&r.events_run, r.events_run + n)
    return n
