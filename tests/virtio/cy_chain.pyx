"""vhostrt.virtio.chain: descriptor chains, from the viewpoint of a driver that may be hostile."""
import errno
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy
from vhostrt.bdev.core cimport iovec
from vhostrt.virtio.chain cimport CHAIN_MIN_LIMIT, chain_read, chain_t
from vhostrt.virtio.regions cimport region_t, regions_t
from vhostrt.virtio.split cimport vring_desc

NEXT, WRITE, INDIRECT = 1, 2, 4
MEMORY = 1 << 20                # bytes of the guest

# Guest memory: two regions that touch at 0x8000, and after a hole one whose end is not aligned.
REGIONS = ((0x1000, 0x7000), (0x8000, 0x8000), (0x20000, 0x1008))
LIMIT = CHAIN_MIN_LIMIT


cdef class Guest:
    """A descriptor table of `size` in front of the regions; each region lies alone in memory."""
    cdef regions_t *regions
    cdef uint8_t *memory        # of all regions, one after the other, with a gap between them
    cdef vring_desc *desc
    cdef iovec *iovs
    cdef chain_t c
    cdef uint32_t hint

    def __cinit__(self, uint32_t size=16, regions=REGIONS, uint32_t limit=LIMIT, bint indirect=True,
                  uint32_t iov_limit=LIMIT):
        cdef uint64_t at = 0
        cdef uint32_t i
        self.regions = <regions_t *>calloc(1, sizeof(regions_t) + len(regions) * sizeof(region_t))
        self.memory = <uint8_t *>calloc(1, MEMORY)
        self.desc = <vring_desc *>calloc(size, sizeof(vring_desc))
        self.iovs = <iovec *>calloc(iov_limit, sizeof(iovec))
        self.regions.count = len(regions)
        for i, (guest, length) in enumerate(regions):
            self.regions.table[i].guest = guest
            self.regions.table[i].size = length
            self.regions.table[i].host = self.memory + at
            at += min(length, MEMORY) + 4096
        self.c.desc = self.desc
        self.c.desc_count = size
        self.c.regions = self.regions
        self.c.hint = &self.hint
        self.c.indirect = indirect
        self.c.iovs = self.iovs
        self.c.iov_limit = iov_limit
        self.c.step_limit = limit

    def __dealloc__(self):
        free(self.regions)
        free(self.memory)
        free(self.desc)
        free(self.iovs)

    def table(self, *descriptors):
        """Fill the queue's table: (addr, len, flags, next) from index 0 on."""
        raw = b"".join(struct.pack("<QIHH", *d) for d in descriptors)
        assert len(descriptors) <= self.c.desc_count
        memcpy(self.desc, <const char *>raw, len(raw))

    def poke(self, uint64_t guest, bytes raw):
        """Write into guest memory, across regions."""
        for i in range(len(raw)):
            host = self.host_offset(guest + i)
            self.memory[<uint64_t>host] = raw[i]

    def poke_table(self, guest, *descriptors):
        self.poke(guest, b"".join(struct.pack("<QIHH", *d) for d in descriptors))

    def host_offset(self, uint64_t guest):
        cdef region_t *r
        cdef uint32_t i
        for i in range(self.regions.count):
            r = &self.regions.table[i]
            if guest - r.guest < r.size:
                return r.host - self.memory + guest - r.guest
        raise AssertionError(hex(guest))

    def read(self, uint16_t head=0):
        """Return chain_read's rc, or (readable iovs, writable iovs) as (offset, length) each."""
        cdef uint32_t i
        cdef int rc = chain_read(&self.c, head)
        if rc < 0:
            return rc
        found = [(<uint8_t *>self.iovs[i].iov_base - self.memory, self.iovs[i].iov_len)
                 for i in range(self.c.count)]
        readable = self.c.readable
        assert self.c.readable_bytes == sum(n for _, n in found[:readable])
        assert self.c.writable_bytes == sum(n for _, n in found[readable:])
        return found[:readable], found[readable:]


def filled(*descriptors, **options):
    guest = Guest(**options)
    guest.table(*descriptors)
    return guest


# What is taken

def test_one_descriptor():
    assert filled((0x1000, 16, 0, 0)).read() == ([(0, 16)], [])
    assert filled((0x1000, 16, WRITE, 0)).read() == ([], [(0, 16)])


def test_a_chain_in_any_order_of_indices():
    guest = filled((0x1300, 1, WRITE, 0), (0, 0, 0, 0), (0x1000, 16, NEXT, 5), (0, 0, 0, 0),
                   (0, 0, 0, 0), (0x1100, 512, NEXT | WRITE, 0))
    assert guest.read(2) == ([(0, 16)], [(0x100, 512), (0x300, 1)])


