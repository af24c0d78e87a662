"""vhostrt.virtio.regions: guest addresses to host addresses, against a list of intervals."""
import random

import pytest
from libc.stdint cimport uint8_t, uint32_t, uint64_t, uintptr_t
from libc.stdlib cimport calloc, free
from vhostrt.virtio.regions cimport region_t, regions_search, regions_t, regions_translate

END = 2**64 - 1                 # where the last region may end


cdef class Regions:
    """A table of (guest, size, host), in ascending order; the hosts are only numbers."""
    cdef regions_t *r
    cdef uint32_t hint

    def __cinit__(self, *regions):
        cdef uint32_t i
        self.r = <regions_t *>calloc(1, sizeof(regions_t) + len(regions) * sizeof(region_t))
        self.r.count = len(regions)
        for i, (guest, size, host) in enumerate(regions):
            self.r.table[i].guest = guest
            self.r.table[i].size = size
            self.r.table[i].host = <uint8_t *><uintptr_t>host

    def __dealloc__(self):
        free(self.r)

    def translate(self, uint64_t guest, uint64_t length, hint=None):
        """Return (host, length in one piece), or None."""
        cdef void *host
        if hint is not None:
            self.hint = hint
        host = regions_translate(self.r, &self.hint, guest, &length)
        return None if host is NULL else (<uintptr_t>host, length)

    def search(self, uint64_t guest):
        """Return the index of the region, or None."""
        cdef const region_t *found = regions_search(self.r, guest)
        return None if found is NULL else <int>(found - &self.r.table[0])


# Two that touch, a hole, one alone, one at the end of everything.
TABLE = ((0x1000, 0x1000, 0x10000), (0x2000, 0x800, 0x50000), (0x4000, 1, 0x70000),
         (END - 0x1000, 0x1000, 0x90000))


@pytest.mark.parametrize("hint", [0, 1, 2, 3, 4, 2**32 - 1])
@pytest.mark.parametrize(("guest", "length", "found"), [
    (0x1000, 1, (0x10000, 1)),
    (0x1fff, 1, (0x10fff, 1)),
    (0x1fff, 2, (0x10fff, 1)),
    (0x1800, 0x1000, (0x10800, 0x800)),
    (0x1000, 2**64 - 1, (0x10000, 0x1000)),
    (0x2000, 0x800, (0x50000, 0x800)),
    (0x27ff, 9, (0x507ff, 1)),
    (0x2800, 1, None),
    (0x3fff, 1, None),
    (0x4000, 1, (0x70000, 1)),
    (0x4000, 0, (0x70000, 0)),
    (0x4001, 1, None),
    (0, 1, None),
    (0xfff, 1, None),
    (END - 0x1001, 1, None),
    (END - 0x1000, 0x1000, (0x90000, 0x1000)),
    (END - 1, 2**64 - 1, (0x90fff, 1)),
    (END, 1, None),
], ids=lambda v: hex(v) if isinstance(v, int) else "")
def test_translate(hint, guest, length, found):
    assert Regions(*TABLE).translate(guest, length, hint) == found


def test_the_hint_follows():
    cdef Regions regions = Regions(*TABLE)
    for i, (guest, _, _) in enumerate(TABLE):
        regions.translate(guest, 1)
        assert regions.hint == i
    regions.translate(0x3000, 1)
    assert regions.hint == 3, "an address that is nowhere moved it"


def test_no_region_at_all():
    assert Regions().translate(0, 1, 0) is None
    assert Regions().search(0) is None


@pytest.mark.parametrize("seed", range(5))
def test_like_a_list_of_intervals(seed):
    rng = random.Random(seed)
    edges = sorted(rng.sample(range(0, 2**20, 16), 2 * rng.randrange(1, 300)))
    table = [(a, b - a, 2**32 * (i + 1)) for i, (a, b) in enumerate(zip(edges[::2], edges[1::2]))]
    regions = Regions(*table)
    for _ in range(3000):
        guest, length = rng.randrange(2**20 + 32), rng.randrange(1, 5000)
        model = next((i for i, (a, n, _) in enumerate(table) if a <= guest < a + n), None)
        assert regions.search(guest) == model
        if model is None:
            assert regions.translate(guest, length) is None
        else:
            start, size, host = table[model]
            assert regions.translate(guest, length) == (host + guest - start,
                                                        min(length, start + size - guest))
