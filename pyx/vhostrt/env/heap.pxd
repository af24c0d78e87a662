"""A heap of blocks over segments: first fit in lists by size, merged when freed.

Owner:    memory.pyx has the one of the process; another is whoever called heap_init.
Threads:  any, under the heap's mutex: set-up time only, never the data path.
Fails:    NULL or -errno; nothing here ends the process.
"""
from libc.stdint cimport uint32_t, uint64_t
from vhostrt.env.segment cimport segment_t

cdef extern from "<pthread.h>" nogil:
    ctypedef struct pthread_mutex_t:
        pass

cdef enum:
    HEAP_LISTS = 13

cdef struct region_t

cdef struct elem_t:
    # The header, one cache line, in front of each block and of each free space.
    uint64_t seal               # a constant and this address; anything else is no header
    size_t size                 # bytes, this header included
    region_t *region
    elem_t *before              # the element that ends where this one begins; NULL: the first
    elem_t *next                # in its free list
    elem_t *prev
    uint32_t busy

cdef struct region_t:
    # One segment cut into elements without a gap.
    segment_t segment
    size_t populated            # bytes from the start that are in memory
    size_t dirty                # bytes from the start that may be other than zero
    bint keep                   # not given back when it is empty
    region_t *next

cdef struct heap_t:
    pthread_mutex_t mutex
    region_t *regions
    elem_t *free[HEAP_LISTS]    # by size, the last freed first
    size_t limit                # bytes of all segments
    size_t total
    size_t used                 # bytes of busy elements, headers included
    size_t blocks               # busy elements
    bint huge                   # huge pages are tried
    bint one_node               # then node 0 is any node

cdef struct heap_stats_t:
    size_t total
    size_t used
    size_t free
    size_t free_max             # bytes of the largest free element
    size_t populated
    size_t blocks
    size_t regions
    size_t huge                 # bytes of total in huge pages

cdef void heap_init(heap_t *h, size_t limit, bint huge, bint one_node) noexcept nogil
cdef int heap_close(heap_t *h) noexcept nogil
cdef int heap_add(heap_t *h, segment_t *segment, bint keep) noexcept nogil
cdef void *heap_zalloc(heap_t *h, size_t size, size_t align, int node) noexcept nogil
cdef int heap_free(heap_t *h, void *block) noexcept nogil
cdef bint heap_owns(heap_t *h, const void *at) noexcept nogil
cdef void heap_stats(heap_t *h, heap_stats_t *stats) noexcept nogil
