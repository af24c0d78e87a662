"""Reactors: one loop per lcore that runs events, the pollers of its threads, and nothing else.

Owner:    reactors belong to this module from init() to fini().  Events made by event_call come from
          a pool and go back by themselves; a poller_t or thread_t belongs to who registered it.
Threads:  event_call, event_send: any.  Pollers, threads and deferrals: the owning reactor only.
Fails:    event_call and event_send return -errno when the event was not taken; it is never lost
          silently.
"""
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from vhostrt.base.atomics cimport u64_line
from vhostrt.env.ring cimport ring_t

ctypedef void (*event_fn)(void *arg1, void *arg2) noexcept nogil

cdef struct event_t:
    event_fn fn
    void *arg1
    void *arg2
    uint32_t lcore
    uint32_t pooled             # 1: from the reactor's pool, returned after it ran

ctypedef int (*poll_fn)(void *arg) noexcept nogil
ctypedef void (*disarm_fn)(void *arg) noexcept nogil

cdef enum:
    POLLER_OFF = 0              # registered nowhere
    POLLER_WAITING = 1
    POLLER_RUNNING = 2
    POLLER_UNREGISTERED = 3     # by itself, while running

cdef struct poller_t:
    # Set by the owner before registering.
    poll_fn poll                # > 0: it did work
    poll_fn try_arm             # 0: notifications are on and there is no work; > 0: there is work
    disarm_fn disarm            # notifications off again
    int fd                      # becomes readable when there is work while armed; -1 without
    void *arg
    const char *name
    # The reactor's.
    uint32_t state
    uint64_t period             # ticks; 0 for an active poller
    uint64_t next_run           # ticks
    uint64_t order              # of registration with its thread; equal deadlines keep it
    uint64_t runs
    uint64_t busy_runs
    thread_t *thread
    poller_t *prev              # in the active list, or the heap's left neighbour or parent
    poller_t *next
    poller_t *child             # in the heap of timers

cdef struct thread_t:
    # A light thread: pollers that run, and move, together.
    poller_t *active            # ring of active pollers, by order; NULL when there are none
    poller_t *cursor            # the next to run in the pass under way; follows removals
    uint64_t order              # of the poller registered last
    poller_t *timers            # pairing heap by next_run, then order
    reactor_t *reactor          # NULL while it is on none
    thread_t *prev
    thread_t *next
    uint64_t busy_ticks         # written by the reactor, read relaxed
    uint64_t id
    const char *name

cdef struct deferred_t:
    # Work for the end of the reactor's present iteration.
    deferred_t *next
    void (*run)(void *arg) noexcept nogil
    void *arg
    bint queued

cdef struct reactor_t:
    # Read-mostly.
    ring_t *events
    uint32_t lcore
    uint32_t idle_policy
    uint64_t max_delay          # ticks
    int wake_fd
    # The reactor's own, read relaxed by others.
    u64_line iterations
    thread_t *threads           # ring; NULL when there are none
    thread_t *cursor            # the next to poll in the pass under way; follows removals
    uint32_t thread_count
    deferred_t *deferred
    uint64_t now                # ticks at the end of the last iteration
    uint64_t accounted          # ticks up to which busy time has been given to a thread
    uint64_t busy_ticks
    uint64_t idle_ticks
    uint64_t events_run
    uint32_t timer_countdown
    uint32_t idle_iterations
    uint64_t idle_since         # ticks; 0 while busy
    uint32_t tid
    # Written by others.
    uint32_t launched           # by start, until stop has joined it
    u64_line state
    uint32_t sleeping
    uint64_t events_refused     # the ring or the pool was full

cdef reactor_t *reactor_of(uint32_t lcore) noexcept nogil      # NULL: none there
cdef reactor_t *reactor_current() noexcept nogil               # NULL: not on a reactor
cdef int event_call(uint32_t lcore, event_fn fn, void *arg1, void *arg2) noexcept nogil
cdef int event_send(uint32_t lcore, event_t *event) noexcept nogil
cdef void poller_register(thread_t *thread, poller_t *poller, uint64_t period_us) noexcept nogil
cdef void poller_unregister(poller_t *poller) noexcept nogil
cdef void thread_attach(reactor_t *reactor, thread_t *thread) noexcept nogil
cdef void thread_detach(thread_t *thread) noexcept nogil

cdef enum:
    IDLE_SPIN = 0
    IDLE_YIELD = 1
    IDLE_SLEEP = 2

cdef enum:
    REACTOR_STOPPED = 0
    REACTOR_RUNNING = 1
    REACTOR_EXITING = 2         # leaves the loop once no event is left

cdef inline void reactor_defer(reactor_t *reactor, deferred_t *d) noexcept nogil:
    """Run d.run(d.arg) once at the end of this iteration; nothing when it is queued already."""
    if not d.queued:
        d.queued = True
        d.next = reactor.deferred
        reactor.deferred = d
