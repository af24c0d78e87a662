"""The block device layer: a bdev, a channel to it on one reactor, and one request.

Owner:    a Bdev owns its bdev_t; a Channel owns its bdev_channel_t; who submits owns the bdev_io_t
          (and its iovs and the memory behind them) until it is done.
Threads:  Bdev and Channel objects belong to the control thread.  A bdev_channel_t is used by the
          one reactor that it was opened for.
Fails:    bdev_submit answers 1, 0 or -errno, the same at every layer of a stack:
          1    done; io.done is not called
          0    io.done is called exactly once, later, on the same reactor
          < 0  failed with -errno; io.done is not called
"""
from cython cimport unlikely
from libc.errno cimport EINVAL, ENODEV, EOPNOTSUPP, EROFS
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from vhostrt.base.atomics cimport load_relaxed_u32, load_relaxed_u64, store_relaxed_u32
from vhostrt.base.check cimport dcheck
from vhostrt.base.histogram cimport Histogram, counted, histogram_t
from vhostrt.event.trace cimport TRACE_BDEV, trace_any

cdef extern from "<sys/uio.h>" nogil:
    ctypedef struct iovec "struct iovec":
        void *iov_base
        size_t iov_len

cdef enum:
    BDEV_READ = 0
    BDEV_WRITE = 1
    BDEV_FLUSH = 2              # everything written before it is on the store
    BDEV_UNMAP = 3              # the blocks may read as anything until written again
    BDEV_WRITE_ZEROES = 4
    BDEV_RESET = 5
    BDEV_TYPES = 6
    # Types that change the store: refused on a read-only bdev or channel, in one place.
    BDEV_MODIFYING = 1 << BDEV_WRITE | 1 << BDEV_UNMAP | 1 << BDEV_WRITE_ZEROES

cdef enum:
    BDEV_IO_WORDS = 6           # of a module's own state per request

cdef enum:
    # Why requests failed that were the bdev's to do: the states of SPDK's bdev layer that occur.
    BDEV_NOMEM = 0              # -ENOMEM
    BDEV_ABORTED = 1            # -ECANCELED
    BDEV_FAILED = 2             # every other
    BDEV_ERRORS = 3

ctypedef void (*bdev_done_fn)(bdev_io_t *io, int rc) noexcept nogil
ctypedef int (*bdev_submit_fn)(bdev_channel_t *channel, bdev_io_t *io) noexcept nogil

cdef struct bdev_io_t:
    bdev_channel_t *channel     # set by bdev_submit
    iovec *iovs                 # the data; their lengths add up to num_blocks blocks
    uint32_t iov_count
    uint8_t type                # BDEV_READ ...
    uint64_t offset_blocks
    uint64_t num_blocks
    uint64_t start              # ticks, of the submitter's last look at the clock
    uint64_t took               # ticks; known when done is called
    bdev_done_fn done           # rc 0 or -errno
    bdev_io_t *next             # free for the module while it owns the request
    uint64_t module[BDEV_IO_WORDS]

cdef struct bdev_t:
    uint64_t num_blocks         # written by the control thread, read relaxed
    uint32_t block_size         # bytes; a power of two, 512 to 65536
    uint32_t types              # bit per BDEV_ type that the bdev can do
    uint32_t removed            # 1 once it is being deleted; control writes, read relaxed
    bint read_only
    bint write_cache            # data is volatile until a flush
    void *ctx                   # the module's own

cdef struct bdev_counters_t:    # of words alone: they are added up as an array
    uint64_t ops[BDEV_TYPES]    # done without an error
    uint64_t blocks[BDEV_TYPES]
    uint64_t ticks[BDEV_TYPES]  # from the submit to the end, of all of them
    uint64_t errors[BDEV_ERRORS]

cdef struct bdev_stats_t:
    # Written by the channel's reactor, read relaxed by others.
    bdev_counters_t counters
    uint64_t settled[BDEV_TYPES]        # ops whose time is in the counters
    uint64_t ticks_min[BDEV_TYPES]      # UINT64_MAX: none
    uint64_t ticks_max[BDEV_TYPES]
    histogram_t *histogram      # of times; NULL: none is kept
    uint32_t histogram_types    # bit per BDEV_ type that is counted in it

