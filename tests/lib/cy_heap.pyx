"""A heap of a test's own, over regions that say what the test wants of them."""
from libc.stdint cimport SIZE_MAX, uint32_t, uintptr_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset
from vhostrt.env.heap cimport (HEAP_LISTS, REGIONS, elem_t, heap_add, heap_close, heap_drop,
                               heap_free_max, heap_give, heap_init, heap_resize, heap_size,
                               heap_stats, heap_stats_t, heap_t, heap_take, region_t, want_init,
                               want_t)
from vhostrt.env.region cimport iova_at, region_at, region_next
from vhostrt.env.segment cimport segment_map, segment_t, segment_unmap

MOST_REGIONS = REGIONS


cdef class Heap:
    """The heap; addresses are integers, and what C answers is the answer."""
    cdef heap_t *h

    def __cinit__(self):
        self.h = <heap_t *>calloc(1, sizeof(heap_t))
        if self.h is NULL:
            raise MemoryError
        heap_init(self.h, SIZE_MAX // 2)

    def __dealloc__(self):
        if self.h is not NULL:
            self.h.blocks = 0                   # those that a test has left go with the rest
            heap_close(self.h)
        free(self.h)

    def add(self, size, node=0, page_size=4096, keep=True, iovas=None):
        """Add a region of ordinary memory that counts as of these pages; its address or -errno."""
        cdef segment_t segment
        cdef region_t *region
        cdef int rc = segment_map(&segment, size, -1, False)
        assert rc == 0
        segment.node = node
        segment.page_size = page_size
        region = heap_add(self.h, &segment, keep, &rc)
        if region is NULL:
            segment_unmap(&segment)
            return rc
        if iovas is not None:
            region.first_page = self.h.page_count
            for iova in iovas:
                self.h.iovas[self.h.page_count] = iova
                self.h.page_count += 1
        return <uintptr_t>region.segment.base

    def dirty(self, address, size):
        """Have memory that nobody was given hold something, as a file that is used again."""
        cdef region_t *region = region_at(self.h, <void *><uintptr_t>address)
        memset(<char *>region.segment.base + 64, 0xA5, size - 64)
        region.dirty = region.populated = region.segment.size

    cdef want_t want(self, size, align, bound, page_sizes, whole):
        cdef want_t want
        memset(&want, 0, sizeof(want_t))
        assert want_init(&want, size, align)
        want.bound = bound
        want.page_sizes = page_sizes
        want.whole = whole
        return want

    def take(self, size, align=64, node=0, bound=0, page_sizes=0, whole=0):
        """heap_take; 0 for NULL."""
        cdef want_t want = self.want(size, align, bound, page_sizes, whole)
        return <uintptr_t>heap_take(self.h, &want, node)

    def give(self, address):
        """heap_give, and what is empty then is dropped: 0, 1 when a region was, or -errno."""
        cdef region_t *empty = NULL
        cdef int rc = heap_give(self.h, <void *><uintptr_t>address, &empty)
        if empty is not NULL:
            heap_drop(self.h, empty)
            return 1
        return rc

    def resize(self, address, size, align=64):
        """heap_resize."""
        cdef want_t want = self.want(size, align, 0, 0, 0)
        return heap_resize(self.h, <void *><uintptr_t>address, &want)

    def size(self, address):
        """heap_size."""
        return heap_size(self.h, <void *><uintptr_t>address)

    def free_max(self, node=-1, align=64, page_sizes=0, whole=0):
        """heap_free_max."""
        cdef want_t want = self.want(1, align, 0, page_sizes, whole)
        return heap_free_max(self.h, node, &want)

    def iova(self, address, size=1):
        """iova_at; None where it is not known or in pieces."""
        iova = iova_at(self.h, <void *><uintptr_t>address, size)
        return None if iova == 2**64 - 1 else iova

    def devices_see_addresses(self):
        """As --iova-mode=va."""
        self.h.iova_is_va = True

    def stats(self, node=-1):
        """heap_stats."""
        cdef heap_stats_t now
        heap_stats(self.h, node, &now)
        return now

    def bytes(self, address, size):
        """Copy bytes out."""
        return (<char *><uintptr_t>address)[:size]

    def fill(self, address, size, byte):
        """Set bytes."""
        memset(<void *><uintptr_t>address, byte, size)

    def audit(self):
        """Walk every region: elements without a gap, linked both ways, all free ones in a list."""
        cdef region_t *region = region_next(self.h, NULL)
        cdef elem_t *e
        cdef elem_t *before
        cdef size_t offset
        cdef uint32_t i
        cdef int j
        walked, listed, used = set(), set(), 0
        while region is not NULL:
            offset, before = 0, NULL
            while offset < region.segment.size:
                e = <elem_t *>(region.segment.base + offset)
                assert e.region == region and e.before == before and e.size >= 128
                assert e.size % 64 == 0
                assert before is NULL or before.busy or e.busy, "two free neighbours"
                if e.busy:
                    used += e.size
                else:
                    walked.add(<uintptr_t>e)
                before = e
                offset += e.size
            assert offset == region.segment.size
            region = region_next(self.h, region)
        for i in range(self.h.node_count):
            for j in range(HEAP_LISTS):
                e = self.h.nodes[i].free[j]
                while e is not NULL:
                    assert e.region.segment.node == self.h.nodes[i].node
                    listed.add(<uintptr_t>e)
                    e = e.next
        assert walked == listed
        assert used == self.h.used
