"""vhostrt.event.poller: a thread's pollers, driven pass by pass without a reactor, and a model.

Pollers do at random what pollers may: unregister, pause, resume, register and change the period of
themselves and of others, from outside and while they run.
"""
import random

import pytest
from libc.stdint cimport UINT64_MAX, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from vhostrt.base.ticks cimport ticks_from_us, ticks_now
from vhostrt.event.poller cimport (TIMER_BATCH, poller_pause, poller_register, poller_resume,
                                   poller_set_period, poller_unregister, run_active, run_timers,
                                   timers_first)
from vhostrt.event.reactor cimport (POLLER_OFF, POLLER_PAUSED, POLLER_WAITING, poller_t,
                                    thread_init, thread_t)

cdef enum:
    POLLERS = 24
    RUNS_MAX = 4096

OFF, WAITING, PAUSED = POLLER_OFF, POLLER_WAITING, POLLER_PAUSED
# Microseconds; more kinds than there are lanes.
PERIODS = [0, 0, 0, 1000, 1000, 2000, 3000, 4000, 5000, 6000]
REGISTER, UNREGISTER, PAUSE, RESUME, PERIOD = range(5)


cdef struct act_t:
    # What a poller does in its next run.
    uint32_t what               # an index into the list above, and one more; 0: nothing
    poller_t *on
    uint64_t period_us

cdef struct actor_t:
    poller_t poller             # first
    uint32_t who
    actors_t *all
    act_t act

cdef struct run_t:
    uint32_t who
    uint64_t deadline           # of the poller that it acted on, afterwards

cdef struct actors_t:
    thread_t thread
    actor_t actors[POLLERS]
    run_t runs[RUNS_MAX]
    uint32_t run_count


cdef void do(thread_t *thread, poller_t *on, uint32_t what, uint64_t period_us) noexcept nogil:
    if what == 0 and on.state == POLLER_OFF:
        poller_register(thread, on, period_us)
    elif what == 1:
        poller_unregister(on)
    elif what == 2:
        poller_pause(on)
    elif what == 3:
        poller_resume(on)
    elif what == 4:
        poller_set_period(on, period_us)


cdef int act(void *arg) noexcept nogil:
    cdef actor_t *a = <actor_t *>arg
    cdef act_t todo = a.act
    cdef run_t *run = &a.all.runs[min(a.all.run_count, <uint32_t>RUNS_MAX - 1)]
    run.who = a.who
    a.all.run_count += 1
    a.act.what = 0
    if todo.what:
        do(&a.all.thread, todo.on, todo.what - 1, todo.period_us)
        run.deadline = todo.on.next_run
    return a.who % 2


cdef class Actors:
    """A thread with POLLERS pollers, all off."""
    cdef actors_t *a

    def __cinit__(self):
        cdef uint32_t i
        self.a = <actors_t *>calloc(1, sizeof(actors_t))
        thread_init(&self.a.thread)
        for i in range(<uint32_t>POLLERS):
            self.a.actors[i].poller.poll = act
            self.a.actors[i].poller.arg = &self.a.actors[i]
            self.a.actors[i].poller.fd = -1
            self.a.actors[i].who = i
            self.a.actors[i].all = self.a

    def __dealloc__(self):
        free(self.a)

    def do(self, uint32_t on, uint32_t what, uint64_t period_us):
        do(&self.a.thread, &self.a.actors[on].poller, what, period_us)

    def tell(self, uint32_t who, uint32_t on, uint32_t what, uint64_t period_us):
        """Have poller `who` do this in its next run."""
        self.a.actors[who].act = act_t(what + 1, &self.a.actors[on].poller, period_us)

    def active_pass(self):
        """Return who ran, with the deadline of what each acted on, and whether one did work."""
        self.a.run_count = 0
        busy = run_active(&self.a.thread)
        return self.log(), busy

    def timer_look(self, uint64_t now):
        """As active_pass, for the timed ones that are due at `now` (ticks)."""
        self.a.run_count = 0
        busy = run_timers(&self.a.thread, now)
        return self.log(), busy

    def log(self):
        return [(self.a.runs[i].who, self.a.runs[i].deadline)
                for i in range(<int>self.a.run_count)]

    def next_run(self, uint32_t who):
        return self.a.actors[who].poller.next_run

    def states(self):
        return [self.a.actors[i].poller.state for i in range(POLLERS)]

    def runs(self, uint32_t who):
        return self.a.actors[who].poller.runs, self.a.actors[who].poller.busy_runs

    @property
    def due(self):
        return self.a.thread.timer_due

    @property
    def empty(self):
        return self.a.thread.active is NULL and timers_first(&self.a.thread) is NULL \
            and self.a.thread.paused is NULL


class Entry:
    """What the model knows of a poller."""

    def __init__(self):
        self.state, self.period, self.order, self.deadline, self.runs = OFF, 0, 0, 0, 0
        self.act = None


