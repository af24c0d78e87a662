"""How a reactor without work goes to sleep, and what wakes it.

Going to sleep: say so, a barrier on every thread, look once more for what others may have put
there, ask every poller to arm its notifications, then wait on the descriptors of all of them, on
the reactor's own, and for the next timer.  Who sends puts its message first, then looks whether we
sleep; who wakes us early does no harm.

Descriptors are watched by edges and never read: a client's eventfd cannot hold us in a read.

Threads:  the reactor itself.
"""
from libc.stdint cimport UINT64_MAX, uint32_t, uint64_t
from vhostrt.base.atomics cimport (fence_full, load_relaxed_u32, store_relaxed_u32,
                                   store_relaxed_u64)
from vhostrt.base.check cimport check
from vhostrt.base.ticks cimport ticks_from_us, ticks_hz, ticks_now
from vhostrt.env.ring cimport ring_count
from vhostrt.event.loop_trace cimport REACTOR_SLEEP, REACTOR_WAKE
from vhostrt.event.message cimport has_messages
from vhostrt.event.reactor cimport (IDLE_INTERRUPT, POLLER_OFF, REACTOR_RUNNING, account_idle,
                                    poller_t, reactor_t, thread_t)
from vhostrt.event.trace cimport trace

cdef extern from "vhostrt/event/watch.h" nogil:
    int watch_add "vh_watch_add"(int epoll_fd, int fd)
    void watch_remove "vh_watch_remove"(int epoll_fd, int fd)
    void watch_wait "vh_watch_wait"(int epoll_fd, uint64_t ns)
    int barrier_everywhere "vh_barrier"()

cdef enum:
    NS_PER_S = 1_000_000_000
    SLEEP_S_MOST = 1_000_000_000        # what is further off is never
    SPIN_LEAST_US = 5           # what a reactor goes on at least, once work comes often ...
    SPIN_MOST_US = 200          # ... and at most


# Descriptors

cdef bint watch(reactor_t *r, poller_t *poller) noexcept nogil:
    """Have the poller's descriptor wake its reactor; False when that cannot be."""
    if poller.watched == poller.fd + 1:
        return True
    unwatch(poller)
    if watch_add(r.epoll_fd, poller.fd) < 0:
        return False
    poller.watched = poller.fd + 1
    return True


cdef void unwatch(poller_t *poller) noexcept nogil:
    """Watch a poller's descriptor no more: before the descriptor is closed, or the thread moves."""
    if poller.watched and poller.thread.reactor is not NULL:
        watch_remove(poller.thread.reactor.epoll_fd, poller.watched - 1)
    poller.watched = 0


cdef void poller_set_fd(poller_t *poller, int fd) noexcept nogil:
    """Take another descriptor, -1 for none; the old one may be closed afterwards."""
    if poller.state != POLLER_OFF:
        unwatch(poller)
    poller.fd = fd


# Arming

cdef int arm(reactor_t *r, poller_t *poller) noexcept nogil:
    """0: its descriptor wakes us.  > 0: there is work.  < 0: it has to be polled."""
    cdef int rc
    if poller.try_arm is NULL:
        return -1
    if poller.fd >= 0 and not watch(r, poller):
        return -1
    rc = poller.try_arm(poller.arg)
    poller.armed = rc == 0
    return rc


cdef int arm_thread(reactor_t *r, thread_t *thread) noexcept nogil:
    """0: all of its pollers are armed.  > 0: there is work.  < 0: some have to be polled."""
    cdef poller_t *poller = thread.active
    cdef int rc
    cdef int all_ = 0
    while poller is not NULL:
        rc = arm(r, poller)
        if rc > 0:
            return rc
        all_ |= rc
        poller = poller.next
        if poller is thread.active:
            break
    return all_


