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
from vhostrt.base.atomics cimport (load_relaxed_u32, load_relaxed_u64, store_relaxed_u32,
                                   store_release_u32)
from vhostrt.base.check cimport dcheck
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

ctypedef void (*bdev_done_fn)(bdev_io_t *io, int rc) noexcept nogil
ctypedef int (*bdev_submit_fn)(bdev_channel_t *channel, bdev_io_t *io) noexcept nogil

cdef struct bdev_io_t:
    bdev_channel_t *channel     # set by bdev_submit
    iovec *iovs                 # the data; their lengths add up to num_blocks blocks
    uint32_t iov_count
    uint8_t type                # BDEV_READ ...
    uint64_t offset_blocks
    uint64_t num_blocks
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

cdef struct bdev_stats_t:       # written by the channel's reactor, read relaxed by others
    uint64_t requests[BDEV_TYPES]
    uint64_t blocks[BDEV_TYPES]
    uint64_t failed

cdef struct bdev_channel_t:
    bdev_t *bdev
    bdev_submit_fn submit       # the module's; reached only through bdev_submit
    void *ctx                   # the module's own, for this reactor
    uint32_t types              # what may be submitted here: the bdev's, less what is read-only
    uint32_t inflight           # submitted with 0 and not yet done
    uint32_t lcore
    bdev_stats_t stats


cdef int bdev_submit_traced(bdev_channel_t *channel, bdev_io_t *io) noexcept nogil
cdef void bdev_trace_done(bdev_io_t *io, int rc) noexcept nogil


cdef inline int bdev_submit(bdev_channel_t *channel, bdev_io_t *io) noexcept nogil:
    """Start one request: 1 done, 0 io.done comes later, -errno failed (see the module head).

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
    channel.stats.requests[io.type] += 1
    channel.stats.blocks[io.type] += io.num_blocks
    store_relaxed_u32(&channel.inflight, channel.inflight + 1)
    if unlikely(trace_any(TRACE_BDEV)):
        rc = bdev_submit_traced(channel, io)
    else:
        rc = channel.submit(channel, io)
    if rc == 0:
        return 0
    store_relaxed_u32(&channel.inflight, channel.inflight - 1)
    if rc < 0:
        channel.stats.failed += 1
    return rc


cdef inline void bdev_io_done(bdev_io_t *io, int rc) noexcept nogil:
    """Called by a module, on the channel's reactor, when a request that it took (0) is done."""
    cdef bdev_channel_t *channel = io.channel
    dcheck(channel.inflight > 0)
    if rc < 0:
        channel.stats.failed += 1
    if unlikely(trace_any(TRACE_BDEV)):
        bdev_trace_done(io, rc)
    # Release, with the acquire in Channel.inflight: who sees 0 there may free the channel.
    store_release_u32(&channel.inflight, channel.inflight - 1)
    io.done(io, rc)


cdef class Bdev:
    cdef bdev_t *b                      # owned; 64-aligned
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
    cdef int check_idle(self, Channel channel) except -1

cdef class Channel:
    cdef bdev_channel_t *c              # owned; 64-aligned
    cdef readonly Bdev bdev             # kept alive: c.bdev points into it
    cdef object station                 # the module's own for this reactor, what c.ctx points into
