"""Pollers of a light thread: the active ones in a ring, the timed ones by deadline.

Most timed pollers share a period with others.  Those of one period lie in a lane, in which the one
that has just run goes to the end, so that a turn costs the same however many there are.  Periods
that find no lane free share a pairing heap.

Threads:  the reactor that the thread is on.
"""
from libc.stdint cimport uint32_t, uint64_t
from vhostrt.base.atomics cimport store_relaxed_u32
from vhostrt.base.check cimport check
from vhostrt.base.ticks cimport ticks_from_us, ticks_now
from vhostrt.event.reactor cimport (POLLER_OFF, POLLER_PAUSED, POLLER_PAUSING, POLLER_RUNNING,
                                    POLLER_UNREGISTERED, POLLER_WAITING, TIMER_LANES, lane_t,
                                    poller_t, thread_t)
from vhostrt.event.timers cimport timers_insert, timers_remove
from vhostrt.event.watch cimport unwatch


# Rings, of active and of paused pollers

cdef void ring_append(poller_t **head, poller_t *poller) noexcept nogil:
    if head[0] is NULL:
        poller.prev = poller.next = poller
        head[0] = poller
        return
    poller.next = head[0]
    poller.prev = head[0].prev
    poller.prev.next = poller
    head[0].prev = poller


cdef void ring_remove(poller_t **head, poller_t *poller) noexcept nogil:
    if poller.next is poller:
        head[0] = NULL
    else:
        poller.prev.next = poller.next
        poller.next.prev = poller.prev
        if head[0] is poller:
            head[0] = poller.next
    poller.prev = poller.next = NULL


cdef void active_append(thread_t *thread, poller_t *poller) noexcept nogil:
    """Put a poller at the end of the active ones."""
    thread.order += 1
    poller.order = thread.order
    ring_append(&thread.active, poller)
    store_relaxed_u32(&thread.active_count, thread.active_count + 1)


cdef void active_remove(thread_t *thread, poller_t *poller) noexcept nogil:
    """Take an active poller out of the ring, and the pass under way past it."""
    store_relaxed_u32(&thread.active_count, thread.active_count - 1)
    if thread.cursor is poller:
        thread.cursor = poller.next if poller.next is not poller else NULL
    ring_remove(&thread.active, poller)
    if thread.active is NULL:
        thread.cursor = NULL


cdef void paused_append(thread_t *thread, poller_t *poller) noexcept nogil:
    poller.state = POLLER_PAUSED
    ring_append(&thread.paused, poller)
    store_relaxed_u32(&thread.paused_count, thread.paused_count + 1)


cdef void paused_remove(thread_t *thread, poller_t *poller) noexcept nogil:
    ring_remove(&thread.paused, poller)
    store_relaxed_u32(&thread.paused_count, thread.paused_count - 1)


# Timed pollers

cdef lane_t *lane_for(thread_t *thread, uint64_t period) noexcept nogil:
    """Return the lane of a period, one that has been free until now, or NULL: all are taken."""
    cdef lane_t *empty = NULL
    cdef lane_t *lane
    cdef uint32_t i
    for i in range(thread.lane_count):
        lane = &thread.lanes[i]
        if lane.first is NULL:
            empty = lane
        elif lane.period == period:
            return lane
    if empty is NULL and thread.lane_count < TIMER_LANES:
        empty = &thread.lanes[thread.lane_count]
        thread.lane_count += 1
    if empty is not NULL:
        empty.period = period
    return empty


cdef void lane_insert(lane_t *lane, poller_t *poller) noexcept nogil:
    """Put a poller behind all that are due no later: nearly always the end."""
    cdef poller_t *before = lane.last
    while before is not NULL and before.next_run > poller.next_run:
        before = before.prev
    poller.prev = before
    poller.next = lane.first if before is NULL else before.next
    if poller.next is NULL:
        lane.last = poller
    else:
        poller.next.prev = poller
    if before is NULL:
        lane.first = poller
    else:
        before.next = poller


cdef void lane_remove(lane_t *lane, poller_t *poller) noexcept nogil:
    if poller.prev is NULL:
        lane.first = poller.next
    else:
        poller.prev.next = poller.next
    if poller.next is NULL:
        lane.last = poller.prev
    else:
        poller.next.prev = poller.prev
    poller.prev = poller.next = NULL


