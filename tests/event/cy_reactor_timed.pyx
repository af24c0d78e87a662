"""vhostrt.event.reactor: timed pollers, threads, accounting and sleep, seen by their owners."""
import os
import time

import pytest
from libc.stdint cimport UINT64_MAX, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from vhostrt.base.atomics cimport (fetch_add_u32, load_acquire_u32, load_relaxed_u64,
                                   store_release_u32)
from vhostrt.base.ticks cimport ticks_from_us, ticks_now
from vhostrt.event.events cimport event_call_on
from vhostrt.event.poller cimport poller_register, poller_unregister
from vhostrt.event.reactor cimport (poller_t, reactor_current, reactor_of, reactor_t, thread_attach,
                                    thread_detach, thread_t)

from tests.event.conftest import running
from vhostrt.event import reactor

cdef enum:
    POLLERS = 40
    NOTES = 4096
    MS = 1000                   # periods are microseconds

STRESS = int(os.environ.get("VHOSTRT_STRESS", "1"))
DEADLINE_S = 60


def wait_for(condition):
    """Wait until condition() holds."""
    end = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.0005)


# A thread with pollers; each run leaves a note.

cdef struct note_t:
    uint32_t who
    uint64_t turn
    uint64_t look               # ticks when the reactor looked at the timers
    uint64_t now                # ticks when the poller ran

cdef struct timed_t:
    poller_t poller             # first
    bench_t *bench
    uint32_t who
    uint64_t period_us
    uint32_t runs_max           # it unregisters itself then; 0: never
    poller_t *victim            # is unregistered when it runs
    uint64_t work_ticks         # how long a run takes
    int answer

cdef struct bench_t:
    thread_t thread             # first
    timed_t pollers[POLLERS]
    uint32_t pollers_count
    uint64_t registered         # ticks
    uint64_t wait_ticks         # how long set_up goes on after it has registered
    uint32_t steps              # set_up, then take_down, have run
    uint32_t count
    note_t notes[NOTES]


cdef void work(void *arg1, void *arg2) noexcept nogil:
    cdef uint64_t start = ticks_now()
    while ticks_now() - start < <uint64_t>arg1:
        pass


cdef int timed_poll(void *arg) noexcept nogil:
    cdef timed_t *p = <timed_t *>arg
    cdef bench_t *b = p.bench
    cdef note_t *note
    if b.count < NOTES:
        note = &b.notes[b.count]
        note.who = p.who
        note.turn = reactor_current().iterations
        note.look = reactor_current().now
        note.now = ticks_now()
    store_release_u32(&b.count, b.count + 1)
    if p.runs_max and p.poller.runs + 1 == p.runs_max:
        poller_unregister(&p.poller)
    if p.victim is not NULL:
        poller_unregister(p.victim)
    work(<void *>p.work_ticks, NULL)
    return p.answer


cdef void set_up(void *arg1, void *arg2) noexcept nogil:
    cdef bench_t *b = <bench_t *>arg1
    cdef uint32_t i
    b.registered = ticks_now()
    thread_attach(reactor_current(), &b.thread)
    if b.steps == 0:
        for i in range(b.pollers_count):
            poller_register(&b.thread, &b.pollers[i].poller, b.pollers[i].period_us)
    while ticks_now() - b.registered < b.wait_ticks:
        pass
    fetch_add_u32(&b.steps, 1)


cdef void leave(void *arg1, void *arg2) noexcept nogil:
    cdef bench_t *b = <bench_t *>arg1
    thread_detach(&b.thread)
    fetch_add_u32(&b.steps, 1)


cdef void take_down(void *arg1, void *arg2) noexcept nogil:
    cdef bench_t *b = <bench_t *>arg1
    cdef uint32_t i
    for i in range(b.pollers_count):
        poller_unregister(&b.pollers[i].poller)
    leave(b, NULL)


