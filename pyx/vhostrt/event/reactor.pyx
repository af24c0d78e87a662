"""Reactors: one loop per lcore that runs events, the pollers of its threads, and nothing else.

An iteration: up to 8 events; every thread, and of each all its active pollers once; on every
sixth iteration the timed pollers that are due, at most 8 of a thread; then what was deferred to
the end; then the idle policy, if nothing did any work.

Threads:  Python functions here belong to the control thread.
"""
import atexit
import os
import time

from libc.errno cimport EAGAIN, ENODEV, ENOMEM
from libc.stdint cimport uint32_t, uint64_t
from libc.stdio cimport snprintf
from posix.unistd cimport read, write
from vhostrt.base.atomics cimport (fence_full, fetch_add_u64, load_acquire_u32, load_relaxed_u32,
                                   load_relaxed_u64, store_relaxed_u32, store_relaxed_u64,
                                   store_release_u32)
from vhostrt.base.check cimport check, dcheck
from vhostrt.base.errors cimport ok
from vhostrt.base.ticks cimport ticks_from_us, ticks_hz, ticks_now
from vhostrt.env.lcore cimport LCORE_MAX, lcore_current, lcore_launch, lcore_wait
from vhostrt.env.memory cimport env_free, env_zalloc
from vhostrt.env.mempool cimport (mempool_create, mempool_free, mempool_get_one, mempool_put,
                                  mempool_t)
from vhostrt.env.ring cimport (RING_MP_SC, ring_count, ring_create, ring_free, ring_mp_enqueue,
                               ring_sc_dequeue)
from vhostrt.event.timers cimport timers_insert, timers_remove

cdef extern from *:
    """
    static __thread void *vh_reactor;           /* the reactor of this thread */
    """
    void *g_current "vh_reactor"

cdef extern from "vhostrt/event/reactor.h" nogil:
    void wait_fd "vh_wait_fd"(int fd, uint64_t ns)
    void thread_name "vh_thread_name"(const char *name)
    uint32_t gettid "vh_tid"()
    int sched_yield()
    int interrupt_install "vh_interrupt_install"()
    void interrupt_admit "vh_interrupt_admit"()
    int interrupt_tid "vh_interrupt"(uint32_t tid)

cdef enum:
    EVENT_RING_SLOTS = 65536
    EVENT_BATCH = 8
    EVENT_POOL = 16384                  # events that event_call can have waiting, of all reactors
    EVENT_CACHE = 256                   # of them kept by each lcore
    TIMER_ITERATIONS = 6                # timed pollers are looked at this often ...
    TIMER_BATCH = 8                     # ... and so many of a thread run in one look
    YIELD_ITERATIONS = 64               # idle iterations between two yields
    SPIN_US = 1000                      # idle time before a reactor sleeps
    NS_PER_S = 1_000_000_000

IDLE_POLICIES = {"spin": IDLE_SPIN, "yield": IDLE_YIELD, "sleep": IDLE_SLEEP}

cdef reactor_t *g_reactors[LCORE_MAX]   # written by init and fini, with no reactor running
cdef mempool_t *g_events = NULL         # likewise
cdef bint g_prepared = False            # leave_nothing_running was called; control thread


cdef reactor_t *reactor_of(uint32_t lcore) noexcept nogil:
    """Return the reactor of an lcore, or NULL when it has none."""
    return g_reactors[lcore] if lcore < LCORE_MAX else NULL


cdef reactor_t *reactor_current() noexcept nogil:
    """Return the reactor that the calling thread runs, or NULL."""
    return <reactor_t *>g_current


# Events

