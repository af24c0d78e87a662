"""A heap of blocks over regions of memory: first fit in lists by size and node, merged when freed.

Owner:    memory.pyx has the one of the process; another is whoever called heap_init.
Threads:  one at a time: the heap of the process is used under the lock of its record.
Fails:    NULL or -errno; a wrong free ends the process in debug builds only.

It may be in memory that several processes map at the same address, and points to no code.
"""
from libc.stdint cimport uint16_t, uint32_t, uint64_t
from vhostrt.env.segment cimport segment_t

cdef enum:
    HEAP_LISTS = 13
    HEAP_NODES = 64             # NUMA nodes that a heap can have memory of
    REGIONS = 4096
    REGION_FILE = 256           # bytes of a file's name, with its NUL
    PAGES_MAX = 1 << 20         # pages whose places are known
    NO_PAGES = 0xFFFFFFFF       # of a region: nothing is known of its pages

cdef enum:
    WHOLE_NO = 0                # a device may see a block in pieces
    WHOLE_WANTED = 1            # in one piece where it is known how devices see memory
    WHOLE_NEEDED = 2            # in one piece for certain

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
    uint32_t slack              # bytes of a block that nobody asked for

cdef struct region_t:
    # One segment cut into elements without a gap.
    segment_t segment           # its descriptor is the primary process's
    size_t populated            # bytes from the start that are in memory
    size_t dirty                # bytes from the start that may be other than zero
    uint32_t serial             # of no other region of this heap, ever; 0: the slot is free
    uint32_t first_page         # into the heap's tables of pages, or NO_PAGES: in file order
    bint keep                   # not given back when it is empty
    char file[REGION_FILE]      # which others map; "": none

cdef struct heap_node_t:
    int node
    elem_t *free[HEAP_LISTS]    # by size, the last freed first
    size_t total
    size_t used                 # bytes of busy elements, headers included
    size_t blocks               # busy elements
    size_t spaces               # free elements

cdef struct heap_t:
    size_t limit                # bytes of all regions
    size_t total
    size_t used
    size_t blocks
    uint32_t serial             # of the region added last
    uint32_t changes            # regions added and dropped so far
    uint32_t region_count
    uint32_t slot_end           # slots that have ever been used
    uint32_t node_count
    uint16_t order[REGIONS]     # slots of the regions, by address
    heap_node_t nodes[HEAP_NODES]       # by node
    region_t regions[REGIONS]
    bint iova_is_va             # devices see memory where the processes see it
    uint32_t page_count         # entries of these tables in use
    uint32_t pages[PAGES_MAX]   # number of a page in its file
    uint64_t iovas[PAGES_MAX]   # where a device sees it; UINT64_MAX: not known

cdef struct want_t:
    # What a block has to be like.
    size_t asked                # bytes
    size_t size                 # bytes of its element: those, its header, whole cache lines
    size_t align                # a power of two, 64 at least
    size_t bound                # a power of two that the block crosses no multiple of; 0: none
    size_t page_sizes           # the sizes of pages allowed, added up; 0: any
    uint32_t whole              # WHOLE_*

cdef struct heap_stats_t:
    size_t total
    size_t used
    size_t free
    size_t free_max             # bytes of the largest free element
    size_t populated
    size_t blocks
    size_t spaces
    size_t regions
    size_t huge                 # bytes of total in huge pages

cdef void heap_init(heap_t *h, size_t limit) noexcept nogil
cdef region_t *heap_add(heap_t *h, const segment_t *segment, bint keep, int *rc) noexcept nogil
cdef void heap_drop(heap_t *h, region_t *region) noexcept nogil
cdef void heap_close(heap_t *h) noexcept nogil
cdef bint want_init(want_t *want, size_t size, size_t align) noexcept nogil
cdef void *heap_take(heap_t *h, const want_t *want, int node) noexcept nogil
cdef int heap_give(heap_t *h, void *block, region_t **empty) noexcept nogil
cdef int heap_resize(heap_t *h, void *block, const want_t *want) noexcept nogil
cdef size_t heap_size(heap_t *h, const void *block) noexcept nogil
cdef size_t heap_free_max(heap_t *h, int node, const want_t *want) noexcept nogil
cdef void heap_stats(heap_t *h, int node, heap_stats_t *stats) noexcept nogil
