"""One virtqueue on one reactor: its requests, its life, and what every device does with it.

A queue is made when its ring is started and thrown away when it has stopped.  In between it is
changed only by events to its reactor: start, set_view, set_fd, set_channel, move, stop.
"""
import asyncio

from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.errno cimport EAGAIN, EFAULT, ETIMEDOUT
from libc.stdint cimport uint16_t, uint32_t, uint64_t, uintptr_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset
from vhostrt.base.check cimport check
from vhostrt.base.errors cimport ok
from vhostrt.base.eventfd cimport eventfd_signal
from vhostrt.base.histogram cimport counted
from vhostrt.bdev.core cimport Channel, bdev_channel_t, iovec
from vhostrt.event.control cimport CALL_PENDING, call_done, call_on, call_t, control_post
from vhostrt.event.poller cimport poller_register, poller_unregister
from vhostrt.event.reactor cimport thread_attach, thread_t
from vhostrt.event.watch cimport poller_set_fd
from vhostrt.vhost.coalesce cimport (coalesce_flush, coalesce_init, coalesce_mode, coalesce_set,
                                     coalesce_signal, coalescing_t)
from vhostrt.vhost.queue_move cimport move_call, move_t, queue_leave, stay_call
from vhostrt.vhost.queue_stats cimport Kicks, QueueStats, oldest, us_since
from vhostrt.virtio.blk cimport BLK_SECTOR_SHIFT
from vhostrt.virtio.chain cimport CHAIN_MIN_LIMIT, chain_read, chain_t
from vhostrt.virtio.split cimport (split_kicks_off, split_kicks_on, split_publish, vring_avail,
                                   vring_desc, vring_used)

cdef extern from "<stdlib.h>" nogil:
    void *aligned_alloc(size_t align, size_t size)

cdef enum:
    BIG_BYTES_MAX = 4 << 20             # of iovs for long chains, of one queue ...
    BIG_COUNT_MAX = 64                  # ... and how many chains they are for
    SIZE_MAX_SPLIT = 32768              # virtio 1.4, 2.7
    REQUEST_BYTES = (sizeof(request_t) + 63) & ~63      # of a slot, in whole cache lines

cdef enum:
    FD_KICK = 0
    FD_CALL = 1
    FD_ERR = 2

MOVE_S = 1.0                            # what a move waits for requests in flight
FD_KINDS = ("kick", "call", "err")      # in the order of FD_...


# On the reactor

cdef void queue_call(queue_t *q) noexcept nogil:
    """Interrupt the driver."""
    counted(&q.stats.counters.calls, 1)
    if not eventfd_signal(q.call_fd):
        queue_break(q, -ETIMEDOUT)      # and so it is not called again


cdef void queue_finish_stop(queue_t *q) noexcept nogil:
    """Let go of the ring and answer the call that asked for it with the next index to pop.  The
    thread, without the poller, is ended by the control thread."""
    cdef call_t *call = q.stopping
    q.stopping = NULL
    q.state = QUEUE_STOPPED
    coalesce_flush(q)
    poller_unregister(&q.poller)
    lease_retire(q.lease)
    q.lease = NULL
    call_done(call, q.ring.next_avail)


cdef void queue_publish(queue_t *q) noexcept nogil:
    """Show the driver what was given back, and decide once about an interrupt."""
    if load_relaxed_u32(q.lease.regions.poisoned):
        queue_break(q, -EFAULT)
    if q.state == QUEUE_BROKEN:
        q.ring.published = q.ring.next_used     # never shown: the answers may be lost as well
    elif q.ring.published != q.ring.next_used and (split_publish(&q.ring) or q.when.waiting):
        coalesce_signal(q)


cdef void publish_run(void *arg) noexcept nogil:
    """The end of an iteration in which requests were completed from outside, or a drain ended."""
    cdef queue_t *q = <queue_t *>arg
    if q.state == QUEUE_STOPPED:
        return
    queue_publish(q)
    if q.inflight == 0:
        if q.stopping is not NULL:
            queue_finish_stop(q)
        elif q.moving is not NULL:
            coalesce_flush(q)
            queue_leave(q)


cdef void queue_break(queue_t *q, int rc) noexcept nogil:
    """Stop popping for good: -errno says what the driver did.  Requests in flight still end."""
    if q.state == QUEUE_BROKEN or q.state == QUEUE_STOPPED:
        return
    # Zeros in the place of memory that has gone read as a driver's mistake.
    q.broken_rc = -EFAULT if load_relaxed_u32(q.lease.regions.poisoned) else rc
    if q.state != QUEUE_DRAINING:       # whoever stops it does not need to be told
        eventfd_signal(q.err_fd)
        control_post(&q.broken_note)
    q.state = QUEUE_BROKEN
    if rc != -ETIMEDOUT:                # which says that the call itself does not work
        coalesce_flush(q)


