"""Light threads: made, moved and ended by the control thread.

A thread ends in order: from exit() on it takes no messages of others; when every reactor has
answered an event after that, none is on its way any more; and when it has run what it has, and has
no poller, no channel and no answer to wait for, it leaves its reactor.

Source:   spdk_thread_create, _exit, _bind; thread_get_stats.
"""
import asyncio
import itertools
import sys
import time
import weakref

from libc.errno cimport EAGAIN, EINVAL, EIO, ENODEV, EPERM
from libc.stdint cimport uint32_t, uint64_t, uintptr_t
from libc.stdlib cimport free
from libc.string cimport memset
from vhostrt.base.atomics cimport load_acquire_ptr, load_relaxed_u64, store_release_u32
from vhostrt.base.check cimport check
from vhostrt.base.errors cimport ok, os_error
from vhostrt.base.ticks cimport ticks_now
from vhostrt.event.control cimport (CALL_PENDING, awaited_new, awaited_drop, awaited_t, call_done,
                                    call_on, call_t, control_thread)
from vhostrt.event.events cimport event_send
from vhostrt.event.loop_trace cimport THREAD_IOCH_GET, THREAD_IOCH_PUT, trace_channel
from vhostrt.event.message cimport has_messages, thread_drop, thread_send_node
from vhostrt.event.post cimport control_post
from vhostrt.event.reactor cimport (deferred_t, msg_t, reactor_defer_last, reactor_t, thread_attach,
                                    thread_detach, thread_init)

from vhostrt.event import reactor

from vhostrt.event import trace as tracing

cdef extern from "<stdlib.h>" nogil:
    void *aligned_alloc(size_t align, size_t size)

cdef enum:
    LEFT_POLLERS = 1                    # what keeps a thread from its end
    LEFT_CHANNELS = 2
    LEFT_ANSWERS = 4
    LEFT_MESSAGES = 8

EXIT_S = 5.0                            # how long exit() waits before it uses force
LOOK_S = 0.001                          # between two looks whether a thread can end, at first ...
LOOK_MOST_S = 0.02                      # ... and at last
LEFT = ("pollers", "I/O channels", "answers that are on their way to it", "messages")

g_ids = itertools.count(2)              # 1 is app_thread, the control thread's own
g_threads = weakref.WeakValueDictionary()
g_running = {}                          # those that are attached, by id
g_forced = []                           # those that ended by force: others may still point to them
g_app = None                            # the Thread of app_thread, once it was asked for
g_tasks = set()                         # that go on when who waits for them does not


# On a reactor

cdef struct leaving_t:
    # A thread that leaves its reactor, for another one or for good.
    deferred_t last             # at the end of an iteration, behind all that others put off
    call_t *call
    thread_t *thread
    int lcore                   # where it goes; -1: it ends
    bint by_force               # whatever is left
    int left                    # LEFT_...: why it did not end, or what is left behind


cdef int attach(call_t *call) noexcept nogil:
    thread_attach(call.event.reactor, <thread_t *>call.arg)
    return 0


cdef int left_of(thread_t *thread) noexcept nogil:
    """Return what keeps a thread from its end, LEFT_..."""
    cdef bint pollers = (thread.active is not NULL or thread.paused is not NULL
                         or thread.timers is not NULL)
    cdef int left = 0
    cdef uint32_t i
    for i in range(thread.lane_count):
        pollers |= thread.lanes[i].first is not NULL
    if pollers:
        left |= LEFT_POLLERS
    if thread.channels is not NULL:
        left |= LEFT_CHANNELS
    if thread.holds:
        left |= LEFT_ANSWERS
    if has_messages(thread):
        left |= LEFT_MESSAGES
    return left


cdef int end(leaving_t *gone) noexcept nogil:
    """End a thread, or answer with what keeps it."""
    gone.left = left_of(gone.thread)
    if gone.left and not gone.by_force:
        return gone.left
    thread_detach(gone.thread)
    return 0


cdef void arrive(void *arg1, void *arg2) noexcept nogil:
    """On the new reactor."""
    cdef call_t *call = <call_t *>arg1
    thread_attach(call.event.reactor, (<leaving_t *>call.arg).thread)
    call_done(call, 0)


cdef void depart(leaving_t *gone, reactor_t *r) noexcept nogil:
    """Send the thread to another reactor; it stays when that one cannot take it."""
    cdef int rc
    thread_detach(gone.thread)
    gone.call.event.fn = arrive
    rc = event_send(<uint32_t>gone.lcore, &gone.call.event)
    if rc < 0:
        thread_attach(r, gone.thread)
        call_done(gone.call, rc)


