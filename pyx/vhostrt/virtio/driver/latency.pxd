"""Counts, sums and a histogram of the requests of one kind; every power of two of ticks is divided
into 64 buckets, so that a time is known to one part in 64.

Threads:  one counts; any other reads meanwhile, relaxed.
"""
from libc.stdint cimport uint32_t, uint64_t
from vhostrt.base.atomics cimport load_relaxed_u64, store_relaxed_u64

cdef extern from *:
    """
    #define vh_bits_of(v) (64 - __builtin_clzll((v) | 1))
    """
    uint32_t bits_of "vh_bits_of"(uint64_t value) nogil       # 1 for 0

cdef enum:
    LATENCY_BITS = 6
    LATENCY_SPAN = 1 << LATENCY_BITS
    LATENCY_BUCKETS = (64 - LATENCY_BITS + 1) << LATENCY_BITS

cdef struct latency_t:
    uint64_t count
    uint64_t bytes
    uint64_t ticks              # the sum
    uint64_t least              # ticks
    uint64_t most
    uint64_t bucket[LATENCY_BUCKETS]

cdef void latency_reset(latency_t *t) noexcept nogil


cdef inline void counted(uint64_t *counter, uint64_t n) noexcept nogil:
    """Add to a counter that nobody else writes and others read relaxed."""
    store_relaxed_u64(counter, load_relaxed_u64(counter) + n)


cdef inline uint32_t latency_index(uint64_t ticks) noexcept nogil:
    """Return the bucket of a time: below 64 each has its own, above it 64 for each power of two."""
    cdef uint32_t r
    if ticks < LATENCY_SPAN:
        return <uint32_t>ticks
    r = bits_of(ticks) - LATENCY_BITS               # at least 1
    return (r << LATENCY_BITS) + (<uint32_t>(ticks >> (r - 1)) & (LATENCY_SPAN - 1))


cdef inline void latency_add(latency_t *t, uint64_t ticks, uint64_t bytes) noexcept nogil:
    """Count one request."""
    counted(&t.count, 1)
    counted(&t.bytes, bytes)
    counted(&t.ticks, ticks)
    counted(&t.bucket[latency_index(ticks)], 1)
    if ticks < t.least:
        store_relaxed_u64(&t.least, ticks)
    if ticks > t.most:
        store_relaxed_u64(&t.most, ticks)
