"""The virtio block device on a virtqueue: requests of the ring become requests of a bdev.

Source:   virtio 1.4, 5.2.6.
"""
from cython cimport unlikely
from libc.errno cimport EAGAIN, EINVAL, EMSGSIZE, ENODEV, EOPNOTSUPP, EPROTO, EROFS
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy
from vhostrt.base.atomics cimport prefetch_read, store_relaxed_u32, store_relaxed_u64
from vhostrt.base.histogram cimport counted, histogram_index, histogram_t
from vhostrt.base.ticks cimport ticks_now
from vhostrt.bdev.core cimport (BDEV_FLUSH, BDEV_READ, BDEV_WRITE, bdev_io_t, bdev_settle,
                                bdev_submit, iovec)
from vhostrt.event.reactor cimport reactor_defer
from vhostrt.event.trace cimport TRACE_POINTS, TRACE_VHOST_BLK, trace, trace_any
from vhostrt.vhost.queue cimport (QUEUE_STARTED, REQUEST_IOVS, Queue, queue_break,
                                  queue_publish, queue_read_long, queue_t, request_finish,
                                  request_return_big, request_t)
from vhostrt.vhost.queue_stats cimport (CAUSE_IO_ERROR, CAUSE_MALFORMED, CAUSE_MISALIGNED,
                                        CAUSE_NO_DEVICE, CAUSE_OUT_OF_RANGE, CAUSE_READ_ONLY,
                                        CAUSE_UNSUPPORTED, KIND_DISCARD, KIND_FLUSH, KIND_GET_ID,
                                        KIND_OTHER, KIND_READ, KIND_WRITE, KIND_WRITE_ZEROES,
                                        LANE_OTHER)
from vhostrt.virtio.blk cimport (BLK_ID_BYTES, BLK_S_IOERR, BLK_S_OK, BLK_S_UNSUPP,
                                 BLK_SECTOR_SHIFT, BLK_T_DISCARD, BLK_T_FLUSH, BLK_T_GET_ID,
                                 BLK_T_IN, BLK_T_OUT, BLK_T_WRITE_ZEROES, blk_header_t,
                                 blk_take_header, blk_take_status)
from vhostrt.virtio.chain cimport chain_read, chain_t
from vhostrt.virtio.split cimport split_available, split_head

from vhostrt.event import trace as tracing

cdef enum:
    POLL_BUDGET = 32            # requests popped in one poll: what a queue may take from others

cdef enum:
    POP = TRACE_VHOST_BLK * TRACE_POINTS
    COMPLETE

tracing.register("vhost_blk", TRACE_VHOST_BLK, [
    # The names of VIRTIO_BLK_T_*, by their numbers.
    tracing.Point(0, "VHOST_BLK_POP", (("type", "IN|OUT|||FLUSH||||GET_ID|||DISCARD||WRITE_ZEROES"),
                                       ("sector", "int"), ("head", "int")),
                  "request", "begin", "bytes"),
    tracing.Point(1, "VHOST_BLK_COMPLETE", (("status", "OK|IOERR|UNSUPP"), ("head", "int")),
                  "request", "end", "bytes"),
])


cdef inline uint32_t lane_of(uint32_t kind) noexcept nogil:
    """Where the time of a kind of request is counted."""
    return min(kind, <uint32_t>LANE_OTHER)


cdef inline uint32_t kind_of(uint32_t type) noexcept nogil:
    """Return KIND_... of a VIRTIO_BLK_T_..."""
    if type == BLK_T_IN:
        return KIND_READ
    if type == BLK_T_OUT:
        return KIND_WRITE
    if type == BLK_T_FLUSH:
        return KIND_FLUSH
    if type == BLK_T_GET_ID:
        return KIND_GET_ID
    if type == BLK_T_DISCARD:
        return KIND_DISCARD
    return KIND_WRITE_ZEROES if type == BLK_T_WRITE_ZEROES else KIND_OTHER


cdef inline void blk_finish(queue_t *q, request_t *request, uint8_t status,
                            uint32_t written) noexcept nogil:
    """Answer a request, as request_finish does, and trace it."""
    if unlikely(q.traced):
        trace(COMPLETE, request, written, status, request.head)
    request_finish(q, request, status, written)


cdef inline void blk_answer(queue_t *q, request_t *request, uint32_t kind, uint8_t status,
                            uint32_t written) noexcept nogil:
    """Answer a request within the poll that has popped it.  blk_settle counts its time."""
    q.at_once += <uint64_t>1 << 16 * lane_of(kind)
    blk_finish(q, request, status, written)


cdef void blk_refuse(queue_t *q, request_t *request, uint32_t kind, uint32_t cause) noexcept nogil:
    """Answer a request within the poll that it cannot be done."""
    counted(&q.stats.counters.errors[cause], 1)
    blk_answer(q, request, kind, BLK_S_UNSUPP if cause == CAUSE_UNSUPPORTED else BLK_S_IOERR, 0)


