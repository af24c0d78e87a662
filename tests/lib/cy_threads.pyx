"""Light threads for tests, and what they have to do there: notes, walks, pollers that look whether
they are run as they should, a reactor that takes nothing."""
import time

from cpython.pycapsule cimport PyCapsule_New
from libc.stdint cimport uint32_t, uint64_t, uintptr_t
from libc.stdlib cimport calloc, free
from vhostrt.base.atomics cimport (exchange_u32, fetch_add_u32, load_acquire_u32, load_relaxed_u32,
                                   store_release_u32)
from vhostrt.event.control cimport call_on, call_t, thread_current
from vhostrt.event.events cimport event_call_on, event_send
from vhostrt.event.message cimport thread_send_critical, thread_send_msg
from vhostrt.event.poller cimport (poller_pause, poller_register, poller_resume, poller_unregister)
from vhostrt.event.reactor cimport (EVENT_RING_SLOTS, deferred_t, event_t, poller_t,
                                    reactor_current, reactor_defer, thread_t)
from vhostrt.event.thread cimport Thread, thread_call
from vhostrt.event.walk cimport for_each_thread

cdef extern from "<sched.h>" nogil:
    int sched_yield()

cdef enum:
    NOTES = 64


# What tests have light threads do.

cdef struct seen_t:
    uint32_t count
    uint64_t ids[NOTES]         # of the threads that it ran on
    uint32_t cores[NOTES]
    uint32_t ended
    uint64_t ended_on
    int rc
    thread_t *other


cdef void note(void *ctx) noexcept nogil:
    cdef seen_t *s = <seen_t *>ctx
    cdef uint32_t i = s.count
    if i < NOTES:
        s.ids[i] = thread_current().id if thread_current() is not NULL else 0
        s.cores[i] = reactor_current().lcore if reactor_current() is not NULL else 99
    store_release_u32(&s.count, i + 1)


cdef int noted(void *ctx) noexcept nogil:
    note(ctx)
    return 42


cdef void note_end(void *ctx) noexcept nogil:
    cdef seen_t *s = <seen_t *>ctx
    s.ended_on = thread_current().id
    store_release_u32(&s.ended, s.ended + 1)


cdef int do_walk(void *ctx) noexcept nogil:
    return for_each_thread(note, ctx, note_end)


cdef int walk_quietly(void *ctx) noexcept nogil:
    return for_each_thread(note, ctx, NULL)


cdef int send_to_self(void *ctx) noexcept nogil:
    return thread_send_msg(thread_current(), note, ctx)


cdef int send_to_other(void *ctx) noexcept nogil:
    return thread_send_msg((<seen_t *>ctx).other, note, ctx)


cdef int in_event(call_t *call) noexcept nogil:
    return do_walk(call.arg)


cdef class Seen:
    """What functions have left a note of."""
    cdef seen_t s

    def __len__(self):
        return load_acquire_u32(&self.s.count)

    @property
    def ids(self):
        return [self.s.ids[i] for i in range(min(len(self), NOTES))]

    @property
    def cores(self):
        return [self.s.cores[i] for i in range(min(len(self), NOTES))]

    @property
    def ended(self):
        return load_acquire_u32(&self.s.ended), self.s.ended_on

    def call(self, Thread light, what="note"):
        cdef uintptr_t fn = {"note": <uintptr_t>noted, "walk": <uintptr_t>do_walk,
                             "walk quietly": <uintptr_t>walk_quietly,
                             "send to self": <uintptr_t>send_to_self,
                             "send": <uintptr_t>send_to_other}[what]
        return thread_call(light, <int (*)(void *) noexcept nogil>fn, &self.s, self)

    @property
    def address(self):
        return <uintptr_t>&self.s

    def to(self, Thread other):
        self.s.other = other.t
        return self

    def send(self, Thread light):
        return thread_send_msg(light.t, note, &self.s)

    def send_critical(self, Thread light):
        return thread_send_critical(light.t, critical)

    @staticmethod
    def criticals():
        """How many critical messages have run."""
        return load_acquire_u32(&g_critical)

    def call_in_event(self, core):
        return call_on(core, in_event, &self.s, self)

    def walk_here(self):
        """On the control thread, as app_thread."""
        return do_walk(&self.s)


cdef uint32_t g_critical = 0


cdef void critical(void *ctx) noexcept nogil:
    fetch_add_u32(&g_critical, 1)


def capsule(bytes signature=b"int (void *)"):
    """A function that leaves a note in the Seen at an address, and answers 42."""
    cdef const char *name = NULL
    if signature is not None:
        g_signatures.append(signature)
        name = signature
    return PyCapsule_New(<void *>noted, name, NULL)


cdef list g_signatures = []             # a capsule does not copy its name


def current():
    """The id of the light thread that the caller is; None: it is none."""
    return None if thread_current() is NULL else thread_current().id


def walk():
    """What for_each_thread answers the caller."""
    return for_each_thread(note, NULL, NULL)


# Pollers

