"""What a light thread has done, and which pollers it has, for people who look at it.

Counters are read relaxed.  Lists are walked by the reactor that the thread is on, in an event, and
copied into a record of bounded size: a reactor is not kept long, however many pollers there are.

Threads:  the control thread.
Source:   thread_get_stats, thread_get_pollers.
"""
from libc.errno cimport EAGAIN
from libc.stdint cimport uint32_t, uint64_t
from libc.stdio cimport snprintf
from libc.stdlib cimport calloc, free
from vhostrt.base.atomics cimport load_acquire_ptr, load_relaxed_u32
from vhostrt.event.control cimport call_on, call_t
from vhostrt.event.reactor cimport (POLLER_PAUSED, POLLER_PAUSING, POLLER_RUNNING,
                                    POLLER_UNREGISTERED, POLLER_WAITING, poller_t, reactor_t,
                                    thread_t)
from vhostrt.event.thread cimport Thread

cdef enum:
    NOTES = 1024                # pollers of a thread that are told of
    NAME = 48                   # bytes of a name, with its end
    ACTIVE = 0
    TIMED = 1
    PAUSED = 2

STATES = {POLLER_WAITING: "waiting", POLLER_RUNNING: "running",
          POLLER_UNREGISTERED: "unregistered", POLLER_PAUSED: "paused", POLLER_PAUSING: "pausing"}
LISTS = {ACTIVE: "active_pollers", TIMED: "timed_pollers", PAUSED: "paused_pollers"}

cdef struct note_t:
    char name[NAME]
    uint64_t id
    uint64_t runs
    uint64_t busy_runs
    uint64_t period
    uint32_t state
    uint32_t kind               # ACTIVE, TIMED or PAUSED

cdef struct snapshot_t:
    thread_t *thread
    uint32_t count
    note_t notes[NOTES]


# On the reactor

cdef void note(snapshot_t *s, poller_t *poller, uint32_t kind) noexcept nogil:
    cdef note_t *n = &s.notes[s.count]
    s.count += 1
    if poller.name is not NULL:
        snprintf(n.name, NAME, "%s", poller.name)
    else:
        snprintf(n.name, NAME, "%p", <void *>poller.poll)
    n.id = poller.id
    n.runs = poller.runs
    n.busy_runs = poller.busy_runs
    n.period = poller.period
    n.state = poller.state
    n.kind = kind


cdef void note_ring(snapshot_t *s, poller_t *first, uint32_t kind) noexcept nogil:
    cdef poller_t *poller = first
    while poller is not NULL and s.count < NOTES:
        note(s, poller, kind)
        poller = poller.next if poller.next is not first else NULL


cdef void note_heap(snapshot_t *s, poller_t *root) noexcept nogil:
    """In any order: down to the first child, else to the right, else up until there is a right.

    A sibling's prev is its left neighbour, whose next it is; a first child's is its parent.
    """
    cdef poller_t *poller = root
    while poller is not NULL and s.count < NOTES:
        note(s, poller, TIMED)
        if poller.child is not NULL:
            poller = poller.child
            continue
        while poller is not NULL and poller.next is NULL:
            while poller.prev is not NULL and poller.prev.next is poller:
                poller = poller.prev
            poller = poller.prev
        if poller is not NULL:
            poller = poller.next


cdef int take(call_t *call) noexcept nogil:
    """Copy what there is.  -EAGAIN: the thread is on another reactor, or on none."""
    cdef snapshot_t *s = <snapshot_t *>call.arg
    cdef poller_t *poller
    cdef uint32_t i
    # Where it is not, others may be moving it.
    if load_acquire_ptr(&s.thread.reactor) != <void *>call.event.reactor:
        return -EAGAIN
    note_ring(s, s.thread.active, ACTIVE)
    for i in range(s.thread.lane_count):
        poller = s.thread.lanes[i].first
        while poller is not NULL and s.count < NOTES:
            note(s, poller, TIMED)
            poller = poller.next
    note_heap(s, s.thread.timers)
    note_ring(s, s.thread.paused, PAUSED)
    return 0


# On the control thread

cdef class Snapshot:
    cdef snapshot_t *s

    def __cinit__(self, Thread light not None):
        self.s = <snapshot_t *>calloc(1, sizeof(snapshot_t))
        if self.s is NULL:
            raise MemoryError
        self.s.thread = light.t

    def __dealloc__(self):
        free(self.s)


cdef dict described(note_t *n):
    made = {"name": n.name.decode("utf-8", "replace"), "id": n.id,
            "state": STATES.get(n.state, "off"), "run_count": n.runs, "busy_count": n.busy_runs}
    if n.period:
        made["period_ticks"] = n.period
    return made


async def pollers(Thread light not None) -> dict:
    """Return lists of dicts, active_pollers, timed_pollers and paused_pollers, of a light thread.

    At most 1024 pollers of it; "left_out" says how many more there are, when there are any.  None
    of a thread that runs nowhere.
    """
    cdef Snapshot shot
    cdef reactor_t *r
    cdef uint32_t i
    found = {name: [] for name in LISTS.values()}
    while True:
        r = <reactor_t *>load_acquire_ptr(&light.t.reactor)
        if r is NULL:
            return found
        shot = Snapshot(light)
        if await call_on(r.lcore, take, shot.s, (shot, light)) == 0:
            break
    for i in range(shot.s.count):
        found[LISTS[shot.s.notes[i].kind]].append(described(&shot.s.notes[i]))
    there = sum(counts(light).values())
    if there > shot.s.count == NOTES:
        found["left_out"] = there - shot.s.count
    return found


def counts(Thread light not None) -> dict:
    """Return how many pollers of each kind a light thread has."""
    return {"active_pollers_count": load_relaxed_u32(&light.t.active_count),
            "timed_pollers_count": load_relaxed_u32(&light.t.timed_count),
            "paused_pollers_count": load_relaxed_u32(&light.t.paused_count)}
