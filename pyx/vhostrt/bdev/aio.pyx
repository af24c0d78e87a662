"""A disk in a file or block device, read and written by helper threads with ordinary system calls.

    reactor                                   helpers
    requests of one iteration, one push  ->   pool.inbox -> pool.first (oldest first, under a mutex)
    the poller takes all there are       <-   aio.done, one push each

Both stacks are pushed by compare-and-swap and emptied as a whole by an exchange, so no address can
come back under a pusher's hands.  The reactor never takes the mutex, and makes a system call only
to wake a helper that sleeps.

Owner:    the pool belongs to the open bdevs; the aio_t of the reactors belong to the pool, as a
          helper may still look at one when its last request has been done.
Threads:  inbox: reactors push, helpers take.  done: helpers push, one reactor takes.
Source:   bdev_aio_create.
"""
import asyncio
import os

from libc.errno cimport EAGAIN, EINTR, EIO, EOPNOTSUPP, errno
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdlib cimport free
from posix.unistd cimport close, read, write
from vhostrt.base.atomics cimport (cas_ptr, exchange_ptr, exchange_u32, fence_full, fetch_add_u32,
                                   fetch_sub_u32, load_acquire_u32, load_relaxed_ptr,
                                   load_relaxed_u32, store_relaxed_u32)
from vhostrt.base.check cimport check, dcheck
from vhostrt.base.errors cimport ok
from vhostrt.base.ticks cimport ticks_now
from vhostrt.bdev.core cimport (BDEV_FLUSH, BDEV_READ, BDEV_UNMAP, BDEV_WRITE_ZEROES, Channel,
                                bdev_channel_t, bdev_io_done, bdev_io_t, iovec)
from vhostrt.bdev.station cimport Station, station_alloc, station_t
from vhostrt.bdev.store cimport (FileBdev, piece_t, progress_of, store_advance, store_begin,
                                 store_piece, store_t)
from vhostrt.event.reactor cimport deferred_t, reactor_defer

from vhostrt.bdev.station import enter, leave

cdef extern from "<pthread.h>" nogil:
    ctypedef unsigned long pthread_t
    ctypedef struct pthread_mutex_t:
        pass
    int pthread_mutex_init(pthread_mutex_t *mutex, void *attributes)
    int pthread_mutex_lock(pthread_mutex_t *mutex)
    int pthread_mutex_unlock(pthread_mutex_t *mutex)
    int pthread_join(pthread_t thread, void **result)

cdef extern from "<sys/uio.h>" nogil:
    ssize_t preadv(int fd, const iovec *iovs, int n, int64_t at)
    ssize_t pwritev(int fd, const iovec *iovs, int n, int64_t at)

cdef extern from "<fcntl.h>" nogil:
    int fallocate(int fd, int mode, int64_t at, int64_t size)

cdef extern from "<linux/falloc.h>" nogil:
    enum:
        FALLOC_FL_KEEP_SIZE
        FALLOC_FL_PUNCH_HOLE
        FALLOC_FL_ZERO_RANGE

cdef extern from "<unistd.h>" nogil:
    int fdatasync(int fd)

ctypedef void *(*thread_fn)(void *arg) noexcept nogil

cdef extern from "vhostrt/bdev/aio.h" nogil:
    void futex_wait "vh_futex_wait"(uint32_t *word, uint32_t seen)
    void futex_wake "vh_futex_wake"(uint32_t *word, int threads)
    int thread_start "vh_thread_start"(pthread_t *thread, thread_fn fn, void *arg)

cdef enum:
    HELPERS = 8                         # they wait for the device, not for a CPU
    ALL = 0x7FFFFFFF                    # of futex_wake

cdef struct aio_t:
    station_t station                   # first: channel.ctx is both
    deferred_t submit                   # at the end of the iteration
    pool_t *pool
    bdev_io_t *newest                   # of this iteration, not yet pushed, linked to the oldest
    bdev_io_t *oldest
    int fd                              # eventfd: a request is done while `armed`
    aio_t *next                         # in pool.all
    bint used                           # by a station; the control thread's
    # Written by helpers.
    char pad1[64]
    bdev_io_t *done                     # newest first
    uint32_t armed
    char pad2[64]

