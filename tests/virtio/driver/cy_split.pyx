"""vhostrt.virtio.driver.split: a driver's ring, from the viewpoint of the client that fills it."""
import random

import pytest
from libc.errno cimport EINVAL, ENOSPC, EPROTO
from libc.stdint cimport uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free
from vhostrt.virtio.driver.split cimport (driver_add, driver_add_indirect, driver_buffer_t,
                                          driver_calls_off, driver_calls_on, driver_done,
                                          driver_fini, driver_init, driver_publish,
                                          driver_ring_bytes, driver_t, driver_take)
from vhostrt.virtio.split cimport (VRING_USED_F_NO_NOTIFY, split_available, split_head,
                                   split_publish, split_push, split_t, vring_desc)

cdef extern from "<stdlib.h>" nogil:
    void *aligned_alloc(size_t align, size_t size)

NEXT, WRITE, INDIRECT = 1, 2, 4


cdef class Driver:
    """A driver and, over the same ring, a device."""
    cdef driver_t d
    cdef split_t s
    cdef void *memory
    cdef size_t bytes

    def __cinit__(self, uint16_t size, bint event_idx=False):
        self.bytes = driver_ring_bytes(size)
        self.memory = aligned_alloc(64, (self.bytes + 64 + 63) & ~<size_t>63)
        (<char *>self.memory)[self.bytes] = 0x5a
        assert driver_init(&self.d, self.memory, size, event_idx) == 0
        self.s.desc = self.d.desc
        self.s.avail = self.d.avail
        self.s.used = self.d.used
        self.s.size = size
        self.s.event_idx = event_idx

    def __dealloc__(self):
        driver_fini(&self.d)
        free(self.memory)

    def start_at(self, uint16_t index):
        """Have driver and device go on at an index that wraps soon."""
        self.d.next_avail = self.d.published = self.d.last_used = index
        self.d.avail.idx = self.d.used.idx = index
        self.s.next_avail = self.s.next_used = self.s.published = self.s.signalled = index

    def add(self, *buffers):
        """Add a chain of (guest, length, writable); return its head or -errno."""
        cdef driver_buffer_t b[64]
        cdef uint16_t i
        for i, (guest, length, writable) in enumerate(buffers):
            b[i] = driver_buffer_t(guest, length, writable)
        return driver_add(&self.d, b, len(buffers))

    def publish(self):
        return bool(driver_publish(&self.d))

    def done(self):
        return driver_done(&self.d)

    def take(self):
        """Return (head, written), or -errno."""
        cdef uint32_t written = 0
        cdef int head = driver_take(&self.d, &written)
        if head < 0:
            return head
        return head, written

    def chain(self, head):
        """Follow the table from head: [(guest, length, flags)]."""
        found = []
        index = head
        while True:
            d = self.d.desc[<uint16_t>index]
            found.append((d.addr, d.len, d.flags))
            if not d.flags & NEXT:
                return found
            index = d.next

    # The device

    def pop(self):
        """Take every waiting head."""
        n = split_available(&self.s)
        heads = [split_head(&self.s, <uint16_t>i) for i in range(n)]
        self.s.next_avail += <uint16_t>n
        return heads

    def give_back(self, head, written=0):
        split_push(&self.s, <uint16_t>head, <uint32_t>written)

    def show(self):
        return bool(split_publish(&self.s))


@pytest.mark.parametrize("size", [0, 3, 32767, 32769, 65535])
def test_sizes_that_cannot_be(size):
    cdef driver_t d
    assert driver_init(&d, NULL, size, False) == -EINVAL
    driver_fini(&d)                     # of what was never made


@pytest.mark.parametrize("size", [1, 2, 128, 32768])
def test_the_parts_lie_as_the_specification_says(size):
    cdef Driver driver = Driver(size)
    base = <uint64_t>driver.memory
    assert <uint64_t>driver.d.desc == base
    assert <uint64_t>driver.d.avail == base + 16 * size
    used = <uint64_t>driver.d.used
    assert used % 4 == 0 and used >= base + 16 * size + 6 + 2 * size
    assert used + 6 + 8 * size == base + driver.bytes
    assert (<char *>driver.memory)[driver.bytes] == 0x5a, "it wrote past the end"


def test_a_chain():
    driver = Driver(8)
    head = driver.add((0x1000, 16, False), (0x2000, 4096, True), (0x3000, 1, True))
    assert driver.chain(head) == [(0x1000, 16, NEXT), (0x2000, 4096, NEXT | WRITE),
                                  (0x3000, 1, WRITE)]
    assert driver.pop() == [], "it was shown before it was published"
    assert driver.publish()
    assert driver.pop() == [head]
    assert driver.done() == 0
    driver.give_back(head, 4097)
    assert driver.done() == 0
    driver.show()
    assert driver.done() == 1
    assert driver.take() == (head, 4097)
    assert driver.done() == 0


def test_no_room():
    driver = Driver(8)
    three = [(0x1000, 1, False)] * 3
    assert driver.add(*three) >= 0 and driver.add(*three) >= 0
    assert driver.add(*three) == -ENOSPC
    assert driver.add(*three[:2]) >= 0
    assert driver.add(*three[:1]) == -ENOSPC
    driver.publish()
    assert len(driver.pop()) == 3


