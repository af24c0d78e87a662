"""The regions of a heap: which one an address is in, what of it is in memory, what devices see."""
from libc.stdint cimport UINT64_MAX, uint32_t, uint64_t, uintptr_t
from vhostrt.env.heap cimport NO_PAGES, REGIONS, WHOLE_NEEDED, heap_t, region_t
from vhostrt.env.populate cimport populate, populated_t
from vhostrt.env.segment cimport segment_t

cdef extern from *:
    """
    /* The last shortage that this thread met with: it tells of it once the lock has gone. */
    static __thread struct { size_t had, wanted, page_size; } vh_shortage;
    static void vh_note_shortage(size_t had, size_t wanted, size_t page_size)
    {
        vh_shortage.had = had;
        vh_shortage.wanted = wanted;
        vh_shortage.page_size = page_size;
    }
    static size_t vh_had(void) { return vh_shortage.had; }
    static size_t vh_wanted(void) { return vh_shortage.wanted; }
    static size_t vh_page_size(void) { return vh_shortage.page_size; }
    """
    void note_shortage "vh_note_shortage"(size_t had, size_t wanted, size_t page_size) nogil
    size_t shortage_had "vh_had"() nogil
    size_t shortage_wanted "vh_wanted"() nogil
    size_t shortage_page_size "vh_page_size"() nogil

cdef enum:
    STEP = 64 << 10             # ordinary pages are populated by so much


cdef uint32_t region_place(heap_t *h, const void *at) noexcept nogil:
    """Return how many regions begin at or below an address."""
    cdef uint32_t low = 0, high = h.region_count, middle
    while low < high:
        middle = (low + high) // 2
        if <uintptr_t>h.regions[h.order[middle]].segment.base <= <uintptr_t>at:
            low = middle + 1
        else:
            high = middle
    return low


cdef region_t *region_at(heap_t *h, const void *at) noexcept nogil:
    """Return the region that an address lies in, or NULL; the address is not touched."""
    cdef uint32_t i = region_place(h, at)
    cdef region_t *region
    if i == 0:
        return NULL
    region = &h.regions[h.order[i - 1]]
    if <uintptr_t>at - <uintptr_t>region.segment.base < region.segment.size:
        return region
    return NULL


cdef region_t *region_next(heap_t *h, region_t *region) noexcept nogil:
    """Return the region behind one, by address, the first one behind NULL; NULL: no more."""
    cdef uint32_t i = 0 if region is NULL else region_place(h, region.segment.base)
    return &h.regions[h.order[i]] if i < h.region_count else NULL


cdef region_t *region_slot(heap_t *h) noexcept nogil:
    """Return a free slot for a region, or NULL."""
    cdef uint32_t i
    if h.region_count == h.slot_end:
        if h.slot_end == REGIONS:
            return NULL
        h.slot_end += 1
        return &h.regions[h.slot_end - 1]
    for i in range(h.slot_end):
        if h.regions[i].serial == 0:
            return &h.regions[i]
    return NULL


cdef int region_reach(region_t *region, size_t end) noexcept nogil:
    """Have the bytes up to end in memory; 0 or -errno."""
    cdef segment_t *s = &region.segment
    cdef size_t step = max(s.page_size, <size_t>STEP)
    cdef size_t start = region.populated
    cdef populated_t done
    cdef int rc
    end = min((end + step - 1) // step * step, s.size)
    if end <= start:
        return 0
    rc = populate(s.base + start, end - start, s.page_size, s.fd, s.offset + start, &done)
    region.populated += done.reached
    if rc < 0:
        note_shortage(region.populated // s.page_size, end // s.page_size, s.page_size)
    return rc


cdef shortage_t region_shortage() noexcept nogil:
    """Return what region_reach could not have on this thread last, and forget it."""
    cdef shortage_t found = shortage_t(shortage_had(), shortage_wanted(), shortage_page_size())
    note_shortage(0, 0, 0)
    return found


# What devices see.

cdef size_t region_break(heap_t *h, region_t *region, size_t start, size_t size,
                         uint32_t whole) noexcept nogil:
    """Return where in a region a device sees the first break of a range; 0: nowhere.

    whole: with WHOLE_NEEDED pages of which nothing is known are apart, else they are together.
    """
    cdef size_t page = region.segment.page_size
    cdef size_t i = start // page
    cdef size_t last = (start + size - 1) // page
    cdef uint64_t *iovas
    if h.iova_is_va or i == last:
        return 0
    if region.first_page == NO_PAGES or h.iovas[region.first_page] == UINT64_MAX:
        return (i + 1) * page if whole == WHOLE_NEEDED else 0
    iovas = &h.iovas[region.first_page]
    while i < last:
        i += 1
        if iovas[i] != iovas[i - 1] + page:
            return i * page
    return 0


cdef uint64_t iova_at(heap_t *h, const void *at, size_t size) noexcept nogil:
    """Return where a device sees size bytes in one piece; UINT64_MAX: not known, or in several."""
    cdef region_t *region = region_at(h, at)
    cdef size_t start, page
    if region is NULL or region.first_page == NO_PAGES and not h.iova_is_va:
        return UINT64_MAX
    if h.iova_is_va:
        return <uintptr_t>at
    start = <size_t>(<const char *>at - region.segment.base)
    page = region.segment.page_size
    if size > region.segment.size - start or region_break(h, region, start, size, WHOLE_NEEDED):
        return UINT64_MAX
    if h.iovas[region.first_page + start // page] == UINT64_MAX:
        return UINT64_MAX
    return h.iovas[region.first_page + start // page] + start % page