cdef void lease_retire(lease_t *lease) noexcept nogil:
    """The queue uses another view, or none.  Tell the control thread once no request is left."""
    lease.retired = True
    if lease.inflight == 0:
        control_post(&lease.note)


cdef void lease_returned(queue_t *q, lease_t *lease) noexcept nogil:
    """A request that used an old view is done.  Its answer is lost if memory there was missing."""
    if load_relaxed_u32(lease.regions.poisoned):
        queue_break(q, -EFAULT)
    if lease.inflight == 0:
        control_post(&lease.note)


cdef int queue_read_long(queue_t *q, chain_t *c, request_t *request, uint16_t head) noexcept nogil:
    """Read a chain again, from the start, that did not fit into the request.

    As chain_read, and -EAGAIN: no iovs are left until a request returns some.
    """
    cdef big_iovs_t *big = q.big_free
    cdef int rc
    if big is NULL:
        return -EAGAIN
    q.big_free = big.next
    request.big = <iovec *>big
    c.iovs = request.big
    c.iov_limit = q.chain_limit
    rc = chain_read(c, head)
    if rc < 0:
        request_return_big(q, request)
    return rc


cdef void request_return_big(queue_t *q, request_t *request) noexcept nogil:
    cdef big_iovs_t *big = <big_iovs_t *>request.big
    request.big = NULL
    big.next = q.big_free
    q.big_free = big


cdef int poll_try_arm(void *arg) noexcept nogil:
    """Ask for kicks; 1 when a chain has come meanwhile, -1 when the driver does not kick."""
    cdef queue_t *q = <queue_t *>arg
    if q.state != QUEUE_STARTED:
        return 0
    if q.kick_fd < 0:
        return -1
    return split_kicks_on(&q.ring)


cdef void poll_disarm(void *arg) noexcept nogil:
    cdef queue_t *q = <queue_t *>arg
    if q.state == QUEUE_STARTED:
        split_kicks_off(&q.ring)


cdef int start_call(call_t *call) noexcept nogil:
    """Begin to pop.  The driver is called once: completions may predate its call descriptor."""
    cdef queue_t *q = <queue_t *>call.arg
    cdef thread_t *thread = q.poller.thread
    q.reactor = call.event.reactor
    thread_attach(q.reactor, thread)
    poller_register(thread, &q.poller, 0)
    q.state = QUEUE_STARTED
    split_kicks_off(&q.ring)
    queue_call(q)
    return 0


cdef int stop_call(call_t *call) noexcept nogil:
    """Pop nothing more; the answer comes when the last request is done."""
    cdef queue_t *q = <queue_t *>call.arg
    q.stopping = call
    if q.state == QUEUE_STARTED:
        q.state = QUEUE_DRAINING
    reactor_defer(q.reactor, &q.publish)
    return CALL_PENDING


cdef struct change_t:
    # What a set_... event brings; the control thread's again after the answer.
    queue_t *q
    lease_t *lease
    split_t ring                # desc, avail and used as the new view has them
    int kind                    # FD_..., of fd
    int fd
    bdev_channel_t *channel
    uint32_t block_shift        # of its bdev
    coalescing_t coalescing


cdef int set_view_call(call_t *call) noexcept nogil:
    """Take a new view; requests in flight keep the old one."""
    cdef change_t *change = <change_t *>call.arg
    cdef queue_t *q = change.q
    cdef lease_t *ended = q.lease
    if change.ring.desc is NULL:
        # The new view does not hold the ring.  What is in flight, perhaps since an older view yet,
        # is still given back to the ring, so the view that it lies in stays to the end.
        queue_break(q, -EFAULT)
        ended = change.lease
    else:
        q.lease = change.lease
        q.hint = 0
        q.ring.desc = change.ring.desc
        q.ring.avail = change.ring.avail
        q.ring.used = change.ring.used
    lease_retire(ended)
    return 0


cdef int set_fd_call(call_t *call) noexcept nogil:
    """Take a new descriptor and answer with the old one.  A new call descriptor is called once,
    as at the start."""
    cdef change_t *change = <change_t *>call.arg
    cdef queue_t *q = change.q
    cdef int *field = &q.call_fd
    cdef int old
    if change.kind == FD_KICK:
        field = &q.kick_fd
        poller_set_fd(&q.poller, change.fd)
    elif change.kind == FD_ERR:
        field = &q.err_fd
    old = field[0]
    field[0] = change.fd
    if change.kind == FD_CALL:
        queue_call(q)
    return old


