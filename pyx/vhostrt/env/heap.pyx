"""A heap of blocks over regions of memory: first fit in lists by size and node, merged when freed.

Blocks are taken from the low end of a free element, so that a region is populated from its start
upwards and memory that was never handed out is neither touched nor cleared.
"""
from libc.errno cimport EINVAL, ENOMEM, ENOSPC
from libc.stdint cimport SIZE_MAX, uint16_t, uint32_t, uint64_t, uintptr_t
from libc.string cimport memmove, memset
from vhostrt.base.check cimport check, dcheck, static_check
from vhostrt.env.region cimport (region_at, region_break, region_next, region_place, region_reach,
                                 region_slot)
from vhostrt.env.segment cimport PAGE, SEGMENT_FILE, segment_t, segment_unmap

cdef extern from *:
    """
    #include <stdio.h>
    /* Said once: a program that does it once does it often. */
    static void vh_wrong_free(int *said, const void *block)
    {
        if (!*said)
            fprintf(stderr, "vhostrt: memory is freed at %p, where no block is handed out: freed "
                            "before, or never from this heap; further ones are not reported\\n",
                    block);
        *said = 1;
    }
    """
    void wrong_free "vh_wrong_free"(int *said, const void *block) nogil

cdef enum:
    HEADER = 64                 # bytes; sizes and addresses are multiples of it
    ELEM_MIN = 128              # a header and the smallest block
    LIST_MIN = 256              # bytes up to which an element is in the first list

cdef uint64_t SEAL = 0x76686f7374727421

cdef int g_said = 0             # a wrong free has been reported; any thread


cdef inline uint64_t seal_of(elem_t *e) noexcept nogil:
    return SEAL ^ <uintptr_t>e


cdef inline size_t offset_of(elem_t *e) noexcept nogil:
    return <size_t>(<char *>e - e.region.segment.base)


cdef inline elem_t *after(elem_t *e) noexcept nogil:
    """Return the element that begins where this one ends, or NULL at the end of the region."""
    if offset_of(e) + e.size == e.region.segment.size:
        return NULL
    return <elem_t *>(<char *>e + e.size)


# The nodes, and their free elements.

cdef int list_of(size_t size) noexcept nogil:
    """Return the free list of elements of this size; each goes up to four times the one before."""
    cdef int i = 0
    cdef size_t most = LIST_MIN
    while size > most and i < HEAP_LISTS - 1:
        most *= 4
        i += 1
    return i


cdef heap_node_t *node_of(heap_t *h, int node) noexcept nogil:
    """Return what a heap has of a node, or NULL."""
    cdef uint32_t i
    for i in range(h.node_count):
        if h.nodes[i].node == node:
            return &h.nodes[i]
    return NULL


cdef heap_node_t *new_node(heap_t *h, int node) noexcept nogil:
    """Return the entry of a node, made in its place where missing; NULL when there are too many."""
    cdef heap_node_t *n = node_of(h, node)
    cdef uint32_t i = 0
    if n is not NULL or h.node_count == HEAP_NODES:
        return n
    while i < h.node_count and h.nodes[i].node < node:
        i += 1
    memmove(&h.nodes[i + 1], &h.nodes[i], (h.node_count - i) * sizeof(heap_node_t))
    h.node_count += 1
    memset(&h.nodes[i], 0, sizeof(heap_node_t))
    h.nodes[i].node = node
    return &h.nodes[i]


cdef void list_add(heap_t *h, elem_t *e) noexcept nogil:
    cdef heap_node_t *n = node_of(h, e.region.segment.node)
    cdef elem_t **head = &n.free[list_of(e.size)]
    e.busy = False
    e.prev = NULL
    e.next = head[0]
    if e.next is not NULL:
        e.next.prev = e
    head[0] = e
    n.spaces += 1


cdef void list_remove(heap_t *h, elem_t *e) noexcept nogil:
    cdef heap_node_t *n = node_of(h, e.region.segment.node)
    if e.prev is not NULL:
        e.prev.next = e.next
    else:
        n.free[list_of(e.size)] = e.next
    if e.next is not NULL:
        e.next.prev = e.prev
    n.spaces -= 1


cdef elem_t *elem_at(region_t *region, size_t offset, size_t size, elem_t *before) noexcept nogil:
    """Write a header."""
    cdef elem_t *e = <elem_t *>(region.segment.base + offset)
    e.seal = seal_of(e)
    e.size = size
    e.region = region
    e.before = before
    return e


# The regions.

