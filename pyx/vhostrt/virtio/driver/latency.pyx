"""Counts and a histogram of requests, as Python sees the buckets."""
from libc.stdint cimport UINT64_MAX, uint64_t
from libc.string cimport memset


cdef void latency_reset(latency_t *t) noexcept nogil:
    """Forget everything."""
    memset(t, 0, sizeof(latency_t))
    t.least = UINT64_MAX


def buckets() -> int:
    """Return how many buckets there are."""
    return LATENCY_BUCKETS


def index(uint64_t ticks) -> int:
    """Return the bucket of a time."""
    return latency_index(ticks)


def bounds(bucket: int) -> tuple:
    """Return (first, end): the times in ticks, from the first up to the end, that a bucket holds.
    """
    r, low = divmod(bucket, LATENCY_SPAN)
    if r == 0:
        return low, low + 1
    return (LATENCY_SPAN + low) << (r - 1), (LATENCY_SPAN + low + 1) << (r - 1)
