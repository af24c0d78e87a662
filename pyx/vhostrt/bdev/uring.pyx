"""A disk in a file or block device, read and written through io_uring.

One ring serves all channels of a reactor.  Requests become entries as they are submitted, and the
entries go to the kernel together, at the end of the reactor's iteration.  The kernel never has more
of them than there are completion entries, so completions cannot overflow; what does not fit waits
in a queue.  No call into the kernel waits for a completion.

Threads:  rings are made and freed by the control thread, and used by one reactor in between.
Source:   bdev_uring_create.
"""
import os

from libc.errno cimport EAGAIN, EINTR, EIO, EOPNOTSUPP
from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport free
from vhostrt.base.atomics cimport load_relaxed_u32, store_relaxed_u32
from vhostrt.base.check cimport dcheck
from vhostrt.base.errors cimport ok
from vhostrt.base.ticks cimport ticks_now
from vhostrt.bdev.core cimport (BDEV_FLUSH, BDEV_READ, BDEV_UNMAP, BDEV_WRITE_ZEROES, Channel,
                                bdev_channel_t, bdev_io_done, bdev_io_t, iovec)
from vhostrt.bdev.station cimport Station, station_alloc, station_t
from vhostrt.bdev.store cimport (FileBdev, piece_t, progress_of, progress_t, store_advance,
                                 store_begin, store_piece, store_t)
from vhostrt.event.reactor cimport deferred_t, reactor_defer

from vhostrt.bdev.station import enter, leave

cdef extern from *:
    """
    #include <errno.h>
    #include <liburing.h>
    #include <linux/falloc.h>
    #include <sys/syscall.h>
    #include <unistd.h>
    /* Newer than the oldest liburing that is built against. */
    #ifndef IORING_SETUP_COOP_TASKRUN
    #define IORING_SETUP_COOP_TASKRUN (1U << 8)
    #endif
    #ifndef IORING_SETUP_TASKRUN_FLAG
    #define IORING_SETUP_TASKRUN_FLAG (1U << 9)
    #endif
    #ifndef IORING_SQ_TASKRUN
    #define IORING_SQ_TASKRUN (1U << 2)
    #endif
    /* Has the kernel put completions into the ring that it holds back; waits for none. */
    static inline void vh_uring_flush(struct io_uring *ring)
    {
        unsigned held = __atomic_load_n(ring->sq.kflags, __ATOMIC_RELAXED);
        if (held & (IORING_SQ_TASKRUN | IORING_SQ_CQ_OVERFLOW))
            (void)syscall(__NR_io_uring_enter, ring->ring_fd, 0, 0, IORING_ENTER_GETEVENTS,
                          NULL, 0);
    }
    static inline int vh_uring_pending(struct io_uring *ring)
    {
        unsigned held = __atomic_load_n(ring->sq.kflags, __ATOMIC_RELAXED);
        return io_uring_cq_ready(ring) || held & (IORING_SQ_TASKRUN | IORING_SQ_CQ_OVERFLOW);
    }
    /* No interrupt of the reactor for a completion where the kernel can do without (5.19). */
    static int vh_uring_init(struct io_uring *ring, unsigned entries, unsigned *completions)
    {
        struct io_uring_params p = {.flags = IORING_SETUP_COOP_TASKRUN | IORING_SETUP_TASKRUN_FLAG};
        int rc = io_uring_queue_init_params(entries, ring, &p);
        if (rc == -EINVAL) {
            p = (struct io_uring_params){0};
            rc = io_uring_queue_init_params(entries, ring, &p);
        }
        *completions = p.cq_entries;
        return rc;
    }
    """
    ctypedef struct io_uring_sqe "struct io_uring_sqe":
        pass
    ctypedef struct io_uring_cqe "struct io_uring_cqe":
        int res
    ctypedef struct io_uring_probe "struct io_uring_probe":
        pass
    ctypedef struct io_uring "struct io_uring":
        int ring_fd
    enum:
        FALLOC_FL_KEEP_SIZE
        FALLOC_FL_PUNCH_HOLE
        FALLOC_FL_ZERO_RANGE
        IORING_FSYNC_DATASYNC
        IORING_OP_READV
        IORING_OP_WRITEV
        IORING_OP_READ
        IORING_OP_WRITE
        IORING_OP_FSYNC
        IORING_OP_FALLOCATE
    int uring_init "vh_uring_init"(io_uring *ring, unsigned entries, unsigned *completions) nogil
    void uring_flush "vh_uring_flush"(io_uring *ring) nogil
    bint uring_pending "vh_uring_pending"(io_uring *ring) nogil
    void io_uring_queue_exit(io_uring *ring) nogil
    int io_uring_ring_dontfork(io_uring *ring) nogil
    int io_uring_submit(io_uring *ring) nogil
    unsigned io_uring_sq_ready(io_uring *ring) nogil
    io_uring_sqe *io_uring_get_sqe(io_uring *ring) nogil
    void io_uring_sqe_set_data(io_uring_sqe *sqe, void *data) nogil
    void io_uring_prep_read(io_uring_sqe *sqe, int fd, void *p, unsigned n, uint64_t at) nogil
    void io_uring_prep_write(io_uring_sqe *sqe, int fd, void *p, unsigned n, uint64_t at) nogil
    void io_uring_prep_readv(io_uring_sqe *sqe, int fd, iovec *v, unsigned n, uint64_t at) nogil
    void io_uring_prep_writev(io_uring_sqe *sqe, int fd, iovec *v, unsigned n, uint64_t at) nogil
    void io_uring_prep_fsync(io_uring_sqe *sqe, int fd, unsigned flags) nogil
    void io_uring_prep_fallocate(io_uring_sqe *sqe, int fd, int mode, uint64_t at, uint64_t n) nogil
    unsigned io_uring_peek_batch_cqe(io_uring *ring, io_uring_cqe **cqes, unsigned n) nogil
    void *io_uring_cqe_get_data(const io_uring_cqe *cqe) nogil
    void io_uring_cq_advance(io_uring *ring, unsigned n) nogil
    io_uring_probe *io_uring_get_probe_ring(io_uring *ring) nogil
    void io_uring_free_probe(io_uring_probe *probe) nogil
    bint io_uring_opcode_supported(const io_uring_probe *probe, int op) nogil

