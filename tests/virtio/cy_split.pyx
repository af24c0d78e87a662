"""vhostrt.virtio.split: the device's side of a split ring, around the wraps of its indices."""
import random

import pytest
from libc.errno cimport EPROTO
from libc.stdint cimport uint16_t, uint32_t
from libc.stdlib cimport calloc, free
from vhostrt.base.check cimport static_check
from vhostrt.virtio.split cimport (VRING_AVAIL_F_NO_INTERRUPT, VRING_USED_F_NO_NOTIFY,
                                   split_available, split_head, split_kicks_off, split_kicks_on,
                                   split_publish, split_push, split_t, vring_avail, vring_desc,
                                   vring_used, vring_used_elem)


cdef class Ring:
    """A ring of `size` that starts at index `start`; what the driver writes is set by the test."""
    cdef split_t s
    cdef void *memory

    def __cinit__(self, uint16_t size, uint16_t start=0, bint event_idx=False):
        self.memory = calloc(1, 65536 * 16)
        self.s.avail = <vring_avail *>self.memory
        self.s.used = <vring_used *>(<char *>self.memory + 4 * 65536)
        self.s.size = size
        self.s.event_idx = event_idx
        self.s.next_avail = self.s.next_used = self.s.published = self.s.signalled = start
        self.s.avail.idx = self.s.used.idx = start

    def __dealloc__(self):
        free(self.memory)

    def offer(self, *heads):
        """Do what a driver does: put heads on the ring, then show them."""
        cdef uint16_t idx = self.s.avail.idx
        for head in heads:
            self.s.avail.ring[idx % self.s.size] = head
            idx += 1
        self.s.avail.idx = idx

    def available(self):
        return split_available(&self.s)

    def heads(self):
        cdef uint16_t i
        return [split_head(&self.s, i) for i in range(<uint16_t>self.available())]

    def give_back(self, *heads):
        for head in heads:
            split_push(&self.s, head, head * 10)

    def publish(self):
        return bool(split_publish(&self.s))

    def used(self, uint32_t index):
        """Return (id, written) of the used element with that running index."""
        cdef vring_used_elem *e = &self.s.used.ring[index % self.s.size]
        return e.id, e.len

    def ask_at(self, uint16_t event):
        """The driver wants an interrupt once used.idx passes this."""
        self.s.avail.ring[self.s.size] = event


def test_sizes():
    static_check(sizeof(vring_desc) == 16)
    static_check(sizeof(vring_used_elem) == 8)


@pytest.mark.parametrize("start", [0, 1, 65530, 65535])
def test_heads_in_their_order_across_the_wrap(start):
    ring = Ring(8, start)
    assert ring.available() == 0
    ring.offer(5, 4, 3, 2, 1, 0, 7, 6)
    assert ring.available() == 8
    assert ring.heads() == [5, 4, 3, 2, 1, 0, 7, 6]
    (<Ring>ring).s.next_avail += 3
    assert ring.heads() == [2, 1, 0, 7, 6]


@pytest.mark.parametrize("size", [1, 8, 32768])
@pytest.mark.parametrize("start", [0, 40000, 65535])
def test_a_jump_of_the_index(size, start):
    cdef Ring ring = Ring(size, start)
    for jump, answer in ((0, 0), (1, 1), (size, size), (size + 1, -EPROTO), (65535, -EPROTO)):
        ring.s.avail.idx = (start + jump) % 65536
        assert ring.available() == answer


@pytest.mark.parametrize("start", [0, 65533])
def test_what_is_given_back_is_seen_when_it_is_published(start):
    cdef Ring ring = Ring(4, start)
    ring.give_back(1, 2, 3)
    assert ring.s.used.idx == start
    assert [ring.used(start + i) for i in range(3)] == [(1, 10), (2, 20), (3, 30)]
    ring.publish()
    assert ring.s.used.idx == (start + 3) % 65536 == ring.s.published
    ring.give_back(0, 1)
    assert ring.s.used.idx == (start + 3) % 65536
    assert ring.used(start + 4) == (1, 10)