cdef int event_send(uint32_t lcore, event_t *event) noexcept nogil:
    """Run event.fn(arg1, arg2) on a reactor.  The event is the caller's until it has run.

    0: it will run, or the reactor refuses to end before it has.  -ENODEV: no reactor runs there.
    -EAGAIN: 65535 events are waiting.
    """
    cdef reactor_t *r = reactor_of(lcore)
    cdef uint64_t one = 1
    if r is NULL or load_relaxed_u32(<uint32_t *>&r.state) == REACTOR_STOPPED:
        return -ENODEV
    event.lcore = lcore
    if ring_mp_enqueue(r.events, <void **>&event, 1) == 0:
        fetch_add_u64(&r.events_refused, 1)
        return -EAGAIN
    if r.idle_policy == IDLE_SLEEP:
        # Pairs with the fence in reactor_sleep: one of us sees what the other wrote.
        fence_full()
        if load_relaxed_u32(&r.sleeping):
            check(write(r.wake_fd, &one, sizeof(one)) != 0)
    return 0


cdef int event_call(uint32_t lcore, event_fn fn, void *arg1, void *arg2) noexcept nogil:
    """Run fn(arg1, arg2) on a reactor.  From any thread; FIFO per sender.

    As event_send, and -ENOMEM: the pool of events is empty (counted, as a full ring is).
    """
    cdef reactor_t *r = reactor_of(lcore)
    cdef event_t *event
    cdef int rc
    if r is NULL:
        return -ENODEV
    event = <event_t *>mempool_get_one(g_events, lcore_current())
    if event is NULL:
        fetch_add_u64(&r.events_refused, 1)
        return -ENOMEM
    event.fn = fn
    event.arg1 = arg1
    event.arg2 = arg2
    event.pooled = 1
    rc = event_send(lcore, event)
    if rc < 0:
        mempool_put(g_events, lcore_current(), <void **>&event, 1)
    return rc


cdef inline uint32_t run_events(reactor_t *r) noexcept nogil:
    """Run one batch; an event sent by one of them is not part of it.  Return how many ran."""
    cdef event_t *batch[EVENT_BATCH]
    cdef event_t *event
    cdef uint32_t n, i
    cdef uint32_t pooled = 0
    n = ring_sc_dequeue(r.events, <void **>batch, EVENT_BATCH)
    for i in range(n):
        event = batch[i]
        if event.pooled:
            batch[pooled] = event       # pooled <= i: that slot has been read
            pooled += 1
            event.fn(event.arg1, event.arg2)
        else:
            event.fn(event.arg1, event.arg2)    # the sender may free it at once
    if pooled:
        mempool_put(g_events, r.lcore, <void **>batch, pooled)
    if n:
        store_relaxed_u64(&r.events_run, r.events_run + n)
    return n


# Pollers and threads

cdef void poller_register(thread_t *thread, poller_t *poller, uint64_t period_us) noexcept nogil:
    """Have poller.poll called: in every pass, or every period_us.  On the thread's reactor.

    A period that is less than one tick is none.  The first run of a timed poller is one period
    from now.
    """
    check(poller.state == POLLER_OFF)
    poller.thread = thread
    poller.state = POLLER_WAITING
    poller.period = ticks_from_us(period_us)
    thread.order += 1
    poller.order = thread.order
    if poller.period:
        poller.next_run = ticks_now() + poller.period
        timers_insert(&thread.timers, poller)
        return
    if thread.active is NULL:
        poller.prev = poller.next = poller
        thread.active = poller
    else:                               # at the tail: before the head of the ring
        poller.next = thread.active
        poller.prev = thread.active.prev
        poller.prev.next = poller
        thread.active.prev = poller


cdef void active_remove(thread_t *thread, poller_t *poller) noexcept nogil:
    if thread.cursor is poller:
        thread.cursor = poller.next
    if poller.next is poller:
        thread.active = NULL
        thread.cursor = NULL
        return
    poller.prev.next = poller.next
    poller.next.prev = poller.prev
    if thread.active is poller:
        thread.active = poller.next


cdef void poller_unregister(poller_t *poller) noexcept nogil:
    """Never call poller.poll again; also from inside it.  On the thread's reactor."""
    if poller.state == POLLER_RUNNING:
        poller.state = POLLER_UNREGISTERED      # taken out when it returns
        return
    if poller.state != POLLER_WAITING:
        return
    poller.state = POLLER_OFF
    if poller.period:
        timers_remove(&poller.thread.timers, poller)
    else:
        active_remove(poller.thread, poller)