cdef struct bdev_channel_t:
    bdev_t *bdev
    bdev_submit_fn submit       # the module's; reached only through bdev_submit
    void *ctx                   # the module's own, for this reactor
    uint32_t types              # what may be submitted here: the bdev's, less what is read-only
    uint32_t inflight           # submitted with 0 and not yet done
    uint32_t lcore
    bdev_stats_t stats


cdef int bdev_submit_traced(bdev_channel_t *channel, bdev_io_t *io) noexcept nogil
cdef void bdev_count_error(bdev_channel_t *channel, int rc) noexcept nogil
cdef void bdev_io_done(bdev_io_t *io, int rc, uint64_t now) noexcept nogil
cdef void bdev_settle(bdev_channel_t *channel, uint64_t start, uint64_t now) noexcept nogil


cdef inline int bdev_submit(bdev_channel_t *channel, bdev_io_t *io) noexcept nogil:
    """Start one request: 1 done, 0 io.done comes later, -errno failed (see the module head).

    io.start is set.  Who wants the time of what is done at once to be counted calls bdev_settle.

    -EOPNOTSUPP: not a type of this bdev.  -EROFS: it is open for reading only.  -EINVAL: the blocks
    are not inside the bdev.  -ENODEV: the bdev is being deleted.
    """
    cdef bdev_t *bdev = channel.bdev
    cdef uint64_t size = load_relaxed_u64(&bdev.num_blocks)
    cdef int rc
    dcheck(io.type < BDEV_TYPES)
    if not channel.types >> io.type & 1:
        return -EROFS if bdev.types >> io.type & 1 else -EOPNOTSUPP
    if io.num_blocks > size or io.offset_blocks > size - io.num_blocks:
        return -EINVAL
    if load_relaxed_u32(&bdev.removed):
        return -ENODEV
    io.channel = channel
    store_relaxed_u32(&channel.inflight, channel.inflight + 1)
    if unlikely(trace_any(TRACE_BDEV)):
        rc = bdev_submit_traced(channel, io)
    else:
        rc = channel.submit(channel, io)
    if rc == 0:
        return 0
    store_relaxed_u32(&channel.inflight, channel.inflight - 1)
    if unlikely(rc < 0):
        bdev_count_error(channel, rc)
        return rc
    counted(&channel.stats.counters.ops[io.type], 1)
    counted(&channel.stats.counters.blocks[io.type], io.num_blocks)
    return 1


cdef class Totals:
    cdef bdev_stats_t s
    cdef void add(self, bdev_stats_t *stats) noexcept
    cdef dict since(self, Totals base, str reset)

cdef class Bdev:
    cdef bdev_t *b                      # owned; 64-aligned
    cdef readonly set channels          # that are open
    cdef Totals gone                    # of the channels that have been closed
    cdef Histogram histogram_gone       # likewise; None: no histogram is kept
    cdef uint32_t histogram_types
    cdef object histogram_lock          # asyncio.Lock of who turns it on and off
    cdef Totals base                    # what is not told since the last reset
    cdef readonly str name
    cdef readonly str product_name      # "Malloc disk"
    cdef readonly str uuid
    cdef readonly dict driver_specific  # for bdev_get_bdevs
    cdef readonly dict hints            # of {str: int}: what else it likes to be told of it
    cdef bdev_submit_fn submit          # the module's
    cdef int setup(self, uint64_t num_blocks, uint32_t block_size, uint32_t types,
                   bdev_submit_fn submit) except -1
    cdef int set_size(self, uint64_t num_blocks) except -1
    cdef Channel channel_new(self, uint32_t lcore, void *ctx, bint writable)
    cdef int retire(self, Channel channel) except -1
    cdef int retire_histogram(self, Histogram histogram) except -1
    cdef Totals counted_so_far(self)

cdef class Channel:
    cdef bdev_channel_t *c              # owned; 64-aligned
    cdef readonly Bdev bdev             # kept alive: c.bdev points into it
    cdef object station                 # the module's own for this reactor, what c.ctx points into
    cdef public object thread_id        # of the light thread that uses it; 0: none has said so
    cdef Totals base                    # what is not told since the last reset
    cdef Histogram histogram            # kept alive: c.stats.histogram is its; None: there is none
    cdef Totals counted_so_far(self)