cdef class Timed:
    """Pollers with periods (microseconds; 0 for an active one), on one thread."""
    cdef bench_t *b

    def __cinit__(self, periods, int answer=0):
        cdef uint32_t i
        self.b = <bench_t *>calloc(1, sizeof(bench_t))
        self.b.pollers_count = len(periods)
        for i, period in enumerate(periods):
            self.b.pollers[i].poller.poll = timed_poll
            self.b.pollers[i].poller.arg = &self.b.pollers[i]
            self.b.pollers[i].poller.fd = -1
            self.b.pollers[i].bench = self.b
            self.b.pollers[i].who = i
            self.b.pollers[i].period_us = period
            self.b.pollers[i].answer = answer

    def __dealloc__(self):
        free(self.b)

    def step(self, what, uint32_t core=0):
        """Have set_up ("up"), leave or take_down ("down") run on a reactor, and wait for it."""
        before = load_acquire_u32(&self.b.steps)
        if what == "up":
            assert event_call_on(core, set_up, self.b, NULL) == 0
        elif what == "leave":
            assert event_call_on(core, leave, self.b, NULL) == 0
        else:
            assert event_call_on(core, take_down, self.b, NULL) == 0
        wait_for(lambda: load_acquire_u32(&self.b.steps) == before + 1)

    def __len__(self):
        return load_acquire_u32(&self.b.count)

    def run(self, int notes):
        """Start, wait for so many notes, stop; return them as (who, turn, look, now)."""
        self.step("up")
        wait_for(lambda: len(self) >= notes)
        self.step("down")
        assert self.b.thread.timers is NULL and self.b.thread.active is NULL
        return self.notes()

    def notes(self):
        cdef int i
        return [(self.b.notes[i].who, self.b.notes[i].turn, self.b.notes[i].look,
                 self.b.notes[i].now) for i in range(min(len(self), <int>NOTES))]


# Timed pollers

def test_check_18_a_period_of_nothing_is_active(one):
    cdef Timed timed = Timed([0])
    timed.run(10)
    assert timed.b.pollers[0].poller.period == 0
    assert [b[1] - a[1] for a, b in pairs(timed.notes())] == [1] * (len(timed.notes()) - 1)


def pairs(notes):
    return list(zip(notes, notes[1:]))


def test_check_19_timers_are_looked_at_in_every_sixth_turn(one):
    cdef Timed timed = Timed([1, 0])
    timed.b.pollers[1].work_ticks = ticks_from_us(2)    # so that the timer is always due
    found = [note for note in timed.run(200) if note[0] == 0]
    assert [b[1] - a[1] for a, b in pairs(found)] == [6] * (len(found) - 1)


def test_the_first_run_is_a_period_after_registration(one):
    cdef Timed timed = Timed([5 * MS])
    (found, *_) = timed.run(1)
    assert timed.b.pollers[0].poller.period == ticks_from_us(5 * MS)
    assert found[2] >= timed.b.registered + ticks_from_us(5 * MS)


def test_check_19_the_next_run_is_a_period_after_the_look(one):
    """However late it was, and not after the run itself."""
    cdef Timed timed = Timed([2 * MS])
    timed.step("up")
    wait_for(lambda: len(timed) >= 5)
    timed.step("leave")
    last = timed.notes()[len(timed) - 1]
    assert timed.b.pollers[0].poller.next_run == last[2] + ticks_from_us(2 * MS)
    assert all(b[2] - a[2] >= <uint64_t>ticks_from_us(2 * MS) for a, b in pairs(timed.notes()))
    timed.step("up")
    timed.step("down")