cdef struct pool_t:
    bdev_io_t *inbox                    # newest first
    uint32_t wake                       # counts wake-ups: what sleepers wait on
    uint32_t sleepers
    uint32_t stopping
    char pad[64]
    pthread_mutex_t mutex               # of `first`; between helpers only
    bdev_io_t *first                    # taken from the inbox, oldest first
    pthread_t threads[HELPERS]
    uint32_t thread_count
    uint32_t users                      # bdevs; the holder of the GIL
    aio_t *all                          # every aio_t there was, freed with the pool

cdef pool_t *g_pool = NULL              # of the bdevs opened now; the holder of the GIL
g_stations = {}                         # lcore: AioStation; the control thread's


# On a helper

cdef bdev_io_t *reversed_list(bdev_io_t *io) noexcept nogil:
    """Return a list the other way round.  Ends: it is finite."""
    cdef bdev_io_t *first = NULL
    cdef bdev_io_t *rest
    while io is not NULL:
        rest = io.next
        io.next = first
        first = io
        io = rest
    return first


cdef bdev_io_t *pool_take(pool_t *pool) noexcept nogil:
    """Return the oldest request, or NULL; wake another helper when there are more."""
    cdef bdev_io_t *io
    cdef bint more
    pthread_mutex_lock(&pool.mutex)
    if pool.first is NULL:
        # Acquires what the reactors have released with their pushes.
        pool.first = reversed_list(<bdev_io_t *>exchange_ptr(&pool.inbox, NULL))
    io = pool.first
    if io is not NULL:
        pool.first = io.next
    more = pool.first is not NULL
    pthread_mutex_unlock(&pool.mutex)
    if more:
        pool_wake(pool)
    return io


cdef bdev_io_t *pool_wait(pool_t *pool) noexcept nogil:
    """Return the oldest request; NULL after a sleep, or when the pool stops."""
    cdef bdev_io_t *io = pool_take(pool)
    cdef uint32_t seen
    if io is not NULL:
        return io
    seen = load_acquire_u32(&pool.wake)
    fetch_add_u32(&pool.sleepers, 1)
    # Pairs with the fence in pool_wake: it sees this sleeper, or we see its request.
    fence_full()
    io = pool_take(pool)
    if io is NULL and not load_acquire_u32(&pool.stopping):
        futex_wait(&pool.wake, seen)
    fetch_sub_u32(&pool.sleepers, 1)
    return io


cdef void pool_wake(pool_t *pool) noexcept nogil:
    """Wake one helper if any sleeps; any thread, after it has published a request."""
    fence_full()                        # with the one in pool_wait
    if load_relaxed_u32(&pool.sleepers):
        fetch_add_u32(&pool.wake, 1)
        futex_wake(&pool.wake, 1)


cdef int transfer(bdev_io_t *io, store_t *store) noexcept nogil:
    """Read or write all of it; 0 or -errno.  Ends: every call moves a byte, fails, or is cut short
    by a signal, and the thread takes none."""
    cdef piece_t piece
    cdef int64_t at
    cdef ssize_t n
    while True:
        store_piece(io, store, &piece)
        at = progress_of(io).offset + progress_of(io).done
        if io.type == BDEV_READ:
            n = preadv(store.fd, piece.iovs, piece.iov_count, at)
        else:
            n = pwritev(store.fd, piece.iovs, piece.iov_count, at)
        if n < 0:
            if errno == EINTR or errno == EAGAIN:
                continue
            return -errno
        if n == 0:
            return -EIO                 # the file has become shorter than the bdev
        if store_advance(io, n):
            return 0


cdef int change(bdev_io_t *io, store_t *store, int mode) noexcept nogil:
    """One fallocate over the request; 0 or -errno."""
    cdef int rc
    while True:
        rc = fallocate(store.fd, mode | FALLOC_FL_KEEP_SIZE, progress_of(io).offset,
                       progress_of(io).size)
        if rc == 0 or errno != EINTR:
            return 0 if rc == 0 else -errno


cdef int execute(bdev_io_t *io) noexcept nogil:
    """Do a request, however long it takes; 0 or -errno."""
    cdef store_t *store = <store_t *>io.channel.bdev.ctx
    cdef int rc
    if io.type == BDEV_FLUSH:
        return 0 if fdatasync(store.fd) == 0 else -errno
    if io.type == BDEV_UNMAP:
        rc = change(io, store, FALLOC_FL_PUNCH_HOLE)
        return 0 if rc == -EOPNOTSUPP else rc       # advice that the device cannot take
    if io.type == BDEV_WRITE_ZEROES and not load_relaxed_u32(&store.zero_by_write):
        rc = change(io, store, FALLOC_FL_ZERO_RANGE)
        if rc != -EOPNOTSUPP:
            return rc
        store_relaxed_u32(&store.zero_by_write, 1)
    return transfer(io, store)


