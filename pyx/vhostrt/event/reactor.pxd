"""Reactors: one loop per lcore that runs events, the threads on it, and nothing else.

Owner:    reactors belong to this module from init() to fini(); a poller_t, thread_t, deferred_t or
          event_t belongs to who made it, and to the reactor while it is registered or on its way.
Threads:  reactor_of, reactor_current, reactor_wake: any.  Threads, pollers and deferrals: the
          reactor that they are on.
"""
from libc.stdint cimport uint32_t, uint64_t
from vhostrt.base.atomics cimport (fence_full, fence_signal, load_relaxed_u32, load_relaxed_u64,
                                   store_relaxed_u64, u32_line, u64_line)
from vhostrt.base.pthreads cimport thread_mark
from vhostrt.env.lcore cimport LCORE_MAX
from vhostrt.env.mempool cimport mempool_t
from vhostrt.env.ring cimport ring_t
from vhostrt.event.post cimport control_node_t

ctypedef void (*event_fn)(void *arg1, void *arg2) noexcept nogil

cdef struct event_t:
    event_fn fn
    void *arg1
    void *arg2
    event_t *next               # among those that the reactor has sent to itself, or keeps
    reactor_t *reactor          # where it runs
    uint32_t pooled             # 1: from the pool of that reactor, returned after it ran

ctypedef void (*msg_fn)(void *ctx) noexcept nogil

cdef struct msg_t:
    # A message to a thread.
    msg_t *next
    msg_fn fn
    void *ctx
    uint32_t pooled             # 1: from the pool of messages, returned after it ran

ctypedef int (*poll_fn)(void *arg) noexcept nogil
ctypedef void (*disarm_fn)(void *arg) noexcept nogil

cdef enum:
    POLLER_OFF = 0              # registered nowhere
    POLLER_WAITING = 1
    POLLER_RUNNING = 2
    POLLER_UNREGISTERED = 3     # while running
    POLLER_PAUSED = 4
    POLLER_PAUSING = 5          # while running

cdef struct poller_t:
    # Set by the owner before registering.
    poll_fn poll                # > 0: it did work
    # 0: notifications are on and there is no work; > 0: there is work; < 0, or NULL: it cannot
    # tell, and has to be polled.
    poll_fn try_arm
    disarm_fn disarm            # notifications off again; NULL: nothing to do
    int fd                      # becomes readable when there is work while armed; -1 without
    void *arg
    const char *name
    # The reactor's.
    uint32_t state
    bint armed
    int watched                 # the descriptor in the reactor's epoll set, and one more; 0: none
    uint64_t period             # ticks; 0 for an active poller
    uint64_t next_run           # ticks
    uint64_t order              # of its registration, or of its deadline among equal ones
    uint64_t runs
    uint64_t busy_runs
    thread_t *thread
    poller_t *prev              # in its list, or the heap's left neighbour or parent
    poller_t *next
    poller_t *child             # in the heap of timers
    lane_t *lane                # of the timers, that it lies in; NULL: in the heap
    uint64_t id                 # among those of its thread, from its registration on

cdef enum:
    TIMER_LANES = 4

cdef struct lane_t:
    # Timed pollers of one period, by deadline: each one that has run goes to the end.
    uint64_t period             # ticks; 0: the lane is free
    poller_t *first
    poller_t *last

cdef struct thread_t:
    # A light thread: messages and pollers that run, and move, together.
    poller_t *active            # ring of active pollers, by order; NULL when there are none
    poller_t *cursor            # the next to run in the pass under way; follows removals
    uint64_t order              # given to a poller last
    uint64_t timer_due          # the earliest deadline of a timed poller; UINT64_MAX: none
    poller_t *timers            # pairing heap, by deadline, of those without a lane
    uint32_t lane_count         # of them that have been used
    lane_t lanes[TIMER_LANES]
    poller_t *paused            # ring; NULL when there are none
    uint64_t poller_ids         # given to a poller last
    uint32_t active_count       # pollers of each kind; read relaxed by others
    uint32_t timed_count
    uint32_t paused_count
    reactor_t *reactor          # NULL while it is on none; read by senders of messages
    uint32_t exiting            # 1: takes no messages of others any more; the control thread's
    uint32_t holds              # answers that it waits for itself, before it can end; its own
    void *channels              # io_channel_t *: its I/O channels; see iochannel
    thread_t *prev
    thread_t *next
    msg_t *msg_head             # the oldest message, taken already, or the stub
    uint64_t busy_ticks         # these are written by the reactor, read relaxed
    uint64_t lived              # ticks on reactors before the present one
    uint64_t since              # ticks; when it came to the present one; 0: it is on none
    uint64_t messages           # that it has run
    uint64_t id
    const char *name
    control_node_t *control     # of the control thread's own, which is on no reactor; else NULL
    # Written by senders.
    u64_line msg_tail           # msg_t *: the newest message
    void *critical              # msg_fn: the message that a signal handler may send
    msg_t stub

cdef struct deferred_t:
    # Work for the end of the reactor's present iteration.
    deferred_t *next
    void (*run)(void *arg) noexcept nogil
    void *arg
    bint queued