cdef uint32_t cause_of(int rc) noexcept nogil:
    """Why bdev_submit did not take a request: CAUSE_..."""
    if rc == -EINVAL:
        return CAUSE_OUT_OF_RANGE
    if rc == -EOPNOTSUPP:
        return CAUSE_UNSUPPORTED
    if rc == -EROFS:
        return CAUSE_READ_ONLY
    return CAUSE_NO_DEVICE if rc == -ENODEV else CAUSE_IO_ERROR


cdef void blk_settle(queue_t *q) noexcept nogil:
    """Count the time of what the poll has answered itself: from its begin to now, for each, as the
    driver is shown all of it together.  One look at the clock."""
    cdef uint64_t answered = q.at_once
    cdef uint64_t now = ticks_now()
    cdef uint64_t took = now - q.polled if now > q.polled else 0
    cdef uint32_t bucket = histogram_index(q.stats.times[0], took)
    cdef uint32_t lane = 0
    cdef uint64_t n
    q.at_once = 0
    while answered:
        n = answered & 0xffff
        if n:
            counted(&q.stats.times[lane].bucket[bucket], n)
            counted(&q.stats.counters.ticks[lane], took * n)
        answered >>= 16
        lane += 1
    if q.channel is not NULL:
        bdev_settle(q.channel, q.polled, now)


cdef void blk_done(bdev_io_t *io, int rc) noexcept nogil:
    """A request that the bdev took is done; the driver is shown it at the end of the iteration."""
    cdef request_t *request = <request_t *>io
    cdef queue_t *q = request.queue
    cdef histogram_t *times = q.stats.times[request.lane]
    cdef uint8_t status = BLK_S_OK
    store_relaxed_u64(&request.since, 0)
    counted(&times.bucket[histogram_index(times, io.took)], 1)
    counted(&q.stats.counters.ticks[request.lane], io.took)
    if unlikely(rc < 0):
        status = BLK_S_UNSUPP if rc == -EOPNOTSUPP else BLK_S_IOERR
        counted(&q.stats.counters.errors[CAUSE_UNSUPPORTED if rc == -EOPNOTSUPP
                                         else CAUSE_IO_ERROR], 1)
    blk_finish(q, request, status, request.written if rc >= 0 else 0)
    reactor_defer(q.reactor, &q.publish)


cdef inline void blk_submit(queue_t *q, request_t *request, uint32_t kind,
                            uint8_t type) noexcept nogil:
    """Hand a filled-in request to the bdev; answer it when that is done at once."""
    cdef int rc
    request.io.type = type
    request.io.start = q.polled
    request.io.done = blk_done
    rc = bdev_submit(q.channel, &request.io)
    if rc > 0:
        blk_answer(q, request, kind, BLK_S_OK, request.written)
    elif rc == 0:
        request.lane = lane_of(kind)    # it is not done before a later poll
        store_relaxed_u64(&request.since, q.polled)
    else:
        blk_refuse(q, request, kind, cause_of(rc))


cdef inline void blk_transfer(queue_t *q, request_t *request, uint32_t kind, uint8_t type,
                              uint64_t sector, iovec *iovs, uint32_t iov_count,
                              uint32_t bytes) noexcept nogil:
    """A read or a write: whole blocks of the bdev, at least one, or it fails."""
    cdef uint32_t shift = q.block_shift
    counted(&q.stats.counters.bytes[kind], bytes)
    if unlikely(q.channel is NULL):
        blk_refuse(q, request, kind, CAUSE_NO_DEVICE)
        return
    if unlikely(bytes == 0 or bytes & ((1 << shift) - 1)
                or sector & ((1 << (shift - BLK_SECTOR_SHIFT)) - 1)):
        blk_refuse(q, request, kind, CAUSE_MISALIGNED)
        return
    request.io.iovs = iovs
    request.io.iov_count = iov_count
    # No product of the guest's numbers is made, so none can wrap; bdev_submit checks the range.
    request.io.offset_blocks = sector >> (shift - BLK_SECTOR_SHIFT)
    request.io.num_blocks = bytes >> shift
    blk_submit(q, request, kind, type)


cdef void blk_flush(queue_t *q, request_t *request) noexcept nogil:
    """Succeeds at once when nothing is volatile."""
    if q.channel is NULL:
        blk_refuse(q, request, KIND_FLUSH, CAUSE_NO_DEVICE)
    elif not q.channel.types >> BDEV_FLUSH & 1:
        blk_answer(q, request, KIND_FLUSH, BLK_S_OK, 0)
    else:
        request.io.iov_count = 0
        request.io.offset_blocks = 0
        request.io.num_blocks = 0
        blk_submit(q, request, KIND_FLUSH, BDEV_FLUSH)


cdef void blk_get_id(queue_t *q, request_t *request, iovec *iovs, uint32_t count) noexcept nogil:
    """Up to 20 bytes of the serial, NUL padded."""
    cdef uint32_t done = 0
    cdef uint32_t i, n
    for i in range(count):
        n = <uint32_t>min(iovs[i].iov_len, <size_t>(BLK_ID_BYTES - done))
        memcpy(iovs[i].iov_base, &q.serial[done], n)
        done += n
    counted(&q.stats.counters.bytes[KIND_GET_ID], done)
    blk_answer(q, request, KIND_GET_ID, BLK_S_OK, done)