cdef region_t *heap_add(heap_t *h, const segment_t *segment, bint keep, int *rc) noexcept nogil:
    """Take over a segment; return its region, or NULL and why: then the segment is the caller's.

    segment.node: the node it is memory of, not negative.  keep: not given back when it is empty.
    -ENOSPC  too many regions or nodes
    -ENOMEM  the system gives no page for its first header
    """
    cdef region_t *region = region_slot(h)
    cdef uint16_t slot
    cdef uint32_t i
    cdef heap_node_t *n
    check(segment.node >= 0)
    rc[0] = -ENOSPC
    if region is NULL:
        return NULL
    n = new_node(h, segment.node)
    if n is NULL:
        return NULL
    memset(region, 0, sizeof(region_t))
    region.segment = segment[0]
    region.keep = keep
    region.first_page = NO_PAGES
    region.dirty = segment.size if segment.kind == SEGMENT_FILE else HEADER
    rc[0] = region_reach(region, HEADER)
    if rc[0] < 0:
        return NULL
    h.serial += 1
    h.changes += 1
    region.serial = h.serial
    slot = <uint16_t>(region - h.regions)
    i = region_place(h, segment.base)
    memmove(&h.order[i + 1], &h.order[i], (h.region_count - i) * sizeof(uint16_t))
    h.order[i] = slot
    h.region_count += 1
    h.total += segment.size
    n.total += segment.size
    list_add(h, elem_at(region, 0, segment.size, NULL))
    return region


cdef void forget(heap_t *h, region_t *region) noexcept nogil:
    """Take a region out of the tables and unmap it."""
    cdef heap_node_t *n = node_of(h, region.segment.node)
    cdef uint32_t i = region_place(h, region.segment.base) - 1
    h.region_count -= 1
    memmove(&h.order[i], &h.order[i + 1], (h.region_count - i) * sizeof(uint16_t))
    h.changes += 1
    h.total -= region.segment.size
    n.total -= region.segment.size
    segment_unmap(&region.segment)
    region.serial = 0


cdef void heap_drop(heap_t *h, region_t *region) noexcept nogil:
    """Give a region back to the system; nothing of it is handed out."""
    cdef elem_t *e = <elem_t *>region.segment.base
    check(e.seal == seal_of(e) and not e.busy and e.size == region.segment.size)
    list_remove(h, e)
    forget(h, region)


# Taking.

cdef bint want_init(want_t *want, size_t size, size_t align) noexcept nogil:
    """Describe a block of size bytes; False when there can be none: size 0, a bad alignment."""
    if size == 0 or size > SIZE_MAX // 4 or align > SIZE_MAX // 4 or align & (align - 1):
        return False
    want.asked = size
    want.size = (size + 2 * HEADER - 1) & ~<size_t>(HEADER - 1)     # and its header
    want.align = max(align, <size_t>HEADER)
    want.bound = 0
    want.page_sizes = 0
    want.whole = WHOLE_NO
    return True


cdef inline uintptr_t next_at(uintptr_t at, size_t multiple) noexcept nogil:
    return (at + multiple - 1) & ~(multiple - 1)


cdef size_t gap_in(heap_t *h, elem_t *e, const want_t *want) noexcept nogil:
    """Return the bytes of e to leave in front of an element whose block is as wanted.

    SIZE_MAX when it does not fit.  The gap is none, or enough for an element of its own.
    """
    cdef uintptr_t base = <uintptr_t>e.region.segment.base
    cdef uintptr_t block = <uintptr_t>e + HEADER
    cdef uintptr_t end = <uintptr_t>e + e.size
    cdef uintptr_t at = next_at(block, want.align)
    cdef size_t size = want.size - HEADER
    cdef size_t broken = 0
    # Each turn goes up; the sums are far below 2^63: addresses, and sizes want_init has limited.
    while at + size <= end:
        if want.bound and (at ^ (at + size - 1)) & ~(want.bound - 1):
            at = next_at(at, max(want.bound, want.align))
            if (at ^ (at + size - 1)) & ~(want.bound - 1):
                return SIZE_MAX
            continue
        if at != block and at - block < ELEM_MIN:
            at = next_at(at + 1, want.align)
            continue
        if want.whole != WHOLE_NO:
            broken = region_break(h, e.region, at - base, size, want.whole)
        if broken == 0:
            return at - block
        at = next_at(max(base + broken, at + 1), want.align)
        broken = 0
    return SIZE_MAX


cdef inline bint fits(const want_t *want, region_t *region) noexcept nogil:
    return want.page_sizes == 0 or region.segment.page_size & want.page_sizes != 0


cdef elem_t *find(heap_t *h, heap_node_t *n, const want_t *want, size_t *gap) noexcept nogil:
    """Return a free element that fits, and where in it, or NULL."""
    cdef elem_t *e
    cdef int i
    for i in range(list_of(want.size), HEAP_LISTS):
        e = n.free[i]
        while e is not NULL:
            if fits(want, e.region):
                gap[0] = gap_in(h, e, want)
                if gap[0] != SIZE_MAX:
                    return e
            e = e.next
    return NULL


