"""A histogram of times in ticks, as people look at it."""
from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport free
from libc.string cimport memset
from vhostrt.base.atomics cimport load_relaxed_u64

cdef extern from "<stdlib.h>" nogil:
    void *aligned_alloc(size_t align, size_t size)

cdef enum:
    CACHE_LINE = 64

GRANULARITY_MAX = 10                    # 8 KiB for each power of two
TICKS_MAX = 2**64 - 1


cdef inline uint32_t range_of(uint32_t granularity, uint64_t ticks) noexcept nogil:
    cdef uint32_t bits = bit_length(ticks)
    return bits - granularity if bits > granularity else 0


cdef class Histogram:
    """Counts of times.

    granularity: 1 to 10; a time is known to one part in 2^granularity.  least, most: ticks, between
    which times are told apart; with the defaults that is every time.
    ValueError for what cannot be; MemoryError.
    """

    def __cinit__(self, int granularity, least=0, most=TICKS_MAX):
        cdef uint32_t first, last
        cdef size_t size
        if not 1 <= granularity <= GRANULARITY_MAX:
            raise ValueError(f"granularity {granularity} must be from 1 to {GRANULARITY_MAX}")
        if not 0 <= least < most <= TICKS_MAX:
            raise ValueError(f"there is no time from {least} to {most} ticks")
        first = range_of(granularity, least)
        last = range_of(granularity, most - 1)
        size = sizeof(histogram_t) + (<size_t>(last - first + 1) << granularity) * sizeof(uint64_t)
        size = (size + CACHE_LINE - 1) & ~<size_t>(CACHE_LINE - 1)
        self.h = <histogram_t *>aligned_alloc(CACHE_LINE, size)
        if self.h is NULL:
            raise MemoryError
        memset(self.h, 0, size)
        self.h.granularity = granularity
        self.h.min_range = first
        self.h.max_range = last
        self.h.count = (last - first + 1) << granularity
        self.least = least
        self.most = most

    def __dealloc__(self):
        free(self.h)

    def alike(self):
        """Return an empty one of the same buckets."""
        return Histogram(self.h.granularity, self.least, self.most)

    def is_like(self, Histogram other not None) -> bool:
        """Return whether another has the same buckets."""
        return (self.h.granularity == other.h.granularity and self.h.min_range == other.h.min_range
                and self.h.max_range == other.h.max_range)

    def count(self, uint64_t ticks, uint64_t n=1) -> None:
        """Count a time n times.  Only where no other thread counts."""
        counted(&self.h.bucket[histogram_index(self.h, ticks)], n)

    def add(self, Histogram other not None) -> None:
        """Add the counts of another of the same buckets, which may change meanwhile."""
        cdef uint32_t i
        if not self.is_like(other):
            raise ValueError("only histograms of the same buckets can be added")
        for i in range(self.h.count):
            counted(&self.h.bucket[i], load_relaxed_u64(&other.h.bucket[i]))

    def counts(self) -> list:
        """Return how many times fell into each bucket."""
        return [load_relaxed_u64(&self.h.bucket[i]) for i in range(self.h.count)]

    def total(self) -> int:
        """Return how many times were counted."""
        cdef uint64_t sum_ = 0
        cdef uint32_t i
        for i in range(self.h.count):
            sum_ += load_relaxed_u64(&self.h.bucket[i])
        return sum_

    def sum(self) -> float:
        """Return the sum of the times, in ticks, each taken as the middle of its bucket."""
        return sum([count * self.middle(i) for i, count in enumerate(self.counts()) if count])

    def end(self, bucket) -> int:
        """Return the first time, in ticks, behind a bucket; 2^64 at most."""
        r = (bucket >> self.h.granularity) + self.h.min_range
        width = 1 << max(r - 1, 0)
        start = 0 if r == 0 else 1 << (self.h.granularity + r - 1)
        return start + ((bucket & ((1 << self.h.granularity) - 1)) + 1) * width

    def middle(self, bucket) -> float:
        """Return the time, in ticks, that stands for a bucket: its middle."""
        r = (bucket >> self.h.granularity) + self.h.min_range
        return self.end(bucket) - (1 << max(r - 1, 0)) / 2

    def percentiles(self, shares) -> list:
        """Return for each share, 0 < share <= 1, the time in ticks that so many did not exceed.

        shares: ascending.  All None when nothing was counted.  Precise to half a bucket.
        """
        cdef uint64_t seen = 0
        cdef uint32_t i = 0
        counts = self.counts()
        total = sum(counts)
        found = []
        for share in shares:
            while total and seen < share * total:
                seen += counts[i]
                i += 1
            found.append(self.middle(i - 1) if total else None)
        return found

    def edges(self, bounds) -> list:
        """Return for each bound, in ticks, how many buckets lie below it, by their middles.

        bounds: ascending.  The same for histograms of the same buckets: cumulative takes them.
        """
        cdef uint32_t i = 0
        found = []
        for bound in bounds:
            while i < self.h.count and self.middle(i) <= bound:
                i += 1
            found.append(i)
        return found

    def cumulative(self, edges) -> list:
        """Return how many times fell below each of the edges, and at last how many there are."""
        cdef uint64_t sum_ = 0
        cdef uint32_t i = 0
        cdef uint32_t edge
        found = []
        for edge in (*edges, self.h.count):
            while i < edge:
                sum_ += load_relaxed_u64(&self.h.bucket[i])
                i += 1
            found.append(sum_)
        return found

    @property
    def granularity(self) -> int:
        return self.h.granularity

    @property
    def min_range(self) -> int:
        """Range of the first bucket: as SPDK counts ranges."""
        return self.h.min_range

    @property
    def max_range(self) -> int:
        """Range of the last bucket."""
        return self.h.max_range