@pytest.mark.parametrize(("head", "why"), [(3, "free"), (8, "outside"), (2**31, "far outside"),
                                           (1, "in a chain, not its head")])
def test_a_head_that_the_device_never_had(head, why):
    cdef Driver driver = Driver(8)
    assert driver.add((0x1000, 1, False), (0x1000, 1, False)) == 0
    driver.d.used.ring[0].id = head
    driver.d.used.idx = 1
    assert driver.done() == 1
    assert driver.take() == -EPROTO


def test_a_head_given_back_twice():
    driver = Driver(8)
    head = driver.add((0x1000, 1, False))
    driver.publish()
    driver.give_back(head)
    driver.give_back(head)
    driver.show()
    assert driver.take() == (head, 0)
    assert driver.take() == -EPROTO


@pytest.mark.parametrize("start", [0, 65500])
@pytest.mark.parametrize("size", [4, 64])
def test_like_a_model(start, size):
    """Any chains, given back in any order, across the wrap; descriptors never mix."""
    rng = random.Random(size + start)
    driver = Driver(size)
    driver.start_at(start)
    out = {}                            # head -> its buffers, with the device
    waiting = []                        # heads that are not published
    for _ in range(5000):
        if rng.random() < 0.5:
            n = rng.randrange(1, 5)
            buffers = [(rng.randrange(2**64), rng.randrange(2**32), i >= n // 2) for i in range(n)]
            free_now = size - sum(len(b) for b in out.values())
            head = driver.add(*buffers)
            if n > free_now:
                assert head == -ENOSPC
                continue
            assert head not in out
            out[head] = buffers
            waiting.append(head)
        elif waiting and rng.random() < 0.5:
            driver.publish()
            assert driver.pop() == waiting
            waiting.clear()
        elif len(out) > len(waiting):
            head = rng.choice([h for h in out if h not in waiting])
            assert [(g, n, bool(f & WRITE)) for g, n, f in driver.chain(head)] == out.pop(head)
            driver.give_back(head, head)
            driver.show()
            assert driver.take() == (head, head)
    assert (<Driver>driver).d.free_count == size - sum(len(b) for b in out.values())


# Kicks

def test_the_flag_says_whether_to_kick():
    cdef Driver driver = Driver(8)
    driver.add((0x1000, 1, False))
    assert driver.publish()
    driver.d.used.flags = VRING_USED_F_NO_NOTIFY
    driver.add((0x1000, 1, False))
    assert not driver.publish()


@pytest.mark.parametrize("start", [0, 65533, 65534, 65535])
@pytest.mark.parametrize("at", range(-1, 4))
def test_the_event_says_when_to_kick(start, at):
    """When the event lies among what is published: here the chains `start` and `start` + 1."""
    cdef Driver driver = Driver(8, event_idx=True)
    cdef uint16_t *event = <uint16_t *>&driver.d.used.ring[8]
    driver.start_at(start)
    event[0] = (start + at) % 65536
    driver.add((0x1000, 1, False))
    driver.add((0x1000, 1, False))
    assert driver.publish() == (at in (0, 1))


def test_a_chain_with_a_table_of_its_own():
    cdef Driver driver = Driver(2)
    cdef driver_buffer_t buffers[3]
    cdef vring_desc table[3]
    cdef int i
    for i in range(3):
        buffers[i] = driver_buffer_t(0x1000 * (i + 1), 8 + i, i > 0)
    heads = [driver_add_indirect(&driver.d, table, 0x9000, buffers, 3) for _ in range(3)]
    assert heads[2] == -ENOSPC and sorted(heads[:2]) == [0, 1]
    assert [driver.chain(head) for head in heads[:2]] == [[(0x9000, 48, INDIRECT)]] * 2
    assert [(table[i].addr, table[i].len, table[i].flags, table[i].next) for i in range(2)] == [
        (0x1000, 8, NEXT, 1), (0x2000, 9, NEXT | WRITE, 2)]
    assert (table[2].addr, table[2].len, table[2].flags) == (0x3000, 10, WRITE)
    driver.publish()
    for head in reversed(driver.pop()):
        driver.give_back(head)
    driver.show()
    assert [driver.take()[0] for _ in range(2)] == heads[1::-1]
    assert driver.d.free_count == 2


# Calls

@pytest.mark.parametrize("event_idx", [False, True])
@pytest.mark.parametrize("start", [0, 65535])
def test_calls_are_wanted_or_not(start, event_idx):
    cdef Driver driver = Driver(8, event_idx)
    driver.start_at(start)
    driver.s.signalled_valid = True     # past the first decision, which is always for a call
    heads = [driver.add((0x1000, 1, False)) for _ in range(3)]
    driver.publish()
    driver.pop()
    driver_calls_off(&driver.d)
    driver.give_back(heads[0])
    assert not driver.show(), "a call, where none was wanted"
    assert driver_calls_on(&driver.d), "one is back already"
    assert driver.take() == (heads[0], 0)
    assert not driver_calls_on(&driver.d)
    driver.give_back(heads[1])
    assert driver.show(), "no call, where one was waited for"
    driver_calls_off(&driver.d)
    driver.take()
    driver.give_back(heads[2])
    assert not driver.show()