cdef enum:
    RING_ENTRIES = 1024                 # submitted in one iteration
    REAP = 32                           # completions taken in one poll
    MORE = 1                            # of a completion: a part of the request is left to do

cdef struct uring_t:
    station_t station                   # first: channel.ctx is both
    deferred_t submit                   # at the end of the iteration
    bdev_io_t *first                    # waiting for an entry, oldest first
    bdev_io_t *last
    uint32_t entries                    # in the ring or in the kernel
    uint32_t entries_max
    io_uring ring

g_stations = {}                         # lcore: UringStation; the control thread's
g_refusal = None                        # why io_uring cannot be had, "" when it can; found once


cdef void prepare_rw(io_uring_sqe *sqe, bdev_io_t *io, store_t *store) noexcept nogil:
    cdef uint64_t at = progress_of(io).offset + progress_of(io).done
    cdef piece_t piece
    store_piece(io, store, &piece)
    # An address and a length spare the kernel a copy of the list; the piece is less than 2 GiB.
    if io.type == BDEV_READ:
        if piece.iov_count == 1:
            io_uring_prep_read(sqe, store.fd, piece.iovs.iov_base, piece.iovs.iov_len, at)
        else:
            io_uring_prep_readv(sqe, store.fd, piece.iovs, piece.iov_count, at)
    elif piece.iov_count == 1:
        io_uring_prep_write(sqe, store.fd, piece.iovs.iov_base, piece.iovs.iov_len, at)
    else:
        io_uring_prep_writev(sqe, store.fd, piece.iovs, piece.iov_count, at)


