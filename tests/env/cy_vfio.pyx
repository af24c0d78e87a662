"""vhostrt.env.vfio: the mappings of a container, held against a container on paper."""
from hypothesis import given, settings
from hypothesis import strategies as st

from libc.errno cimport EEXIST, EINVAL, ENOSPC, ENXIO
from libc.stdint cimport UINT64_MAX, uint64_t, uintptr_t
from vhostrt.env.vfio cimport dma_add, dma_close, dma_open, dma_remove, dma_space_t

cdef enum:
    MOST = 4096                 # mappings that the container on paper takes

PAGE = 1 << 12
BIG = 2 << 20

# The container: it takes no overlap, and gives back only what it was given, as a whole.
cdef struct entry_t:
    uintptr_t at
    uint64_t iova
    size_t size

cdef entry_t g_entries[MOST]
cdef size_t g_count = 0
cdef size_t g_most = MOST
cdef uint64_t g_broken = UINT64_MAX     # an iova that cannot be unmapped; this: each can


cdef int paper_map(int container, uintptr_t at, uint64_t iova, size_t size) noexcept nogil:
    global g_count
    cdef size_t i
    for i in range(g_count):
        if iova < g_entries[i].iova + g_entries[i].size and g_entries[i].iova < iova + size:
            return -EEXIST
    if g_count >= g_most:
        return -ENOSPC
    g_entries[g_count] = entry_t(at, iova, size)
    g_count += 1
    return 0


cdef int paper_unmap(int container, uint64_t iova, size_t size) noexcept nogil:
    global g_count
    cdef size_t i
    for i in range(g_count):
        if g_entries[i].iova == iova and iova != g_broken:
            if g_entries[i].size != size:
                return -EINVAL
            g_count -= 1
            g_entries[i] = g_entries[g_count]
            return 0
    return -ENXIO


cdef class Space:
    """A dma_space_t over an empty container on paper."""
    cdef dma_space_t s

    def __cinit__(self, most=MOST):
        global g_count, g_most, g_broken
        g_count = 0
        g_broken = UINT64_MAX
        g_most = most
        dma_open(&self.s, -1)
        self.s.map = paper_map
        self.s.unmap = paper_unmap

    def __dealloc__(self):
        dma_close(&self.s)

    def add(self, at, iova, size):
        return dma_add(&self.s, at, iova, size)

    def remove(self, at, size):
        return dma_remove(&self.s, at, size)

    def close(self):
        return dma_close(&self.s)

    def listed(self):
        """Return what the space believes is mapped; sorted as it has to be."""
        found = [(self.s.maps[i].at, self.s.maps[i].iova, self.s.maps[i].size)
                 for i in range(self.s.n)]
        assert found == sorted(found)
        return found


def on_paper():
    return sorted((g_entries[i].at, g_entries[i].iova, g_entries[i].size) for i in range(g_count))


def test_memory_is_mapped_in_pieces_at_round_addresses():
    space = Space()
    assert space.add(BIG - PAGE, 7 * BIG, 2 * BIG) == 0
    assert on_paper() == space.listed() == [
        (BIG - PAGE, 7 * BIG, PAGE), (BIG, 7 * BIG + PAGE, BIG),
        (2 * BIG, 8 * BIG + PAGE, BIG - PAGE)]
    assert space.close() == 0
    assert on_paper() == space.listed() == []


def test_pieces_grow_with_the_memory():
    space = Space()
    tib = 1 << 40
    assert space.add(tib, tib, tib) == 0
    assert len(space.listed()) == 1024
    assert {size for _, _, size in space.listed()} == {1 << 30}
    assert space.remove(tib + (5 << 30), 1 << 30) == 0
    assert len(on_paper()) == 1023


def test_a_piece_that_is_cut_keeps_its_rest():
    space = Space()
    space.add(BIG, 5 * BIG, BIG)
    assert space.remove(BIG + 3 * PAGE, 2 * PAGE) == 0
    assert on_paper() == space.listed() == [
        (BIG, 5 * BIG, 3 * PAGE), (BIG + 5 * PAGE, 5 * BIG + 5 * PAGE, BIG - 5 * PAGE)]


def test_what_the_container_refuses_leaves_nothing_of_it():
    space = Space(most=3)
    space.add(8 * BIG, 8 * BIG, BIG)
    assert space.add(0, 0, 3 * BIG) == -ENOSPC
    assert on_paper() == space.listed() == [(8 * BIG, 8 * BIG, BIG)]
    assert space.add(0, 8 * BIG - PAGE, 2 * PAGE) == -EEXIST
    assert on_paper() == space.listed() == [(8 * BIG, 8 * BIG, BIG)]
    assert space.add(0, 0, 2 * BIG) == 0


def test_what_cannot_be_taken_away_is_said():
    global g_broken
    space = Space()
    space.add(BIG, BIG, BIG)
    g_broken = BIG
    assert space.remove(BIG, PAGE) == -ENXIO
    assert space.listed() == on_paper() == [(BIG, BIG, BIG)]
    assert space.close() == -ENXIO


def test_memory_that_is_not_mapped_may_be_taken_away():
    space = Space()
    assert space.remove(0, 1 << 48) == 0
    space.add(BIG, BIG, PAGE)
    assert space.remove(0, BIG) == 0
    assert len(on_paper()) == 1


# Against a dict of pages.
PAGES = 5 * 512
RANGES = st.tuples(st.integers(0, PAGES - 1), st.one_of(
    st.integers(1, 6), st.sampled_from([511, 512, 1030])))


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(st.booleans(), RANGES, st.integers(0, 3)), max_size=25))
def like_a_dict_of_pages(moves):
    space, expected = Space(), {}
    for added, (first, size), place in moves:
        pages = range(first, min(first + size, PAGES))
        if not added:
            assert space.remove(first * PAGE, len(pages) * PAGE) == 0
            for page in pages:
                expected.pop(page, None)
        elif not any(page in expected for page in pages):
            iova = (place * PAGES + first) * PAGE
            assert space.add(first * PAGE, iova, len(pages) * PAGE) == 0
            expected.update((page, iova + (page - first) * PAGE) for page in pages)
        found = {}
        for at, where, length in space.listed():
            found.update((page, where + page * PAGE - at)
                         for page in range(at // PAGE, (at + length) // PAGE))
        assert found == expected
        assert on_paper() == space.listed()


def test_like_a_dict_of_pages():
    like_a_dict_of_pages()
