"""Random programs of events, messages, pollers, deferrals and moves, run by reactors.

A program is data: items, which are events, messages or deferrals and are sent once, and pollers,
with a list of actions for each time that one of them runs.  What ran where and when is logged by
each reactor; tests.event.simulation makes the programs and knows what the logs have to say.
"""
import os
import random
import time

import pytest
from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset
from vhostrt.base.atomics cimport (cpu_pause, exchange_u32, fetch_add_u32, fetch_add_u64,
                                   load_acquire_ptr, load_acquire_u32, load_acquire_u64,
                                   store_release_u32)
from vhostrt.base.ticks cimport ticks_from_us, ticks_now
from vhostrt.event.events cimport event_call_on, event_send
from vhostrt.event.message cimport thread_send_critical, thread_send_msg, thread_send_node
from vhostrt.event.poller cimport (poller_pause, poller_register, poller_resume, poller_set_period,
                                   poller_unregister)
from vhostrt.event.reactor cimport (POLLER_OFF, POLLER_PAUSED, POLLER_RUNNING, deferred_t, event_t,
                                    msg_t, poller_t, reactor_current, reactor_defer, reactor_t,
                                    thread_attach, thread_detach, thread_init, thread_t)

from tests.event import simulation
from tests.event.conftest import running

cdef extern from "<stdlib.h>" nogil:
    void *aligned_alloc(size_t align, size_t size)

STRESS = int(os.environ.get("VHOSTRT_STRESS", "1"))
DEADLINE_S = 60

cdef enum:
    REACTORS = 3
    THREADS = 4
    POLLERS = 12
    RUNS = 16                   # of a poller, that have actions
    LOG = 8000

# Kinds of log entries; an item's kind is one of the first three.
cdef enum:
    EVENT = 0
    MESSAGE = 1
    DEFERRED = 2
    POLLER = 3
    CRITICAL = 4

cdef enum:
    SEND = 0                    # item
    CRITICAL_TO = 1             # thread
    REGISTER = 2                # poller, period
    UNREGISTER = 3
    PAUSE = 4
    RESUME = 5
    PERIOD = 6
    ATTACH = 7                  # thread
    DETACH = 8
    MOVE = 9                    # thread, reactor: wherever it is

# What must not be.
WRONG = ["a message ran elsewhere", "an item ran elsewhere", "a critical message ran elsewhere",
         "a poller ran twice at once", "a poller ran that was not to", "a timer was early",
         "an item was refused"]
cdef enum:
    MESSAGE_PLACE
    ITEM_PLACE
    CRITICAL_PLACE
    TWICE
    UNASKED
    EARLY
    REFUSED
    WRONGS

cdef struct action_t:
    uint32_t op
    uint32_t on
    uint64_t value

cdef struct script_t:
    uint32_t first              # of sim.actions
    uint32_t count

cdef struct item_t:
    event_t event
    msg_t msg
    deferred_t deferred
    sim_t *sim
    uint32_t id
    uint32_t kind
    uint32_t to                 # reactor or thread
    bint pooled
    script_t script
    uint32_t runs
    uint32_t sender             # the reactor, or REACTORS: the control thread
    uint64_t sent               # its number among what that one has sent

cdef struct actor_t:
    poller_t poller             # first
    sim_t *sim
    uint32_t id
    uint32_t thread
    script_t scripts[RUNS]
    uint32_t runs
    uint32_t inside             # 1 while it runs
    uint64_t not_before         # ticks

cdef struct move_t:
    event_t event
    sim_t *sim
    uint32_t thread
    uint32_t to

cdef struct entry_t:
    uint32_t kind
    uint32_t id
    uint32_t thread             # of a message or poller
    uint32_t sender
    uint64_t sent
    uint64_t nth                # of the messages of its thread
    uint64_t turn