cdef void prepare(io_uring_sqe *sqe, bdev_io_t *io, store_t *store) noexcept nogil:
    cdef progress_t *p = progress_of(io)
    p.state = 0
    if io.type == BDEV_FLUSH:
        io_uring_prep_fsync(sqe, store.fd, IORING_FSYNC_DATASYNC)
    elif io.type == BDEV_UNMAP:
        io_uring_prep_fallocate(sqe, store.fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                                p.offset, p.size)
    elif io.type == BDEV_WRITE_ZEROES and not load_relaxed_u32(&store.zero_by_write):
        p.state = 1                     # of all, by one call
        io_uring_prep_fallocate(sqe, store.fd, FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE,
                                p.offset, p.size)
    else:
        prepare_rw(sqe, io, store)
    io_uring_sqe_set_data(sqe, io)


cdef bint uring_start(uring_t *u, bdev_io_t *io) noexcept nogil:
    """Put a request into the ring; False when there is no room."""
    cdef io_uring_sqe *sqe
    if u.entries == u.entries_max:
        return False
    sqe = io_uring_get_sqe(&u.ring)
    if sqe is NULL:
        return False
    prepare(sqe, io, <store_t *>io.channel.bdev.ctx)
    u.entries += 1
    reactor_defer(u.station.reactor, &u.submit)
    return True


cdef void uring_wait(uring_t *u, bdev_io_t *io) noexcept nogil:
    io.next = NULL
    if u.first is NULL:
        u.first = io
    else:
        u.last.next = io
    u.last = io


cdef void uring_fill(uring_t *u) noexcept nogil:
    """Start what waits, as far as there is room.  Ends: the ring is finite."""
    while u.first is not NULL and uring_start(u, u.first):
        u.first = u.first.next          # still ours: it completes in a later poll


cdef void uring_queue(uring_t *u, bdev_io_t *io) noexcept nogil:
    """Start a request, behind those that wait."""
    if u.first is not NULL or not uring_start(u, io):
        uring_wait(u, io)


cdef void uring_submit_entries(void *arg) noexcept nogil:
    """Hand the entries of this iteration to the kernel.  What it does not take now (it is short of
    memory) stays in the ring, and the poller asks again."""
    io_uring_submit(&(<uring_t *>arg).ring)


cdef int uring_submit(bdev_channel_t *channel, bdev_io_t *io) noexcept nogil:
    cdef uring_t *u = <uring_t *>channel.ctx
    if io.type == BDEV_FLUSH:
        if channel.bdev.read_only:
            return 1
    elif io.num_blocks == 0:
        return 1
    store_begin(io)
    u.station.inflight += 1
    uring_queue(u, io)
    return 0


cdef int uring_result(bdev_io_t *io, int res) noexcept nogil:
    """Return 0 when the request is done, MORE when it has to go on, or -errno."""
    cdef progress_t *p = progress_of(io)
    cdef store_t *store = <store_t *>io.channel.bdev.ctx
    if res == -EINTR or res == -EAGAIN:
        return MORE
    if res == -EOPNOTSUPP and io.type == BDEV_UNMAP:
        return 0                        # advice that the device cannot take
    if res == -EOPNOTSUPP and p.state:
        store_relaxed_u32(&store.zero_by_write, 1)
        return MORE
    if res < 0:
        return res
    if io.type == BDEV_FLUSH or io.type == BDEV_UNMAP or p.state:
        return 0
    if res == 0:
        return -EIO                     # the file has become shorter than the bdev
    return 0 if store_advance(io, res) else MORE


cdef int uring_poll(void *arg) noexcept nogil:
    """Take completions; > 0 when there were any."""
    cdef uring_t *u = <uring_t *>arg
    cdef io_uring_cqe *cqes[REAP]
    cdef bdev_io_t *ios[REAP]
    cdef int res[REAP]
    cdef unsigned i, n
    cdef uint64_t now
    cdef int rc
    if u.entries == 0:
        return 0
    if io_uring_sq_ready(&u.ring):
        reactor_defer(u.station.reactor, &u.submit)
    uring_flush(&u.ring)
    n = io_uring_peek_batch_cqe(&u.ring, cqes, REAP)
    for i in range(n):
        ios[i] = <bdev_io_t *>io_uring_cqe_get_data(cqes[i])
        res[i] = cqes[i].res
    io_uring_cq_advance(&u.ring, n)
    dcheck(n <= u.entries)
    u.entries -= n
    now = ticks_now() if n else 0
    for i in range(n):
        rc = uring_result(ios[i], res[i])
        if rc == MORE:
            uring_queue(u, ios[i])
            continue
        u.station.inflight -= 1
        bdev_io_done(ios[i], rc, now)   # may submit again
    uring_fill(u)
    return n