cdef void finish(bdev_io_t *io, int rc) noexcept nogil:
    """Give a request back to its reactor.  After the push it may be anything; the aio_t stays."""
    cdef aio_t *aio = <aio_t *>io.channel.ctx
    cdef uint64_t one = 1
    cdef void *head = load_relaxed_ptr(&aio.done)
    progress_of(io).state = <uint64_t>rc
    io.next = <bdev_io_t *>head
    while not cas_ptr(&aio.done, head, io):         # releases, with the exchange in aio_poll
        head = load_relaxed_ptr(&aio.done)
        io.next = <bdev_io_t *>head
    # Pairs with the fence in aio_try_arm: it sees the request, or we see `armed`.
    fence_full()
    if load_relaxed_u32(&aio.armed):
        check(write(aio.fd, &one, sizeof(one)) != 0)


cdef void *helper(void *arg) noexcept nogil:
    """A helper thread.  Runs what is there before it stops."""
    cdef pool_t *pool = <pool_t *>arg
    cdef bdev_io_t *io
    while True:
        io = pool_wait(pool)
        if io is not NULL:
            finish(io, execute(io))
        elif load_acquire_u32(&pool.stopping):
            return NULL


# On a reactor

cdef void aio_push(void *arg) noexcept nogil:
    """Hand the requests of this iteration to the helpers: one push and at most one wake-up."""
    cdef aio_t *aio = <aio_t *>arg
    cdef pool_t *pool = aio.pool
    cdef void *head = load_relaxed_ptr(&pool.inbox)
    cdef bdev_io_t *newest = aio.newest
    cdef bdev_io_t *oldest = aio.oldest
    aio.newest = aio.oldest = NULL
    oldest.next = <bdev_io_t *>head
    while not cas_ptr(&pool.inbox, head, newest):   # releases, with the exchange in pool_take
        head = load_relaxed_ptr(&pool.inbox)
        oldest.next = <bdev_io_t *>head
    pool_wake(pool)


cdef int aio_submit(bdev_channel_t *channel, bdev_io_t *io) noexcept nogil:
    cdef aio_t *aio = <aio_t *>channel.ctx
    if io.type == BDEV_FLUSH:
        if channel.bdev.read_only:
            return 1
    elif io.num_blocks == 0:
        return 1
    store_begin(io)
    aio.station.inflight += 1
    io.next = aio.newest
    aio.newest = io
    if aio.oldest is NULL:
        aio.oldest = io
    reactor_defer(aio.station.reactor, &aio.submit)
    return 0


cdef int aio_poll(void *arg) noexcept nogil:
    """Take what the helpers have done; > 0 when there was something."""
    cdef aio_t *aio = <aio_t *>arg
    cdef bdev_io_t *io
    cdef bdev_io_t *rest
    cdef uint64_t now
    if aio.station.inflight == 0 or load_relaxed_ptr(&aio.done) is NULL:
        return 0
    now = ticks_now()
    # Acquires what the helpers have released with their pushes.
    io = reversed_list(<bdev_io_t *>exchange_ptr(&aio.done, NULL))
    while io is not NULL:
        rest = io.next
        dcheck(aio.station.inflight > 0)
        aio.station.inflight -= 1
        bdev_io_done(io, <int>progress_of(io).state, now)    # may submit again
        io = rest
    return 1


cdef int aio_try_arm(void *arg) noexcept nogil:
    cdef aio_t *aio = <aio_t *>arg
    exchange_u32(&aio.armed, 1)
    fence_full()                        # with the one in finish
    if load_relaxed_ptr(&aio.done) is NULL:
        return 0
    aio_disarm(arg)
    return 1


cdef void aio_disarm(void *arg) noexcept nogil:
    cdef aio_t *aio = <aio_t *>arg
    cdef uint64_t count
    store_relaxed_u32(&aio.armed, 0)
    read(aio.fd, &count, sizeof(count))             # non-blocking; nothing there is as good


# On the control thread and its helpers

