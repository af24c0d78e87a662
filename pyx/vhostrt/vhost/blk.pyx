"""The virtio block device on a virtqueue: requests of the ring become requests of a bdev.

Source:   virtio 1.4, 5.2.6.
"""
from cython cimport unlikely
from libc.errno cimport EAGAIN, EMSGSIZE, EOPNOTSUPP, EPROTO
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy
from vhostrt.base.atomics cimport prefetch_read, store_relaxed_u32
from vhostrt.bdev.core cimport (BDEV_FLUSH, BDEV_READ, BDEV_WRITE, bdev_io_t, bdev_submit, iovec)
from vhostrt.event.reactor cimport reactor_defer
from vhostrt.event.trace cimport TRACE_POINTS, TRACE_VHOST_BLK, trace, trace_any
from vhostrt.vhost.queue cimport (QUEUE_STARTED, REQUEST_IOVS, Queue, counted, queue_break,
                                  queue_publish, queue_read_long, queue_t, request_finish,
                                  request_return_big, request_t)
from vhostrt.virtio.blk cimport (BLK_ID_BYTES, BLK_S_IOERR, BLK_S_OK, BLK_S_UNSUPP,
                                 BLK_SECTOR_SHIFT, BLK_T_FLUSH, BLK_T_GET_ID, BLK_T_IN, BLK_T_OUT,
                                 blk_header_t, blk_take_header, blk_take_status)
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


cdef inline void blk_finish(queue_t *q, request_t *request, uint8_t status,
                            uint32_t written) noexcept nogil:
    """Answer a request, as request_finish does, and trace it."""
    if unlikely(q.traced):
        trace(COMPLETE, request, written, status, request.head)
    request_finish(q, request, status, written)


cdef inline uint8_t status_of(queue_t *q, int rc) noexcept nogil:
    """The status byte for what the bdev answered."""
    if rc >= 0:
        return BLK_S_OK
    if rc == -EOPNOTSUPP:
        counted(&q.stats.unsupported, 1)
        return BLK_S_UNSUPP
    counted(&q.stats.errors, 1)
    return BLK_S_IOERR


cdef void blk_done(bdev_io_t *io, int rc) noexcept nogil:
    """A request that the bdev took is done; the driver is shown it at the end of the iteration."""
    cdef request_t *request = <request_t *>io
    cdef queue_t *q = request.queue
    blk_finish(q, request, status_of(q, rc), request.written if rc >= 0 else 0)
    reactor_defer(q.reactor, &q.publish)


cdef inline void blk_submit(queue_t *q, request_t *request, uint8_t type) noexcept nogil:
    """Hand a filled-in request to the bdev; answer it when that is done at once."""
    cdef int rc
    request.io.type = type
    request.io.done = blk_done
    rc = bdev_submit(q.channel, &request.io)
    if rc != 0:
        blk_finish(q, request, status_of(q, rc), request.written if rc > 0 else 0)


cdef inline void blk_transfer(queue_t *q, request_t *request, uint8_t type, uint64_t sector,
                              iovec *iovs, uint32_t iov_count, uint32_t bytes) noexcept nogil:
    """A read or a write: whole blocks of the bdev, at least one, or it fails."""
    cdef uint32_t shift = q.block_shift
    if unlikely(q.channel is NULL or bytes == 0 or bytes & ((1 << shift) - 1)
                or sector & ((1 << (shift - BLK_SECTOR_SHIFT)) - 1)):
        counted(&q.stats.errors, 1)
        blk_finish(q, request, BLK_S_IOERR, 0)
        return
    request.io.iovs = iovs
    request.io.iov_count = iov_count
    # No product of the guest's numbers is made, so none can wrap; bdev_submit checks the range.
    request.io.offset_blocks = sector >> (shift - BLK_SECTOR_SHIFT)
    request.io.num_blocks = bytes >> shift
    blk_submit(q, request, type)


cdef void blk_flush(queue_t *q, request_t *request) noexcept nogil:
    """Succeeds at once when nothing is volatile."""
    counted(&q.stats.flushes, 1)
    if q.channel is NULL:
        counted(&q.stats.errors, 1)
        blk_finish(q, request, BLK_S_IOERR, 0)
    elif not q.channel.types >> BDEV_FLUSH & 1:
        blk_finish(q, request, BLK_S_OK, 0)
    else:
        request.io.iov_count = 0
        request.io.offset_blocks = 0
        request.io.num_blocks = 0
        blk_submit(q, request, BDEV_FLUSH)


cdef void blk_get_id(queue_t *q, request_t *request, iovec *iovs, uint32_t count) noexcept nogil:
    """Up to 20 bytes of the serial, NUL padded."""
    cdef uint32_t done = 0
    cdef uint32_t i, n
    counted(&q.stats.others, 1)
    for i in range(count):
        n = <uint32_t>min(iovs[i].iov_len, <size_t>(BLK_ID_BYTES - done))
        memcpy(iovs[i].iov_base, &q.serial[done], n)
        done += n
    blk_finish(q, request, BLK_S_OK, done)


cdef inline void blk_dispatch(queue_t *q, request_t *request, chain_t *c,
                              const blk_header_t *header, uint32_t first) noexcept nogil:
    """Start one request; the chain's data begins at iov `first`, its status is cut off."""
    cdef iovec *writable = &c.iovs[c.readable]
    cdef uint32_t writable_count = c.count - c.readable
    request.written = 0
    if header.type == BLK_T_IN:
        counted(&q.stats.reads, 1)
        counted(&q.stats.bytes_read, c.writable_bytes)
        request.written = c.writable_bytes
        blk_transfer(q, request, BDEV_READ, header.sector, writable, writable_count,
                     c.writable_bytes)
    elif header.type == BLK_T_OUT:
        counted(&q.stats.writes, 1)
        counted(&q.stats.bytes_written, c.readable_bytes - sizeof(blk_header_t))
        blk_transfer(q, request, BDEV_WRITE, header.sector, &c.iovs[first], c.readable - first,
                     c.readable_bytes - <uint32_t>sizeof(blk_header_t))
    elif header.type == BLK_T_FLUSH:
        blk_flush(q, request)
    elif header.type == BLK_T_GET_ID:
        blk_get_id(q, request, writable, writable_count)
    else:
        counted(&q.stats.others, 1)
        counted(&q.stats.unsupported, 1)
        blk_finish(q, request, BLK_S_UNSUPP, 0)


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
    counted(&q.stats.requests, 1)
    request.lease = q.lease
    request.head = head
    request.status = status
    if unlikely(q.traced):
        trace(POP, request,
              c.readable_bytes - <uint32_t>sizeof(blk_header_t) + c.writable_bytes, header.type,
              header.sector, head)
    blk_dispatch(q, request, c, &header, first)
    return 0


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
            queue_break(q, n)
        return n != 0
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
            queue_publish(q)            # what came before the bad chain is answered
            queue_break(q, rc)
            return 1
    queue_publish(q)
    return n > 0


cdef class BlkQueue(Queue):
    """A virtqueue of a block device.

    serial: bytes, up to 20 of them are told to the guest.  The rest as Queue.
    """

    def __init__(self, int index, uint32_t size, thread, on_broken, bytes serial not None):
        cdef bytes padded = serial[:BLK_ID_BYTES].ljust(BLK_ID_BYTES, b"\0")
        memcpy(self.q.serial, <const char *>padded, BLK_ID_BYTES)
        self.q.poller.poll = blk_poll