cdef inline void blk_dispatch(queue_t *q, request_t *request, chain_t *c,
                              const blk_header_t *header, uint32_t first) noexcept nogil:
    """Start one request; the chain's data begins at iov `first`, its status is cut off."""
    cdef iovec *writable = &c.iovs[c.readable]
    cdef uint32_t writable_count = c.count - c.readable
    cdef uint32_t kind = kind_of(header.type)
    counted(&q.stats.counters.requests[kind], 1)
    request.written = 0
    if kind == KIND_READ:
        request.written = c.writable_bytes
        blk_transfer(q, request, KIND_READ, BDEV_READ, header.sector, writable, writable_count,
                     c.writable_bytes)
    elif kind == KIND_WRITE:
        blk_transfer(q, request, KIND_WRITE, BDEV_WRITE, header.sector, &c.iovs[first],
                     c.readable - first, c.readable_bytes - <uint32_t>sizeof(blk_header_t))
    elif kind == KIND_FLUSH:
        blk_flush(q, request)
    elif kind == KIND_GET_ID:
        blk_get_id(q, request, writable, writable_count)
    else:
        blk_refuse(q, request, kind, CAUSE_UNSUPPORTED)


cdef inline int blk_pop(queue_t *q, chain_t *c) noexcept nogil:
    """Take one chain off the ring and start it.

    0: done.  -EAGAIN: nothing was taken; a request must come back first.  Other -errno: the
    driver broke the ring.
    """
    cdef uint16_t head = split_head(&q.ring, 0)
    cdef request_t *request = q.free
    cdef blk_header_t header
    cdef uint8_t *status
    cdef int rc, first
    if unlikely(request is NULL):
        return -EAGAIN
    c.iovs = request.iovs
    c.iov_limit = REQUEST_IOVS
    rc = chain_read(c, head)
    if unlikely(rc < 0):
        if rc == -EMSGSIZE:
            rc = queue_read_long(q, c, request, head)
        if rc < 0:
            return rc
    first = blk_take_header(c, &header)
    status = blk_take_status(c)
    if unlikely(first < 0 or status is NULL):
        if request.big is not NULL:
            request_return_big(q, request)
        return -EPROTO
    q.free = request.next
    store_relaxed_u32(&q.inflight, q.inflight + 1)
    q.lease.inflight += 1
    q.ring.next_avail += 1
    request.lease = q.lease
    request.head = head
    request.status = status
    if unlikely(q.traced):
        trace(POP, request,
              c.readable_bytes - <uint32_t>sizeof(blk_header_t) + c.writable_bytes, header.type,
              header.sector, head)
    blk_dispatch(q, request, c, &header, first)
    return 0


cdef inline void blk_publish(queue_t *q) noexcept nogil:
    """Show the driver what the poll has answered, after its time has been taken."""
    if q.at_once:
        blk_settle(q)
    queue_publish(q)


cdef int blk_poll(void *arg) noexcept nogil:
    """Pop what waits, up to the budget; show what was done at once; one interrupt decision."""
    cdef queue_t *q = <queue_t *>arg
    cdef chain_t c
    cdef int n, i, rc
    if q.state != QUEUE_STARTED:
        return 0
    n = split_available(&q.ring)
    if n <= 0:
        if n < 0:
            counted(&q.stats.counters.errors[CAUSE_MALFORMED], 1)
            queue_break(q, n)
        return n != 0
    # When the reactor looked at the clock last: to look again here costs as much as a request.
    q.polled = q.reactor.stamp if q.reactor.stamp else q.reactor.now
    n = min(n, <int>POLL_BUDGET)
    q.traced = trace_any(TRACE_VHOST_BLK)
    c.desc = q.ring.desc
    c.desc_count = q.ring.size
    c.regions = q.lease.regions
    c.hint = &q.hint
    c.indirect = q.indirect
    c.step_limit = q.chain_limit
    for i in range(n):
        prefetch_read(&q.ring.desc[split_head(&q.ring, 1)])     # any address may be prefetched
        rc = blk_pop(q, &c)
        if rc < 0:
            if rc == -EAGAIN:
                n = i
                break
            counted(&q.stats.counters.errors[CAUSE_MALFORMED], 1)
            blk_publish(q)              # what came before the bad chain is answered
            queue_break(q, rc)
            return 1
    blk_publish(q)
    return n > 0


cdef class BlkQueue(Queue):
    """A virtqueue of a block device.

    serial: bytes, up to 20 of them are told to the guest.  The rest as Queue.
    """

    def __init__(self, int index, uint32_t size, thread, on_broken, bytes serial not None):
        cdef bytes padded = serial[:BLK_ID_BYTES].ljust(BLK_ID_BYTES, b"\0")
        memcpy(self.q.serial, <const char *>padded, BLK_ID_BYTES)
        self.q.poller.poll = blk_poll