cdef void leave(void *arg) noexcept nogil:
    """At the end of an iteration: what was put off in it on behalf of the thread has run."""
    cdef leaving_t *gone = <leaving_t *>arg
    cdef reactor_t *r = gone.thread.reactor
    cdef deferred_t *d = r.deferred
    while d is not NULL and d.run is leave:
        d = d.next
    if d is not NULL:
        reactor_defer_last(r, &gone.last)
    elif gone.lcore < 0:
        call_done(gone.call, end(gone))
    else:
        depart(gone, r)


cdef int leave_call(call_t *call) noexcept nogil:
    cdef leaving_t *gone = <leaving_t *>call.arg
    check(gone.thread.reactor is call.event.reactor)
    gone.call = call
    gone.last.run = leave
    gone.last.arg = gone
    reactor_defer_last(call.event.reactor, &gone.last)
    return CALL_PENDING


cdef int answer(call_t *call) noexcept nogil:
    return 0


cdef class Leaving:
    cdef leaving_t c


# Calls

cdef struct thread_call_t:
    awaited_t awaited           # first
    msg_t msg
    thread_call_fn fn
    void *arg


cdef void call_run(void *ctx) noexcept nogil:
    cdef thread_call_t *call = <thread_call_t *>ctx
    call.awaited.rc = call.fn(call.arg)
    control_post(&call.awaited.node)


cdef object thread_call(Thread light, thread_call_fn fn, void *arg, object keep):
    """Run fn(arg) on a light thread and return an asyncio.Future of its answer (int).

    `keep` is held until the answer is there: the object that arg points into.
    OSError(EIO) when the thread does not run, or is ending.
    """
    cdef thread_call_t *call = <thread_call_t *>awaited_new(sizeof(thread_call_t), keep)
    cdef int rc
    future = <object>call.awaited.future
    call.msg.fn = call_run
    call.msg.ctx = call
    call.fn = fn
    call.arg = arg
    rc = thread_send_node(light.t, &call.msg) if light.running else -EIO
    if rc < 0:
        awaited_drop(&call.awaited)
        raise os_error(rc, f"message to the thread {light.name}")
    return future


# On the control thread