cdef int set_channel_call(call_t *call) noexcept nogil:
    """Use another channel, or none.  The requests in flight stay with the old one."""
    cdef change_t *change = <change_t *>call.arg
    change.q.channel = change.channel
    change.q.block_shift = change.block_shift
    return 0


cdef int set_coalescing_call(call_t *call) noexcept nogil:
    coalesce_set(&(<change_t *>call.arg).coalescing)
    return 0


# On the control thread

cdef void lease_drop(lease_t *lease) noexcept:
    """Drop the view; its memory is unmapped when nobody else has it."""
    view = <object>lease.view
    free(lease)
    Py_DECREF(view)


cdef void lease_note(void *arg) noexcept:
    lease_drop(<lease_t *>arg)


cdef void broken_note(void *arg) noexcept:
    (<Queue>arg).tell_broken()


cdef uint32_t block_shift(Channel channel) noexcept:
    """The binary logarithm of the block size; that of a sector without a channel."""
    cdef uint32_t shift = BLK_SECTOR_SHIFT
    while channel is not None and channel.c.bdev.block_size >> shift > 1:
        shift += 1
    return shift


cdef lease_t *lease_new(View view) except NULL:
    cdef lease_t *lease = <lease_t *>calloc(1, sizeof(lease_t))
    if lease is NULL:
        raise MemoryError
    lease.note.run = lease_note
    lease.note.arg = lease
    lease.regions = view.r
    lease.view = <void *>view
    Py_INCREF(view)
    return lease