cdef int uring_try_arm(void *arg) noexcept nogil:
    """The ring's own descriptor is readable while there is work: nothing has to be turned on."""
    cdef uring_t *u = <uring_t *>arg
    return u.entries > 0 and (uring_pending(&u.ring) or io_uring_sq_ready(&u.ring) > 0)


cdef void uring_disarm(void *arg) noexcept nogil:
    pass


cdef class UringStation(Station):
    """The ring of one reactor."""

    cdef bint made                      # the ring has been set up

    def __cinit__(self):
        cdef uring_t *u = <uring_t *>station_alloc(sizeof(uring_t))
        self.s = &u.station
        ok(uring_init(&u.ring, RING_ENTRIES, &u.entries_max), "io_uring of a reactor")
        self.made = True
        ok(io_uring_ring_dontfork(&u.ring), "io_uring of a reactor")
        u.submit.arg = u
        u.submit.run = uring_submit_entries
        self.s.poller.poll = uring_poll
        self.s.poller.try_arm = uring_try_arm
        self.s.poller.disarm = uring_disarm
        self.s.poller.fd = u.ring.ring_fd
        self.s.poller.arg = u
        self.s.poller.name = b"bdev_uring_poll"

    def __dealloc__(self):
        if self.made:
            io_uring_queue_exit(&(<uring_t *>self.s).ring)
        free(self.s)


cdef str probe():
    """Set up a small ring and return what is missing, "" for nothing."""
    cdef io_uring ring
    cdef io_uring_probe *known
    cdef unsigned completions
    cdef int op
    cdef int rc = uring_init(&ring, 2, &completions)
    if rc < 0:
        return f"the kernel or a seccomp filter refuses io_uring: {os.strerror(-rc)}"
    known = io_uring_get_probe_ring(&ring)
    missing = known is NULL
    if known is not NULL:
        for op in (IORING_OP_READV, IORING_OP_WRITEV, IORING_OP_READ, IORING_OP_WRITE,
                   IORING_OP_FSYNC, IORING_OP_FALLOCATE):
            missing = missing or not io_uring_opcode_supported(known, op)
        io_uring_free_probe(known)
    io_uring_queue_exit(&ring)
    return "the kernel's io_uring is older than Linux 5.6" if missing else ""


def uring_available() -> tuple:
    """Return (True, "") when io_uring can be had here, else (False, why).  Asked of the kernel
    once."""
    global g_refusal
    if g_refusal is None:
        g_refusal = probe()
    return not g_refusal, g_refusal


cdef class UringBdev(FileBdev):
    """A disk in a file or block device, through io_uring.  See FileBdev for the arguments."""

    def __init__(self, str name not None, str filename not None, uint32_t block_size=0,
                 bint readonly=False, uuid=None):
        super().__init__(name, "URING bdev", filename, uuid)
        self.open_with(block_size, readonly, uring_submit)
        self.driver_specific["uring"] = {"filename": filename}

    async def open_channel(self, uint32_t lcore, bint writable=True):
        """Return a Channel to be used on reactor `lcore` only; OSError when it cannot be had."""
        cdef Station station = await enter(g_stations, "uring", lcore, UringStation)
        cdef Channel channel = self.channel_new(lcore, station.s, writable)
        channel.station = station
        return channel

    async def close_channel(self, Channel channel not None):
        """Give a channel back, once.  No request may be in flight on it."""
        self.retire(channel)
        station, channel.station = channel.station, None
        await leave(g_stations, station)
