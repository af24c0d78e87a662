"""When a driver is interrupted: at once, at most so often, or when enough has been done.

What was done is always shown to the driver at once; only the interrupt waits.  Whatever else
happens, a timer of the queue's thread ends the wait, also that of a reactor that sleeps; stop and
move, and a ring that breaks, end it before.

By rate, as SPDK does it: every 10 ms the requests since the last look are compared with the
threshold.  At most that many: no delay.  More: delay_base * (requests - threshold) / threshold,
here 10 ms at most, between two interrupts.

By itself: while requests are in flight, more answers come soon.  So the interrupt waits until a
quarter of those that were under way is done, or nothing is in flight, or 20 us have passed.  With
up to four under way that is at once.

Source:   SPDK lib/vhost, vhost_controller_set_coalescing.
"""
from cython cimport likely
from libc.stdint cimport uint32_t, uint64_t
from vhostrt.base.ticks cimport ticks_from_us, ticks_now
from vhostrt.event.poller cimport poller_register, poller_unregister
from vhostrt.vhost.queue cimport coalesce_t, queue_call, queue_t

cdef enum:
    WINDOW_US = 10_000          # SPDK_VHOST_STATS_CHECK_INTERVAL_MS
    AUTO_US = 20                # what an interrupt waits at most
    AUTO_PART = 4


cdef void coalesce_init(queue_t *q) noexcept nogil:
    """The queue begins on its thread: interrupt at once until something else is set."""
    q.when.timer.poll = timer_poll
    q.when.timer.arg = q
    q.when.timer.fd = -1
    q.when.timer.name = q.poller.name


cdef void call_now(queue_t *q) noexcept nogil:
    q.when.waiting = False
    q.when.called = q.answered
    queue_call(q)


cdef inline bint enough(const queue_t *q, uint64_t done) noexcept nogil:
    """Whether what was done since the last interrupt is worth one, while others are in flight."""
    return q.inflight == 0 or done * AUTO_PART >= done + q.inflight


cdef void look_at_rate(queue_t *q, uint64_t now) noexcept nogil:
    """At the end of a window: set the delay."""
    cdef coalesce_t *when = &q.when
    cdef uint64_t length = ticks_from_us(WINDOW_US)
    cdef uint64_t passed = now - when.window
    cdef uint64_t requests
    if passed < length:
        return
    # Below 2^32 times below 2^32 ticks.
    requests = <uint64_t>(q.answered - when.answered) * length // passed
    when.delay = 0
    if requests > when.threshold:
        when.delay = min(when.base * (requests - when.threshold) // when.threshold, length)
    when.window = now
    when.answered = q.answered


cdef void wait_until(queue_t *q, uint64_t due) noexcept nogil:
    """Put an interrupt off; the timer stays until it finds that nothing waits."""
    if not q.when.waiting:
        q.when.waiting = True
        q.when.due = due
    if not q.when.timed:
        q.when.timed = True
        poller_register(q.poller.thread, &q.when.timer, q.when.period_us)


cdef void coalesce_signal(queue_t *q) noexcept nogil:
    """The driver, who was shown what is done, wants an interrupt, or waits for one: now or later.
    """
    cdef coalesce_t *when = &q.when
    cdef uint64_t now
    if likely(when.mode == COALESCE_OFF):
        queue_call(q)
    elif when.mode == COALESCE_AUTO:
        if enough(q, q.answered - when.called):
            call_now(q)
        else:
            now = ticks_now()
            if when.waiting and now >= when.due:
                call_now(q)
            else:
                wait_until(q, now + ticks_from_us(AUTO_US))
    else:
        now = ticks_now()
        look_at_rate(q, now)
        if when.delay == 0 or now >= when.due:
            when.due = now + when.delay
            call_now(q)
        else:
            wait_until(q, when.due)


cdef int timer_poll(void *arg) noexcept nogil:
    """End a wait that is over; end the timer when nothing waits."""
    cdef queue_t *q = <queue_t *>arg
    cdef uint64_t now
    if not q.when.waiting:
        stop_timer(q)
        return 0
    now = ticks_now()
    if now < q.when.due:
        return 0
    q.when.due = now + q.when.delay
    call_now(q)
    return 1


cdef void stop_timer(queue_t *q) noexcept nogil:
    if q.when.timed:
        q.when.timed = False
        poller_unregister(&q.when.timer)


cdef void coalesce_flush(queue_t *q) noexcept nogil:
    """Send the interrupt that waits, and end the timer."""
    stop_timer(q)
    if q.when.waiting:
        call_now(q)


cdef void coalesce_set(const coalescing_t *c) noexcept nogil:
    """Take another way; what waits by the last one is sent."""
    cdef queue_t *q = c.q
    coalesce_flush(q)
    q.when.mode = c.mode
    q.when.called = q.when.answered = q.answered
    q.when.base = ticks_from_us(c.delay_base_us)
    q.when.threshold = <uint64_t>c.iops_threshold * WINDOW_US // 1_000_000
    q.when.period_us = AUTO_US if c.mode == COALESCE_AUTO else max(c.delay_base_us, <uint32_t>1)
    q.when.delay = q.when.due = 0
    q.when.window = ticks_now()


# On the control thread

MODES = {"off": COALESCE_OFF, "rate": COALESCE_RATE, "auto": COALESCE_AUTO}


cdef uint32_t coalesce_mode(str mode) except? 99:
    """Return the number of a mode.  KeyError."""
    return MODES[mode]