cdef int arm_all(reactor_t *r) noexcept nogil:
    """As arm_thread, for every thread."""
    cdef thread_t *thread = r.threads
    cdef int rc
    cdef int all_ = 0
    while thread is not NULL:
        rc = arm_thread(r, thread)
        if rc > 0:
            return rc
        all_ |= rc
        thread = thread.next
        if thread is r.threads:
            break
    return all_


cdef void disarm_thread(thread_t *thread) noexcept nogil:
    cdef poller_t *poller = thread.active
    while poller is not NULL:
        if poller.armed:
            poller.armed = False
            if poller.disarm is not NULL:
                poller.disarm(poller.arg)
        poller = poller.next
        if poller is thread.active:
            break


cdef void disarm_all(reactor_t *r) noexcept nogil:
    cdef thread_t *thread = r.threads
    while thread is not NULL:
        disarm_thread(thread)
        thread = thread.next
        if thread is r.threads:
            break


# Sleeping

cdef bint has_work(reactor_t *r) noexcept nogil:
    """Whether an event or message waits, or the end has been asked for."""
    cdef thread_t *thread = r.threads
    if r.own_first is not NULL or r.deferred is not NULL or ring_count(r.events):
        return True
    if load_relaxed_u32(<uint32_t *>&r.state) != REACTOR_RUNNING:
        return True
    while thread is not NULL:
        if has_messages(thread):
            return True
        thread = thread.next
        if thread is r.threads:
            break
    return False


cdef uint64_t ticks_to_timer(reactor_t *r) noexcept nogil:
    """Ticks until a timed poller is due; UINT64_MAX: there is none."""
    cdef thread_t *thread = r.threads
    cdef uint64_t due = UINT64_MAX
    cdef uint64_t now
    while thread is not NULL:
        due = min(due, thread.timer_due)
        thread = thread.next
        if thread is r.threads:
            break
    if due == UINT64_MAX:
        return due
    now = ticks_now()
    return due - now if due > now else 0


cdef void adapt(reactor_t *r, uint64_t slept) noexcept nogil:
    """Go on longer without work where it comes soon after we have gone to sleep, else shorter."""
    if slept < ticks_from_us(SPIN_MOST_US):
        r.spin = min(max(2 * r.spin, ticks_from_us(SPIN_LEAST_US)), ticks_from_us(SPIN_MOST_US))
    else:
        r.spin //= 2


cdef void wait(reactor_t *r, uint64_t ticks) noexcept nogil:
    """Wait in the kernel, ticks at most."""
    cdef uint64_t before = ticks_now()
    cdef uint64_t ns = UINT64_MAX
    if ticks < ticks_hz() * SLEEP_S_MOST:
        ns = <uint64_t>(<double>ticks * NS_PER_S / ticks_hz())
    trace(REACTOR_SLEEP, r)
    watch_wait(r.epoll_fd, ns)
    trace(REACTOR_WAKE, r)
    store_relaxed_u64(&r.sleeps, r.sleeps + 1)
    account_idle(r, ticks_now())
    if r.idle_policy == IDLE_INTERRUPT:
        adapt(r, r.now - before)


cdef void reactor_sleep(reactor_t *r) noexcept nogil:
    """Sleep until there is something to do; return at once when there is already.

    With IDLE_SLEEP, and where a poller cannot be armed, for max_delay at most.
    """
    cdef uint64_t ticks = ticks_to_timer(r)
    cdef int armed = -1
    r.timer_countdown = 0               # look at the timers at once afterwards
    if ticks == 0:
        return
    store_relaxed_u32(&r.sleeping, 1)
    # Pairs with reactor_wake: it sees `sleeping`, or we see what it was called for.
    if r.fenced:
        fence_full()
    else:
        check(barrier_everywhere() == 0)
    if not has_work(r):
        if r.idle_policy == IDLE_INTERRUPT:
            armed = arm_all(r)
        if armed < 0:
            ticks = min(ticks, r.max_delay)
        if armed <= 0:
            wait(r, ticks)
        disarm_all(r)
    store_relaxed_u32(&r.sleeping, 0)