cdef void cut(heap_t *h, elem_t *e, size_t size) noexcept nogil:
    """Make a free element of what e has behind its first size bytes, if that is enough for one."""
    cdef elem_t *follower = after(e)
    cdef elem_t *rest
    if e.size - size < ELEM_MIN:
        return
    rest = elem_at(e.region, offset_of(e) + size, e.size - size, e)
    e.size = size
    list_add(h, rest)
    if follower is not NULL:
        follower.before = rest


cdef elem_t *carve(heap_t *h, elem_t *e, size_t gap, size_t size) noexcept nogil:
    """Cut a busy element out of a free one; NULL when its memory cannot be had."""
    cdef region_t *region = e.region
    cdef size_t start = offset_of(e)
    cdef elem_t *follower
    cdef elem_t *taken
    # Up to the header behind the block too; what lies behind that header stays untouched.
    if region_reach(region, min(start + gap + size + HEADER, start + e.size)) < 0:
        return NULL
    list_remove(h, e)
    taken = e
    if gap:
        follower = after(e)
        taken = elem_at(region, start + gap, e.size - gap, e)
        if follower is not NULL:
            follower.before = taken
        e.size = gap
        list_add(h, e)
    taken.busy = True
    cut(h, taken, size)
    return taken


cdef void clear(elem_t *e, size_t start) noexcept nogil:
    """Zero the bytes of e from start on, as far as they may be other than that."""
    cdef region_t *region = e.region
    cdef size_t end = offset_of(e) + e.size
    start += offset_of(e)
    if start < region.dirty:
        memset(region.segment.base + start, 0, min(end, region.dirty) - start)
    # The header behind the block is no zero either.
    region.dirty = max(region.dirty, min(end + HEADER, region.segment.size))


cdef void *heap_take(heap_t *h, const want_t *want, int node) noexcept nogil:
    """Return a block of a node, zeroed and in memory, or NULL.  The heap does not grow."""
    cdef size_t gap = 0
    cdef heap_node_t *n = node_of(h, node)
    cdef want_t pieces = want[0]
    cdef elem_t *e
    if n is NULL:
        return NULL
    e = find(h, n, want, &gap)
    if e is NULL and want.whole == WHOLE_WANTED:
        pieces.whole = WHOLE_NO
        e = find(h, n, &pieces, &gap)
    if e is not NULL:
        e = carve(h, e, gap, want.size)
    if e is NULL:
        return NULL
    n.used += e.size
    n.blocks += 1
    h.used += e.size
    h.blocks += 1
    e.slack = <uint32_t>(e.size - HEADER - want.asked)
    clear(e, HEADER)
    return <char *>e + HEADER


cdef size_t most_in(heap_t *h, elem_t *e, const want_t *want) noexcept nogil:
    """Return the bytes of the largest block that e could give, as wanted but for size."""
    cdef uintptr_t base = <uintptr_t>e.region.segment.base
    cdef uintptr_t end = <uintptr_t>e + e.size
    cdef want_t least = want[0]
    cdef size_t most = 0, broken
    cdef size_t gap
    cdef uintptr_t at
    least.size = ELEM_MIN
    gap = gap_in(h, e, &least)
    if gap == SIZE_MAX:
        return 0
    at = <uintptr_t>e + HEADER + gap
    while want.whole != WHOLE_NO and at < end:
        broken = region_break(h, e.region, at - base, end - at, want.whole)
        if broken == 0:
            break
        most = max(most, base + broken - at)
        at = next_at(base + broken, want.align)
    return max(most, end - at) if at < end else most


cdef size_t heap_free_max(heap_t *h, int node, const want_t *want) noexcept nogil:
    """Return the bytes of the largest block that heap_take could return, as wanted but for size.

    node: -1 for any.  0: there is none.
    """
    cdef size_t most = 0
    cdef elem_t *e
    cdef uint32_t i
    cdef int j
    for i in range(h.node_count):
        for j in range(HEAP_LISTS if node < 0 or h.nodes[i].node == node else 0):
            e = h.nodes[i].free[j]
            while e is not NULL:
                if fits(want, e.region):
                    most = max(most, most_in(h, e, want))
                e = e.next
    return most & ~<size_t>(HEADER - 1)


# Giving back.

cdef elem_t *busy_at(heap_t *h, const void *block) noexcept nogil:
    """Return the element of a block that is handed out; NULL when there is no such block."""
    cdef elem_t *e = <elem_t *>(<char *>block - HEADER)
    cdef region_t *region = region_at(h, e)
    if region is NULL or <size_t>(<char *>e - region.segment.base) >= region.populated:
        return NULL
    if <uintptr_t>e % HEADER or e.seal != seal_of(e) or not e.busy:
        return NULL
    return e


