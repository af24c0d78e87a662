"""What a queue counts, as people look at it; and sums of it."""
from libc.stdint cimport UINT64_MAX, uint32_t, uint64_t
from libc.stdlib cimport free
from libc.string cimport memset
from vhostrt.base.atomics cimport load_relaxed_u64
from vhostrt.base.histogram cimport Histogram, counted
from vhostrt.base.ticks cimport ticks_hz, ticks_now

cdef extern from "<stdlib.h>" nogil:
    void *aligned_alloc(size_t align, size_t size)

cdef enum:
    COUNTERS = 2 * KINDS + CAUSES + 2 + LANES           # words of queue_counters_t

KIND_NAMES = ("read", "write", "flush", "discard", "write_zeroes", "get_id", "other")
LANE_NAMES = ("read", "write", "flush", "other")
CAUSE_NAMES = ("malformed", "misaligned", "out_of_range", "unsupported", "read_only", "no_device",
               "io_error")
GRANULARITY = 4                         # buckets of a sixteenth: a time is known to 3 %
TICKS_MAX = 1 << 40                     # minutes; longer times count as this
SHARES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p99_9": 0.999, "max": 1.0}


cdef class QueueStats:
    """The counters of one queue, or the sum of several.  None of them ever becomes less."""

    def __cinit__(self):
        cdef size_t size = (sizeof(queue_stats_t) + 63) & ~<size_t>63
        cdef Histogram histogram
        cdef uint32_t i
        self.s = <queue_stats_t *>aligned_alloc(64, size)
        if self.s is NULL:
            raise MemoryError
        memset(self.s, 0, size)
        self.histograms = [Histogram(GRANULARITY, 0, TICKS_MAX) for _ in LANE_NAMES]
        for i, histogram in enumerate(self.histograms):
            self.s.times[i] = histogram.h

    def __dealloc__(self):
        free(self.s)

    def add(self, QueueStats other not None) -> None:
        """Add what another has counted, which its queue may go on to count in."""
        cdef uint64_t *to = <uint64_t *>&self.s.counters
        cdef uint64_t *of = <uint64_t *>&other.s.counters
        cdef uint32_t i
        for i in range(<uint32_t>COUNTERS):
            counted(&to[i], load_relaxed_u64(&of[i]))
        for mine, theirs in zip(self.histograms, other.histograms, strict=True):
            mine.add(theirs)

    def requests(self) -> dict:
        """Return {kind: how many were taken from the ring}."""
        return {name: load_relaxed_u64(&self.s.counters.requests[<uint32_t>i])
                for i, name in enumerate(KIND_NAMES)}

    def data(self) -> dict:
        """Return {kind: bytes of their data}."""
        return {name: load_relaxed_u64(&self.s.counters.bytes[<uint32_t>i])
                for i, name in enumerate(KIND_NAMES)}

    def errors(self) -> dict:
        """Return {cause: how many}."""
        return {name: load_relaxed_u64(&self.s.counters.errors[<uint32_t>i])
                for i, name in enumerate(CAUSE_NAMES)}

    def ticks(self) -> dict:
        """Return {lane: the sum of the times, in ticks}."""
        return {name: load_relaxed_u64(&self.s.counters.ticks[<uint32_t>i])
                for i, name in enumerate(LANE_NAMES)}

    @property
    def calls(self) -> int:
        """Interrupts of the driver."""
        return load_relaxed_u64(&self.s.counters.calls)

    @property
    def kicks(self) -> int:
        """Notifications by the driver, as far as its descriptor has been looked at."""
        return load_relaxed_u64(&self.s.counters.kicks)

    def latencies(self) -> dict:
        """Return {lane: {"count", "mean", "p50", ... "max"}}, in microseconds, of what has been
        answered; lanes without an answer are left out."""
        us = 1e6 / ticks_hz()
        told = {}
        for (name, ticks), histogram in zip(self.ticks().items(), self.histograms, strict=True):
            count = histogram.total()
            if count:
                found = histogram.percentiles(SHARES.values())
                told[name] = {"count": count, "mean": round(ticks * us / count, 3)} | {
                    share: round(found[i] * us, 3) for i, share in enumerate(SHARES)}
        return told

    def describe(self) -> dict:
        """Return all of it, as vhost_get_controllers tells it."""
        return {"requests": self.requests(), "bytes": self.data(), "errors": self.errors(),
                "kicks": self.kicks, "calls": self.calls, "latency_us": self.latencies()}


def sum_of(many) -> QueueStats:
    """Return the sum of QueueStats."""
    total = QueueStats()
    for each in many:
        total.add(each)
    return total


def eventfd_count(int fd) -> int:
    """Return the count of an eventfd without reading it, or 0 where it cannot be told."""
    if fd < 0:
        return 0
    try:
        with open(f"/proc/self/fdinfo/{fd}", "rb", buffering=0) as file:
            text = file.read(512)
    except OSError:
        return 0
    _, found, rest = text.partition(b"eventfd-count:")
    return int(rest.split(None, 1)[0], 16) if found else 0


cdef class Kicks:
    """How often a driver has notified, by the count of its descriptor, which no queue ever reads: a
    client that reads it itself does so at its own loss."""

    def __cinit__(self, QueueStats stats not None):
        self.stats = stats
        self.fd = -1

    def look(self) -> None:
        """Count the kicks since the last look."""
        cdef uint64_t count = eventfd_count(self.fd)
        if count > self.seen:
            counted(&self.stats.s.counters.kicks, count - self.seen)
        self.seen = count

    def take(self, int fd) -> None:
        """Look at another descriptor from now on; the one before is still open."""
        self.look()
        self.fd = fd
        self.seen = eventfd_count(fd)


cdef uint64_t oldest(const uint64_t *first, size_t stride, uint32_t count) noexcept nogil:
    """Return the least of `count` words that lie `stride` bytes apart, or 0.  Words of 0 are none.
    """
    cdef uint64_t least = UINT64_MAX
    cdef uint64_t word
    cdef uint32_t i
    for i in range(count):
        word = load_relaxed_u64(<const uint64_t *>(<const char *>first + stride * i))
        if word:
            least = min(least, word)
    return least if least != UINT64_MAX else 0


cdef object us_since(uint64_t ticks):
    """Return how many microseconds ago that was, as an int; 0 when it is still to come."""
    cdef uint64_t now = ticks_now()
    return (<object>now - ticks) * 1_000_000 // ticks_hz() if now > ticks else 0
