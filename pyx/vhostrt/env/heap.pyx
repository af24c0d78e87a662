"""A heap of blocks over segments: first fit in lists by size, merged when freed.

Blocks are taken from the low end of a free element, so that a region is populated from its start
upwards and memory that was never handed out is neither touched nor cleared.
"""
from libc.errno cimport EBUSY, EINVAL, ENOMEM
from libc.stdint cimport SIZE_MAX, uint64_t, uintptr_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset
from vhostrt.base.check cimport check, static_check
from vhostrt.env.segment cimport (SEGMENT_FILE, SEGMENT_MEMFD, huge_pages_free, segment_map,
                                  segment_populate, segment_unmap)

cdef extern from "<pthread.h>" nogil:
    int pthread_mutex_init(pthread_mutex_t *mutex, const void *attr)
    int pthread_mutex_destroy(pthread_mutex_t *mutex)
    int pthread_mutex_lock(pthread_mutex_t *mutex)
    int pthread_mutex_unlock(pthread_mutex_t *mutex)

cdef enum:
    HEADER = 64                 # bytes; sizes and addresses are multiples of it
    ELEM_MIN = 128              # a header and the smallest block
    LIST_MIN = 256              # bytes up to which an element is in the first list
    GROWTH = 2 << 20            # segments are multiples of it
    GROWTH_MAX = 64 << 20       # what an untouched segment of ordinary pages may be ahead
    STEP = 64 << 10             # ordinary pages are populated by so much

cdef uint64_t SEAL = 0x76686f7374727421


cdef inline uint64_t seal_of(elem_t *e) noexcept nogil:
    return SEAL ^ <uintptr_t>e


cdef inline size_t offset_of(elem_t *e) noexcept nogil:
    return <size_t>(<char *>e - e.region.segment.base)


cdef inline elem_t *after(elem_t *e) noexcept nogil:
    """Return the element that begins where this one ends, or NULL at the end of the region."""
    if offset_of(e) + e.size == e.region.segment.size:
        return NULL
    return <elem_t *>(<char *>e + e.size)


cdef int list_of(size_t size) noexcept nogil:
    """Return the free list of elements of this size; each goes up to four times the one before."""
    cdef int i = 0
    cdef size_t most = LIST_MIN
    while size > most and i < HEAP_LISTS - 1:
        most *= 4
        i += 1
    return i


cdef void list_add(heap_t *h, elem_t *e) noexcept nogil:
    cdef elem_t **head = &h.free[list_of(e.size)]
    e.busy = False
    e.prev = NULL
    e.next = head[0]
    if e.next is not NULL:
        e.next.prev = e
    head[0] = e


cdef void list_remove(heap_t *h, elem_t *e) noexcept nogil:
    if e.prev is not NULL:
        e.prev.next = e.next
    else:
        h.free[list_of(e.size)] = e.next
    if e.next is not NULL:
        e.next.prev = e.prev


cdef elem_t *elem_at(region_t *region, size_t offset, size_t size, elem_t *before) noexcept nogil:
    """Write a header."""
    cdef elem_t *e = <elem_t *>(region.segment.base + offset)
    e.seal = seal_of(e)
    e.size = size
    e.region = region
    e.before = before
    return e