def test_next_means_nothing_without_its_flag():
    assert filled((0x1000, 16, 0, 999)).read() == ([(0, 16)], [])


def test_unknown_flags_are_left_alone():
    assert filled((0x1000, 16, 0xfff8, 0)).read() == ([(0, 16)], [])


def test_nothing_is_left_of_the_chain_before():
    guest = filled((0x1000, 16, NEXT, 1), (0x1100, 5, WRITE, 0), (0x1200, 7, 0, 0))
    assert guest.read(0) == ([(0, 16)], [(0x100, 5)])
    assert guest.read(2) == ([(0x200, 7)], [])


def test_a_buffer_that_crosses_regions_is_split():
    guest = filled((0x7ff0, 0x20, NEXT, 1), (0x7fff, 2, WRITE, 0))
    second = 0x7000 + 4096
    assert guest.read() == ([(0x6ff0, 0x10), (second, 0x10)], [(0x6fff, 1), (second, 1)])


def test_descriptors_of_no_bytes():
    """They are legal anywhere, and their address is not looked at (virtio 1.4, 2.7.4)."""
    guest = filled((0xdead0000, 0, NEXT, 1), (0x1000, 16, NEXT, 2), (0x1010, 0, NEXT, 3),
                   (0xffffffffffffffff, 0, NEXT | WRITE, 4), (0x1100, 1, WRITE, 0))
    assert guest.read() == ([(0, 16)], [(0x100, 1)])
    assert filled((0, 0, 0, 0)).read() == ([], [])


def test_all_of_the_table():
    guest = Guest(16)
    guest.table(*((0x1000 + 16 * i, 16, NEXT if i < 15 else 0, i + 1) for i in range(16)))
    assert guest.read() == ([(16 * i, 16) for i in range(16)], [])


@pytest.mark.parametrize("flags", [INDIRECT, INDIRECT | WRITE], ids=["", "WRITE is ignored"])
def test_an_indirect_table(flags):
    guest = filled((0x2000, 48, flags, 0))
    guest.poke_table(0x2000, (0x1000, 16, NEXT, 2), (0x1300, 1, WRITE, 0),
                     (0x1100, 512, NEXT | WRITE, 1))
    assert guest.read() == ([(0, 16)], [(0x100, 512), (0x300, 1)])


def test_an_indirect_table_after_direct_descriptors():
    guest = filled((0x1000, 16, NEXT, 1), (0x2000, 32, INDIRECT, 0))
    guest.poke_table(0x2000, (0x1100, 512, NEXT | WRITE, 1), (0x1300, 1, WRITE, 0))
    assert guest.read() == ([(0, 16)], [(0x100, 512), (0x300, 1)])


def test_an_indirect_table_in_two_regions():
    """Between two entries, not within one."""
    guest = filled((0x7ff0, 32, INDIRECT, 0))
    guest.poke_table(0x7ff0, (0x1000, 16, NEXT, 1), (0x1300, 1, WRITE, 0))
    assert guest.read() == ([(0, 16)], [(0x300, 1)])


def test_an_indirect_table_with_more_entries_than_are_used():
    guest = filled((0x2000, 16 * 1000, INDIRECT, 0))
    guest.poke_table(0x2000, (0x1000, 16, 0, 1))
    assert guest.read() == ([(0, 16)], [])


@pytest.mark.parametrize("extra", [0, 1], ids=["515 are taken", "516 are refused"])
def test_the_longest_chain(extra):
    """Longer than the queue, as some drivers send; by entries and by pieces."""
    n = LIMIT + extra
    guest = filled((0x2000, 16 * n, INDIRECT, 0))
    guest.poke_table(0x2000, *((0x1000, 1, NEXT if i < n - 1 else 0, i + 1) for i in range(n)))
    assert guest.read() == (-errno.EMSGSIZE if extra else ([(0, 1)] * LIMIT, []))


@pytest.mark.parametrize(("iov_limit", "taken"), [(4, True), (3, False)])
def test_pieces_count_not_descriptors(iov_limit, taken):
    guest = filled((0x7ff0, 0x20, NEXT, 1), (0x7ff0, 0x20, NEXT, 2), (0, 0, 0, 0),
                   iov_limit=iov_limit)
    assert (guest.read() == -errno.EMSGSIZE) != taken