class Model:
    """The same rules, said simply."""

    def __init__(self):
        self.entries = [Entry() for _ in range(POLLERS)]
        self.number = 0

    def place(self, e, deadline):
        self.number += 1
        e.state, e.order, e.deadline = WAITING, self.number, deadline

    def do(self, on, what, period_us, deadline):
        """deadline: what the clock made it."""
        e = self.entries[on]
        if what == REGISTER and e.state == OFF:
            e.period = period_us
            self.place(e, deadline)
        elif what == UNREGISTER:
            e.state = GONE if e.state in (RUNNING, PAUSING, GONE) else OFF
        elif what == PAUSE and e.state in (WAITING, RUNNING):
            e.state = PAUSED if e.state == WAITING else PAUSING
        elif what == RESUME and e.state in (PAUSED, PAUSING):
            if e.state == PAUSING:
                e.state = RUNNING
            else:
                self.place(e, deadline)
        elif what == PERIOD and e.state not in (OFF, GONE):
            e.period = period_us
            if e.state == WAITING:
                self.place(e, deadline)

    def run(self, who, log, now):
        """Run one; now: the look that it runs in, None in an active pass."""
        e = self.entries[who]
        ran, deadline = next(log, (None, None))
        assert ran == who, "another one ran"
        e.state, was_active = RUNNING, e.period == 0
        e.runs += 1
        if e.act:
            (on, what, period_us), e.act = e.act, None
            self.do(on, what, period_us, deadline)
        if e.state == GONE:
            e.state = OFF
        elif e.state == PAUSING:
            e.state = PAUSED
        elif was_active and e.period == 0:
            e.state = WAITING           # it keeps its place
        else:
            self.place(e, now + ticks_from_us(e.period) if now else self.clock(who))

    def active_pass(self, log, clock):
        """clock: the deadlines that the clock gave those that became timed ones."""
        self.clock = clock
        last, done = self.number, 0
        while True:
            turn = [(e.order, who) for who, e in enumerate(self.entries)
                    if e.state == WAITING and e.period == 0 and done < e.order <= last]
            if not turn:
                return
            done, who = min(turn)
            self.run(who, log, None)

    def timer_look(self, log, now):
        for _ in range(TIMER_BATCH):
            due = [(e.deadline, e.order, who) for who, e in enumerate(self.entries)
                   if e.state == WAITING and e.period and e.deadline <= now]
            if not due:
                return
            self.run(min(due)[2], log, now)

    def earliest(self):
        return min((e.deadline for e in self.entries if e.state == WAITING and e.period),
                   default=UINT64_MAX)


RUNNING, PAUSING, GONE = "running", "pausing", "gone"


def check_same(actors, model, log, busy):
    """After a pass: nothing ran that should not, and both say the same of every poller."""
    assert next(log, None) is None, "one ran too many"
    assert actors.states() == [e.state for e in model.entries]
    for who, e in enumerate(model.entries):
        assert actors.runs(who) == (e.runs, e.runs if who % 2 else 0)
        if e.state == WAITING and e.period:
            assert actors.next_run(who) == e.deadline


@pytest.mark.parametrize("seed", range(40))
def test_random_programs_against_a_model(seed):
    rng = random.Random(seed)
    actors, model = Actors(), Model()
    now = ticks_now()
    for _ in range(400):
        on, what, period = rng.randrange(POLLERS), rng.choice(range(5)), rng.choice(PERIODS)
        if rng.random() < 0.5:
            actors.do(on, what, period)
            model.do(on, what, period, actors.next_run(on))
        else:
            who = on if rng.random() < 0.3 else rng.randrange(POLLERS)
            actors.tell(who, on, what, period)
            model.entries[who].act = on, what, period
        if rng.random() < 0.5:
            found, busy = actors.active_pass()
            log = iter(found)
            model.active_pass(log, actors.next_run)
        else:
            now = max(now, ticks_now()) + ticks_from_us(rng.choice((0, 500, 1000, 5000)))
            found, busy = actors.timer_look(now)
            log = iter(found)
            model.timer_look(log, now)
            assert actors.due == model.earliest()
        assert busy == any(who % 2 for who, _ in found)
        check_same(actors, model, log, busy)
    for who in range(POLLERS):
        actors.do(who, UNREGISTER, 0)
    assert actors.empty


def test_many_timers_run_in_the_order_of_their_deadlines():
    """More than fit into one look, of more periods than there are lanes."""
    actors = Actors()
    for who in range(POLLERS):
        actors.do(who, REGISTER, 1000 * (1 + who * 7 % POLLERS))
    end = max(actors.next_run(who) for who in range(POLLERS))
    expected = sorted(range(POLLERS), key=actors.next_run)
    ran = []
    for _ in range(POLLERS // TIMER_BATCH):
        found, _ = actors.timer_look(end)
        assert len(found) == TIMER_BATCH
        ran += [who for who, _ in found]
    assert ran == expected and actors.timer_look(end)[0] == []
