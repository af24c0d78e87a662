"""A driver that sleeps until it is interrupted, as a guest does, and a disk of fixed latency.

The driver runs in the calling thread, in C, without the GIL: it keeps reads in flight, waits in
read() of its call descriptor, takes back what is done and sends as much again.
"""
import os

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from posix.mman cimport MAP_FAILED, MAP_SHARED, PROT_READ, PROT_WRITE, mmap, munmap
from posix.unistd cimport read
from vhostrt.base.atomics cimport fence_full
from vhostrt.base.ticks cimport ticks_from_us, ticks_hz, ticks_now
from vhostrt.bdev.core cimport BDEV_READ, Bdev, bdev_channel_t, bdev_io_done, bdev_io_t
from vhostrt.event.control cimport call_on, call_t
from vhostrt.event.poller cimport poller_register, poller_unregister
from vhostrt.event.reactor cimport poller_t, thread_attach, thread_detach
from vhostrt.event.thread cimport Thread
from vhostrt.virtio.blk cimport BLK_T_IN, blk_header_t
from vhostrt.virtio.driver.split cimport (driver_add, driver_buffer_t, driver_done, driver_fini,
                                          driver_init, driver_publish, driver_t, driver_take)

from vhostrt.vhost.view import Allowance, Mapping, Poison, View

cdef enum:
    HEADERS_AT = 2 << 20                # a header for each descriptor, with its status behind it
    SLOT_BYTES = 32
    DATA_AT = 4 << 20
    BLOCK = 4096

GUEST, USER, MEMORY_BYTES = 0x100000000, 0x7f0000000000, 16 << 20

cdef struct disk_t:
    poller_t poller
    bdev_io_t *first                    # in the order of their ends
    bdev_io_t *last
    uint64_t latency                    # ticks
    uint64_t gap                        # between two ends, at least
    uint64_t last_end
    uint64_t ends[1024]                 # of those in flight, by their place
    uint32_t head
    uint32_t tail


cdef int disk_submit(bdev_channel_t *channel, bdev_io_t *io) noexcept nogil:
    cdef disk_t *d = <disk_t *>channel.ctx
    io.next = NULL
    if d.first is NULL:
        d.first = io
    else:
        d.last.next = io
    d.last = io
    d.last_end = max(ticks_now() + d.latency, d.last_end + d.gap)
    d.ends[d.tail & 1023] = d.last_end
    d.tail += 1
    return 0


cdef int disk_poll(void *arg) noexcept nogil:
    cdef disk_t *d = <disk_t *>arg
    cdef uint64_t now
    cdef bdev_io_t *io
    cdef int n = 0
    if d.first is NULL:
        return 0
    now = ticks_now()
    while d.first is not NULL and d.ends[d.head & 1023] <= now:
        io = d.first
        d.first = io.next
        d.head += 1
        bdev_io_done(io, 0, now)
        n += 1
    return n


cdef int disk_begin(call_t *call) noexcept nogil:
    cdef disk_t *d = <disk_t *>call.arg
    thread_attach(call.event.reactor, d.poller.thread)
    poller_register(d.poller.thread, &d.poller, 0)
    return 0


cdef int disk_end(call_t *call) noexcept nogil:
    cdef disk_t *d = <disk_t *>call.arg
    poller_unregister(&d.poller)
    thread_detach(d.poller.thread)
    return 0


cdef class SteadyBdev(Bdev):
    """A disk whose every read takes latency_us microseconds; gap_us are between two answers."""
    cdef disk_t d
    cdef Thread thread

    def __init__(self, uint32_t latency_us, uint32_t gap_us):
        super().__init__("steady", "Steady disk", None)
        self.setup(1 << 20, 512, 1 << BDEV_READ, disk_submit)
        self.d.latency = ticks_from_us(latency_us)
        self.d.gap = ticks_from_us(gap_us)
        self.thread = Thread("steady")
        self.d.poller.poll = disk_poll
        self.d.poller.arg = &self.d
        self.d.poller.fd = -1
        self.d.poller.thread = self.thread.t

    async def open_channel(self, uint32_t lcore, bint writable=True):
        await call_on(lcore, disk_begin, &self.d, self)
        return self.channel_new(lcore, &self.d, writable)

    async def end(self, int lcore):
        await call_on(lcore, disk_end, &self.d, self)


cdef class Driver:
    """A ring of 1024 in memory of its own.  call_fd: a blocking eventfd, the queue's."""
    cdef driver_t driver
    cdef uint8_t *memory
    cdef int fd
    cdef readonly int call_fd

    def __cinit__(self):
        self.fd = os.memfd_create("driver", os.MFD_CLOEXEC)
        os.ftruncate(self.fd, MEMORY_BYTES)
        self.memory = <uint8_t *>mmap(NULL, MEMORY_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED,
                                      self.fd, 0)
        assert <void *>self.memory != MAP_FAILED
        assert driver_init(&self.driver, self.memory, 1024, False) == 0
        self.call_fd = os.eventfd(0, os.EFD_CLOEXEC)

    def __dealloc__(self):
        driver_fini(&self.driver)
        munmap(self.memory, MEMORY_BYTES)
        os.close(self.fd)
        os.close(self.call_fd)

    def view(self):
        return View([Mapping.create(self.fd, GUEST, MEMORY_BYTES, USER, 0, Poison(), Allowance())])

    @property
    def addresses(self):
        cdef char *base = <char *>self.memory
        return (USER, USER + (<char *>self.driver.avail - base),
                USER + (<char *>self.driver.used - base))

    cdef void send(self, uint64_t guest) noexcept nogil:
        cdef driver_buffer_t buffers[3]
        cdef uint64_t at = HEADERS_AT + <uint64_t>self.driver.free_head * SLOT_BYTES
        cdef blk_header_t *header = <blk_header_t *>(self.memory + at)
        header.type = BLK_T_IN
        header.reserved = 0
        header.sector = 0
        buffers[0] = driver_buffer_t(guest + at, sizeof(blk_header_t), False)
        buffers[1] = driver_buffer_t(guest + DATA_AT, BLOCK, True)
        buffers[2] = driver_buffer_t(guest + at + sizeof(blk_header_t), 1, True)
        driver_add(&self.driver, buffers, 3)

    def run(self, uint32_t depth, uint64_t requests):
        """Have so many reads done; return (microseconds in all, how often it slept)."""
        cdef uint64_t guest = GUEST
        cdef uint64_t left = requests, flying = 0, sleeps = 0, count = 0
        cdef uint64_t began = ticks_now()
        cdef uint32_t n, _, written = 0
        with nogil:
            while left or flying:
                n = driver_done(&self.driver)
                if n == 0 and flying:
                    # As a guest: no interrupts while it looks, one before it sleeps.
                    self.driver.avail.flags = 0
                    fence_full()
                    if driver_done(&self.driver) == 0:
                        read(self.call_fd, &count, sizeof(count))
                        sleeps += 1
                    self.driver.avail.flags = 1
                    continue
                for _ in range(n):
                    driver_take(&self.driver, &written)
                flying -= n
                while flying < depth and left:
                    self.send(guest)
                    left -= 1
                    flying += 1
                driver_publish(&self.driver)
        self.driver.avail.flags = 0
        return (ticks_now() - began) * 1e6 / ticks_hz(), sleeps
