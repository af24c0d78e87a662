"""Reactors: one loop per lcore that runs events, the threads on it, and nothing else.

An iteration: up to 8 events; every thread, and of each up to 8 messages, then all its active
pollers once, and in every sixth iteration the timed pollers that are due, at most 8 of a thread;
then what was deferred to the end; then the idle policy, if nothing did any work.  While a thread
has more timed pollers due than ran, the next iteration looks at them again.

Threads:  Python functions here belong to the control thread.
"""
import atexit
import os
import time

from cython cimport unlikely
from libc.stdint cimport UINT64_MAX, uint32_t, uint64_t
from libc.stdio cimport snprintf
from posix.unistd cimport write
from vhostrt.base.atomics cimport (load_acquire_u32, load_relaxed_u32, load_relaxed_u64,
                                   store_relaxed_u32, store_relaxed_u64, store_release_ptr,
                                   store_release_u32)
from vhostrt.base.check cimport check, dcheck
from vhostrt.base.errors cimport ok
from vhostrt.base.pthreads cimport thread_mark
from vhostrt.base.ticks cimport ticks_from_us, ticks_now
from vhostrt.env.lcore cimport LCORE_MAX, lcore_launch, lcore_socket, lcore_wait
from vhostrt.env.memory cimport env_free, env_zalloc
from vhostrt.env.mempool cimport mempool_t
from vhostrt.env.ring cimport RING_MP_SC, ring_create, ring_free
from vhostrt.event.ending cimport events_drop, run_to_the_end
from vhostrt.event.events cimport event_call_on, run_events
from vhostrt.event.loop_trace cimport (REACTOR_ATTACH, REACTOR_DETACH, run_events_traced,
                                       run_messages_traced, trace_busy)
from vhostrt.event.message cimport run_messages
from vhostrt.event.poller cimport run_active, run_timers
from vhostrt.event.pools cimport pool_create, pool_free
from vhostrt.event.trace cimport (TRACE_REACTOR, TRACE_THREAD, trace, trace_any,
                                  trace_owner_by)
from vhostrt.event.watch cimport reactor_sleep, unwatch

from vhostrt.event import pools

cdef extern from *:
    """
    static __thread void *vh_reactor;           /* the reactor of this thread */
    """
    void *g_current "vh_reactor"

cdef extern from "vhostrt/event/reactor.h" nogil:
    void thread_name "vh_thread_name"(const char *name)
    uint32_t gettid "vh_tid"()
    int sched_yield()
    int interrupt_install "vh_interrupt_install"()
    void interrupt_admit "vh_interrupt_admit"()
    int interrupt_tid "vh_interrupt"(uint32_t tid)

cdef extern from "vhostrt/event/watch.h" nogil:
    int watch_open "vh_watch_open"()
    int watch_add "vh_watch_add"(int epoll_fd, int fd)
    int barrier_register "vh_barrier_register"()

cdef enum:
    EVENTS_FIRST = 16384                # events of each node's pool at the start ...
    EVENTS_MAX = 262144                 # ... and of all pools together at the end
    MESSAGES_FIRST = 4096               # messages to threads, likewise
    MESSAGES_MAX = 262144
    TIMER_ITERATIONS = 6                # timed pollers are looked at this often
    YIELD_ITERATIONS = 64               # idle iterations between two yields
    SPIN_US = 1000                      # idle time before a reactor sleeps, with IDLE_SLEEP
    SPIN_FIRST_US = 50                  # likewise at first, with IDLE_INTERRUPT

IDLE_POLICIES = {"spin": IDLE_SPIN, "yield": IDLE_YIELD, "sleep": IDLE_SLEEP,
                 "interrupt": IDLE_INTERRUPT}

at_fini = []                            # called, without arguments, when the reactors are gone

cdef mempool_t *g_messages = NULL       # written by init and fini, with no reactor running
cdef bint g_prepared = False            # leave_nothing_running was called; control thread


cdef reactor_t *reactor_current() noexcept nogil:
    """Return the reactor that the calling thread runs, or NULL."""
    return <reactor_t *>g_current


cdef uint32_t polled_thread() noexcept nogil:
    """Return the id of the light thread that the calling reactor polls, or 0."""
    cdef reactor_t *r = <reactor_t *>g_current
    return 0 if r is NULL or r.thread is NULL else <uint32_t>r.thread.id


cdef mempool_t *reactor_msg_pool() noexcept nogil:
    """Return the pool of messages, or NULL when there are no reactors."""
    return g_messages