cdef struct sim_t:
    thread_t *threads           # THREADS of them, 64-aligned
    uint32_t reactors
    uint32_t item_count
    item_t *items
    action_t *actions
    actor_t actors[POLLERS]
    script_t start              # done by the gate
    uint64_t base               # turn of the gate, on reactor 0
    uint32_t gate               # 1: opened
    uint32_t closing            # 1: pollers do nothing any more, and threads stay
    uint32_t steps
    uint64_t sends              # items sent, and run
    uint64_t done
    uint32_t wrong[WRONGS]      # 1: was seen
    uint64_t numbers[REACTORS + 1]
    uint64_t messages[THREADS]  # that have run
    uint32_t logged[REACTORS]
    entry_t *logs[REACTORS]

cdef sim_t *g_sim = NULL                # the one that runs; critical messages have no argument


cdef void log(sim_t *sim, uint32_t kind, uint32_t id, uint32_t thread, uint32_t sender,
              uint64_t sent) noexcept nogil:
    cdef reactor_t *r = reactor_current()
    cdef uint32_t n = sim.logged[r.lcore]
    # Of items there are not so many; pollers run for ever.
    if n < (LOG // 2 if kind == POLLER else <uint32_t>LOG):
        sim.logs[r.lcore][n] = entry_t(kind, id, thread, sender, sent,
                                       sim.messages[thread] if kind == MESSAGE else 0, r.iterations)
        sim.logged[r.lcore] = n + 1


cdef void wrong(sim_t *sim, uint32_t what, bint it_is) noexcept nogil:
    if it_is:
        store_release_u32(&sim.wrong[what], 1)


cdef reactor_t *place_of(sim_t *sim, uint32_t thread) noexcept nogil:
    """Return the reactor that a thread is on, which others may be moving; NULL: none."""
    return <reactor_t *>load_acquire_ptr(&sim.threads[thread].reactor)


# What runs

cdef void item_run(item_t *item) noexcept nogil:
    cdef sim_t *sim = item.sim
    cdef reactor_t *r = reactor_current()
    cdef thread_t *thread
    item.runs += 1
    if item.kind == MESSAGE:
        thread = &sim.threads[item.to]
        wrong(sim, MESSAGE_PLACE, r.thread is not thread
              or place_of(sim, item.to) is not r)
    else:
        wrong(sim, ITEM_PLACE, r.thread is not NULL or item.kind == EVENT and r.lcore != item.to)
    log(sim, item.kind, item.id, item.to, item.sender, item.sent)
    if item.kind == MESSAGE:
        sim.messages[item.to] += 1
    act(sim, &item.script)
    fetch_add_u64(&sim.done, 1)


cdef void item_event(void *arg1, void *arg2) noexcept nogil:
    item_run(<item_t *>arg1)


cdef void item_call(void *arg) noexcept nogil:
    item_run(<item_t *>arg)


cdef void critical(void *ctx) noexcept nogil:
    cdef sim_t *sim = g_sim
    cdef uint32_t i
    for i in range(<uint32_t>THREADS):
        if reactor_current().thread is &sim.threads[i]:
            log(sim, CRITICAL, i, i, 0, 0)
            return
    wrong(sim, CRITICAL_PLACE, True)


cdef int actor_poll(void *arg) noexcept nogil:
    cdef actor_t *a = <actor_t *>arg
    cdef sim_t *sim = a.sim
    cdef reactor_t *r = reactor_current()
    wrong(sim, TWICE, exchange_u32(&a.inside, 1) != 0)
    wrong(sim, UNASKED, a.poller.state != POLLER_RUNNING or r.thread is not &sim.threads[a.thread])
    wrong(sim, EARLY, a.poller.period != 0 and ticks_now() < a.not_before)
    a.not_before = r.now + a.poller.period
    log(sim, POLLER, a.id, a.thread, a.poller.period != 0, 0)
    if a.runs < RUNS and not load_acquire_u32(&sim.closing):
        a.runs += 1
        act(sim, &a.scripts[a.runs - 1])
    exchange_u32(&a.inside, 0)
    return a.id % 2


# What is done

cdef void send(sim_t *sim, item_t *item) noexcept nogil:
    cdef reactor_t *r = reactor_current()
    cdef int rc = 0
    if item.runs or item.sim is NULL:
        return
    item.sender = r.lcore if r is not NULL else <uint32_t>REACTORS
    item.sent = sim.numbers[item.sender]
    sim.numbers[item.sender] += 1
    fetch_add_u64(&sim.sends, 1)
    if item.kind == DEFERRED:
        reactor_defer(r, &item.deferred)
    elif item.kind == EVENT:
        if item.pooled:
            rc = event_call_on(item.to, item_event, item, NULL)
        else:
            rc = event_send(item.to, &item.event)
    elif item.pooled:
        rc = thread_send_msg(&sim.threads[item.to], item_call, item)
    else:
        thread_send_node(&sim.threads[item.to], &item.msg)
    wrong(sim, REFUSED, rc != 0)


cdef void set_poller(sim_t *sim, uint32_t op, actor_t *a, uint64_t period_us) noexcept nogil:
    cdef uint64_t now = ticks_now()
    if op == UNREGISTER:
        poller_unregister(&a.poller)
    elif op == PAUSE:
        poller_pause(&a.poller)
    elif op == RESUME:
        if a.poller.state == POLLER_PAUSED:
            a.not_before = now + a.poller.period
        poller_resume(&a.poller)
    elif op == PERIOD:
        # While it runs, its period counts from the look that it runs in.
        a.not_before = (reactor_current().now if a.inside else now) + ticks_from_us(period_us)
        poller_set_period(&a.poller, period_us)
    elif a.poller.state == POLLER_OFF:
        a.not_before = now + ticks_from_us(period_us)
        poller_register(&sim.threads[a.thread], &a.poller, period_us)


cdef void act(sim_t *sim, script_t *script) noexcept nogil:
    """Do what is listed; what cannot be done where this runs is left out."""
    cdef reactor_t *r = reactor_current()
    cdef action_t *action
    cdef thread_t *thread
    cdef uint32_t i
    for i in range(script.count):
        action = &sim.actions[script.first + i]
        if action.op == SEND:
            send(sim, &sim.items[action.on])
        elif action.op == CRITICAL_TO:
            thread_send_critical(&sim.threads[action.on], critical)
        elif action.op == ATTACH or action.op == DETACH:
            thread = &sim.threads[action.on]
            if load_acquire_u32(&sim.closing):
                continue
            if r.thread is NULL and (place_of(sim, action.on) is NULL) == (action.op == ATTACH):
                if action.op == ATTACH:
                    thread_attach(r, thread)
                else:
                    thread_detach(thread)
        elif action.op == MOVE:
            move(sim, action.on, <uint32_t>action.value)
        else:
            set_poller(sim, action.op, &sim.actors[action.on], action.value)


cdef void move(sim_t *sim, uint32_t thread, uint32_t to) noexcept nogil:
    cdef move_t *m = <move_t *>calloc(1, sizeof(move_t))
    m.sim = sim
    m.thread = thread
    m.to = to
    m.event.fn = move_away
    m.event.arg1 = m
    fetch_add_u64(&sim.sends, 1)
    wrong(sim, REFUSED, event_send(reactor_current().lcore, &m.event) != 0)


cdef void move_away(void *arg1, void *arg2) noexcept nogil:
    """Go where the thread is, detach it, and have it attached elsewhere."""
    cdef move_t *m = <move_t *>arg1
    cdef thread_t *thread = &m.sim.threads[m.thread]
    cdef reactor_t *r = place_of(m.sim, m.thread)
    if r is reactor_current():
        thread_detach(thread)
        m.event.fn = arrive
        event_send(m.to, &m.event)
    else:
        # Between two reactors, or on another one: look there, or here again.
        event_send(reactor_current().lcore if r is NULL else r.lcore, &m.event)


cdef void arrive(void *arg1, void *arg2) noexcept nogil:
    cdef move_t *m = <move_t *>arg1
    thread_attach(reactor_current(), &m.sim.threads[m.thread])
    fetch_add_u64(&m.sim.done, 1)
    free(m)


cdef void gate(void *arg1, void *arg2) noexcept nogil:
    """Hold reactor 0 until everything from outside has been sent, then begin."""
    cdef sim_t *sim = <sim_t *>arg1
    fetch_add_u32(&sim.steps, 1)
    while not load_acquire_u32(&sim.gate):
        cpu_pause()
    sim.base = reactor_current().iterations
    act(sim, &sim.start)
    fetch_add_u32(&sim.steps, 1)


cdef void tidy(void *arg1, void *arg2) noexcept nogil:
    """On each reactor: let nothing be polled any more; with arg2, take threads that are nowhere."""
    cdef sim_t *sim = <sim_t *>arg1
    cdef uint32_t i
    for i in range(<uint32_t>POLLERS):
        if place_of(sim, sim.actors[i].thread) is reactor_current():
            poller_unregister(&sim.actors[i].poller)
    for i in range(<uint32_t>THREADS):
        if arg2 is not NULL and place_of(sim, i) is NULL:
            thread_attach(reactor_current(), &sim.threads[i])
    fetch_add_u32(&sim.steps, 1)


cdef void take_down(void *arg1, void *arg2) noexcept nogil:
    cdef sim_t *sim = <sim_t *>arg1
    cdef uint32_t i
    for i in range(<uint32_t>THREADS):
        if place_of(sim, i) is reactor_current():
            thread_detach(&sim.threads[i])
    fetch_add_u32(&sim.steps, 1)


# From Python

def wait_for(condition):
    """Wait until condition() holds."""
    end = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.0002)


