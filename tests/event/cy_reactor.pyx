"""vhostrt.event.reactor: events, active pollers and deferrals, from the viewpoint of their owners.

What runs on the reactor notes who it is and in which turn of the loop; the test reads the notes.
"""
import itertools
import os
import threading
import time

import pytest
from libc.errno cimport EAGAIN, ENODEV, ENOMEM
from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset
from vhostrt.base.atomics cimport (fetch_add_u32, load_acquire_u32, store_release_u32)
from vhostrt.event.events cimport event_call_on, event_send
from vhostrt.event.poller cimport poller_register, poller_unregister
from vhostrt.event.reactor cimport (deferred_t, event_t, poller_t, reactor_current, reactor_defer,
                                    reactor_of, reactor_t, thread_attach, thread_detach, thread_t)

from vhostrt.env import lcore, memory
from vhostrt.event import reactor

cdef extern from "<pthread.h>" nogil:
    ctypedef unsigned long pthread_t
    int pthread_create(pthread_t *thread, const void *attr, void *(*fn)(void *), void *arg)
    int pthread_join(pthread_t thread, void **result)

cdef extern from "<sched.h>" nogil:
    int sched_yield()

cdef enum:
    NOTES = 4096                # that are kept; the rest is counted
    RING = 65535                # events that a ring holds
    SENDERS = 4

STRESS = int(os.environ.get("VHOSTRT_STRESS", "1"))
DEADLINE_S = 60


def wait_for(condition):
    """Wait until condition() holds."""
    end = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.0005)


cdef struct note_t:
    uint32_t who
    uint64_t turn

cdef struct notes_t:
    uint32_t count              # written by the reactor with release
    note_t notes[NOTES]


cdef void take(notes_t *n, uint32_t who) noexcept nogil:
    if n.count < NOTES:
        n.notes[n.count].who = who
        n.notes[n.count].turn = reactor_current().iterations
    store_release_u32(&n.count, n.count + 1)


cdef list notes_of(notes_t *n):
    """(who, turn), turns counted from the first note's."""
    count = min(load_acquire_u32(&n.count), <uint32_t>NOTES)
    return [(n.notes[i].who, n.notes[i].turn - n.notes[0].turn) for i in range(count)]


# A gate: an event that holds the reactor until the test lets it go on.

cdef struct gate_t:
    uint32_t held
    uint32_t open


cdef void hold(void *arg1, void *arg2) noexcept nogil:
    cdef gate_t *gate = <gate_t *>arg1
    store_release_u32(&gate.held, 1)
    while not load_acquire_u32(&gate.open):
        sched_yield()
    store_release_u32(&gate.held, 0)


cdef class Gate:
    """While a `with` block of it runs, the reactor does nothing at all."""
    cdef gate_t g
    cdef uint32_t lcore

    def __init__(self, core=0):
        self.lcore = core

    def __enter__(self):
        self.g.held = self.g.open = 0
        assert event_call_on(self.lcore, hold, &self.g, NULL) == 0
        wait_for(lambda: load_acquire_u32(&self.g.held))

    def __exit__(self, *_):
        store_release_u32(&self.g.open, 1)
        wait_for(lambda: not load_acquire_u32(&self.g.held))


cdef void note_event(void *arg1, void *arg2) noexcept nogil:
    take(<notes_t *>arg1, <uint32_t><uint64_t>arg2)


cdef class Notes:
    cdef notes_t n

    def __len__(self):
        return load_acquire_u32(&self.n.count)

    def send(self, uint32_t who, uint32_t core=0):
        return event_call_on(core, note_event, &self.n, <void *><uint64_t>who)

    def wait(self, uint32_t count):
        wait_for(lambda: load_acquire_u32(&self.n.count) >= count)
        return notes_of(&self.n)

    def settle(self):
        """Return all notes once every event sent so far has run."""
        last = Notes()
        assert last.send(0) == 0
        last.wait(1)
        return notes_of(&self.n)


# Events

