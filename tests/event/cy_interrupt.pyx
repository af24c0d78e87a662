"""vhostrt.event.watch: interrupt mode, seen by who kicks: asleep without work, no kick is lost."""
import os
import random
import time

import pytest
from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from posix.unistd cimport write
from vhostrt.base.atomics cimport (exchange_u32, fence_full, fetch_add_u32, load_acquire_u32,
                                   load_relaxed_u32, store_relaxed_u32, store_release_u32)
from vhostrt.base.ticks cimport ticks_from_us, ticks_now
from vhostrt.event.events cimport event_call_on
from vhostrt.event.message cimport thread_send_msg
from vhostrt.event.poller cimport poller_register, poller_unregister
from vhostrt.event.reactor cimport (poller_t, reactor_current, reactor_of, thread_attach,
                                    thread_detach, thread_init, thread_t)
from vhostrt.event.watch cimport poller_set_fd

from tests.event.conftest import running
from vhostrt.event import reactor

cdef extern from "<pthread.h>" nogil:
    ctypedef unsigned long pthread_t
    int pthread_create(pthread_t *thread, const void *attr, void *(*fn)(void *), void *arg)
    int pthread_join(pthread_t thread, void **result)

cdef extern from "<time.h>" nogil:
    ctypedef struct timespec "struct timespec":
        long tv_sec
        long tv_nsec
    int nanosleep(const timespec *t, timespec *left)

STRESS = int(os.environ.get("VHOSTRT_STRESS", "1"))
DEADLINE_S = 60

cdef enum:
    SPINS = 20_000              # while a kick is waited for, before it is waited for in sleeps
    PATIENCE = 1_000_000        # sleeps of 20 us or more; a kick that is not seen by then is lost


def wait_for(condition):
    """Wait until condition() holds."""
    end = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.0005)


@pytest.fixture
def idle():
    """A reactor on lcore 0 in interrupt mode; what has to be polled is polled every 10 minutes."""
    with running(1, "interrupt", 600_000_000):
        yield


cdef struct source_t:
    thread_t thread             # first
    poller_t poller
    uint32_t work               # put there by who kicks
    uint32_t done
    uint32_t armed
    uint32_t steps              # set_up and take_down have run
    int answer                  # of try_arm when there is no work
    int next_fd
    # Of the kicker.
    int fd
    uint64_t seed
    uint32_t kicks
    uint32_t found_asleep


cdef int source_poll(void *arg) noexcept nogil:
    cdef source_t *s = <source_t *>arg
    cdef uint32_t n
    if load_relaxed_u32(&s.work) == 0:
        return 0
    n = exchange_u32(&s.work, 0)
    store_release_u32(&s.done, s.done + n)
    return 1


cdef int source_arm(void *arg) noexcept nogil:
    cdef source_t *s = <source_t *>arg
    store_relaxed_u32(&s.armed, 1)
    fence_full()                        # with the one in kick
    if load_relaxed_u32(&s.work):
        store_relaxed_u32(&s.armed, 0)
        return 1
    return s.answer


cdef void source_disarm(void *arg) noexcept nogil:
    store_relaxed_u32(&(<source_t *>arg).armed, 0)


cdef void kick(source_t *s) noexcept nogil:
    cdef uint64_t one = 1
    fetch_add_u32(&s.work, 1)
    fence_full()
    if load_relaxed_u32(&s.armed):
        write(s.fd, &one, sizeof(one))


cdef void set_up(void *arg1, void *arg2) noexcept nogil:
    cdef source_t *s = <source_t *>arg1
    thread_attach(reactor_current(), &s.thread)
    poller_register(&s.thread, &s.poller, 0)
    fetch_add_u32(&s.steps, 1)


cdef void take_down(void *arg1, void *arg2) noexcept nogil:
    cdef source_t *s = <source_t *>arg1
    poller_unregister(&s.poller)
    thread_detach(&s.thread)
    fetch_add_u32(&s.steps, 1)


cdef void change_fd(void *arg1, void *arg2) noexcept nogil:
    cdef source_t *s = <source_t *>arg1
    poller_set_fd(&s.poller, s.next_fd)
    fetch_add_u32(&s.steps, 1)


cdef class Source:
    """Work that comes with kicks of an eventfd while the poller is armed."""
    cdef source_t *s

    def __cinit__(self, int answer=0, bint can_arm=True):
        self.s = <source_t *>calloc(1, sizeof(source_t))
        thread_init(&self.s.thread)
        self.s.fd = os.eventfd(0, os.EFD_NONBLOCK)
        self.s.answer = answer
        self.s.poller.poll = source_poll
        if can_arm:
            self.s.poller.try_arm = source_arm
        self.s.poller.disarm = source_disarm
        self.s.poller.fd = self.s.fd
        self.s.poller.arg = self.s

    def __dealloc__(self):
        os.close(self.s.fd)
        free(self.s)

    def __enter__(self):
        self.step("up")
        return self

    def __exit__(self, *_):
        self.step("down")

    def step(self, what, uint32_t core=0):
        before = load_acquire_u32(&self.s.steps)
        if what == "up":
            assert event_call_on(core, set_up, self.s, NULL) == 0
        elif what == "down":
            assert event_call_on(core, take_down, self.s, NULL) == 0
        else:
            assert event_call_on(core, change_fd, self.s, NULL) == 0
        wait_for(lambda: load_acquire_u32(&self.s.steps) > before)

    def kick(self):
        kick(self.s)

    def put(self):
        """Put work there and tell nobody."""
        fetch_add_u32(&self.s.work, 1)

    def move_to_new_fd(self):
        self.s.next_fd = os.eventfd(0, os.EFD_NONBLOCK)
        self.step("fd")
        os.close(self.s.fd)
        self.s.fd = self.s.next_fd

    @property
    def done(self):
        return load_acquire_u32(&self.s.done)