cdef void reactor_rouse(reactor_t *r) noexcept nogil:
    """Wake a reactor from its sleep.  Any thread, and signal handlers."""
    cdef uint64_t one = 1
    check(write(r.wake_fd, &one, sizeof(one)) != 0)


# Threads

cdef void thread_init(thread_t *thread) noexcept nogil:
    """Make a thread whose memory is zeroed ready for messages and pollers."""
    thread.timer_due = UINT64_MAX
    thread.msg_head = &thread.stub
    thread.msg_tail = <uint64_t>&thread.stub


cdef void thread_attach(reactor_t *r, thread_t *thread) noexcept nogil:
    """Poll a thread on this reactor from now on.  On that reactor."""
    cdef uint64_t now = ticks_now()
    check(thread.reactor is NULL)
    if thread.msg_head is NULL:
        thread_init(thread)
    # What has gone by since the last look at the clock is not the thread's work.
    store_relaxed_u64(&r.busy_ticks, r.busy_ticks + now - r.now)
    r.now = now
    store_relaxed_u64(&thread.since, now)
    # Release: who sends to the thread now finds us, and what it sent before is looked at.
    store_release_ptr(&thread.reactor, r)
    if r.threads is NULL:
        thread.prev = thread.next = thread
        r.threads = thread
    else:
        thread.next = r.threads
        thread.prev = r.threads.prev
        thread.prev.next = thread
        r.threads.prev = thread
    store_relaxed_u32(&r.thread_count, r.thread_count + 1)
    trace(REACTOR_ATTACH, thread, 0, thread.id)


cdef void unwatch_all(poller_t *first) noexcept nogil:
    """Have this reactor's sleep no longer watch the pollers of a ring."""
    cdef poller_t *poller = first
    while poller is not NULL:
        unwatch(poller)
        poller = poller.next
        if poller is first:
            break


cdef void thread_detach(thread_t *thread) noexcept nogil:
    """Poll a thread no more.  On its reactor, from an event or a deferral, not from its pollers.

    Its messages wait in it until it is attached again.
    """
    cdef reactor_t *r = thread.reactor
    check(r is not NULL and r.thread is not thread)
    trace(REACTOR_DETACH, thread, 0, thread.id)
    unwatch_all(thread.active)
    unwatch_all(thread.paused)
    store_relaxed_u32(&r.thread_count, r.thread_count - 1)
    if r.cursor is thread:
        r.cursor = thread.next
    if thread.next is thread:
        r.threads = NULL
        r.cursor = NULL
    else:
        thread.prev.next = thread.next
        thread.next.prev = thread.prev
        if r.threads is thread:
            r.threads = thread.next
    store_relaxed_u64(&thread.lived, thread.lived + ticks_now() - thread.since)
    store_relaxed_u64(&thread.since, 0)
    store_release_ptr(&thread.reactor, NULL)


# The loop

cdef inline bint run_thread(reactor_t *r, thread_t *thread, bint timers_too) noexcept nogil:
    """Poll one thread; return whether it did any work."""
    cdef bint busy
    r.thread = thread
    busy = (run_messages_traced(r, thread) if unlikely(r.traced)
            else run_messages(r, thread, False)) > 0
    busy |= run_active(thread)
    if timers_too and thread.timer_due <= r.now:
        busy |= run_timers(thread, r.now)
        if thread.timer_due <= r.now:
            r.timer_countdown = 0       # more are due than one look runs: look again at once
    r.thread = NULL
    return busy


cdef inline bint run_threads(reactor_t *r, bint timers_too) noexcept nogil:
    """Poll every thread.  Busy time goes to the thread whose poll it ended in."""
    cdef uint32_t left = r.thread_count
    cdef thread_t *thread = r.threads
    cdef uint64_t accounted = r.now
    cdef uint64_t now
    cdef bint busy = False
    while left and thread is not NULL:
        left -= 1
        r.cursor = thread.next
        if run_thread(r, thread, timers_too):
            busy = True
            now = ticks_now()
            store_relaxed_u64(&thread.busy_ticks, thread.busy_ticks + now - accounted)
            if unlikely(r.traced):
                trace_busy(r, thread, now - accounted)
            r.stamp = accounted = now
        thread = r.cursor
    return busy