def test_events_of_a_sender_run_in_order(one):
    notes = Notes()
    for i in range(1000):
        assert notes.send(i) == 0
    assert [who for who, _ in notes.wait(1000)] == list(range(1000))
    assert reactor.stats(0)["events"] == 1000


def test_check_17_twenty_events_run_in_three_batches(one):
    notes = Notes()
    with Gate():
        for i in range(20):
            assert notes.send(i) == 0
    assert notes.wait(20) == [(i, i // 8) for i in range(20)]


cdef struct chain_t:
    notes_t *notes
    uint32_t left


cdef void send_on(void *arg1, void *arg2) noexcept nogil:
    cdef chain_t *chain = <chain_t *>arg1
    if chain.left:
        chain.left -= 1
        event_call_on(0, send_on, chain, NULL)
    take(chain.notes, 0)


def test_check_17_an_event_sent_by_an_event_is_not_of_its_batch(one):
    cdef Notes notes = Notes()
    cdef chain_t chain
    chain.notes = &notes.n
    chain.left = 3
    assert event_call_on(0, send_on, &chain, NULL) == 0
    assert notes.wait(4) == [(0, 0), (0, 1), (0, 2), (0, 3)]


cdef void count_event(void *arg1, void *arg2) noexcept nogil:
    fetch_add_u32(<uint32_t *>arg1, 1)


def test_a_full_ring_refuses_and_loses_nothing(one):
    cdef uint32_t ran = 0
    cdef event_t event
    memset(&event, 0, sizeof(event))
    event.fn = count_event
    event.arg1 = &ran
    with Gate():
        assert all(event_send(0, &event) == 0 for _ in range(RING))
        assert event_send(0, &event) == -EAGAIN
        assert event_send(0, &event) == -EAGAIN
        assert event_call_on(0, count_event, &ran, NULL) == -EAGAIN
        assert reactor.stats(0)["events_refused"] == 3
    wait_for(lambda: load_acquire_u32(&ran) == RING)
    # A refused event of the pool went back to it, and there is room again.
    assert event_call_on(0, count_event, &ran, NULL) == 0
    wait_for(lambda: load_acquire_u32(&ran) == RING + 1)


def test_an_empty_pool_refuses_and_fills_again(one):
    cdef uint32_t ran = 0
    cdef int rc = 0
    cdef uint32_t sent
    for _ in range(3):
        sent = 0
        ran = 0
        with Gate():
            while True:
                rc = event_call_on(0, count_event, &ran, NULL)
                if rc < 0:
                    break
                sent += 1
        assert rc == -ENOMEM
        assert sent > 10_000, "events of the round before did not come back"
        wait_for(lambda: load_acquire_u32(&ran) == sent)
    assert reactor.stats(0)["events_refused"] == 3


@pytest.mark.parametrize("core", [1, 1023, 1024, 2**32 - 1])
def test_no_reactor_there(one, core):
    cdef event_t event
    memset(&event, 0, sizeof(event))
    event.fn = count_event
    assert event_call_on(core, count_event, NULL, NULL) == -ENODEV
    assert event_send(core, &event) == -ENODEV
    assert reactor_of(core) is NULL
    assert reactor_current() is NULL


cdef struct embedded_t:
    event_t event
    uint32_t *ran


cdef void free_embedded(void *arg1, void *arg2) noexcept nogil:
    cdef uint32_t *ran = (<embedded_t *>arg1).ran
    free(arg1)                          # its event is the one that is running
    fetch_add_u32(ran, 1)


def test_an_embedded_event_may_be_freed_by_its_function(one):
    cdef uint32_t ran = 0
    cdef embedded_t *e
    for _ in range(100):
        e = <embedded_t *>calloc(1, sizeof(embedded_t))
        e.ran = &ran
        e.event.fn = free_embedded
        e.event.arg1 = e
        assert event_send(0, &e.event) == 0
        assert event_call_on(0, count_event, &ran, NULL) == 0
    wait_for(lambda: load_acquire_u32(&ran) == 200)


# Active pollers.  A scripted poller notes that it ran; in its turn `at` it does what it was told.

cdef struct scripted_t:
    poller_t poller             # first
    notes_t *notes
    uint32_t who
    uint64_t at                 # run in which it acts, from 1; 0 for never
    poller_t *victim            # is unregistered then
    poller_t *newcomer          # is registered then
    int answer                  # of poll


cdef int scripted_poll(void *arg) noexcept nogil:
    cdef scripted_t *s = <scripted_t *>arg
    take(s.notes, s.who)
    if s.poller.runs + 1 == s.at:
        if s.newcomer is not NULL:
            poller_register(s.poller.thread, s.newcomer, 0)
        if s.victim is not NULL:
            poller_unregister(s.victim)
    return s.answer


cdef struct setup_t:
    thread_t *thread
    scripted_t *scripts
    uint32_t count              # how many of them are registered
    uint32_t left               # how many are unregistered again
    uint32_t done


cdef void set_up(void *arg1, void *arg2) noexcept nogil:
    cdef setup_t *s = <setup_t *>arg1
    cdef uint32_t i
    thread_attach(reactor_current(), s.thread)
    for i in range(s.count):
        poller_register(s.thread, &s.scripts[i].poller, 0)
    store_release_u32(&s.done, 1)


cdef void tear_down(void *arg1, void *arg2) noexcept nogil:
    cdef setup_t *s = <setup_t *>arg1
    cdef uint32_t i
    for i in range(s.left):
        poller_unregister(&s.scripts[i].poller)
        poller_unregister(&s.scripts[i].poller)     # again is nothing
    thread_detach(s.thread)
    store_release_u32(&s.done, 2)


cdef class Scripted:
    """A thread with scripted pollers 0, 1, ... on lcore 0; only the first `registered` run."""
    cdef thread_t *thread
    cdef scripted_t *scripts
    cdef setup_t setup
    cdef Notes notes

    def __cinit__(self, uint32_t count, uint32_t registered):
        self.thread = <thread_t *>calloc(1, sizeof(thread_t))
        self.scripts = <scripted_t *>calloc(count, sizeof(scripted_t))
        self.notes = Notes()
        for i in range(count):
            self.scripts[i].poller.poll = scripted_poll
            self.scripts[i].poller.arg = &self.scripts[i]
            self.scripts[i].poller.fd = -1
            self.scripts[i].notes = &self.notes.n
            self.scripts[i].who = i
        self.setup.thread = self.thread
        self.setup.scripts = self.scripts
        self.setup.count = registered
        self.setup.left = count

    def __dealloc__(self):
        free(self.thread)
        free(self.scripts)

    def run(self, uint32_t notes):
        """Start, wait for so many notes, stop; return the notes."""
        assert event_call_on(0, set_up, &self.setup, NULL) == 0
        self.notes.wait(notes)
        assert event_call_on(0, tear_down, &self.setup, NULL) == 0
        wait_for(lambda: load_acquire_u32(&self.setup.done) == 2)
        assert self.thread.active is NULL and self.thread.timers is NULL
        found = notes_of(&self.notes.n)
        # The pollers are off: no more notes come.
        assert len(self.notes.settle()) == len(found)
        return found


def test_check_18_active_pollers_alternate(one):
    for count in (1, 2, 5):
        found = Scripted(count, count).run(count * 50)
        assert [who for who, _ in found] == [i % count for i in range(len(found))]
        assert [turn for _, turn in found] == [i // count for i in range(len(found))]


@pytest.mark.parametrize(("count", "actor"), [(n, i) for n in (1, 2, 3) for i in range(n)])
def test_check_18_a_poller_that_unregisters_itself_never_runs_again(one, count, actor):
    cdef Scripted s = Scripted(count + 1, count + 1)        # the last one always runs on
    s.scripts[<uint32_t>actor].at = 3
    s.scripts[<uint32_t>actor].victim = &s.scripts[<uint32_t>actor].poller
    found = s.run(100)
    assert [turn for who, turn in found if who == actor] == [0, 1, 2]
    assert once_a_turn(found, set(range(count + 1)) - {actor})


def once_a_turn(found, everybody):
    """True when each of them ran once in every turn."""
    last = max(turn for _, turn in found)
    turns = {who: [turn for w, turn in found if w == who and turn < last] for who in everybody}
    return all(of == list(range(last)) for of in turns.values())


@pytest.mark.parametrize(("actor", "victim", "newcomer"),
                         [(a, v, n) for a, v in itertools.permutations(range(4), 2)
                          for n in (False, True)])
def test_a_poller_that_unregisters_another(one, actor, victim, newcomer):
    """Nobody runs twice in a turn, nobody is left out, and who is new waits for the next turn."""
    cdef Scripted s = Scripted(5, 4)
    s.scripts[<uint32_t>actor].at = 3
    s.scripts[<uint32_t>actor].victim = &s.scripts[<uint32_t>victim].poller
    s.scripts[<uint32_t>actor].newcomer = &s.scripts[4].poller if newcomer else NULL
    found = s.run(100)
    assert [turn for who, turn in found if who == victim] == list(range(3 if victim < actor else 2))
    assert once_a_turn(found, {0, 1, 2, 3} - {victim})
    last = max(turn for _, turn in found)
    assert ([turn for who, turn in found if who == 4 and turn < last]
            == (list(range(3, last)) if newcomer else []))


@pytest.mark.parametrize("actor", [0, 1, 2])
def test_a_poller_registered_while_pollers_run_waits_for_the_next_turn(one, actor):
    cdef Scripted s = Scripted(4, 3)
    s.scripts[<uint32_t>actor].at = 2
    s.scripts[<uint32_t>actor].newcomer = &s.scripts[3].poller
    found = s.run(100)
    assert once_a_turn(found, {0, 1, 2})
    last = max(turn for _, turn in found)
    assert [turn for who, turn in found if who == 3 and turn < last] == list(range(2, last))


def test_the_only_poller_can_replace_itself(one):
    cdef Scripted s = Scripted(2, 1)
    s.scripts[0].at = 2
    s.scripts[0].victim = &s.scripts[0].poller
    s.scripts[0].newcomer = &s.scripts[1].poller
    assert s.run(50)[:4] == [(0, 0), (0, 1), (1, 2), (1, 3)]


def test_pollers_are_counted(one):
    cdef Scripted s = Scripted(2, 2)
    s.scripts[0].answer = 1
    s.scripts[1].answer = -5            # not work
    s.run(40)
    runs = s.scripts[0].poller.runs
    assert (s.scripts[0].poller.busy_runs, s.scripts[1].poller.busy_runs) == (runs, 0)
    assert s.scripts[1].poller.runs == runs
    assert len(s.notes) == 2 * runs


# Deferrals

cdef struct deferring_t:
    deferred_t first
    deferred_t second
    notes_t *notes
    thread_t thread
    poller_t poller


cdef void deferred_first(void *arg) noexcept nogil:
    cdef deferring_t *d = <deferring_t *>arg
    take(d.notes, 10)
    if d.notes.count < 20:
        reactor_defer(reactor_current(), &d.second)


cdef void deferred_second(void *arg) noexcept nogil:
    take((<deferring_t *>arg).notes, 11)


cdef int poll_after(void *arg) noexcept nogil:
    cdef deferring_t *d = <deferring_t *>arg
    take(d.notes, 3)
    poller_unregister(&d.poller)
    return 0


cdef void defer_thrice(void *arg1, void *arg2) noexcept nogil:
    cdef deferring_t *d = <deferring_t *>arg1
    cdef reactor_t *r = reactor_current()
    take(d.notes, 1)
    reactor_defer(r, &d.first)
    reactor_defer(r, &d.first)
    event_call_on(0, note_event, d.notes, <void *>2)
    thread_attach(r, &d.thread)
    poller_register(&d.thread, &d.poller, 0)
    reactor_defer(r, &d.first)


cdef void detach(void *arg1, void *arg2) noexcept nogil:
    thread_detach(<thread_t *>arg1)


def test_what_is_deferred_runs_once_at_the_end_of_the_turn(one):
    """Not before the pollers, not after the next event; and so what it defers in turn."""
    cdef Notes notes = Notes()
    cdef deferring_t *d = <deferring_t *>calloc(1, sizeof(deferring_t))
    d.notes = &notes.n
    d.first.run = deferred_first
    d.second.run = deferred_second
    d.first.arg = d.second.arg = d
    d.poller.poll = poll_after
    d.poller.arg = d
    assert event_call_on(0, defer_thrice, d, NULL) == 0
    notes.wait(5)
    assert event_call_on(0, detach, &d.thread, NULL) == 0
    assert notes.settle() == [(1, 0), (3, 0), (10, 0), (11, 0), (2, 1)]
    free(d)


# Stop

def test_stop_runs_what_is_queued():
    cdef Notes notes = Notes()
    lcore.init([min(os.sched_getaffinity(0))])
    memory.init()
    (core,) = lcore.enabled()
    reactor.init([core])
    try:
        assert notes.send(0, core) == -ENODEV, "it does not run yet"
        reactor.start()
        with Gate(core):
            for i in range(1000):
                assert notes.send(i, core) == 0
            stopping = threading.Thread(target=reactor.stop)
            stopping.start()
            # It has been asked to end, and still takes events.
            wait_for(lambda: load_acquire_u32(<uint32_t *>&reactor_of(core).state) == 2)
            assert notes.send(1000, core) == 0
        stopping.join()
        assert [who for who, _ in notes_of(&notes.n)] == list(range(1001))
        assert notes.send(0, core) == -ENODEV, "nobody would run it any more"
        assert reactor.fini() == 0
    finally:
        lcore.fini()
        memory.fini()


# Stress: threads that are no lcores send events of the pool and of their own to one reactor.

cdef struct sender_t:
    uint32_t who
    uint32_t events             # to send
    uint32_t next               # that the reactor expects from this sender
    uint32_t disorder
    uint32_t refused
    event_t *own                # every second event


cdef void check_order(void *arg1, void *arg2) noexcept nogil:
    cdef sender_t *s = <sender_t *>arg1
    if <uint32_t><uint64_t>arg2 != s.next:
        s.disorder += 1
    store_release_u32(&s.next, s.next + 1)


cdef void *send_many(void *arg) noexcept nogil:
    cdef sender_t *s = <sender_t *>arg
    cdef uint32_t i
    cdef int rc
    for i in range(s.events):
        if i % 2:
            s.own[i].fn = check_order
            s.own[i].arg1 = s
            s.own[i].arg2 = <void *><uint64_t>i
        while True:
            if i % 2:
                rc = event_send(0, &s.own[i])
            else:
                rc = event_call_on(0, check_order, s, <void *><uint64_t>i)
            if rc == 0:
                break
            s.refused += 1
            sched_yield()
    return NULL


def test_stress_events_from_many_threads(one):
    cdef sender_t senders[SENDERS]
    cdef pthread_t threads[SENDERS]
    cdef int i
    cdef uint32_t events = 20_000 * min(STRESS, 50)
    memset(senders, 0, sizeof(senders))
    for i in range(SENDERS):
        senders[i].events = events
        senders[i].own = <event_t *>calloc(events, sizeof(event_t))
    with nogil:
        for i in range(SENDERS):
            pthread_create(&threads[i], NULL, send_many, &senders[i])
        for i in range(SENDERS):
            pthread_join(threads[i], NULL)
    for i in range(SENDERS):
        wait_for(lambda: load_acquire_u32(&senders[i].next) == events)
        assert senders[i].disorder == 0
    stats = reactor.stats(0)
    assert stats["events"] == SENDERS * events
    assert stats["events_refused"] == sum(senders[i].refused for i in range(SENDERS))
    for i in range(SENDERS):
        free(senders[i].own)