cdef class Thread:
    """A light thread.  Pollers are registered on its thread_t, by events or messages to it.

    name: str, for people.  cpumask: lcores (iterable of int) it may run on; None for all.
    bound: it stays on the lcore that it is attached to.
    """

    def __cinit__(self, str name not None, cpumask=None, *, bint bound=False):
        self.t = <thread_t *>aligned_alloc(64, (sizeof(thread_t) + 63) & ~<size_t>63)
        if self.t is NULL:
            raise MemoryError
        self.owned = True
        memset(self.t, 0, sizeof(thread_t))
        thread_init(self.t)
        self.name = name
        self.c_name = name.encode()
        self.t.name = self.c_name
        self.lcore = self.first_lcore = -1
        self.cpumask = None if cpumask is None else frozenset(cpumask)
        self.bound = bound
        self.created = ticks_now()
        self.held = {}
        self.lock = asyncio.Lock()

    def __init__(self, str name not None, cpumask=None, *, bint bound=False):
        self.t.id = next(g_ids)
        g_threads[self.t.id] = self
        tracing.name_owner(self.t.id, name)

    def __dealloc__(self):
        if self.owned:
            check(self.t is NULL or self.t.reactor is NULL)
            if self.t is not NULL:
                thread_drop(self.t)         # sent to one that was never attached
            free(self.t)

    @property
    def id(self) -> int:
        return self.t.id

    @property
    def running(self) -> bool:
        """Whether it takes messages and runs them, now or after its move."""
        return (self.lcore >= 0 or not self.owned) and not self.t.exiting

    @property
    def busy(self) -> int:
        """Ticks in polls that did work."""
        return load_relaxed_u64(&self.t.busy_ticks)

    @property
    def lived(self) -> int:
        """Ticks on reactors; of app_thread, since the control thread listens."""
        cdef uint64_t since = load_relaxed_u64(&self.t.since)
        return load_relaxed_u64(&self.t.lived) + (ticks_now() - since if since else 0)

    @property
    def idle(self) -> int:
        """Ticks on reactors in which it did no work."""
        return max(self.lived - self.busy, 0)

    @property
    def messages(self) -> int:
        """How many it has run."""
        return load_relaxed_u64(&self.t.messages)

    @property
    def elapsed(self) -> int:
        """Ticks since it was made."""
        return ticks_now() - self.created

    def lcores(self) -> frozenset:
        """Return the lcores with a reactor that it may run on."""
        there = frozenset(reactor.lcores())
        if self.bound:
            return there & {self.lcore}
        return there if self.cpumask is None else there & self.cpumask

    def set_lcores(self, lcores):
        """Let it run on these lcores (iterable of int; None for all) from now on; it does not move.

        OSError(EPERM) when it is bound to one.
        """
        if self.bound or not self.owned:
            raise OSError(EPERM, f"the thread {self.name} is bound to where it runs")
        self.cpumask = None if lcores is None else frozenset(lcores)

    # Channels of parts that open them from the control thread

    def hold(self, str name not None, uintptr_t channel=0):
        """Note that it has one channel more to what is called `name`, which iochannel does not know
        of, as opening it may block.  channel: its address, for traces."""
        cdef bytes text = name.encode()
        refs = self.held[name] = self.held.get(name, 0) + 1
        trace_channel(THREAD_IOCH_GET, self.t, text, <void *>channel, refs)

    def let_go(self, str name not None, uintptr_t channel=0):
        """Note that it has one channel less."""
        cdef bytes text = name.encode()
        refs = self.held[name] = self.held[name] - 1
        if refs == 0:
            del self.held[name]
        trace_channel(THREAD_IOCH_PUT, self.t, text, <void *>channel, refs)

    # Life

    def note_lcore(self, int lcore):
        """Remember where it runs, -1 for nowhere; by who attaches and detaches it in calls of its
        own."""
        self.lcore = lcore
        if lcore >= 0:
            g_running[self.t.id] = self
            if self.first_lcore < 0:
                self.first_lcore = lcore
        else:
            g_running.pop(self.t.id, None)

    async def attach(self, int lcore):
        """Be polled by the reactor on `lcore` from now on.  Cancelling this ends the wait alone.

        OSError when there is none, or it may not run there; RuntimeError the second time.
        """
        await to_the_end(self.come(lcore))

    async def come(self, int lcore):
        async with self.lock:
            if self.lcore >= 0 or self.t.exiting or not self.owned:
                raise RuntimeError(f"the thread {self.name} has been attached before")
            if self.cpumask is not None and lcore not in self.cpumask:
                raise OSError(EINVAL, f"the thread {self.name} may not run on core {lcore}")
            await self.join(lcore)

    async def join(self, int lcore):
        """Come to a reactor; with the lock."""
        try:
            await call_on(lcore, attach, self.t, self)
        except asyncio.CancelledError:
            g_forced.append(self)           # the loop is torn down: the reactor gets it yet
            raise
        self.note_lcore(lcore)

    async def move(self, int lcore):
        """Be polled by another reactor, with pollers, messages and channels; the mover knows how
        where there is one.  Cancelling this ends the wait, not the move.

        OSError: EPERM when it is bound to its core, ENODEV when there is no reactor on that one,
        EIO when it does not run; and what the mover raises.
        """
        if self.bound or not self.owned:
            raise OSError(EPERM, f"the thread {self.name} is bound to where it runs")
        if lcore not in reactor.lcores():
            raise os_error(-ENODEV, f"move of the thread {self.name} to core {lcore}")
        mover = self.go if self.mover is None else self.mover
        await to_the_end(mover(lcore))

    async def go(self, int lcore):
        """Leave the reactor at the end of an iteration and come to the other one."""
        cdef Leaving leaving = Leaving.__new__(Leaving)
        async with self.lock:
            if not self.running:
                raise os_error(-EIO, f"move of the thread {self.name}")
            if lcore == self.lcore:
                return
            leaving.c.thread = self.t
            leaving.c.lcore = lcore
            ok(await call_on(self.lcore, leave_call, &leaving.c, (self, leaving)),
               f"move of the thread {self.name} to core {lcore}")
            self.note_lcore(lcore)

    async def exit(self, timeout=EXIT_S):
        """End: take no messages of others, run those that are there, and leave the reactor when no
        poller and no channel is left; by force, with a warning, after `timeout` (seconds).

        It may be awaited again.  Cancelling this ends the wait, not the end.
        OSError EPERM for app_thread; TypeError, ValueError for a timeout that is none.
        """
        if not self.owned:
            raise OSError(EPERM, "app_thread ends with the control thread")
        check_timeout(timeout)
        if self.ending is None:
            self.ending = asyncio.create_task(self.finish(timeout))
        await asyncio.shield(self.ending)

    async def finish(self, timeout):
        try:
            async with self.lock:
                if self.lcore < 0 and has_messages(self.t) and self.lcores():
                    await self.join(min(self.lcores()))
                store_release_u32(&self.t.exiting, 1)
                await grace()
                if self.lcore >= 0:
                    await self.leave_in_time(timeout)
                elif thread_drop(self.t):
                    warn(f"messages of the thread {self.name} are lost: no core that it may run on "
                         "has a reactor")
        finally:
            if load_acquire_ptr(&self.t.reactor) is not NULL:
                g_forced.append(self)       # the loop was torn down: the reactor has it yet
            self.note_lcore(-1)
            self.mover = None               # which holds us, as a rule
            g_threads.pop(self.t.id, None)

    async def leave_in_time(self, timeout):
        end = time.monotonic() + timeout
        pause = LOOK_S
        while await self.leave(False):
            if time.monotonic() >= end:
                await self.leave(True)
                return
            await asyncio.sleep(pause)
            pause = min(2 * pause, LOOK_MOST_S)

    async def leave(self, bint by_force):
        """Leave the reactor for good; return what keeps it there, 0 when it has gone."""
        cdef Leaving leaving = Leaving.__new__(Leaving)
        leaving.c.thread = self.t
        leaving.c.lcore = -1
        leaving.c.by_force = by_force
        try:
            while (told := ask_to_leave(self, leaving)) is None:
                await asyncio.sleep(LOOK_S)
        except OSError as error:
            if error.errno != ENODEV:
                raise
            return 0                    # the reactor has ended, and let go of it
        rc = ok(await told, f"end of the thread {self.name}")
        if by_force and leaving.c.left:
            left = [what for i, what in enumerate(LEFT) if leaving.c.left >> i & 1]
            warn(f"the thread {self.name} was ended by force; it still has " + " and ".join(left))
            g_forced.append(self)
        return rc


