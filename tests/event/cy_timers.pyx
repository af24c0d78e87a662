"""vhostrt.event.timers: the heap against a sorted list, and its shape."""
import random

import pytest
from libc.stdint cimport uint64_t
from libc.stdlib cimport calloc, free
from vhostrt.event.reactor cimport poller_t
from vhostrt.event.timers cimport timers_insert, timers_remove


cdef class Timers:
    """A heap of `count` pollers, named by their place in an array."""
    cdef poller_t *pollers
    cdef poller_t *root
    cdef readonly int count

    def __cinit__(self, int count):
        self.count = count
        self.pollers = <poller_t *>calloc(count, sizeof(poller_t))
        assert self.pollers is not NULL

    def __dealloc__(self):
        free(self.pollers)

    def insert(self, int at, uint64_t next_run, uint64_t order):
        self.pollers[at].next_run = next_run
        self.pollers[at].order = order
        timers_insert(&self.root, &self.pollers[at])

    def remove(self, int at):
        cdef poller_t *p = &self.pollers[at]
        timers_remove(&self.root, p)
        assert p.prev is NULL and p.next is NULL and p.child is NULL, "it points there still"

    def earliest(self):
        """Return the place of the root; None for an empty heap."""
        return None if self.root is NULL else <int>(self.root - self.pollers)

    def drain(self):
        """Remove the root until none is left; return the places in that order."""
        places = []
        while self.root is not NULL:
            at = self.earliest()
            places.append(at)
            self.remove(at)
        return places

    def check(self):
        """Walk the heap: every link has its way back, no child is earlier; return how many."""
        cdef poller_t *p
        cdef poller_t *child
        cdef poller_t *left
        cdef int seen = 0
        if self.root is NULL:
            return 0
        assert self.root.prev is NULL and self.root.next is NULL
        waiting = [self.earliest()]
        while waiting:
            p = &self.pollers[<int>waiting.pop()]
            seen += 1
            left = p
            child = p.child
            while child is not NULL:
                assert child.prev is left
                assert (p.next_run, p.order) < (child.next_run, child.order)
                waiting.append(<int>(child - self.pollers))
                left, child = child, child.next
        return seen


@pytest.mark.parametrize("seed", range(8))
def test_like_a_sorted_list(seed):
    rng = random.Random(seed)
    timers = Timers(200)
    inside = {}                         # place -> (next_run, order)
    for order in range(4000):
        at = rng.randrange(200)
        if at in inside:
            timers.remove(at)
            del inside[at]
        else:
            # Few deadlines, so that many are equal; some beyond 2^63.
            inside[at] = (rng.choice([0, 1, 2, 5, 2**63, 2**64 - 1]) - rng.randrange(2) & 2**64 - 1,
                          order)
            timers.insert(at, *inside[at])
        assert timers.earliest() == min(inside, key=inside.get, default=None)
        if order % 50 == 0:
            assert timers.check() == len(inside)
    assert timers.drain() == sorted(inside, key=inside.get)


def test_equal_deadlines_keep_the_order_of_registration():
    timers = Timers(100)
    places = list(range(100))
    random.Random(1).shuffle(places)
    for at in places:
        timers.insert(at, 7, at)
    assert timers.drain() == list(range(100))


def test_a_hundred_thousand_timers():
    cdef int count = 100_000
    cdef int i
    cdef Timers timers = Timers(count)
    rng = random.Random(2)
    deadlines = [rng.randrange(1000) for _ in range(count)]
    for i in range(count):
        timers.insert(i, deadlines[i], i)
    # Every third one goes from wherever it lies.
    for i in range(0, count, 3):
        timers.remove(i)
    assert timers.check() == count - len(range(0, count, 3))
    assert timers.drain() == sorted((i for i in range(count) if i % 3),
                                    key=lambda i: (deadlines[i], i))


def test_ascending_and_descending_insertions():
    for step in (1, -1):
        timers = Timers(1000)
        for i in range(1000):
            timers.insert(i, 5000 + step * i, i)
        assert timers.drain() == list(range(1000))[::step]
