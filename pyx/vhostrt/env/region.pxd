"""The regions of a heap: which one an address is in, what of it is in memory, what devices see.

Owner:    the heap.
Threads:  one at a time, as the heap.
Fails:    NULL or -errno.
"""
from libc.stdint cimport uint32_t, uint64_t
from vhostrt.env.heap cimport heap_t, region_t

ctypedef struct shortage_t:
    # Memory that the system did not give, counted from the start of its segment.
    size_t had                  # pages in memory
    size_t wanted               # pages that were to be
    size_t page_size            # bytes; 0: there was no shortage

cdef uint32_t region_place(heap_t *h, const void *at) noexcept nogil
cdef region_t *region_at(heap_t *h, const void *at) noexcept nogil
cdef region_t *region_next(heap_t *h, region_t *region) noexcept nogil
cdef region_t *region_slot(heap_t *h) noexcept nogil
cdef int region_reach(region_t *region, size_t end) noexcept nogil
cdef shortage_t region_shortage() noexcept nogil
cdef size_t region_break(heap_t *h, region_t *region, size_t start, size_t size,
                         uint32_t whole) noexcept nogil
cdef uint64_t iova_at(heap_t *h, const void *at, size_t size) noexcept nogil