# What is refused: (descriptors, indirect table at 0x2000, -errno, options)
ONE = (0x1000, 16, 0, 0)
ALL = 2**32 - 1                 # bytes; what a direction can have
HUGE = {"regions": ((0x1000, 2**40),)}
REFUSED = {
    "head outside the table": ([ONE], [], errno.EPROTO, {"size": 4, "head": 4}),
    "head far outside": ([ONE], [], errno.EPROTO, {"head": 65535}),
    "next outside the table": ([(0x1000, 16, NEXT, 16)], [], errno.EPROTO, {}),
    "next far outside": ([(0x1000, 16, NEXT, 65535)], [], errno.EPROTO, {}),
    "a loop of one": ([(0x1000, 16, NEXT, 0)], [], errno.EPROTO, {}),
    "a loop of one of no bytes": ([(0x1000, 0, NEXT, 0)], [], errno.EPROTO, {}),
    "a loop of two": ([(0x1000, 16, NEXT, 1), (0x1000, 16, NEXT, 0)], [], errno.EPROTO, {}),
    "a loop behind a start": ([ONE[:2] + (NEXT, 1), (0x1000, 16, NEXT, 2), (0x1000, 16, NEXT, 1)],
                              [], errno.EPROTO, {}),
    "no memory": ([(0x18000, 16, 0, 0)], [], errno.EFAULT, {}),
    "before all memory": ([(0xfff, 16, 0, 0)], [], errno.EFAULT, {}),
    "past the end of memory": ([(0xfff0, 17, 0, 0)], [], errno.EFAULT, {}),
    "past the end, writable": ([(0xfff0, 17, WRITE, 0)], [], errno.EFAULT, {}),
    "wraps at 2^64": ([(2**64 - 8, 16, 0, 0)], [], errno.EFAULT, {}),
    "ends at 2^64": ([(2**64 - 16, 16, 0, 0)], [], errno.EFAULT, {}),
    "wraps into memory": ([(2**64 - 8, 0x2000, 0, 0)], [], errno.EFAULT,
                          {"regions": ((0, 0x4000), (2**64 - 0x1000, 0xfff))}),
    "readable after writable": ([(0x1000, 16, WRITE | NEXT, 1), ONE], [], errno.EPROTO, {}),
    "4 GiB to read": ([(0x1000, ALL, NEXT, 1), (0x1000, 1, 0, 0)], [], errno.EPROTO, HUGE),
    "4 GiB to write": ([(0x1000, ALL, NEXT | WRITE, 1), (0x1000, 1, WRITE, 0)], [], errno.EPROTO,
                       HUGE),
    "too many pieces": ([(0x1000, 1, NEXT, 1), (0x1000, 1, NEXT, 2), (0x1000, 1, 0, 0)], [],
                        errno.EMSGSIZE, {"iov_limit": 2}),
    "indirect, not negotiated": ([(0x2000, 16, INDIRECT, 0)], [ONE], errno.EPROTO,
                                 {"indirect": False}),
    "indirect and next": ([(0x2000, 16, INDIRECT | NEXT, 1), ONE], [ONE], errno.EPROTO, {}),
    "indirect of no bytes": ([(0x2000, 0, INDIRECT, 0)], [ONE], errno.EPROTO, {}),
    "indirect of 8 bytes": ([(0x2000, 8, INDIRECT, 0)], [ONE], errno.EPROTO, {}),
    "indirect of 24 bytes": ([(0x2000, 24, INDIRECT, 0)], [ONE], errno.EPROTO, {}),
    "indirect of 4 GiB less 1": ([(0x2000, ALL, INDIRECT, 0)], [ONE], errno.EPROTO, {}),
    "indirect in no memory": ([(0x18000, 16, INDIRECT, 0)], [], errno.EFAULT, {}),
    "indirect past the end": ([(0xfff0, 32, INDIRECT, 0)], [(0x1000, 16, NEXT, 1)], errno.EFAULT,
                              {"at": 0xfff0}),
    "indirect entry cut by the end": ([(0x21000, 16, INDIRECT, 0)], [], errno.EFAULT, {}),
    "indirect entry in two regions": ([(0x7ff8, 16, INDIRECT, 0)], [ONE], errno.EFAULT,
                                      {"at": 0x7ff8}),
    "indirect wraps at 2^64": ([(2**64 - 16, 32, INDIRECT, 0)], [], errno.EFAULT, {}),
    "indirect in indirect": ([(0x2000, 16, INDIRECT, 0)], [(0x3000, 16, INDIRECT, 0)],
                             errno.EPROTO, {}),
    "indirect after an entry": ([(0x2000, 32, INDIRECT, 0)],
                                [ONE[:2] + (NEXT, 1), (0x3000, 16, INDIRECT, 0)], errno.EPROTO, {}),
    "indirect, next outside": ([(0x2000, 32, INDIRECT, 0)], [(0x1000, 16, NEXT, 2), ONE, ONE],
                               errno.EPROTO, {}),
    "indirect, a loop": ([(0x2000, 32, INDIRECT, 0)], [(0x1000, 1, NEXT, 1), (0x1000, 1, NEXT, 0)],
                         errno.EPROTO, {}),
    "indirect, a loop in a big table": ([(0x2000, 16 * 516, INDIRECT, 0)], [(0x1000, 0, NEXT, 0)],
                                        errno.EMSGSIZE, {}),
    "indirect, no memory": ([(0x2000, 16, INDIRECT, 0)], [(0x18000, 1, 0, 0)], errno.EFAULT, {}),
    "indirect, readable after writable": ([(0x1000, 1, WRITE | NEXT, 1), (0x2000, 16, INDIRECT, 0)],
                                          [ONE], errno.EPROTO, {}),
}


