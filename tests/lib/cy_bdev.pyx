"""Drive a bdev from tests: lists of requests, submitted on a reactor, and their answers."""
import asyncio

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from vhostrt.base.ticks cimport ticks_now
from vhostrt.bdev.core cimport (Channel, bdev_channel_t, bdev_io_t, bdev_settle, bdev_submit,
                                iovec)
from vhostrt.bdev.station cimport station_t
from vhostrt.event.control cimport CALL_PENDING, call_done, call_on, call_t
from vhostrt.event.poller cimport poller_register, poller_unregister

cdef struct request_t:
    bdev_io_t io                # first: the one is the other
    batch_t *batch
    int rc
    uint32_t answers            # 1 when all is well

cdef struct batch_t:
    bdev_channel_t *channel
    request_t *requests
    uint32_t count
    uint32_t pending            # and 1 while submitting
    call_t *call

TYPES = {"read": 0, "write": 1, "flush": 2, "unmap": 3, "write_zeroes": 4, "reset": 5}


cdef void answered(request_t *request, int rc) noexcept nogil:
    request.rc = rc
    request.answers += 1


cdef void done(bdev_io_t *io, int rc) noexcept nogil:
    cdef request_t *request = <request_t *>io
    cdef batch_t *batch = request.batch
    answered(request, rc)
    batch.pending -= 1
    if batch.pending == 0:
        call_done(batch.call, 0)


cdef int submit_all(call_t *call) noexcept nogil:
    cdef batch_t *batch = <batch_t *>call.arg
    cdef uint64_t start = ticks_now()
    cdef uint32_t i
    cdef int rc
    batch.call = call
    batch.pending = 1
    for i in range(batch.count):
        batch.requests[i].io.start = start
        rc = bdev_submit(batch.channel, &batch.requests[i].io)
        if rc == 0:
            batch.pending += 1
        else:
            answered(&batch.requests[i], rc)
    bdev_settle(batch.channel, start, ticks_now())
    batch.pending -= 1
    return CALL_PENDING if batch.pending else 0


cdef class Batch:
    """A list of requests: (type name, first block, number of blocks, list of writable buffers).

    It and the buffers live until every answer has come; `run` sees to that.
    """

    cdef batch_t b
    cdef list views             # of the buffers the iovs point into

    def __cinit__(self, requests):
        self.views = []
        self.b.count = len(requests)
        self.b.requests = <request_t *>calloc(self.b.count, sizeof(request_t))
        if self.b.requests is NULL:
            raise MemoryError
        for i, (kind, first, blocks, buffers) in enumerate(requests):
            self.fill(&self.b.requests[<uint32_t>i], kind, first, blocks, buffers)

    cdef int fill(self, request_t *request, kind, first, blocks, buffers) except -1:
        cdef uint8_t[::1] view
        cdef uint32_t i
        request.batch = &self.b
        request.io.type = TYPES[kind]
        request.io.offset_blocks = first
        request.io.num_blocks = blocks
        request.io.done = done
        request.io.iov_count = len(buffers)
        request.io.iovs = <iovec *>calloc(len(buffers) + 1, sizeof(iovec))
        if request.io.iovs is NULL:
            raise MemoryError
        for i in range(request.io.iov_count):
            view = buffers[i]
            self.views.append(view)
            request.io.iovs[i].iov_base = &view[0] if view.shape[0] else NULL
            request.io.iovs[i].iov_len = view.shape[0]
        return 0

    def __dealloc__(self):
        cdef uint32_t i
        if self.b.requests is not NULL:
            for i in range(self.b.count):
                free(self.b.requests[i].io.iovs)
        free(self.b.requests)

    def start(self, Channel channel not None):
        """Submit all on the channel's reactor; return a future that ends with the last answer."""
        self.b.channel = channel.c
        return call_on(channel.c.lcore, submit_all, &self.b, self)

    def answers(self) -> list:
        """Return the result of each: 1 done at once, 0 done later, or -errno."""
        for i in range(self.b.count):
            assert self.b.requests[<uint32_t>i].answers == 1, f"request {i} was answered twice"
        return [self.b.requests[<uint32_t>i].rc for i in range(self.b.count)]


async def run(channel, requests) -> list:
    """Submit requests together, wait for all, and return their results.

    Also a test that is ended early waits, since its channel may not be closed before.
    """
    batch = Batch(requests)
    answer = batch.start(channel)
    try:
        await asyncio.shield(answer)
    except asyncio.CancelledError:
        await answer
        raise
    return batch.answers()


cdef int poller_pause(call_t *call) noexcept nogil:
    poller_unregister(&(<station_t *>call.arg).poller)
    return 0


cdef int poller_resume(call_t *call) noexcept nogil:
    cdef station_t *s = <station_t *>call.arg
    poller_register(s.thread, &s.poller, 0)
    return 0


cdef int poller_arm(call_t *call) noexcept nogil:
    cdef station_t *s = <station_t *>call.arg
    return s.poller.try_arm(s.poller.arg)


cdef int poller_disarm(call_t *call) noexcept nogil:
    cdef station_t *s = <station_t *>call.arg
    s.poller.disarm(s.poller.arg)
    return 0


cdef class Poller:
    """The poller behind a channel of a file, for tests of what interrupt mode needs.

    Each method returns a future of what the poller's function answered on its reactor.
    """

    cdef Channel channel

    def __cinit__(self, Channel channel not None):
        self.channel = channel

    def fd(self) -> int:
        return (<station_t *>self.channel.c.ctx).poller.fd

    def pause(self):
        """Take no completions any more."""
        return call_on(self.channel.c.lcore, poller_pause, self.channel.c.ctx, self)

    def resume(self):
        return call_on(self.channel.c.lcore, poller_resume, self.channel.c.ctx, self)

    def arm(self):
        return call_on(self.channel.c.lcore, poller_arm, self.channel.c.ctx, self)

    def disarm(self):
        return call_on(self.channel.c.lcore, poller_disarm, self.channel.c.ctx, self)