def test_check_19_eight_timers_run_in_one_look(one):
    """Twenty that are due together need three, in turns that follow one another; the order is that
    of their deadlines."""
    cdef Timed timed = Timed([1400 * MS - 20 * MS * i for i in range(20)])
    timed.b.wait_ticks = ticks_from_us(1402 * MS)
    found = timed.run(20)[:20]
    assert [who for who, *_ in found] == list(range(19, -1, -1))
    assert [turn - found[0][1] for _, turn, *_ in found] == [i // 8 for i in range(20)]


def test_check_19_equal_deadlines_keep_the_order_of_registration(one):
    # All are due in the first look, and from then on their deadlines are the same.
    cdef Timed timed = Timed([20 * MS] * 8)
    timed.b.wait_ticks = ticks_from_us(21 * MS)
    assert [who for who, *_ in timed.run(24)[:24]] == list(range(8)) * 3


@pytest.mark.parametrize("period", [1, 200])
def test_a_timed_poller_that_unregisters_itself(one, period):
    cdef Timed timed = Timed([period, period])
    timed.b.pollers[0].runs_max = 3
    found = timed.run(40)
    assert sum(who == 0 for who, *_ in found) == 3


@pytest.mark.parametrize(("actor", "victim"), [(0, 1), (1, 0), (0, 2), (2, 0)])
def test_a_timed_poller_that_unregisters_another(one, actor, victim):
    """Whether the other is due in the same look, or has run in it, it never runs again."""
    cdef Timed timed = Timed([3 * MS, 3 * MS, 3 * MS])
    cdef uint32_t a = actor, v = victim
    timed.b.wait_ticks = ticks_from_us(4 * MS)
    timed.b.pollers[a].victim = &timed.b.pollers[v].poller
    found = timed.run(9)
    assert sum(who == victim for who, *_ in found) == (1 if victim < actor else 0)
    rest = [who for who, *_ in found if who != victim]
    assert rest[:6] == sorted({0, 1, 2} - {victim}) * 3


# Threads

def test_a_thread_that_left_is_not_polled_and_moves_with_its_pollers(two):
    cdef Timed timed = Timed([0, 1])
    timed.step("up", 0)
    wait_for(lambda: len(timed) > 20)
    timed.step("leave", 0)
    assert timed.b.thread.reactor is NULL and reactor.stats(0)["threads"] == 0
    seen = len(timed)
    time.sleep(0.01)
    assert len(timed) == seen
    timed.step("up", 1)
    assert timed.b.thread.reactor is reactor_of(1) and reactor.stats(1)["threads"] == 1
    wait_for(lambda: len(timed) > seen + 20)
    timed.step("down", 1)


def test_threads_take_turns(one):
    """Each once in every turn, whatever the order in which they leave."""
    cdef Timed timed
    threads = [Timed([0]) for _ in range(3)]
    for timed in threads:
        timed.step("up")
    assert reactor.stats(0)["threads"] == 3
    wait_for(lambda: all(len(t) > 50 for t in threads))
    for at in (1, 0, 2):
        threads[at].step("down")
    assert reactor.stats(0)["threads"] == 0 and reactor_of(0).threads is NULL
    for timed in threads:
        assert all(b[1] - a[1] == 1 for a, b in pairs(timed.notes()))


# Accounting

def snapshot():
    stats = reactor.stats(0)
    return stats["busy"], stats["idle"], stats["iterations"]


def pass_turns(n):
    start = reactor.iterations(0)
    wait_for(lambda: reactor.iterations(0) > start + n)


def test_time_without_work_is_idle(one):
    cdef Timed timed = Timed([0, 100], answer=0)
    timed.step("up")
    pass_turns(10)                      # the turn of that event is over
    before = snapshot()
    pass_turns(100)
    after = snapshot()
    timed.step("down")
    assert after[0] == before[0] and after[1] > before[1]
    assert load_relaxed_u64(&timed.b.thread.busy_ticks) == 0


def test_time_with_work_is_busy_and_given_to_the_thread_that_did_it(one):
    cdef Timed worker = Timed([0], answer=1)
    cdef Timed idler = Timed([0], answer=0)
    idler.step("up")
    worker.step("up")
    pass_turns(10)
    before = snapshot()
    pass_turns(100)
    after = snapshot()
    worker.step("down")
    idler.step("down")
    assert after[1] == before[1] and after[0] > before[0]
    assert load_relaxed_u64(&idler.b.thread.busy_ticks) == 0
    assert 0 < load_relaxed_u64(&worker.b.thread.busy_ticks) <= reactor.stats(0)["busy"]


def test_the_time_of_events_is_nobodys(one):
    """A thread that works later is not charged for it."""
    cdef Timed worker = Timed([1000 * MS], answer=1)
    cdef uint64_t ticks = ticks_from_us(50 * MS)
    before = reactor.stats(0)["busy"]
    for _ in range(2):
        assert event_call_on(0, work, <void *>ticks, NULL) == 0
    worker.b.pollers[0].period_us = 1
    worker.b.pollers[0].runs_max = 1
    pass_turns(2)
    worker.run(1)
    assert reactor.stats(0)["busy"] - before >= 2 * ticks
    assert load_relaxed_u64(&worker.b.thread.busy_ticks) < ticks


# Sleep.  The reactor of these tests sleeps ten minutes unless something wakes it.

cdef void count_event(void *arg1, void *arg2) noexcept nogil:
    fetch_add_u32(<uint32_t *>arg1, 1)


def sleeping():
    """True once the reactor is asleep."""
    return load_acquire_u32(&reactor_of(0).sleeping) == 1


def test_an_event_wakes_a_sleeping_reactor(sleeper):
    cdef uint32_t ran = 0
    for i in range(3):
        wait_for(sleeping)
        turns = reactor.iterations(0)
        time.sleep(0.02)
        assert reactor.iterations(0) == turns, "it does not sleep"
        assert event_call_on(0, count_event, &ran, NULL) == 0
        wait_for(lambda: load_acquire_u32(&ran) == i + 1)


def test_check_20_sleep_does_not_pass_a_timer(sleeper):
    cdef Timed timed = Timed([10 * MS])
    found = timed.run(20)
    # It slept between them: a turn for each wait, and those before it first slept.
    assert found[19][1] - found[9][1] < 100


def test_a_sleeper_is_not_interrupted(sleeper):
    wait_for(sleeping)
    turns = reactor.iterations(0)
    reactor.interrupt(0)
    time.sleep(0.02)
    assert reactor.iterations(0) == turns


def test_check_20_without_the_policy_it_never_sleeps(one):
    pass_turns(1000)
    assert not sleeping()


cdef struct rest_t:
    thread_t thread             # first
    poller_t poller
    uint64_t worked             # ticks, when it found work last
    uint64_t sleeps             # of the reactor, until then
    uint64_t soonest            # ticks from work to the first poll after a sleep, the fewest
    uint32_t rests              # times that the reactor slept after work
    uint32_t steps


cdef int rest_poll(void *arg) noexcept nogil:
    """Work once whenever the reactor has slept since the last work."""
    cdef rest_t *rest = <rest_t *>arg
    cdef uint64_t sleeps = reactor_current().sleeps
    cdef uint64_t now = ticks_now()
    if sleeps == rest.sleeps:
        return 0
    rest.soonest = min(rest.soonest, now - rest.worked)
    rest.worked = now
    rest.sleeps = sleeps
    store_release_u32(&rest.rests, rest.rests + 1)
    return 1


cdef void rest_up(void *arg1, void *arg2) noexcept nogil:
    cdef rest_t *rest = <rest_t *>arg1
    rest.worked = ticks_now()
    rest.sleeps = reactor_current().sleeps
    thread_attach(reactor_current(), &rest.thread)
    poller_register(&rest.thread, &rest.poller, 0)
    fetch_add_u32(&rest.steps, 1)


cdef void rest_down(void *arg1, void *arg2) noexcept nogil:
    cdef rest_t *rest = <rest_t *>arg1
    poller_unregister(&rest.poller)
    thread_detach(&rest.thread)
    fetch_add_u32(&rest.steps, 1)


def test_check_20_it_sleeps_when_1000_us_brought_no_work_though_there_is_a_poller():
    """The original never slept with an active poller; it does here when that finds nothing."""
    cdef rest_t *rest = <rest_t *>calloc(1, sizeof(rest_t))
    rest.poller.poll = rest_poll
    rest.poller.arg = rest
    rest.poller.fd = -1
    rest.soonest = UINT64_MAX
    with running(1, "sleep", 50):
        assert event_call_on(0, rest_up, rest, NULL) == 0
        wait_for(lambda: load_acquire_u32(&rest.rests) >= 20)
        assert event_call_on(0, rest_down, rest, NULL) == 0
        wait_for(lambda: load_acquire_u32(&rest.steps) == 2)
    assert rest.soonest >= ticks_from_us(1000)
    free(rest)


cdef struct late_t:
    thread_t thread             # first
    poller_t poller
    uint32_t sent
    uint32_t ran


cdef int send_late(void *arg) noexcept nogil:
    """Send an event when the reactor looks at nothing more before it sleeps."""
    cdef late_t *late = <late_t *>arg
    cdef reactor_t *r = reactor_current()
    if r.idle_since and ticks_now() - r.idle_since > ticks_from_us(500):
        # A millisecond after its last work it sleeps: at the end of this turn, then.
        while ticks_now() - r.idle_since < ticks_from_us(1100):
            pass
        late.sent += 1
        event_call_on(0, count_event, &late.ran, NULL)
        if late.sent == 20:
            poller_unregister(&late.poller)
    return 0


cdef void begin_late(void *arg1, void *arg2) noexcept nogil:
    cdef late_t *late = <late_t *>arg1
    thread_attach(reactor_current(), &late.thread)
    poller_register(&late.thread, &late.poller, 0)


def test_an_event_that_comes_as_it_falls_asleep(sleeper):
    """The sender saw nobody sleep and wakes nobody."""
    cdef late_t *late = <late_t *>calloc(1, sizeof(late_t))
    cdef uint32_t left = 0
    late.poller.poll = send_late
    late.poller.arg = late
    assert event_call_on(0, begin_late, late, NULL) == 0
    while load_acquire_u32(&late.ran) < 20:
        before = load_acquire_u32(&late.ran)
        time.sleep(0.2)
        if load_acquire_u32(&late.ran) == before < 20:
            # It was kept from running in its last millisecond, and sleeps with nothing sent.
            assert load_acquire_u32(&late.sent) == before
            assert reactor.nop(0) == 0
    assert event_call_on(0, detach_late, &late.thread, &left) == 0
    wait_for(lambda: load_acquire_u32(&left) == 1)
    free(late)


cdef void detach_late(void *arg1, void *arg2) noexcept nogil:
    thread_detach(<thread_t *>arg1)
    fetch_add_u32(<uint32_t *>arg2, 1)


def test_stress_no_wake_up_is_lost(sleeper):
    """Events that come as it falls asleep, or while it sleeps."""
    cdef uint32_t ran = 0
    cdef uint32_t sent = 0
    cdef uint32_t rounds = 300 * min(STRESS, 20)
    for i in range(rounds):
        # It falls asleep a millisecond after its last work.
        time.sleep(0.0009 + i % 50 * 0.00001)
        assert event_call_on(0, count_event, &ran, NULL) == 0
        sent += 1
        wait_for(lambda: load_acquire_u32(&ran) == sent)