cdef struct poller_state_t:
    poller_t poller             # first
    poller_t fillers[8]         # timed ones of other periods, so that no lane is left
    thread_t *thread
    uint32_t inside             # 1 in the poll function
    uint32_t twice              # times that it was entered while it ran
    uint32_t runs
    uint32_t cores[2]           # runs there
    uint32_t go                 # 1: unregister yourself
    uint32_t to_self            # send a message to this thread then
    int rc
    uint32_t ran
    uint64_t period_us
    uint32_t fill
    bint pause
    deferred_t late
    uint32_t late_wrong         # runs of it on a reactor that the thread was not on


cdef void ran(void *ctx) noexcept nogil:
    (<poller_state_t *>ctx).ran += 1


cdef void late_run(void *arg) noexcept nogil:
    cdef poller_state_t *p = <poller_state_t *>arg
    p.late_wrong += p.thread.reactor is not reactor_current()


cdef int poll(void *arg) noexcept nogil:
    cdef poller_state_t *p = <poller_state_t *>arg
    if exchange_u32(&p.inside, 1):
        p.twice += 1
    p.cores[reactor_current().lcore] += 1
    store_release_u32(&p.runs, p.runs + 1)
    reactor_defer(reactor_current(), &p.late)
    if load_relaxed_u32(&p.go):
        if p.to_self:
            p.rc = thread_send_msg(p.thread, ran, p)
        poller_unregister(&p.poller)
    exchange_u32(&p.inside, 0)
    return 1


cdef int poll_nothing(void *arg) noexcept nogil:
    return 0


cdef int poller_begin(void *arg) noexcept nogil:
    cdef poller_state_t *p = <poller_state_t *>arg
    cdef uint32_t i
    p.poller.poll = poll
    p.poller.arg = p
    p.poller.fd = -1
    p.late.run = late_run
    p.late.arg = p
    for i in range(p.fill):
        p.fillers[i].poll = poll_nothing
        p.fillers[i].fd = -1
        poller_register(p.thread, &p.fillers[i], 10_000 + i)
    poller_register(p.thread, &p.poller, p.period_us)
    if p.pause:
        poller_pause(&p.poller)
    return 0


cdef int poller_end(call_t *call) noexcept nogil:
    cdef poller_state_t *p = <poller_state_t *>call.arg
    cdef uint32_t i
    for i in range(p.fill):
        poller_unregister(&p.fillers[i])
    poller_unregister(&p.poller)
    return 0


cdef int poller_go_on(void *arg) noexcept nogil:
    poller_resume(&(<poller_state_t *>arg).poller)
    return 0


cdef class Poller:
    """A poller of a thread that looks at whether it is run as it should."""
    cdef poller_state_t *p
    cdef Thread thread

    def __cinit__(self, Thread light, what):
        self.p = <poller_state_t *>calloc(1, sizeof(poller_state_t))
        self.thread = light
        self.p.thread = light.t
        self.p.to_self = what == "send to self"

    def __dealloc__(self):
        free(self.p)

    async def begin(self, period_us=0, pause=False, fillers=0):
        self.p.period_us = period_us
        self.p.pause = pause
        self.p.fill = fillers
        await thread_call(self.thread, poller_begin, self.p, self)

    async def resume(self):
        await thread_call(self.thread, poller_go_on, self.p, self)

    async def finish(self):
        """Unregister it, also on a thread that takes no messages."""
        await self.finish_on(self.thread.lcore)

    async def finish_on(self, int core):
        await call_on(core, poller_end, self.p, self)

    def let_go(self):
        """Have it unregister itself."""
        store_release_u32(&self.p.go, 1)

    @property
    def to_self(self):
        """What its message to its own thread was answered, and how often that ran."""
        return self.p.rc, self.p.ran

    @property
    def runs(self):
        return load_acquire_u32(&self.p.runs)

    @property
    def cores(self):
        return [load_relaxed_u32(&self.p.cores[i]) for i in range(2)]

    @property
    def sound(self):
        return self.p.twice == 0 and self.p.late_wrong == 0


# A reactor that takes nothing

cdef struct gate_t:
    uint32_t inside
    uint32_t open
    event_t events[EVENT_RING_SLOTS]


cdef void gate_wait(void *arg1, void *arg2) noexcept nogil:
    cdef gate_t *g = <gate_t *>arg1
    store_release_u32(&g.inside, 1)
    while load_acquire_u32(&g.open) == 0:
        sched_yield()


cdef void nothing(void *arg1, void *arg2) noexcept nogil:
    pass


cdef class Gate:
    """A reactor that is kept in an event, with its ring full."""
    cdef gate_t *g

    def __cinit__(self, uint32_t core):
        cdef uint32_t i
        self.g = <gate_t *>calloc(1, sizeof(gate_t))
        assert event_call_on(core, gate_wait, self.g, NULL) == 0
        while load_acquire_u32(&self.g.inside) == 0:
            time.sleep(0.001)
        for i in range(<uint32_t>EVENT_RING_SLOTS):
            self.g.events[i].fn = nothing
            if event_send(core, &self.g.events[i]) < 0:
                break

    def __dealloc__(self):
        free(self.g)

    def let_go(self):
        store_release_u32(&self.g.open, 1)