cdef void thread_attach(reactor_t *reactor, thread_t *thread) noexcept nogil:
    """Poll a thread on this reactor from now on.  On that reactor."""
    check(thread.reactor is NULL)
    thread.reactor = reactor
    if reactor.threads is NULL:
        thread.prev = thread.next = thread
        reactor.threads = thread
    else:
        thread.next = reactor.threads
        thread.prev = reactor.threads.prev
        thread.prev.next = thread
        reactor.threads.prev = thread
    reactor.thread_count += 1


cdef void thread_detach(thread_t *thread) noexcept nogil:
    """Poll a thread no more.  On its reactor, from an event or a deferral, not from its pollers."""
    cdef reactor_t *r = thread.reactor
    check(r is not NULL)
    r.thread_count -= 1
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
    thread.reactor = NULL


cdef inline int poller_run(poller_t *poller) noexcept nogil:
    """Call it once; afterwards its state is WAITING or UNREGISTERED."""
    cdef int rc
    poller.state = POLLER_RUNNING
    rc = poller.poll(poller.arg)
    poller.runs += 1
    if rc > 0:
        poller.busy_runs += 1
    if poller.state == POLLER_RUNNING:
        poller.state = POLLER_WAITING
    return rc > 0


cdef int run_timers(thread_t *thread, uint64_t now) noexcept nogil:
    """Run what is due, up to TIMER_BATCH.  The next run is a period from this look at the clock."""
    cdef poller_t *poller
    cdef int busy = 0
    cdef int left = TIMER_BATCH
    while left and thread.timers is not NULL and thread.timers.next_run <= now:
        left -= 1
        poller = thread.timers
        timers_remove(&thread.timers, poller)
        busy |= poller_run(poller)
        if poller.state == POLLER_UNREGISTERED:
            poller.state = POLLER_OFF
            continue
        poller.next_run = now + poller.period
        timers_insert(&thread.timers, poller)
    return busy


cdef inline int run_active(thread_t *thread) noexcept nogil:
    """Run every active poller once; one that is registered meanwhile waits for the next pass."""
    cdef uint64_t last = thread.order
    cdef uint64_t done = 0              # of the poller that ran last; the ring ascends
    cdef poller_t *poller = thread.active
    cdef int busy = 0
    while poller is not NULL and done < poller.order <= last:
        done = poller.order
        thread.cursor = poller.next
        busy |= poller_run(poller)
        if poller.state == POLLER_UNREGISTERED:
            poller.state = POLLER_OFF
            active_remove(thread, poller)
        poller = thread.cursor
    return busy


cdef inline int run_threads(reactor_t *r, bint timers_too) noexcept nogil:
    """Poll every thread.  Busy time goes to the thread whose poll it ended in."""
    cdef uint32_t left = r.thread_count
    cdef thread_t *thread = r.threads
    cdef int busy = 0
    cdef int did
    cdef uint64_t now
    while left and thread is not NULL:
        left -= 1
        r.cursor = thread.next
        did = run_active(thread)
        if timers_too and thread.timers is not NULL:
            did |= run_timers(thread, r.now)
        if did:
            busy = 1
            now = ticks_now()
            store_relaxed_u64(&thread.busy_ticks, thread.busy_ticks + now - r.accounted)
            r.accounted = now
        thread = r.cursor
    return busy


cdef inline void run_deferred(reactor_t *r) noexcept nogil:
    """Run what was put off to the end of this iteration, and what that puts off in turn."""
    cdef deferred_t *d
    while r.deferred is not NULL:
        d = r.deferred
        r.deferred = d.next
        d.queued = False
        d.run(d.arg)


# The loop