cdef void pool_free(pool_t *pool) noexcept nogil:
    """End and join the helpers, which have nothing to do any more, and free what is theirs."""
    cdef aio_t *aio
    cdef uint32_t i
    exchange_u32(&pool.stopping, 1)
    fetch_add_u32(&pool.wake, 1)
    futex_wake(&pool.wake, ALL)
    for i in range(pool.thread_count):
        pthread_join(pool.threads[i], NULL)
    while pool.all is not NULL:
        aio = pool.all
        pool.all = aio.next
        close(aio.fd)
        free(aio)
    free(pool)


cdef pool_t *pool_get() except NULL:
    """Return the pool, one user more; the first one starts its threads."""
    global g_pool
    cdef pool_t *pool = g_pool
    cdef int rc
    if pool is NULL:
        pool = <pool_t *>station_alloc(sizeof(pool_t))
        pthread_mutex_init(&pool.mutex, NULL)
        while pool.thread_count < HELPERS:
            rc = thread_start(&pool.threads[pool.thread_count], helper, pool)
            if rc:
                pool_free(pool)
                ok(-rc, "start of the helper threads of AIO disks")
            pool.thread_count += 1
        g_pool = pool
    pool.users += 1
    return pool


cdef void pool_put(pool_t *pool) noexcept:
    """One user less; the last one ends the threads."""
    global g_pool
    pool.users -= 1
    if pool.users:
        return
    g_pool = NULL
    with nogil:
        pool_free(pool)


cdef aio_t *aio_get(pool_t *pool) except NULL:
    """Return an aio_t that no station uses: an old one of the pool, or a new one."""
    cdef aio_t *aio = pool.all
    while aio is not NULL and aio.used:
        aio = aio.next
    if aio is NULL:
        aio = <aio_t *>station_alloc(sizeof(aio_t))
        try:
            aio.fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        except OSError:
            free(aio)
            raise
        aio.pool = pool
        aio.next = pool.all
        pool.all = aio
    aio.used = True
    store_relaxed_u32(&aio.armed, 0)
    return aio


cdef class AioStation(Station):
    """The requests of one reactor that are with the helpers.  A user of the pool."""

    def __cinit__(self):
        cdef pool_t *pool = pool_get()
        cdef aio_t *aio
        try:
            aio = aio_get(pool)
        except BaseException:
            pool_put(pool)
            raise
        self.s = &aio.station
        aio.submit.arg = aio
        aio.submit.run = aio_push
        self.s.poller.poll = aio_poll
        self.s.poller.try_arm = aio_try_arm
        self.s.poller.disarm = aio_disarm
        self.s.poller.fd = aio.fd
        self.s.poller.arg = aio
        self.s.poller.name = b"bdev_aio_poll"

    def __dealloc__(self):
        cdef aio_t *aio = <aio_t *>self.s
        if aio is not NULL:
            aio.used = False
            pool_put(aio.pool)


cdef class AioBdev(FileBdev):
    """A disk in a file or block device, through helper threads.  See FileBdev for the arguments."""

    cdef pool_t *pool                   # counted; NULL when it has none

    def __init__(self, str name not None, str filename not None, uint32_t block_size=0,
                 bint readonly=False, uuid=None):
        super().__init__(name, "AIO disk", filename, uuid)
        self.open_with(block_size, readonly, aio_submit)
        self.pool = pool_get()
        self.driver_specific["aio"] = {
            "filename": filename, "block_size_override": block_size > 0, "readonly": readonly,
            "fallocate": self.store.offers_punch}

    def __dealloc__(self):
        if self.pool is not NULL:
            pool_put(self.pool)

    async def open_channel(self, uint32_t lcore, bint writable=True):
        """Return a Channel to be used on reactor `lcore` only; OSError when it cannot be had."""
        cdef Station station = await enter(g_stations, "aio", lcore, AioStation)
        cdef Channel channel = self.channel_new(lcore, station.s, writable)
        channel.station = station
        return channel

    async def close_channel(self, Channel channel not None):
        """Give a channel back, once.  No request may be in flight on it."""
        self.retire(channel)
        station, channel.station = channel.station, None
        await leave(g_stations, station)

    async def close(self):
        """Close the file and let go of the helper threads, which may wait for the device."""
        await FileBdev.close(self)
        await asyncio.get_running_loop().run_in_executor(None, self.let_go)

    def let_go(self):
        """Give the pool back, once."""
        cdef pool_t *pool = self.pool
        self.pool = NULL
        if pool is not NULL:
            pool_put(pool)