cdef class Simulation:
    """A program of tests.event.simulation, on reactors that run."""
    cdef sim_t *s

    def __cinit__(self, program):
        global g_sim
        cdef uint32_t i
        cdef size_t size = THREADS * sizeof(thread_t)
        self.s = <sim_t *>calloc(1, sizeof(sim_t))
        self.s.threads = <thread_t *>aligned_alloc(64, (size + 63) & ~<size_t>63)
        memset(self.s.threads, 0, size)
        self.s.reactors = program.reactors
        for i in range(<uint32_t>THREADS):
            thread_init(&self.s.threads[i])
        for i in range(<uint32_t>REACTORS):
            self.s.logs[i] = <entry_t *>calloc(LOG, sizeof(entry_t))
        self.s.item_count = len(program.items)
        self.s.items = <item_t *>calloc(len(program.items), sizeof(item_t))
        self.s.actions = <action_t *>calloc(program.action_count() + 1, sizeof(action_t))
        self.fill(program)
        g_sim = self.s

    def fill(self, program):
        cdef uint32_t i, at = 0
        cdef item_t *item
        for i in range(self.s.item_count):
            item = &self.s.items[i]
            item.sim, item.id = self.s, i
            item.kind, item.to, item.pooled = program.items[i][:3]
            item.event.fn, item.event.arg1 = item_event, item
            item.msg.fn, item.msg.ctx = item_call, item
            item.deferred.run, item.deferred.arg = item_call, item
            at = self.put(&item.script, program.items[i][3], at)
        for i in range(<uint32_t>POLLERS):
            self.s.actors[i].sim, self.s.actors[i].id = self.s, i
            self.s.actors[i].thread = program.pollers[i][0]
            self.s.actors[i].poller.poll = actor_poll
            self.s.actors[i].poller.arg = &self.s.actors[i]
            self.s.actors[i].poller.fd = -1
            for n, actions in enumerate(program.pollers[i][1]):
                at = self.put(&self.s.actors[i].scripts[<uint32_t>n], actions, at)
        self.put(&self.s.start, program.start, at)

    cdef uint32_t put(self, script_t *script, actions, uint32_t at):
        script.first, script.count = at, len(actions)
        for op, on, value in actions:
            self.s.actions[at] = action_t(op, on, value)
            at += 1
        return at

    def __dealloc__(self):
        cdef uint32_t i
        for i in range(<uint32_t>REACTORS):
            free(self.s.logs[i])
        free(self.s.threads)
        free(self.s.items)
        free(self.s.actions)
        free(self.s)

    def begin(self, roots):
        """Send the roots (item numbers) from outside, and open the gate."""
        assert event_call_on(0, gate, self.s, NULL) == 0
        wait_for(lambda: load_acquire_u32(&self.s.steps) == 1)     # it is alone in its batch
        for root in roots:
            send(self.s, &self.s.items[<uint32_t>root])
        store_release_u32(&self.s.gate, 1)
        wait_for(lambda: load_acquire_u32(&self.s.steps) == 2)

    def step_all(self, what):
        cdef uint32_t core
        for core in range(self.s.reactors):
            before = load_acquire_u32(&self.s.steps)
            if what == "tidy":
                # Where there are several, who is nowhere is on the way.
                event_call_on(core, tidy, self.s, <void *>1 if self.s.reactors == 1 else NULL)
            else:
                event_call_on(core, take_down, self.s, NULL)
            wait_for(lambda before=before: load_acquire_u32(&self.s.steps) > before)

    def quiet(self):
        """Return whether everything that was sent has run."""
        done = load_acquire_u64(&self.s.done)
        return load_acquire_u64(&self.s.sends) == done

    def end(self):
        """Let it run out, and take everything down."""
        wait_for(lambda: self.turns() > simulation.TURNS)
        store_release_u32(&self.s.closing, 1)
        self.step_all("tidy")
        wait_for(self.quiet)
        self.step_all("take_down")

    def turns(self):
        """Return how many turns reactor 0 has made since the gate was opened."""
        from vhostrt.event import reactor
        return reactor.iterations(0) - self.s.base

    def log_of(self, uint32_t core):
        """Return (kind, id, thread, sender, sent, nth, turn) of what ran on a reactor, in order."""
        cdef entry_t *e = self.s.logs[core]
        assert self.s.logged[core] < LOG
        return [(e[i].kind, e[i].id, e[i].thread, e[i].sender, e[i].sent, e[i].nth,
                 e[i].turn - self.s.base)
                for i in range(<int>self.s.logged[core])]

    def item_runs(self):
        return [self.s.items[i].runs for i in range(<int>self.s.item_count)]

    @property
    def wrong(self):
        return [WRONG[i] for i in range(WRONGS) if load_acquire_u32(&self.s.wrong[<uint32_t>i])]

    @property
    def counts(self):
        return load_acquire_u64(&self.s.sends), load_acquire_u64(&self.s.done)