cdef uint64_t sleep_ticks(reactor_t *r) noexcept nogil:
    """How long it may sleep: max_delay, but not past the next timer."""
    cdef uint64_t ticks = r.max_delay
    cdef thread_t *thread = r.threads
    cdef uint32_t left = r.thread_count
    while left:
        left -= 1
        if thread.timers is not NULL:
            if thread.timers.next_run <= r.now:
                return 0
            ticks = min(ticks, thread.timers.next_run - r.now)
        thread = thread.next
    return ticks


cdef void reactor_sleep(reactor_t *r) noexcept nogil:
    """Sleep until an event comes, a timer is due, or max_delay has passed."""
    cdef uint64_t ticks = sleep_ticks(r)
    cdef uint64_t count
    r.timer_countdown = 0               # look at the timers at once afterwards
    if ticks == 0:
        return
    store_relaxed_u32(&r.sleeping, 1)
    # Pairs with the fence in event_send: the sender sees `sleeping`, or we see its event.
    fence_full()
    if ring_count(r.events) == 0:
        wait_fd(r.wake_fd, <uint64_t>(<double>ticks * NS_PER_S / ticks_hz()))
    store_relaxed_u32(&r.sleeping, 0)
    while read(r.wake_fd, &count, sizeof(count)) > 0:   # non-blocking: once, at most twice
        pass


cdef inline void reactor_idle(reactor_t *r) noexcept nogil:
    r.idle_iterations += 1
    if r.idle_policy == IDLE_YIELD:
        if r.idle_iterations % YIELD_ITERATIONS == 0:
            sched_yield()
    elif r.idle_policy == IDLE_SLEEP:
        if r.idle_since == 0:
            r.idle_since = r.now
        if r.now - r.idle_since >= ticks_from_us(SPIN_US):
            reactor_sleep(r)


cdef inline bint reactor_iterate(reactor_t *r) noexcept nogil:
    """One turn of the loop; return whether anything did work."""
    cdef uint64_t now
    cdef bint busy
    cdef bint timers_too = r.timer_countdown == 0
    r.timer_countdown = TIMER_ITERATIONS - 1 if timers_too else r.timer_countdown - 1
    busy = run_events(r) > 0
    busy |= run_threads(r, timers_too)
    if r.deferred is not NULL:
        run_deferred(r)
        busy = True
    now = ticks_now()
    if busy:
        store_relaxed_u64(&r.busy_ticks, r.busy_ticks + now - r.now)
    else:
        store_relaxed_u64(&r.idle_ticks, r.idle_ticks + now - r.now)
    r.accounted = r.now = now
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
    r.now = ticks_now()
    r.accounted = r.now
    store_release_u32(&r.tid, gettid())
    while load_relaxed_u32(<uint32_t *>&r.state) == REACTOR_RUNNING:
        if reactor_iterate(r):
            r.idle_iterations = 0
            r.idle_since = 0
        else:
            reactor_idle(r)
    # Nothing that was taken is dropped: run what is left, and what that sends.
    while run_events(r) or r.deferred is not NULL or ring_count(r.events):
        run_deferred(r)
    g_current = NULL
    store_release_u32(<uint32_t *>&r.state, REACTOR_STOPPED)
    return 0


# The control plane

cdef reactor_t *reactor_new(uint32_t lcore, uint32_t idle_policy, uint64_t max_delay) except NULL:
    cdef int wake_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
    cdef reactor_t *r = <reactor_t *>env_zalloc(sizeof(reactor_t), 64, -1)
    cdef ring_t *events = ring_create(EVENT_RING_SLOTS, RING_MP_SC, -1)
    if r is NULL or events is NULL:
        os.close(wake_fd)
        ring_free(events)
        env_free(r)
        raise MemoryError(f"no memory for the reactor on core {lcore} and its ring of events")
    r.lcore = lcore
    r.idle_policy = idle_policy
    r.max_delay = max_delay
    r.wake_fd = wake_fd
    r.events = events
    return r