@pytest.mark.parametrize(("descriptors", "entries", "number", "options"), REFUSED.values(),
                         ids=REFUSED)
def test_refused(descriptors, entries, number, options):
    options = dict(options)
    at, head = options.pop("at", 0x2000), options.pop("head", 0)
    guest = filled(*descriptors, **options)
    if entries:
        guest.poke_table(at, *entries)
    assert guest.read(head) == -number


def test_4_gib_less_1_are_taken():
    guest = filled((0x1000, 2**31, NEXT, 1), (0x1000, 2**31 - 1, NEXT, 2),
                   (0x1000, ALL, WRITE, 0), **HUGE)
    assert guest.read() == ([(0, 2**31), (0, 2**31 - 1)], [(0, ALL)])


# Any chain against a model of the specification.

ADDRESS = st.one_of(st.integers(0, 0x22000), st.sampled_from([0x7fff, 0xffff, 2**64 - 1]))
DESCRIPTOR = st.tuples(ADDRESS, st.one_of(st.integers(0, 64), st.integers(0, 0x9000)),
                       st.sampled_from([0, NEXT, NEXT, NEXT, WRITE, NEXT | WRITE, INDIRECT,
                                        INDIRECT | NEXT]),
                       st.integers(0, 9))


def pieces(address, length):
    """Return the pieces of guest memory as (guest, length), or None when some is missing."""
    found = []
    while length:
        region = next(((a, n) for a, n in REGIONS if a <= address < a + n), None)
        if region is None:
            return None
        n = min(length, sum(region) - address)
        found.append((address, n))
        address, length = address + n, length - n
    return found


def model(table, entries, head, iov_limit):
    """Return the chain's ([readable pieces], [writable pieces]), or None when it is refused."""
    sides = [], []
    index, steps, direct = head, 0, True
    while index < len(table) and steps < len(table):
        address, length, flags, index = table[index]
        steps += 1
        if flags & INDIRECT:
            if not direct or flags & NEXT or address != 0x2000 or length != 16 * len(entries):
                return None
            table, index, steps, direct = entries, 0, 0, False
            continue
        found = pieces(address, length)
        if found is None or not flags & WRITE and sides[1]:
            return None
        sides[bool(flags & WRITE)].extend(found)
        if len(sides[0]) + len(sides[1]) > iov_limit:
            return None
        if not flags & NEXT:
            return sides
    return None


@given(st.lists(DESCRIPTOR, min_size=8, max_size=8), st.lists(DESCRIPTOR, min_size=1, max_size=8),
       st.integers(0, 8), st.sampled_from([2, 8, 515]), st.integers(0, 8))
@settings(max_examples=400, deadline=None, database=None)
def test_any_chain_like_the_model(table, entries, head, iov_limit, referring):
    if referring < 8:                   # have the model's indirect table met more often
        table[referring] = (0x2000, 16 * len(entries), INDIRECT, 0)
    # Elsewhere than at 0x2000 a table is read from whatever lies there: the model knows no such.
    table = [d if not d[2] & INDIRECT or d[0] == 0x2000 else (0x18000, *d[1:]) for d in table]
    guest = filled(*table, size=8, iov_limit=iov_limit)
    guest.poke_table(0x2000, *entries)
    expected = model(table, entries, head, iov_limit)
    found = guest.read(head)
    if expected is None:
        assert isinstance(found, int) and found in (-errno.EPROTO, -errno.EFAULT, -errno.EMSGSIZE)
    else:
        assert found == tuple([(guest.host_offset(a), n) for a, n in side] for side in expected)
