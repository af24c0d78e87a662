"""Pollers of a light thread: the active ones in a ring, the timed ones by deadline.

Owner:    a poller_t belongs to who registered it, and stays where it is until it is unregistered.
Threads:  the reactor that the thread is on, from events, messages, deferrals and pollers.
Fails:    never; what makes no sense in a poller's state does nothing.  To register one that is
          registered already is a defect of the caller's, and ends the process.
"""
from cython cimport likely, unlikely
from libc.stdint cimport UINT64_MAX, uint32_t, uint64_t
from vhostrt.base.atomics cimport store_relaxed_u64
from vhostrt.base.ticks cimport ticks_now
from vhostrt.event.reactor cimport (POLLER_RUNNING, POLLER_WAITING, lane_t, poller_t, thread_t)

cdef enum:
    TIMER_BATCH = 8             # timed pollers of a thread that run in one look

cdef void poller_register(thread_t *thread, poller_t *poller, uint64_t period_us) noexcept nogil
cdef void poller_unregister(poller_t *poller) noexcept nogil
cdef void poller_pause(poller_t *poller) noexcept nogil
cdef void poller_resume(poller_t *poller) noexcept nogil
cdef void poller_set_period(poller_t *poller, uint64_t period_us) noexcept nogil
cdef void poller_settle(poller_t *poller, uint64_t now) noexcept nogil
cdef void active_remove(thread_t *thread, poller_t *poller) noexcept nogil
cdef void timer_take(thread_t *thread, poller_t *poller) noexcept nogil
cdef void lane_insert(lane_t *lane, poller_t *poller) noexcept nogil
cdef void lane_remove(lane_t *lane, poller_t *poller) noexcept nogil


cdef inline bint poller_run(poller_t *poller) noexcept nogil:
    """Call it once; afterwards its state says whether it has to be settled."""
    cdef int rc
    poller.state = POLLER_RUNNING
    rc = poller.poll(poller.arg)
    store_relaxed_u64(&poller.runs, poller.runs + 1)
    if rc > 0:
        store_relaxed_u64(&poller.busy_runs, poller.busy_runs + 1)
    return rc > 0


cdef inline bint run_active(thread_t *thread) noexcept nogil:
    """Run every active poller once; one that is registered meanwhile waits for the next pass."""
    cdef uint64_t last = thread.order
    cdef uint64_t done = 0              # of the poller that ran last; the ring ascends
    cdef poller_t *poller = thread.active
    cdef bint busy = False
    while poller is not NULL and done < poller.order <= last:
        done = poller.order
        thread.cursor = poller.next
        busy |= poller_run(poller)
        if unlikely(poller.state != POLLER_RUNNING or poller.period != 0):
            active_remove(thread, poller)
            poller_settle(poller, ticks_now())
        else:
            poller.state = POLLER_WAITING
        poller = thread.cursor
    return busy


cdef inline bint earlier(const poller_t *a, const poller_t *b) noexcept nogil:
    """Whether a is due before b; of equal deadlines the one that was set first is."""
    if a.next_run != b.next_run:
        return a.next_run < b.next_run
    return a.order < b.order


cdef inline poller_t *timers_first(thread_t *thread) noexcept nogil:
    """Return the timed poller that is due first, or NULL."""
    cdef poller_t *best = thread.timers
    cdef poller_t *first
    cdef uint32_t i
    for i in range(thread.lane_count):
        first = thread.lanes[i].first
        if first is not NULL and (best is NULL or earlier(first, best)):
            best = first
    return best


cdef inline void lane_rotate(thread_t *thread, poller_t *poller, uint64_t now) noexcept nogil:
    """Give a poller that has just run, nearly always the first of its lane, its next deadline, and
    its place, nearly always the last."""
    cdef lane_t *lane = poller.lane
    thread.order += 1
    poller.order = thread.order
    poller.next_run = now + poller.period
    if lane.last is poller and poller.prev is NULL:
        return
    if likely(lane.first is poller and lane.last.next_run <= poller.next_run):
        lane.first = poller.next
        lane.first.prev = NULL
        lane.last.next = poller
        poller.prev = lane.last
        poller.next = NULL
        lane.last = poller
    else:
        lane_remove(lane, poller)
        lane_insert(lane, poller)


cdef inline bint run_timers(thread_t *thread, uint64_t now) noexcept nogil:
    """Run what is due, the earliest first, up to TIMER_BATCH; return whether one did work.

    The next run is one period from this look at the clock (`now`, ticks).
    """
    cdef poller_t *poller = timers_first(thread)
    cdef bint busy = False
    cdef int left = TIMER_BATCH
    while left and poller is not NULL and poller.next_run <= now:
        left -= 1
        busy |= poller_run(poller)
        if poller.state == POLLER_RUNNING and poller.lane is not NULL \
                and poller.lane.period == poller.period:
            poller.state = POLLER_WAITING
            lane_rotate(thread, poller, now)
        else:
            timer_take(thread, poller)
            poller_settle(poller, now)
        poller = timers_first(thread)
    thread.timer_due = UINT64_MAX if poller is NULL else poller.next_run
    return busy
