"""What a queue counts: its requests, their data, times and errors, and the calls of the driver.

Owner:    a QueueStats owns its queue_stats_t, which a queue keeps alive while it writes.
Threads:  the queue's reactor writes, and kicks the control thread; everybody reads relaxed.
"""
from libc.stdint cimport uint32_t, uint64_t
from vhostrt.base.histogram cimport histogram_t

cdef enum:
    # Of requests.
    KIND_READ = 0
    KIND_WRITE = 1
    KIND_FLUSH = 2
    KIND_DISCARD = 3
    KIND_WRITE_ZEROES = 4
    KIND_GET_ID = 5
    KIND_OTHER = 6              # of no type that there is
    KINDS = 7

cdef enum:
    # Of times: those of reads, writes and flushes; all other kinds share one.
    LANE_READ = 0
    LANE_WRITE = 1
    LANE_FLUSH = 2
    LANE_OTHER = 3
    LANES = 4

cdef enum:
    # Of errors.
    CAUSE_MALFORMED = 0         # a chain or an index that cannot be: the ring is broken by it
    CAUSE_MISALIGNED = 1        # no data, or not whole blocks
    CAUSE_OUT_OF_RANGE = 2      # behind the end of the disk
    CAUSE_UNSUPPORTED = 3
    CAUSE_READ_ONLY = 4
    CAUSE_NO_DEVICE = 5         # the bdev has been removed
    CAUSE_IO_ERROR = 6          # the bdev tried, and failed
    CAUSES = 7

cdef struct queue_counters_t:   # of words alone: they are added up as an array
    uint64_t requests[KINDS]    # popped
    uint64_t bytes[KINDS]       # of their data
    uint64_t errors[CAUSES]
    uint64_t calls              # interrupts sent
    uint64_t kicks              # the control thread's
    uint64_t ticks[LANES]       # from the pop to the answer, of all that are answered

cdef struct queue_stats_t:
    queue_counters_t counters
    histogram_t *times[LANES]   # of the same; all have the same buckets

cdef class QueueStats:
    cdef queue_stats_t *s       # owned; 64-aligned
    cdef readonly list histograms       # of base.histogram.Histogram, what s.times points into

cdef class Kicks:
    cdef QueueStats stats
    cdef int fd
    cdef uint64_t seen          # of its count

cdef uint64_t oldest(const uint64_t *first, size_t stride, uint32_t count) noexcept nogil
cdef object us_since(uint64_t ticks)