cdef int region_reach(region_t *region, size_t end) noexcept nogil:
    """Have the bytes up to end in memory; 0 or -ENOMEM."""
    cdef size_t had
    cdef int rc
    cdef size_t step = max(region.segment.page_size, <size_t>STEP)
    end = min((end + step - 1) // step * step, region.segment.size)
    if end <= region.populated:
        return 0
    rc = segment_populate(&region.segment, region.populated, end - region.populated, &had)
    region.populated = end if rc == 0 else region.populated + had
    return rc


# Taking.

cdef size_t gap_in(elem_t *e, size_t size, size_t align) noexcept nogil:
    """Return the bytes of e to leave in front of an element of size whose block is aligned.

    SIZE_MAX when it does not fit.  The gap is none, or enough for an element of its own.
    """
    cdef uintptr_t block = <uintptr_t>e + HEADER
    cdef uintptr_t at = (block + align - 1) & ~(align - 1)
    while at != block and at - block < ELEM_MIN:
        at += align
    # Both are far below 2^63: addresses of the process, and sizes that heap_zalloc has limited.
    return at - block if at - block + size <= e.size else SIZE_MAX


cdef elem_t *find(heap_t *h, size_t size, size_t align, int node, size_t *gap) noexcept nogil:
    """Return a free element that fits, and where in it, or NULL."""
    cdef elem_t *e
    cdef int i
    for i in range(list_of(size), HEAP_LISTS):
        e = h.free[i]
        while e is not NULL:
            if node < 0 or e.region.segment.node == node:
                gap[0] = gap_in(e, size, align)
                if gap[0] != SIZE_MAX:
                    return e
            e = e.next
    return NULL


cdef elem_t *carve(heap_t *h, elem_t *e, size_t gap, size_t size) noexcept nogil:
    """Cut a busy element out of a free one; NULL when its memory cannot be had."""
    cdef region_t *region = e.region
    cdef size_t start = offset_of(e)
    cdef size_t end = start + e.size
    cdef size_t tail = end - start - gap - size
    cdef elem_t *follower = after(e)
    cdef elem_t *before = e.before
    cdef elem_t *taken
    # Up to the header behind the block too; what lies behind that header stays untouched.
    if region_reach(region, min(start + gap + size + HEADER, end)) < 0:
        return NULL
    list_remove(h, e)
    if gap:
        e.size = gap
        list_add(h, e)
        before = e
    if tail < ELEM_MIN:
        size += tail
        tail = 0
    taken = elem_at(region, start + gap, size, before)
    before = taken
    if tail:
        before = elem_at(region, end - tail, tail, taken)
        list_add(h, before)
    if follower is not NULL:
        follower.before = before
    return taken


cdef void clear(elem_t *e) noexcept nogil:
    """Zero a new block, as far as its bytes may be other than that."""
    cdef region_t *region = e.region
    cdef size_t start = offset_of(e) + HEADER
    cdef size_t end = offset_of(e) + e.size
    if start < region.dirty:
        memset(region.segment.base + start, 0, min(end, region.dirty) - start)
    # The header behind the block is no zero either.
    region.dirty = max(region.dirty, min(end + HEADER, region.segment.size))


cdef int grow(heap_t *h, size_t need, int node) noexcept nogil:
    """Add a segment with room for need bytes; 0 or -errno."""
    cdef segment_t segment
    cdef size_t room = h.limit - h.total
    cdef size_t size = (need + GROWTH - 1) // GROWTH * GROWTH
    cdef int rc = -ENOMEM
    if size > room:
        return -ENOMEM
    if h.huge and huge_pages_free() >= size // GROWTH:
        rc = segment_map(&segment, size, node, True)
    if rc < 0:
        # Pages that are never touched cost nothing here, and fewer segments are quicker.
        size = max(size, min(min(h.total, <size_t>GROWTH_MAX), room) // GROWTH * GROWTH)
        rc = segment_map(&segment, size, node, False)
    if rc == 0:
        rc = heap_add(h, &segment, False)
    return rc


cdef elem_t *take(heap_t *h, size_t size, size_t align, int node) noexcept nogil:
    """Return a busy element of this size, or NULL."""
    cdef size_t gap = 0
    cdef elem_t *e = find(h, size, align, node, &gap)
    if e is NULL and grow(h, size + align + ELEM_MIN, node) == 0:
        e = find(h, size, align, node, &gap)
    if e is not NULL:
        e = carve(h, e, gap, size)
    return e


cdef void *heap_zalloc(heap_t *h, size_t size, size_t align, int node) noexcept nogil:
    """Return size zeroed bytes that are in memory, or NULL.

    align: a power of two; at least 64.  node: a NUMA node, and then no other; -1 for any.
    NULL: size 0, align no power of two, the limit is reached, or the system has no memory.
    """
    cdef elem_t *e
    if size == 0 or size > SIZE_MAX // 4 or align > SIZE_MAX // 4 or align & (align - 1):
        return NULL
    if h.one_node and node == 0:
        node = -1
    size = (size + 2 * HEADER - 1) & ~<size_t>(HEADER - 1)      # and its header
    pthread_mutex_lock(&h.mutex)
    e = take(h, size, max(align, <size_t>HEADER), node)
    if e is not NULL:
        e.busy = True
        h.used += e.size
        h.blocks += 1
        clear(e)
    pthread_mutex_unlock(&h.mutex)
    return NULL if e is NULL else <char *>e + HEADER


# Giving back.

cdef elem_t *busy_at(heap_t *h, void *block) noexcept nogil:
    """Return the element of a block that is handed out; NULL when there is no such block."""
    cdef region_t *region = h.regions
    cdef elem_t *e = <elem_t *>(<char *>block - HEADER)
    cdef uintptr_t base
    while region is not NULL:
        base = <uintptr_t>region.segment.base
        if base <= <uintptr_t>e < base + region.populated:
            if <uintptr_t>e % HEADER or e.seal != seal_of(e) or not e.busy:
                return NULL
            return e
        region = region.next
    return NULL


cdef void absorb(elem_t *e, elem_t *next_) noexcept nogil:
    """Make two neighbours one; the second's header is wiped, so that it is no header any more."""
    cdef elem_t *follower = after(next_)
    check(after(e) == next_ and next_.before == e)
    e.size += next_.size
    if follower is not NULL:
        follower.before = e
    memset(next_, 0, HEADER)


cdef void drop(heap_t *h, region_t *region) noexcept nogil:
    """Give an empty region back to the system."""
    cdef region_t **link = &h.regions
    while link[0] != region:
        link = &link[0].next
    link[0] = region.next
    h.total -= region.segment.size
    segment_unmap(&region.segment)
    free(region)


cdef void give(heap_t *h, elem_t *e) noexcept nogil:
    """Put an element back, merged with its free neighbours."""
    cdef region_t *region = e.region
    cdef elem_t *neighbour = after(e)
    h.used -= e.size
    h.blocks -= 1
    if neighbour is not NULL and not neighbour.busy:
        list_remove(h, neighbour)
        absorb(e, neighbour)
    neighbour = e.before
    if neighbour is not NULL and not neighbour.busy:
        list_remove(h, neighbour)
        absorb(neighbour, e)
        e = neighbour
    if e.size == region.segment.size and not region.keep:
        drop(h, region)
    else:
        list_add(h, e)


cdef int heap_free(heap_t *h, void *block) noexcept nogil:
    """Give a block back; NULL is allowed.  0, or -EINVAL: it is not one that is handed out."""
    cdef elem_t *e
    if block is NULL:
        return 0
    pthread_mutex_lock(&h.mutex)
    e = busy_at(h, block)
    if e is not NULL:
        give(h, e)
    pthread_mutex_unlock(&h.mutex)
    return -EINVAL if e is NULL else 0


# The whole.

cdef void heap_init(heap_t *h, size_t limit, bint huge, bint one_node) noexcept nogil:
    """Make an empty heap of at most limit bytes; no memory is taken before it is asked for."""
    static_check(sizeof(elem_t) <= HEADER)
    memset(h, 0, sizeof(heap_t))
    pthread_mutex_init(&h.mutex, NULL)
    h.limit = limit
    h.huge = huge
    h.one_node = one_node


cdef int heap_add(heap_t *h, segment_t *segment, bint keep) noexcept nogil:
    """Take over a segment, also when that fails: 0, or -ENOMEM.  keep: until heap_close.

    Called by the heap itself, under its mutex, or before it is in use.
    """
    cdef region_t *region = <region_t *>calloc(1, sizeof(region_t))
    if region is NULL:
        segment_unmap(segment)
        return -ENOMEM
    region.segment = segment[0]
    region.keep = keep
    region.dirty = segment.size if segment.kind == SEGMENT_FILE else HEADER
    if region_reach(region, HEADER) < 0:
        segment_unmap(&region.segment)
        free(region)
        return -ENOMEM
    region.next = h.regions
    h.regions = region
    h.total += segment.size
    list_add(h, elem_at(region, 0, region.segment.size, NULL))
    return 0


cdef int heap_close(heap_t *h) noexcept nogil:
    """Give everything back; 0, or -EBUSY while blocks are handed out, and then nothing is done."""
    cdef region_t *region
    if h.blocks:
        return -EBUSY
    while h.regions is not NULL:
        region = h.regions
        h.regions = region.next
        segment_unmap(&region.segment)
        free(region)
    pthread_mutex_destroy(&h.mutex)
    memset(h, 0, sizeof(heap_t))
    return 0


cdef bint heap_owns(heap_t *h, const void *at) noexcept nogil:
    """True when an address lies in a segment of the heap; it is not touched."""
    cdef region_t *region
    cdef uintptr_t base
    pthread_mutex_lock(&h.mutex)
    region = h.regions
    while region is not NULL:
        base = <uintptr_t>region.segment.base
        if base <= <uintptr_t>at < base + region.segment.size:
            break
        region = region.next
    pthread_mutex_unlock(&h.mutex)
    return region is not NULL


cdef void heap_stats(heap_t *h, heap_stats_t *stats) noexcept nogil:
    """Count what there is."""
    cdef region_t *region
    cdef elem_t *e
    cdef int i
    memset(stats, 0, sizeof(heap_stats_t))
    pthread_mutex_lock(&h.mutex)
    stats.total = h.total
    stats.used = h.used
    stats.free = h.total - h.used
    stats.blocks = h.blocks
    region = h.regions
    while region is not NULL:
        stats.regions += 1
        stats.populated += region.populated
        stats.huge += 0 if region.segment.kind == SEGMENT_MEMFD else region.segment.size
        region = region.next
    for i in range(HEAP_LISTS):
        e = h.free[i]
        while e is not NULL:
            stats.free_max = max(stats.free_max, e.size)
            e = e.next
    pthread_mutex_unlock(&h.mutex)