cdef class Queue:
    """A virtqueue.  Subclasses are the devices: they set the poll function.

    index: int, of the ring.  size: int, of the ring; a power of two up to 32768.
    thread: event.thread.Thread, which the queue alone uses.
    on_broken: called with (queue, errno int) on the control thread when the driver spoils the ring.
    ValueError for a size that cannot be; MemoryError.
    """

    def __cinit__(self, int index, uint32_t size, Thread thread not None, on_broken, *args):
        cdef uint32_t i
        cdef request_t *request
        if size == 0 or size > SIZE_MAX_SPLIT or size & (size - 1):
            raise ValueError(f"ring size {size} must be a power of two up to {SIZE_MAX_SPLIT}")
        self.q = <queue_t *>aligned_alloc(64, (sizeof(queue_t) + 63) & ~<size_t>63)
        if self.q is NULL:
            raise MemoryError
        memset(self.q, 0, sizeof(queue_t))
        self.q.call_fd = self.q.err_fd = self.q.kick_fd = -1
        self.q.ring.size = size
        self.q.chain_limit = max(size, <uint32_t>CHAIN_MIN_LIMIT)
        self.index = index
        self.thread = thread
        self.on_broken = on_broken
        self.counters = QueueStats()
        self.kicks = Kicks(self.counters)
        self.q.stats = self.counters.s
        self.requests = aligned_alloc(64, REQUEST_BYTES * size)
        if self.requests is NULL:
            raise MemoryError
        memset(self.requests, 0, REQUEST_BYTES * size)
        for i in range(size, 0, -1):
            request = <request_t *>(<char *>self.requests + REQUEST_BYTES * (i - 1))
            request.queue = self.q
            request.next = self.q.free
            self.q.free = request
        self.make_big(size)
        self.q.poller.try_arm = poll_try_arm
        self.q.poller.disarm = poll_disarm
        self.q.poller.arg = self.q
        self.q.poller.name = self.thread.t.name
        self.q.poller.thread = self.thread.t
        coalesce_init(self.q)
        self.q.publish.run = publish_run
        self.q.publish.arg = self.q
        self.q.broken_note.run = broken_note
        self.q.broken_note.arg = <void *>self

    cdef int make_big(self, uint32_t size) except -1:
        """The iovs for chains longer than REQUEST_IOVS, within BIG_BYTES_MAX."""
        cdef size_t bytes = self.q.chain_limit * sizeof(iovec)
        cdef uint32_t count = max(<uint32_t>1, min(size, <uint32_t>BIG_COUNT_MAX,
                                                   <uint32_t>(BIG_BYTES_MAX // bytes)))
        cdef big_iovs_t *big
        cdef uint32_t i
        self.big = calloc(count, bytes)         # not touched until used
        if self.big is NULL:
            raise MemoryError
        for i in range(count):
            big = <big_iovs_t *>(<char *>self.big + bytes * i)
            big.next = self.q.big_free
            self.q.big_free = big
        return 0

    def __dealloc__(self):
        check(self.q is NULL or self.q.state == QUEUE_STOPPED)
        free(self.requests)
        free(self.big)
        free(self.q)

    def tell_broken(self):
        """Pass the note of the reactor on.  By the control thread's drain only."""
        self.on_broken(self, -self.q.broken_rc)

    cdef int resolve(self, View view, split_t *ring, tuple addresses) except -1:
        """Find the three parts of the ring in a view; ValueError says what is wrong with one.

        addresses: (desc, avail, used) as the client's user addresses.
        """
        cdef uint64_t size = self.q.ring.size
        parts = (("descriptor table", 16, 16 * size), ("available ring", 2, 6 + 2 * size),
                 ("used ring", 4, 6 + 8 * size))
        cdef uintptr_t host[3]
        for i in range(3):
            name, align, length = parts[i]
            host[i] = <uintptr_t>view.host_of(addresses[i], length)
            if host[i] == 0 or host[i] % align:
                raise ValueError(f"the {name} of queue {self.index} at {addresses[i]:#x} is not "
                                 f"{length} bytes of one region, aligned to {align}")
        ring.desc = <vring_desc *>host[0]
        ring.avail = <vring_avail *>host[1]
        ring.used = <vring_used *>host[2]
        return 0

    async def start(self, int lcore, View view not None, tuple addresses, int next_avail,
                    dict fds, bint event_idx, bint indirect, Channel channel):
        """Serve the ring on the reactor of `lcore`.

        addresses: (desc, avail, used), the client's user addresses.  next_avail: 0 to 65535.
        fds: {"kick": int, "call": int, "err": int}, -1 for none; the queue's until stop returns
        them.  channel: an open Channel for this lcore, or None: every request fails.
        ValueError: the ring does not lie in the view.  OSError: no reactor there.
        """
        cdef queue_t *q = self.q
        if self.running:
            raise RuntimeError(f"queue {self.index} is already started")
        self.resolve(view, &q.ring, addresses)
        q.ring.next_avail = next_avail
        # What the driver has seen so far; a new ring has 0 there.
        q.ring.next_used = q.ring.published = q.ring.signalled = q.ring.used.idx
        q.ring.event_idx = event_idx
        q.indirect = indirect
        q.kick_fd = q.poller.fd = fds["kick"]
        q.call_fd = fds["call"]
        q.err_fd = fds["err"]
        q.channel = NULL if channel is None else channel.c
        q.block_shift = block_shift(channel)
        q.lease = lease_new(view)
        try:
            future = call_on(lcore, start_call, q, self)
        except BaseException:
            lease_drop(q.lease)
            q.lease = NULL
            raise
        self.kicks.take(fds["kick"])
        self.view = view
        self.show_channel(channel)
        self.running = True
        self.thread.note_lcore(lcore)
        await future

    async def stop(self):
        """Pop nothing more, wait for the requests in flight, leave the reactor.

        Return (next_avail, {"kick": int, "call": int, "err": int}); the descriptors are the
        caller's again.  Cancelling this ends the wait, not the stop: await it again.
        """
        if not self.running:
            raise RuntimeError(f"queue {self.index} is not started")
        if self.on_the_way:
            raise RuntimeError(f"queue {self.index} is on its way to another core")
        if self.stopped is None:
            self.stopped = call_on(self.thread.lcore, stop_call, self.q, self)
        next_avail = await asyncio.shield(self.stopped)
        await self.thread.exit()
        if self.running:
            self.kicks.look()
            self.running = False
            self.show_channel(None)
            self.view = None
        return next_avail, {"kick": self.q.kick_fd, "call": self.q.call_fd, "err": self.q.err_fd}

    def change(self, Change change not None):
        """Send a change to the reactor and return the Future of its answer."""
        if not self.running or self.stopped is not None or self.on_the_way:
            raise RuntimeError(f"queue {self.index} is not started, is being stopped or moved")
        return call_on(self.thread.lcore, change.fn, change.c, (self, change))

    async def set_view(self, View view not None, tuple addresses):
        """Use a new view; return when the reactor has taken it.

        A ring that the view does not hold breaks the queue (on_broken is called).  The old view
        is let go when the last request that uses it is done.
        """
        cdef Change change = Change.new(self, set_view_call)
        try:
            self.resolve(view, &change.c.ring, addresses)
        except ValueError:
            change.c.ring.desc = NULL
        change.c.lease = lease_new(view)
        try:
            future = self.change(change)
        except BaseException:
            lease_drop(change.c.lease)
            raise
        self.view = view
        await future

    async def set_fd(self, str kind, int fd):
        """Take a new descriptor (-1: none); return the old one, the caller's again.

        kind: "kick"; "call", for interrupts; "err", which says that the ring is broken.
        """
        cdef Change change = Change.new(self, set_fd_call)
        change.c.kind = FD_KINDS.index(kind)
        change.c.fd = fd
        old = await self.change(change)
        if kind == "kick":
            self.kicks.take(fd)
        return old

    async def set_channel(self, Channel channel):
        """Use another channel, or None: requests fail from now on.  Those in flight end first
        on the old one, which may be closed once its inflight is 0."""
        cdef Change change = Change.new(self, set_channel_call)
        change.c.channel = NULL if channel is None else channel.c
        change.c.block_shift = block_shift(channel)
        future = self.change(change)
        old = self.channel
        self.show_channel(channel)
        await future
        return old

    async def set_coalescing(self, str mode, uint32_t delay_base_us=0, uint32_t iops_threshold=0):
        """Say when the driver is interrupted (see coalesce): "off", "rate" with delay_base_us
        microseconds above iops_threshold requests a second, at least 100, or "auto"."""
        cdef Change change = Change.new(self, set_coalescing_call)
        change.c.coalescing = [self.q, coalesce_mode(mode), delay_base_us, iops_threshold]
        if self.running:
            await self.change(change)
        else:
            coalesce_set(&change.c.coalescing)

    def show_channel(self, Channel channel):
        """Note which channel it has, for itself and among those of its thread."""
        if self.channel is not None:
            self.thread.let_go(self.channel.name, <uintptr_t>self.channel.c)
        self.channel = channel
        if channel is not None:
            channel.thread_id = self.thread.id
            self.thread.hold(channel.name, <uintptr_t>channel.c)

    async def move(self, int lcore, Channel channel, timeout=MOVE_S):
        """Pop nothing, wait for the requests in flight, and go on at another reactor; return the
        channel that was in use until then.

        channel: one that was opened for `lcore`; None where there is none now.  Nothing else may be
        asked of the queue meanwhile, nor may the wait be cancelled.
        OSError: the queue goes on where it was; ETIMEDOUT when requests were in flight for
        `timeout` seconds, ENODEV when there is no reactor there, EAGAIN when it is too busy.
        """
        cdef Move move = Move.__new__(Move)
        if not self.running or self.stopped is not None or self.on_the_way:
            raise RuntimeError(f"queue {self.index} is not started, is being stopped or moved")
        move.c.q = self.q
        move.c.lcore = lcore
        move.c.channel = NULL if channel is None else channel.c
        moved = call_on(self.thread.lcore, move_call, &move.c, (self, move, channel))
        self.on_the_way = True
        try:
            done, _ = await asyncio.wait((moved,), timeout=timeout)
            if not done:
                await call_on(self.thread.lcore, stay_call, self.q, self)
            ok(await moved, f"move of queue {self.index} to core {lcore}")
        finally:
            self.on_the_way = False
        old = self.channel
        self.show_channel(channel)
        self.thread.note_lcore(lcore)
        return old

    @property
    def size(self) -> int:
        return self.q.ring.size

    @property
    def lcore(self) -> int:
        """Where it runs, or -1."""
        return self.thread.lcore

    @property
    def moving(self) -> bool:
        """Whether it is on its way from one reactor to another."""
        return self.on_the_way

    @property
    def broken(self) -> int:
        """0, or the errno of what the driver did to the ring."""
        return -self.q.broken_rc

    @property
    def inflight(self) -> int:
        """Requests popped and not given back."""
        return load_relaxed_u32(&self.q.inflight)

    @property
    def oldest_us(self) -> int:
        """Microseconds since the oldest request in flight was taken from the ring; 0: none is."""
        cdef uint64_t since = 0
        if self.inflight:
            since = oldest(&(<request_t *>self.requests).since, REQUEST_BYTES, self.q.ring.size)
        return us_since(since) if since else 0

    def stats(self) -> QueueStats:
        """Return what the queue has counted since it was made, and goes on to count in."""
        self.kicks.look()
        return self.counters


cdef class Move:
    """The C side of a move; alive until its answer."""
    cdef move_t c


cdef class Change:
    """The C side of one set_... call; alive until its answer."""
    cdef change_t *c
    cdef int (*fn)(call_t *call) noexcept nogil

    @staticmethod
    cdef Change new(Queue queue, int (*fn)(call_t *call) noexcept nogil):
        cdef Change change = Change.__new__(Change)
        change.c = <change_t *>calloc(1, sizeof(change_t))
        if change.c is NULL:
            raise MemoryError
        change.c.q = queue.q
        change.fn = fn
        return change

    def __dealloc__(self):
        free(self.c)
