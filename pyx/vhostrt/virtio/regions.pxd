"""Guest memory as a table of regions, sorted by guest address, and the way through it.

Owner:    whoever builds the table; it is not changed while a queue uses it.
Threads:  any number of readers; each brings a hint of its own.
"""
from libc.stdint cimport uint8_t, uint32_t, uint64_t

cdef struct region_t:
    uint64_t guest              # guest physical address
    uint64_t size               # bytes; guest + size does not pass 2^64
    uint8_t *host

cdef struct regions_t:
    uint32_t count
    uint32_t *poisoned          # 1 there once memory of a region was found missing (SIGBUS)
    region_t table[1]           # really count of them


cdef const region_t *regions_search(const regions_t *regions, uint64_t guest) noexcept nogil


cdef inline void *regions_translate(const regions_t *regions, uint32_t *hint, uint64_t guest,
                                    uint64_t *length) noexcept nogil:
    """Return where guest memory lies in this process, or NULL when there is none at `guest`.

    *length, in bytes, is cut to what lies in one piece; at least 1 when it was not 0.  *hint is
    the index of the region found last: most look-ups end there.
    """
    cdef const region_t *region = &regions.table[hint[0]]
    cdef uint64_t offset
    if hint[0] >= regions.count or guest - region.guest >= region.size:
        region = regions_search(regions, guest)
        if region is NULL:
            return NULL
        hint[0] = <uint32_t>(region - &regions.table[0])
    offset = guest - region.guest       # < size: checked, or found by the search
    if length[0] > region.size - offset:
        length[0] = region.size - offset
    return region.host + offset