def run_exactly(seed):
    """Run a program on one reactor, and compare with the model."""
    program = simulation.exact_program(random.Random(seed))
    sim = Simulation(program)
    sim.begin(program.roots)
    sim.end()
    assert sim.wrong == [], (seed, sim.wrong)
    difference = simulation.first_difference(sim.log_of(0), simulation.Model(program).run())
    assert difference is None, f"seed {seed}, (turn, found, expected): {difference}"


def run_freely(seed):
    """Run a program on several reactors, and check what has to hold in any order of things."""
    program = simulation.free_program(random.Random(seed))
    sim = Simulation(program)
    sim.begin(program.roots)
    time.sleep(0.02)
    sim.end()
    assert sim.wrong == [], (seed, sim.wrong)
    sends, done = sim.counts
    assert sends == done > 0, (seed, sends, done)
    wrong = simulation.wrong_in([sim.log_of(core) for core in range(program.reactors)],
                                sim.item_runs())
    assert wrong == [], f"seed {seed}: {wrong}"


@pytest.mark.parametrize("first", range(0, 100, 20))
def test_one_reactor_does_what_the_model_does(one, first):
    for seed in range(first, first + 20):
        run_exactly(seed)


@pytest.mark.parametrize("first", range(0, 40, 10))
def test_several_reactors_keep_the_rules(first):
    with running(REACTORS):
        for seed in range(first, first + 10):
            run_freely(seed)


def test_stress_random_programs():
    """New ones in every run; the message of a failure tells the seed."""
    with running(REACTORS):
        for _ in range(10 * STRESS):
            run_freely(random.randrange(2**32))
            run_exactly(random.randrange(2**32))