cdef void absorb(elem_t *e, elem_t *next_) noexcept nogil:
    """Make two neighbours one; the second's header is wiped, so that it is no header any more."""
    cdef elem_t *follower = after(next_)
    check(after(e) == next_ and next_.before == e)
    e.size += next_.size
    if follower is not NULL:
        follower.before = e
    memset(next_, 0, HEADER)


cdef int heap_give(heap_t *h, void *block, region_t **empty) noexcept nogil:
    """Give a block back, merged with its free neighbours.

    *empty: the region that has nothing handed out any more and may be dropped, or NULL.
    0
    -EINVAL  no block that is handed out: freed before, or foreign; debug builds stop here
    """
    cdef elem_t *e = busy_at(h, block)
    cdef elem_t *neighbour
    cdef heap_node_t *n
    empty[0] = NULL
    if e is NULL:
        wrong_free(&g_said, block)
        dcheck(e is not NULL)
        return -EINVAL
    n = node_of(h, e.region.segment.node)
    n.used -= e.size
    n.blocks -= 1
    h.used -= e.size
    h.blocks -= 1
    neighbour = after(e)
    if neighbour is not NULL and not neighbour.busy:
        list_remove(h, neighbour)
        absorb(e, neighbour)
    neighbour = e.before
    if neighbour is not NULL and not neighbour.busy:
        list_remove(h, neighbour)
        absorb(neighbour, e)
        e = neighbour
    list_add(h, e)
    if e.size == e.region.segment.size and not e.region.keep:
        empty[0] = e.region
    return 0


cdef size_t heap_size(heap_t *h, const void *block) noexcept nogil:
    """Return the bytes that were asked for of a block; 0: it is none."""
    cdef elem_t *e = busy_at(h, block)
    return 0 if e is NULL else e.size - HEADER - e.slack


cdef int heap_resize(heap_t *h, void *block, const want_t *want) noexcept nogil:
    """Make a block larger or smaller where it is; what is added is zeroed and in memory.

    0
    -EINVAL  no block that is handed out; debug builds stop here
    -ENOMEM  not where it is: behind it there is no room, or its alignment is another
    """
    cdef elem_t *e = busy_at(h, block)
    cdef elem_t *next_
    cdef size_t before, held
    cdef heap_node_t *n
    if e is NULL:
        wrong_free(&g_said, block)
        dcheck(e is not NULL)
        return -EINVAL
    if <uintptr_t>block & (want.align - 1):
        return -ENOMEM
    before = e.size
    held = e.size - e.slack
    next_ = after(e)
    if want.size > before:
        if next_ is NULL or next_.busy or before + next_.size < want.size:
            return -ENOMEM
        if region_reach(e.region, min(offset_of(e) + want.size + HEADER,
                                      offset_of(e) + before + next_.size)) < 0:
            return -ENOMEM
    # A free space behind is taken whole, so that what is left over is one with it.
    if next_ is not NULL and not next_.busy:
        list_remove(h, next_)
        absorb(e, next_)
    cut(h, e, want.size)
    e.slack = <uint32_t>(e.size - HEADER - want.asked)
    # What it held before it was made smaller may still be there.
    if e.size - e.slack > held:
        clear(e, held)
    n = node_of(h, e.region.segment.node)
    n.used += e.size - before                                   # modulo 2^64 where it shrinks
    h.used += e.size - before
    return 0


# The whole.

cdef void heap_init(heap_t *h, size_t limit) noexcept nogil:
    """Make an empty heap of at most limit bytes in zeroed memory."""
    static_check(sizeof(elem_t) <= HEADER)
    static_check(REGIONS <= 1 << 16)
    h.limit = limit


cdef void heap_close(heap_t *h) noexcept nogil:
    """Give all regions back; no block is handed out."""
    check(h.blocks == 0)
    while h.region_count:
        forget(h, &h.regions[h.order[h.region_count - 1]])
    h.node_count = 0


cdef void heap_stats(heap_t *h, int node, heap_stats_t *stats) noexcept nogil:
    """Count what there is on a node, -1 for all of them."""
    cdef want_t any_
    cdef region_t *region = region_next(h, NULL)
    cdef uint32_t i
    memset(stats, 0, sizeof(heap_stats_t))
    want_init(&any_, 1, 0)
    while region is not NULL:
        if node < 0 or region.segment.node == node:
            stats.regions += 1
            stats.populated += region.populated
            stats.huge += region.segment.size if region.segment.page_size > PAGE else 0
        region = region_next(h, region)
    for i in range(h.node_count):
        if node < 0 or h.nodes[i].node == node:
            stats.total += h.nodes[i].total
            stats.used += h.nodes[i].used
            stats.blocks += h.nodes[i].blocks
            stats.spaces += h.nodes[i].spaces
    stats.free = stats.total - stats.used
    stats.free_max = heap_free_max(h, node, &any_)
    stats.free_max += HEADER if stats.free_max else 0