cdef struct reactor_t:
    # Read-mostly.
    ring_t *events
    mempool_t *pool             # of events, on this reactor's NUMA node
    mempool_t *msg_pool         # of messages, of all reactors
    uint32_t lcore
    uint32_t idle_policy        # IDLE_*
    uint32_t fenced             # 1: who sends to it has to fence (there is no membarrier)
    int node
    uint64_t max_delay          # ticks
    uint64_t mark               # thread_mark of its pthread, while that runs the loop; else 0
    int wake_fd                 # eventfd
    int epoll_fd
    # The reactor's own, read relaxed by others.
    u64_line iterations
    thread_t *threads           # ring; NULL when there are none
    thread_t *cursor            # the next to poll in the pass under way; follows removals
    thread_t *thread            # the one that is being polled
    uint32_t thread_count
    deferred_t *deferred
    bint traced                 # points of the loop are on, as of the last look at the timers
    event_t *own_first          # events to itself, oldest first
    event_t *own_last
    uint32_t own_count
    event_t *spare              # events of its pool that it keeps for those
    uint32_t spare_count
    uint64_t now                # ticks up to which its time has been accounted
    uint64_t stamp              # ticks, when a thread was accounted in this iteration; else 0
    bint busy                   # the last iteration did work
    uint64_t busy_ticks
    uint64_t idle_ticks
    uint64_t events_run
    uint32_t timer_countdown
    uint32_t idle_iterations
    uint64_t idle_since         # ticks; 0 while busy
    uint64_t spin               # ticks that it goes on without work before it sleeps
    uint64_t sleeps
    uint32_t tid
    # Written by others.
    uint32_t launched           # by start, until stop has joined it
    u64_line state
    uint64_t events_refused     # the ring or the pool was full
    uint64_t dropped            # messages that had not run at the end; its own
    # Written seldom, when it goes to sleep, and read by everybody who sends.
    u32_line sleeping

cdef enum:
    EVENT_RING_SLOTS = 65536

cdef enum:
    IDLE_SPIN = 0
    IDLE_YIELD = 1
    IDLE_SLEEP = 2
    IDLE_INTERRUPT = 3

cdef enum:
    REACTOR_STOPPED = 0         # takes nothing
    REACTOR_RUNNING = 1
    REACTOR_EXITING = 2         # runs what is left, and what that sends

# Written by init and fini, with no reactor running.
cdef reactor_t *g_reactors[LCORE_MAX]

cdef reactor_t *reactor_current() noexcept nogil               # NULL: not on a reactor
cdef mempool_t *reactor_msg_pool() noexcept nogil              # NULL: there are no reactors
cdef void reactor_rouse(reactor_t *reactor) noexcept nogil
cdef void thread_init(thread_t *thread) noexcept nogil
cdef void thread_attach(reactor_t *reactor, thread_t *thread) noexcept nogil
cdef void thread_detach(thread_t *thread) noexcept nogil


cdef inline reactor_t *reactor_of(uint32_t lcore) noexcept nogil:
    """Return the reactor of an lcore, or NULL when it has none."""
    return g_reactors[lcore] if lcore < LCORE_MAX else NULL


cdef inline bint reactor_is_here(reactor_t *reactor) noexcept nogil:
    """Whether the caller runs on a reactor: as reactor_current, which is a call, would tell."""
    return load_relaxed_u64(&reactor.mark) == thread_mark()


cdef inline void reactor_wake(reactor_t *reactor) noexcept nogil:
    """After something was put where the reactor finds it: wake it if it sleeps.  Any thread."""
    # Pairs with the barrier in reactor_sleep: one of us sees what the other wrote.
    if reactor.fenced:
        fence_full()
    else:
        fence_signal()
    if load_relaxed_u32(&reactor.sleeping):
        reactor_rouse(reactor)


cdef inline void account_idle(reactor_t *reactor, uint64_t now) noexcept nogil:
    """Count the time since the last look at the clock as idle: the kernel had it.

    Otherwise it would be busy time of what is found to do next.
    """
    store_relaxed_u64(&reactor.idle_ticks, reactor.idle_ticks + now - reactor.now)
    reactor.now = now


cdef inline void reactor_defer(reactor_t *reactor, deferred_t *d) noexcept nogil:
    """Run d.run(d.arg) once at the end of this iteration; nothing when it is queued already."""
    if not d.queued:
        d.queued = True
        d.next = reactor.deferred
        reactor.deferred = d


cdef inline void reactor_defer_last(reactor_t *reactor, deferred_t *d) noexcept nogil:
    """As reactor_defer, behind all that is put off so far."""
    cdef deferred_t **end = &reactor.deferred
    if not d.queued:
        while end[0] is not NULL:
            end = &end[0].next
        d.queued = True
        d.next = NULL
        end[0] = d


cdef inline void run_deferred(reactor_t *reactor) noexcept nogil:
    """Run what was put off to the end of this iteration, and what that puts off in turn."""
    cdef deferred_t *d
    while reactor.deferred is not NULL:
        d = reactor.deferred
        reactor.deferred = d.next
        d.queued = False
        d.run(d.arg)
