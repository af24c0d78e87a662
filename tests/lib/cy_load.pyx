"""A driver in C that keeps reads in flight, on a reactor beside the queues that serve it.

Each time its poller runs it takes back what is done, and sends as much again. Of a driver beside
it, it counts the answers between the sending of a request of its own and the answer to that.
"""
import os

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from posix.mman cimport MAP_FAILED, MAP_SHARED, PROT_READ, PROT_WRITE, mmap, munmap
from vhostrt.base.ticks cimport ticks_hz, ticks_now
from vhostrt.event.control cimport CALL_PENDING, call_done, call_on, call_t
from vhostrt.event.poller cimport poller_register, poller_unregister
from vhostrt.event.reactor cimport poller_t, thread_attach, thread_detach
from vhostrt.event.thread cimport Thread
from vhostrt.virtio.blk cimport BLK_S_OK, BLK_T_IN, blk_header_t
from vhostrt.virtio.driver.split cimport (driver_add, driver_buffer_t, driver_done, driver_fini,
                                          driver_init, driver_publish, driver_t, driver_take)

from vhostrt.vhost.view import Allowance, Mapping, Poison, View

cdef enum:
    RING_BYTES = 2 << 20
    HEADERS_AT = RING_BYTES             # a header for each descriptor, with its status behind it
    SLOT_BYTES = 32
    DATA_AT = 4 << 20
    BLOCK = 512

GUEST, USER, MEMORY_BYTES = 0x100000000, 0x7f0000000000, 8 << 20

cdef struct load_t:
    driver_t driver
    poller_t poller
    uint8_t *memory
    uint64_t guest              # address of the memory
    uint32_t depth
    uint64_t left               # requests to send yet
    uint64_t flying
    uint64_t taken
    uint64_t failed
    call_t *call                # to answer when all are taken
    load_t *other
    uint64_t mark               # other.taken, when the last request was sent
    uint64_t between_max        # answers to the other, while one of ours was on its way
    uint64_t between_all
    uint64_t began
    uint64_t ticks


cdef void load_send(load_t *load) noexcept nogil:
    cdef driver_buffer_t buffers[3]
    cdef uint64_t at = HEADERS_AT + <uint64_t>load.driver.free_head * SLOT_BYTES
    cdef blk_header_t *header = <blk_header_t *>(load.memory + at)
    header.type = BLK_T_IN
    header.sector = 0
    buffers[0] = driver_buffer_t(load.guest + at, sizeof(blk_header_t), False)
    buffers[1] = driver_buffer_t(load.guest + DATA_AT, BLOCK, True)
    buffers[2] = driver_buffer_t(load.guest + at + sizeof(blk_header_t), 1, True)
    header.reserved = 0
    load.memory[at + sizeof(blk_header_t)] = 0xff
    driver_add(&load.driver, buffers, 3)
    load.left -= 1
    load.flying += 1


cdef int load_poll(void *arg) noexcept nogil:
    cdef load_t *load = <load_t *>arg
    cdef uint32_t n = driver_done(&load.driver)
    cdef uint32_t _, written = 0
    cdef bint sent = False
    cdef uint64_t between
    cdef int head
    cdef uint8_t *statuses = load.memory + HEADERS_AT + sizeof(blk_header_t)
    for _ in range(n):
        head = driver_take(&load.driver, &written)
        if head < 0 or statuses[head * SLOT_BYTES] != BLK_S_OK:
            load.failed += 1
    load.taken += n
    load.flying -= n
    if n and load.other is not NULL:
        between = load.other.taken - load.mark
        load.between_all += between
        load.between_max = max(load.between_max, between)
    if load.left == 0 and load.flying == 0:
        load.ticks = ticks_now() - load.began
        poller_unregister(&load.poller)
        call_done(load.call, 0)
        return 1
    while load.flying < load.depth and load.left:
        load_send(load)
        sent = True
    if sent:
        driver_publish(&load.driver)
        if load.other is not NULL:
            load.mark = load.other.taken
    return n > 0


cdef int load_begin(call_t *call) noexcept nogil:
    cdef load_t *load = <load_t *>call.arg
    load.call = call
    thread_attach(call.event.reactor, load.poller.thread)
    load.began = ticks_now()
    poller_register(load.poller.thread, &load.poller, 0)
    return CALL_PENDING


cdef int load_end(call_t *call) noexcept nogil:
    thread_detach((<load_t *>call.arg).poller.thread)
    return 0


cdef int load_stop(call_t *call) noexcept nogil:
    (<load_t *>call.arg).left = 0
    return 0


cdef class Load:
    """size: of the ring.  depth: requests in flight.  other: the Load to look at, or None."""
    cdef load_t l
    cdef Thread thread
    cdef Load other
    cdef int fd

    def __cinit__(self, uint16_t size, uint32_t depth, Load other=None):
        self.fd = os.memfd_create("load", os.MFD_CLOEXEC)
        os.ftruncate(self.fd, MEMORY_BYTES)
        self.l.memory = <uint8_t *>mmap(NULL, MEMORY_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED,
                                        self.fd, 0)
        assert <void *>self.l.memory != MAP_FAILED and depth * 3 <= size
        assert driver_init(&self.l.driver, self.l.memory, size, False) == 0
        self.l.guest = GUEST
        self.l.depth = depth
        self.other = other
        if other is not None:
            self.l.other = &other.l
        self.thread = Thread("load")
        self.l.poller.poll = load_poll
        self.l.poller.arg = &self.l
        self.l.poller.fd = -1
        self.l.poller.thread = self.thread.t

    def __dealloc__(self):
        driver_fini(&self.l.driver)
        munmap(self.l.memory, MEMORY_BYTES)
        os.close(self.fd)

    def view(self):
        return View([Mapping.create(self.fd, GUEST, MEMORY_BYTES, USER, 0, Poison(), Allowance())])

    @property
    def addresses(self):
        cdef char *base = <char *>self.l.memory
        return (USER, USER + (<char *>self.l.driver.avail - base),
                USER + (<char *>self.l.driver.used - base))

    async def run(self, int lcore, uint64_t requests):
        """Have so many requests done; return microseconds a request."""
        self.l.left = requests
        before = self.l.taken
        await call_on(lcore, load_begin, &self.l, self)
        await call_on(lcore, load_end, &self.l, self)
        assert self.l.failed == 0
        return self.l.ticks * 1e6 / ticks_hz() / max(self.l.taken - before, 1)

    async def stop(self, int lcore):
        """End a run() early."""
        await call_on(lcore, load_stop, &self.l, self)

    @property
    def taken(self):
        return self.l.taken

    @property
    def between(self):
        """Return (the most, all) answers to the other while a request of ours was on its way."""
        return self.l.between_max, self.l.between_all
