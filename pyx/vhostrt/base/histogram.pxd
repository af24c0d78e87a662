"""A histogram of times in ticks: every power of two is divided into equal buckets.

Owner:    a Histogram owns its histogram_t.
Threads:  one thread counts; any other reads meanwhile, relaxed.
Source:   the layout of spdk_histogram_data, whose buckets bdev_get_histogram tells.
"""
from libc.stdint cimport uint32_t, uint64_t
from vhostrt.base.atomics cimport load_relaxed_u64, store_relaxed_u64

cdef extern from *:
    """
    #define vh_bit_length(v) (64 - __builtin_clzll((v) | 1))
    """
    uint32_t bit_length "vh_bit_length"(uint64_t value) nogil       # 1 for 0

cdef struct histogram_t:
    # Range 0 has the values below 2^granularity, and range r > 0 those of one bit more than range
    # r - 1, so that a bucket of it is 2^(r - 1) ticks wide.
    uint32_t granularity        # the binary logarithm of how many buckets a range has
    uint32_t min_range          # what is below it goes to the first bucket,
    uint32_t max_range          # what is above it to the last
    uint32_t count              # of buckets
    uint64_t bucket[1]          # really count of them


cdef inline void counted(uint64_t *counter, uint64_t n) noexcept nogil:
    """Add to a counter that nobody else writes and others read relaxed."""
    store_relaxed_u64(counter, load_relaxed_u64(counter) + n)


cdef inline uint32_t histogram_index(const histogram_t *h, uint64_t ticks) noexcept nogil:
    """Return the bucket of a time."""
    cdef uint32_t bits = bit_length(ticks)
    cdef uint32_t r = bits - h.granularity if bits > h.granularity else 0
    cdef uint32_t shift = r - 1 if r else 0
    if r < h.min_range:
        return 0
    if r > h.max_range:
        return h.count - 1
    return (((r - h.min_range) << h.granularity)
            + (<uint32_t>(ticks >> shift) & ((1 << h.granularity) - 1)))


cdef class Histogram:
    cdef histogram_t *h                 # owned; 64-aligned
    cdef readonly object least          # ticks, as it was made
    cdef readonly object most