cdef inline void account(reactor_t *r, bint busy) noexcept nogil:
    """Count the time since the last look at the clock as busy or idle.

    To read the clock costs as much as an event, so it is read when it is needed: not while one busy
    iteration follows another, but when timers are due for a look; and not when a thread has just
    been accounted.
    """
    cdef uint64_t now = r.stamp
    cdef bint was_busy = r.busy
    r.busy = busy
    if now == 0:
        if busy and was_busy and r.timer_countdown:
            return
        now = ticks_now()
    if busy or was_busy:
        store_relaxed_u64(&r.busy_ticks, r.busy_ticks + now - r.now)
    else:
        store_relaxed_u64(&r.idle_ticks, r.idle_ticks + now - r.now)
    r.now = now


cdef inline void reactor_idle(reactor_t *r) noexcept nogil:
    r.idle_iterations += 1
    if r.idle_policy == IDLE_SPIN:
        return
    if r.idle_policy == IDLE_YIELD:
        if r.idle_iterations % YIELD_ITERATIONS == 0:
            sched_yield()
            account_idle(r, ticks_now())
        return
    if r.idle_since == 0:
        r.idle_since = r.now
    if r.now - r.idle_since >= r.spin:
        reactor_sleep(r)


cdef inline bint reactor_iterate(reactor_t *r) noexcept nogil:
    """One turn of the loop; return whether anything did work."""
    cdef bint busy
    cdef bint timers_too = r.timer_countdown == 0
    r.timer_countdown = TIMER_ITERATIONS - 1 if timers_too else r.timer_countdown - 1
    r.stamp = 0
    if timers_too:
        r.traced = trace_any(TRACE_REACTOR) or trace_any(TRACE_THREAD)
    busy = (run_events_traced(r) if unlikely(r.traced) else run_events(r, False)) > 0
    busy |= run_threads(r, timers_too)
    if r.deferred is not NULL:
        run_deferred(r)                 # in time that goes to what does work next
        busy = True
    account(r, busy)
    store_relaxed_u64(<uint64_t *>&r.iterations, r.iterations + 1)
    return busy


cdef int reactor_loop(void *arg) noexcept nogil:
    """The lcore's function.  Without bound: it ends when the control thread says so."""
    global g_current
    cdef reactor_t *r = <reactor_t *>arg
    cdef char name[16]
    snprintf(name, sizeof(name), "reactor_%u", r.lcore)
    thread_name(name)
    interrupt_admit()
    g_current = r
    store_relaxed_u64(&r.mark, thread_mark())
    r.now = ticks_now()
    store_release_u32(&r.tid, gettid())
    while load_relaxed_u32(<uint32_t *>&r.state) == REACTOR_RUNNING:
        if reactor_iterate(r):
            r.idle_iterations = 0
            r.idle_since = 0
        else:
            reactor_idle(r)
    run_to_the_end(r)
    g_current = NULL
    store_relaxed_u64(&r.mark, 0)
    return 0


# The control plane

cdef void reactor_free(reactor_t *r) noexcept:
    if r is not NULL:
        if r.wake_fd >= 0:
            os.close(r.wake_fd)
        if r.epoll_fd >= 0:
            os.close(r.epoll_fd)
        ring_free(r.events)
        env_free(r)


cdef reactor_t *reactor_new(uint32_t lcore, str idle, uint64_t max_delay) except NULL:
    cdef reactor_t *r = <reactor_t *>env_zalloc(sizeof(reactor_t), 64, lcore_socket(lcore))
    if r is NULL:
        r = <reactor_t *>env_zalloc(sizeof(reactor_t), 64, -1)
    if r is NULL:
        raise MemoryError(f"no memory for the reactor on core {lcore}")
    r.wake_fd = r.epoll_fd = -1
    r.lcore = lcore
    r.node = lcore_socket(lcore)
    r.max_delay = max_delay
    set_policy(r, IDLE_POLICIES[idle])
    try:
        r.wake_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        r.epoll_fd = ok(watch_open(), f"epoll of the reactor on core {lcore}")
        ok(watch_add(r.epoll_fd, r.wake_fd), f"epoll of the reactor on core {lcore}")
        r.events = ring_create(EVENT_RING_SLOTS, RING_MP_SC, r.node)
        if r.events is NULL:
            r.events = ring_create(EVENT_RING_SLOTS, RING_MP_SC, -1)
        if r.events is NULL:
            raise MemoryError(f"no memory for the events of the reactor on core {lcore}")
    except BaseException:
        reactor_free(r)
        raise
    return r


cdef void set_policy(reactor_t *r, uint32_t policy) noexcept nogil:
    """On the reactor, or before it runs."""
    store_relaxed_u32(&r.idle_policy, policy)
    r.spin = ticks_from_us(SPIN_FIRST_US if policy == IDLE_INTERRUPT else SPIN_US)