def init(lcores, str idle="yield", uint64_t max_delay_us=1000) -> None:
    """Make a reactor for each lcore (int) of `lcores`, not yet running.

    idle: "spin", "yield" or "sleep"; max_delay_us: the longest sleep, microseconds.  MemoryError
    when there is not enough memory; RuntimeError when there are reactors already; ValueError for
    an lcore that cannot be, or comes twice.
    """
    global g_events
    if g_events is not NULL:
        raise RuntimeError("the reactors are already initialised")
    leave_nothing_running()
    if idle not in IDLE_POLICIES:
        raise ValueError(f"idle policy {idle!r} must be one of {', '.join(IDLE_POLICIES)}")
    ok(interrupt_install(), "the signal that interrupts reactors")
    g_events = mempool_create(EVENT_POOL, EVENT_POOL, sizeof(event_t), EVENT_CACHE, -1)
    if g_events is NULL:
        raise MemoryError(f"no memory for {EVENT_POOL} events")
    try:
        for lcore in lcores:
            if not 0 <= lcore < LCORE_MAX or g_reactors[<uint32_t>lcore] is not NULL:
                raise ValueError(f"no reactor can be made for core {lcore}")
            g_reactors[<uint32_t>lcore] = reactor_new(lcore, IDLE_POLICIES[idle],
                                                      ticks_from_us(max_delay_us))
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
    global g_events
    cdef uint32_t i
    for i in range(<uint32_t>LCORE_MAX):
        g_reactors[i] = NULL
    g_events = NULL


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
    """Free the reactors, which have stopped; return how many events were never run (0, unless
    somebody sent to a reactor that was ending)."""
    global g_events
    cdef reactor_t *r
    cdef uint32_t i
    lost = 0
    for i in range(<uint32_t>LCORE_MAX):
        r = g_reactors[i]
        if r is NULL:
            continue
        g_reactors[i] = NULL
        check(load_acquire_u32(<uint32_t *>&r.state) == REACTOR_STOPPED)
        lost += ring_count(r.events)
        os.close(r.wake_fd)
        ring_free(r.events)
        env_free(r)
    if g_events is not NULL:
        mempool_free(g_events)
        g_events = NULL
    return lost


def stats(uint32_t lcore) -> dict:
    """Return the counters of one reactor: ticks busy and idle, iterations, events run and refused,
    tid, thread count.  KeyError when there is no reactor on that lcore."""
    cdef reactor_t *r = reactor_of(lcore)
    if r is NULL:
        raise KeyError(lcore)
    return {"lcore": lcore, "tid": load_relaxed_u32(&r.tid),
            "busy": load_relaxed_u64(&r.busy_ticks), "idle": load_relaxed_u64(&r.idle_ticks),
            "iterations": load_relaxed_u64(<uint64_t *>&r.iterations),
            "events": load_relaxed_u64(&r.events_run),
            "events_refused": load_relaxed_u64(&r.events_refused),
            "threads": load_relaxed_u32(&r.thread_count)}


def iterations(uint32_t lcore) -> int:
    """Return how often the reactor's loop has turned; 0 when there is no reactor."""
    cdef reactor_t *r = reactor_of(lcore)
    return 0 if r is NULL else load_relaxed_u64(<uint64_t *>&r.iterations)


def interrupt(uint32_t lcore) -> None:
    """Have a system call that the reactor is blocked in, if any, fail with EINTR.

    By the watchdog, when a reactor stands still: a hostile client can make the write to a
    descriptor of its own block.  A reactor that is working or asleep only notices a short break.
    """
    cdef reactor_t *r = reactor_of(lcore)
    if r is not NULL and load_acquire_u32(&r.tid):
        ok(interrupt_tid(r.tid), f"interrupt of the reactor on core {lcore}")


def nop(uint32_t lcore) -> int:
    """Send an event that does nothing; 0, or -errno when it is refused.  For tests and tools."""
    return event_call(lcore, nothing, NULL, NULL)


cdef void nothing(void *arg1, void *arg2) noexcept nogil:
    dcheck(reactor_current() is not NULL)