cdef void timer_put(thread_t *thread, poller_t *poller) noexcept nogil:
    """Have a timed poller, whose next_run is set, wait for its deadline."""
    thread.order += 1
    poller.order = thread.order
    poller.lane = lane_for(thread, poller.period)
    if poller.lane is NULL:
        timers_insert(&thread.timers, poller)
    else:
        lane_insert(poller.lane, poller)
    thread.timer_due = min(thread.timer_due, poller.next_run)
    store_relaxed_u32(&thread.timed_count, thread.timed_count + 1)


cdef void timer_take(thread_t *thread, poller_t *poller) noexcept nogil:
    """Take a timed poller out of its lane or the heap.  thread.timer_due may be too early then,
    which costs a look."""
    if poller.lane is NULL:
        timers_remove(&thread.timers, poller)
    else:
        lane_remove(poller.lane, poller)
        poller.lane = NULL
    store_relaxed_u32(&thread.timed_count, thread.timed_count - 1)


# A poller's life

cdef void place(thread_t *thread, poller_t *poller, uint64_t now) noexcept nogil:
    """Have it wait for its turn: in the ring, or until a period from now."""
    poller.state = POLLER_WAITING
    if poller.period:
        poller.next_run = now + poller.period
        timer_put(thread, poller)
    else:
        active_append(thread, poller)


cdef void displace(poller_t *poller) noexcept nogil:
    """Take a poller that waits out of where it does."""
    if poller.period:
        timer_take(poller.thread, poller)
    else:
        active_remove(poller.thread, poller)


cdef void poller_settle(poller_t *poller, uint64_t now) noexcept nogil:
    """After a run in which its state or period was changed; it lies nowhere."""
    if poller.state == POLLER_UNREGISTERED:
        poller.state = POLLER_OFF
        unwatch(poller)
    elif poller.state == POLLER_PAUSING:
        paused_append(poller.thread, poller)
    else:
        place(poller.thread, poller, now)


cdef void poller_register(thread_t *thread, poller_t *poller, uint64_t period_us) noexcept nogil:
    """Have poller.poll called: in every pass, or every period_us microseconds.

    A period that is less than one tick is none.  The first run of a timed poller is one period
    from now.  In the registering thread's present pass it does not run yet.  From inside it, after
    it was unregistered there, it is registered anew, on the same thread.
    """
    if poller.state == POLLER_UNREGISTERED:
        check(poller.thread is thread)
        poller.state = POLLER_RUNNING
        poller_set_period(poller, period_us)
        return
    check(poller.state == POLLER_OFF)           # else it would lie in two places
    poller.thread = thread
    poller.period = ticks_from_us(period_us)
    poller.armed = False
    poller.watched = 0
    poller.lane = NULL
    thread.poller_ids += 1
    poller.id = thread.poller_ids
    place(thread, poller, ticks_now())


cdef void poller_unregister(poller_t *poller) noexcept nogil:
    """Never call poller.poll again; also from inside it.  Again is nothing."""
    if poller.state == POLLER_RUNNING or poller.state == POLLER_PAUSING:
        poller.state = POLLER_UNREGISTERED      # taken out when it returns
        return
    if poller.state == POLLER_WAITING:
        displace(poller)
    elif poller.state == POLLER_PAUSED:
        paused_remove(poller.thread, poller)
    else:
        return
    poller.state = POLLER_OFF
    unwatch(poller)


cdef void poller_pause(poller_t *poller) noexcept nogil:
    """Do not call poller.poll until poller_resume; also from inside it."""
    if poller.state == POLLER_RUNNING:
        poller.state = POLLER_PAUSING
    elif poller.state == POLLER_WAITING:
        displace(poller)
        paused_append(poller.thread, poller)


cdef void poller_resume(poller_t *poller) noexcept nogil:
    """End a pause: a timed poller runs one period from now."""
    if poller.state == POLLER_PAUSING:
        poller.state = POLLER_RUNNING
    elif poller.state == POLLER_PAUSED:
        paused_remove(poller.thread, poller)
        place(poller.thread, poller, ticks_now())


cdef void poller_set_period(poller_t *poller, uint64_t period_us) noexcept nogil:
    """Change the period, 0 for an active poller; the next run is one period from now, or from the
    look that it runs in."""
    cdef bint waits = poller.state == POLLER_WAITING
    if poller.state == POLLER_OFF or poller.state == POLLER_UNREGISTERED:
        return
    if waits:
        displace(poller)
    poller.period = ticks_from_us(period_us)
    if waits:
        place(poller.thread, poller, ticks_now())