cdef object ask_to_leave(Thread light, Leaving leaving):
    """Return a future of what leave_call answers; None: the reactor's ring is full."""
    try:
        return call_on(light.lcore, leave_call, &leaving.c, (light, leaving))
    except OSError as error:
        if error.errno != EAGAIN:
            raise
        return None


def check_timeout(timeout) -> None:
    """Refuse what is no time in seconds.  TypeError, ValueError."""
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)):
        raise TypeError(f"a timeout of {timeout!r} must be a number of seconds")
    if not timeout >= 0:
        raise ValueError(f"a timeout of {timeout!r} seconds cannot be")


def print_warning(text) -> None:
    print(text, file=sys.stderr)


warn = print_warning                    # told what has to be known (str); the program has a log


async def grace():
    """Return when every reactor has been at the beginning of an iteration since."""
    await asyncio.gather(*(answered(lcore) for lcore in reactor.lcores()))


async def answered(int lcore):
    """Return when a reactor has run an event, or has ended."""
    while True:
        try:
            await call_on(lcore, answer, NULL, None)
            return
        except OSError as error:
            if error.errno != EAGAIN:
                return
        await asyncio.sleep(LOOK_S)     # its ring is full


async def to_the_end(work):
    """Await a coroutine; when the wait is cancelled the work goes on."""
    await asyncio.shield(begin(work))


def begin(work) -> asyncio.Task:
    """Have a coroutine run to its end, whoever waits for it."""
    task = asyncio.create_task(work)
    g_tasks.add(task)
    task.add_done_callback(done_with)
    return task


def done_with(task):
    g_tasks.discard(task)
    if not task.cancelled():
        task.exception()                # who waited was told; nobody else has to be


def app() -> Thread | None:
    """Return app_thread, the control thread's own; None while its loop does not listen."""
    global g_app
    cdef thread_t *t = control_thread()
    cdef Thread light
    if t is NULL:
        return None
    light = g_app
    if light is None or light.t is not t:
        light = g_app = Thread.__new__(Thread, "app_thread", bound=True)
        free(light.t)
        light.owned = False
        light.t = t
    light.created = t.since
    return light


def threads() -> list:
    """Return the Thread objects there are, by id: app_thread first."""
    control = app()
    others = [light for _, light in sorted(g_threads.items())]
    return others if control is None else [control, *others]


def get(number) -> Thread:
    """Return the thread with this id.  KeyError."""
    return {light.id: light for light in threads()}[number]


async def create(str name not None, cpumask=None):
    """Make a thread, have it polled on the least loaded core that it may run on, and return it.

    cpumask: lcores (iterable of int); None for all.  ValueError when none of them has a reactor.
    """
    light = Thread(name, cpumask)
    lcores = light.lcores()
    if not lcores:
        raise ValueError(f"no core that the thread {name} may run on has a reactor")
    try:
        await light.attach(choose(lcores))
    except asyncio.CancelledError:
        begin(light.exit())             # nobody would know that it runs
        raise
    return light


def fewest_threads(lcores) -> int:
    """Return the one of these lcores with the fewest threads."""
    return min(sorted(lcores), key=lambda n: reactor.stats(n)["threads"])


choose = fewest_threads                 # of lcores (frozenset) one, for a new thread


def left_behind() -> list:
    """Return the names of threads that run although they should have ended, as the reactors do."""
    return [light.name for _, light in sorted(g_running.items())]


def forget() -> None:
    """The reactors are gone: forget the threads that were on them."""
    for light in list(g_running.values()):
        light.note_lcore(-1)


reactor.at_fini.append(forget)
