"""Guest memory as a table of regions: the search that the inline look-up falls back to."""
from libc.stdint cimport uint32_t, uint64_t


cdef const region_t *regions_search(const regions_t *regions, uint64_t guest) noexcept nogil:
    """Return the region that holds `guest`, or NULL.  At most 32 steps: the table is sorted."""
    cdef uint32_t low = 0
    cdef uint32_t high = regions.count
    cdef uint32_t middle
    while low < high:                   # the regions before low start at or below guest
        middle = low + (high - low) // 2
        if regions.table[middle].guest <= guest:
            low = middle + 1
        else:
            high = middle
    if low == 0 or guest - regions.table[low - 1].guest >= regions.table[low - 1].size:
        return NULL
    return &regions.table[low - 1]