def test_the_used_ring_wraps_with_the_index():
    ring = Ring(4)
    for i in range(65536 + 10):
        ring.give_back(i % 4)
        ring.publish()
        assert ring.used(i) == (i % 4, i % 4 * 10)
    assert (<Ring>ring).s.used.idx == 10


# Interrupts

def test_the_first_event_is_always_due():
    """What the driver missed before us would never be told otherwise."""
    ring = Ring(8, 100, event_idx=True)
    ring.ask_at(5000)
    ring.give_back(0)
    assert ring.publish()
    ring.give_back(1)
    assert not ring.publish()


def test_the_flag_without_event_idx():
    cdef Ring ring = Ring(8)
    ring.give_back(0)
    assert ring.publish()
    ring.give_back(1)
    assert ring.publish()
    ring.s.avail.flags = VRING_AVAIL_F_NO_INTERRUPT
    ring.give_back(2)
    assert not ring.publish()
    ring.s.avail.flags = 0xffff & ~VRING_AVAIL_F_NO_INTERRUPT      # bits that mean nothing
    ring.give_back(3)
    assert ring.publish()


@pytest.mark.parametrize("start", [0, 100, 65533, 65534, 65535])
@pytest.mark.parametrize("n", [1, 2, 3, 8])
def test_event_idx_decides_by_what_was_passed(start, n):
    """An interrupt is due when the event lies among the n indices published since the last time."""
    for event in (start - 2, start - 1, start, start + n - 1, start + n, start + n + 1,
                  start + 32768):
        ring = Ring(8, (start - 1) % 65536, event_idx=True)
        ring.give_back(0)
        ring.publish()                                  # the first one; used.idx is now `start`
        ring.ask_at(event % 65536)
        ring.give_back(*range(n))
        assert ring.publish() == (start <= event < start + n), event - start


@pytest.mark.parametrize("seed", range(3))
def test_event_idx_like_the_specification(seed):
    """virtio 1.4, 2.7.10: unsigned 16-bit, (new - event - 1) < (new - old)."""
    rng = random.Random(seed)
    ring = Ring(256, 65000, event_idx=True)
    ring.give_back(0)
    ring.publish()
    old = 65001
    for _ in range(3000):
        n = rng.choice((1, 1, 2, 5, 256))
        event = (old + rng.randrange(-4, n + 4)) % 65536
        new = (old + n) % 65536
        ring.ask_at(event)
        ring.give_back(*range(n))
        assert ring.publish() == ((new - event - 1) % 65536 < (new - old) % 65536)
        old = new


# Kicks

@pytest.mark.parametrize("start", [0, 65535])
def test_kicks(start):
    cdef Ring ring = Ring(8, start)
    split_kicks_off(&ring.s)
    assert ring.s.used.flags == VRING_USED_F_NO_NOTIFY
    assert not split_kicks_on(&ring.s)
    assert ring.s.used.flags == 0
    split_kicks_off(&ring.s)
    ring.offer(3)
    assert split_kicks_on(&ring.s), "a chain that came before would never be kicked for"


@pytest.mark.parametrize("start", [0, 65535])
def test_kicks_with_event_idx(start):
    cdef Ring ring = Ring(8, start, event_idx=True)
    cdef uint16_t *event = <uint16_t *>&ring.s.used.ring[8]
    event[0] = 12345
    split_kicks_off(&ring.s)
    assert ring.s.used.flags == 0 and event[0] == 12345
    assert not split_kicks_on(&ring.s)
    assert event[0] == start
    ring.offer(3)
    ring.s.next_avail += 1
    assert not split_kicks_on(&ring.s)
    assert event[0] == (start + 1) % 65536
    ring.offer(4)
    assert split_kicks_on(&ring.s)
    assert ring.s.used.flags == 0