cdef int make_pools(list nodes) except -1:
    """Give every reactor its node's pool of events, and all the pool of messages."""
    global g_messages
    cdef mempool_t *pool
    g_messages = pool_create(MESSAGES_FIRST, MESSAGES_MAX, sizeof(msg_t), -1)
    for node in nodes:
        pool = pool_create(EVENTS_FIRST, EVENTS_MAX // len(nodes), sizeof(event_t), node)
        for lcore in lcores():
            if g_reactors[<uint32_t>lcore].node == node:
                g_reactors[<uint32_t>lcore].pool = pool
                g_reactors[<uint32_t>lcore].msg_pool = g_messages
    return 0


def init(lcores, str idle="yield", uint64_t max_delay_us=1000) -> None:
    """Make a reactor for each lcore (int) of `lcores`, not yet running.

    idle: "spin", "yield", "sleep" or "interrupt"; max_delay_us: the longest sleep while somebody
    has to be polled, microseconds.  MemoryError when there is not enough memory; RuntimeError when
    there are reactors already; ValueError for an lcore that cannot be, or comes twice.
    """
    if g_messages is not NULL:
        raise RuntimeError("the reactors are already initialised")
    leave_nothing_running()
    if idle not in IDLE_POLICIES:
        raise ValueError(f"idle policy {idle!r} must be one of {', '.join(IDLE_POLICIES)}")
    ok(interrupt_install(), "the signal that interrupts reactors")
    cdef bint fenced = barrier_register() < 0
    nodes = set()
    try:
        for lcore in lcores:
            if not 0 <= lcore < LCORE_MAX or g_reactors[<uint32_t>lcore] is not NULL:
                raise ValueError(f"no reactor can be made for core {lcore}")
            g_reactors[<uint32_t>lcore] = reactor_new(lcore, idle, ticks_from_us(max_delay_us))
            g_reactors[<uint32_t>lcore].fenced = fenced
            nodes.add(g_reactors[<uint32_t>lcore].node)
        make_pools(sorted(nodes))
    except BaseException:
        fini()
        raise


def leave_nothing_running() -> None:
    """Once a process: stop the reactors before Python goes away, and let a forked child, which has
    none of their threads, do without them."""
    global g_prepared
    if not g_prepared:
        atexit.register(stop)
        os.register_at_fork(after_in_child=forget)
        g_prepared = True


def forget() -> None:
    """In a forked child: there are no reactors here, and their memory was not inherited."""
    global g_messages
    cdef uint32_t i
    for i in range(<uint32_t>LCORE_MAX):
        g_reactors[i] = NULL
    g_messages = NULL
    pools.forget()


def lcores() -> list:
    """Return the lcores (int) that have a reactor, ascending."""
    cdef uint32_t i
    return [i for i in range(<uint32_t>LCORE_MAX) if g_reactors[i] is not NULL]


def start() -> None:
    """Run every reactor on its lcore.  Returns when all are in their loops.

    OSError when an lcore cannot take it; stop() then ends those that run.
    """
    cdef reactor_t *r
    cdef int rc
    for lcore in lcores():
        r = g_reactors[<uint32_t>lcore]
        store_relaxed_u32(<uint32_t *>&r.state, REACTOR_RUNNING)
        rc = lcore_launch(lcore, reactor_loop, r)
        if rc < 0:
            store_relaxed_u32(<uint32_t *>&r.state, REACTOR_STOPPED)
            ok(rc, f"start of the reactor on core {lcore}")
        r.launched = 1
    for lcore in lcores():
        while load_acquire_u32(&g_reactors[<uint32_t>lcore].tid) == 0:
            time.sleep(0.0001)


cdef int join(uint32_t lcore) except -1:
    cdef int rc
    cdef int answer = 0
    with nogil:
        rc = lcore_wait(lcore, &answer)
    return ok(rc, f"join of the reactor on core {lcore}")


def stop() -> None:
    """End every reactor once its events have run, and join them.  Blocks without the GIL: call it
    on a helper thread while the control thread's loop goes on answering."""
    cdef uint64_t one = 1
    cdef reactor_t *r
    for lcore in lcores():
        r = g_reactors[<uint32_t>lcore]
        if load_relaxed_u32(<uint32_t *>&r.state) == REACTOR_RUNNING:
            store_release_u32(<uint32_t *>&r.state, REACTOR_EXITING)
            os.eventfd_write(r.wake_fd, one)
    for lcore in lcores():
        r = g_reactors[<uint32_t>lcore]
        if r.launched:
            join(lcore)
            r.launched = 0


def fini() -> int:
    """Free the reactors, which have stopped; return how many events and messages were never run (0,
    unless somebody sent to a reactor that was ending)."""
    global g_messages
    cdef reactor_t *r
    cdef uint32_t i
    lost = 0
    for i in range(<uint32_t>LCORE_MAX):
        r = g_reactors[i]
        if r is NULL:
            continue
        check(load_acquire_u32(<uint32_t *>&r.state) == REACTOR_STOPPED)
        lost += events_drop(r)
        g_reactors[i] = NULL
        free_pool_of(r)
        reactor_free(r)
    pool_free(g_messages)
    g_messages = NULL
    for each in at_fini:
        each()
    return lost


cdef void free_pool_of(reactor_t *r) noexcept:
    """Free a reactor's pool of events when no other reactor has it too."""
    cdef uint32_t i
    for i in range(<uint32_t>LCORE_MAX):
        if g_reactors[i] is not NULL and g_reactors[i].pool is r.pool:
            return
    pool_free(r.pool)


def stats(uint32_t lcore) -> dict:
    """Return the counters of one reactor: ticks busy and idle, iterations, events run and refused,
    tid, thread count, how often it slept and whether it sleeps in interrupt mode now.  KeyError
    when there is no reactor on that lcore."""
    cdef reactor_t *r = reactor_of(lcore)
    if r is NULL:
        raise KeyError(lcore)
    return {"lcore": lcore, "tid": load_relaxed_u32(&r.tid),
            "busy": load_relaxed_u64(&r.busy_ticks), "idle": load_relaxed_u64(&r.idle_ticks),
            "iterations": load_relaxed_u64(<uint64_t *>&r.iterations),
            "events": load_relaxed_u64(&r.events_run),
            "events_refused": load_relaxed_u64(&r.events_refused),
            "threads": load_relaxed_u32(&r.thread_count),
            "sleeps": load_relaxed_u64(&r.sleeps),
            "in_interrupt": (load_relaxed_u32(&r.idle_policy) == IDLE_INTERRUPT
                             and load_relaxed_u32(&r.sleeping) == 1)}


def iterations(uint32_t lcore) -> int:
    """Return how often the reactor's loop has turned; 0 when there is no reactor."""
    cdef reactor_t *r = reactor_of(lcore)
    return 0 if r is NULL else load_relaxed_u64(<uint64_t *>&r.iterations)


def interrupt(uint32_t lcore) -> None:
    """Have a system call that the reactor is blocked in, if any, fail with EINTR.

    By the watchdog, when a reactor stands still: a hostile client can make the write to a
    descriptor of its own block.  A reactor that is working only notices a short break; one that
    sleeps is left alone.
    """
    cdef reactor_t *r = reactor_of(lcore)
    if r is not NULL and load_acquire_u32(&r.tid) \
            and not load_relaxed_u32(&r.sleeping):
        ok(interrupt_tid(r.tid), f"interrupt of the reactor on core {lcore}")


def nop(uint32_t lcore) -> int:
    """Send an event that does nothing; 0, or -errno when it is refused.  For tests and tools."""
    return event_call_on(lcore, nothing, NULL, NULL)


cdef void nothing(void *arg1, void *arg2) noexcept nogil:
    dcheck(reactor_current() is not NULL)


cdef void change_policy(void *arg1, void *arg2) noexcept nogil:
    set_policy(reactor_current(), <uint32_t><uint64_t>arg1)


def set_idle(uint32_t lcore, str idle not None) -> None:
    """Give a running reactor another idle policy (as init).  ValueError, KeyError, OSError."""
    if idle not in IDLE_POLICIES:
        raise ValueError(f"idle policy {idle!r} must be one of {', '.join(IDLE_POLICIES)}")
    cdef uint64_t policy = IDLE_POLICIES[idle]
    if reactor_of(lcore) is NULL:
        raise KeyError(lcore)
    ok(event_call_on(lcore, change_policy, <void *>policy, NULL), f"idle policy of core {lcore}")


def idle_of(uint32_t lcore) -> str:
    """Return the idle policy of a reactor.  KeyError when there is none on that lcore."""
    cdef reactor_t *r = reactor_of(lcore)
    if r is NULL:
        raise KeyError(lcore)
    return next(name for name, n in IDLE_POLICIES.items() if n == load_relaxed_u32(&r.idle_policy))


trace_owner_by(polled_thread)