def asleep():
    return reactor.stats(0)["in_interrupt"]


def settled():
    """Wait until the reactor sleeps, and return its count of iterations then."""
    wait_for(asleep)
    time.sleep(0.01)
    return reactor.iterations(0)


def test_without_work_it_sleeps_and_does_not_turn(idle):
    with Source():
        turns = settled()
        time.sleep(0.1)
        assert reactor.iterations(0) == turns and asleep()


def test_a_kick_an_event_and_a_message_wake_it(idle):
    cdef Source source = Source()
    with source:
        for n in range(1, 4):
            settled()
            source.kick()
            wait_for(lambda: source.done == n)
            turns = settled()
            assert reactor.nop(0) == 0
            wait_for(lambda: reactor.iterations(0) > turns)
            turns = settled()
            assert thread_send_msg(&source.s.thread, note, &source.s.steps) == 0
            wait_for(lambda: reactor.iterations(0) > turns)


cdef void note(void *ctx) noexcept nogil:
    fetch_add_u32(<uint32_t *>ctx, 1)


def test_a_descriptor_may_be_exchanged(idle):
    source = Source()
    with source:
        settled()
        source.move_to_new_fd()
        settled()
        source.kick()
        wait_for(lambda: source.done == 1)


def test_a_poller_that_cannot_be_armed_is_polled():
    """At least every max_delay, here a millisecond."""
    with running(1, "interrupt", 1000):
        for source in (Source(answer=-1), Source(can_arm=False)):
            with source:
                source.put()            # and tell nobody
                wait_for(lambda source=source: source.done == 1)


def test_what_has_to_be_polled_is_not_forgotten_when_another_is_armed():
    with running(1, "interrupt", 1000):
        first, second = Source(), Source(answer=-1)
        with first, second:
            second.put()
            wait_for(lambda: second.done == 1)


def test_policies_can_be_changed_while_it_runs():
    with running(1, "spin"):
        source = Source()
        with source:
            assert reactor.idle_of(0) == "spin" and not asleep()
            for _ in range(3):
                reactor.set_idle(0, "interrupt")
                settled()
                source.kick()
                reactor.set_idle(0, "yield")
                wait_for(lambda: reactor.idle_of(0) == "yield" and not asleep())
        with pytest.raises(ValueError, match="'doze'"):
            reactor.set_idle(0, "doze")
        with pytest.raises(KeyError):
            reactor.set_idle(5, "spin")


cdef void *kicker(void *arg) noexcept nogil:
    """Kick at random times: while it works, as it falls asleep, and long after."""
    cdef source_t *s = <source_t *>arg
    cdef uint64_t chance = s.seed | 1
    cdef uint64_t until
    cdef timespec twenty_us
    cdef uint32_t i, waited
    twenty_us.tv_sec = 0
    twenty_us.tv_nsec = 20_000
    for i in range(s.kicks):
        chance ^= chance << 13
        chance ^= chance >> 7
        chance ^= chance << 17
        until = ticks_now() + ticks_from_us(chance % 60)
        while ticks_now() < until:
            pass
        if chance % 32 == 0:            # one in 32 finds it asleep, however busy the machine is
            waited = 0
            while load_acquire_u32(&reactor_of(0).sleeping) != 1 and waited < 1_000_000:
                nanosleep(&twenty_us, NULL)
                waited += 1
            s.found_asleep += waited < 1_000_000
        kick(s)
        waited = 0
        # One at a time in most rounds: a lost one would not be found by the next.  The time is not
        # looked at: a machine that stands still, or has no CPU for the reactor, loses nothing.
        while chance % 4 and load_acquire_u32(&s.done) != i + 1:
            waited += 1
            if waited > SPINS:
                nanosleep(&twenty_us, NULL)
            if waited > SPINS + PATIENCE:
                return NULL
    return NULL


def reactor_thread():
    """What the kernel says of the reactor's thread: running (R) or asleep (S), and in what."""
    tid = reactor.stats(0)["tid"]
    found = []
    for name in ("stat", "wchan", "schedstat"):
        try:
            with open(f"/proc/self/task/{tid}/{name}", encoding="ascii") as file:
                found.append(file.read().rpartition(")")[2][:60].strip())
        except OSError:
            continue
    return found


def test_stress_no_kick_is_lost(idle):
    cdef Source source = Source()
    cdef pthread_t thread
    cdef source_t *s = source.s
    s.kicks = 20_000 * STRESS
    s.seed = random.randrange(1, 2**63)
    with source:
        pthread_create(&thread, NULL, kicker, s)
        with nogil:
            pthread_join(thread, NULL)
        try:
            wait_for(lambda: source.done == s.kicks)
        except AssertionError:
            raise AssertionError(
                f"{source.done} of {s.kicks} kicks seen, {load_acquire_u32(&s.work)} wait; armed "
                f"{load_acquire_u32(&s.armed)}, {reactor.stats(0)}, {reactor_thread()}") from None
        assert s.found_asleep > s.kicks // 100, "it hardly slept"
