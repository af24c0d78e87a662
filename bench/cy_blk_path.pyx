"""An in-process client of one block queue, on the queue's own reactor.

The client is an active poller beside the queue's poller: it fills the ring with a batch of reads
of three descriptors, publishes, and takes back what the queue has answered, checking each status.
All of it runs in C; the ring, the requests and the data lie in one memfd that a View maps as it
maps a guest's memory.
"""
import os

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from posix.mman cimport MAP_FAILED, MAP_SHARED, PROT_READ, PROT_WRITE, mmap, munmap
from vhostrt.base.errors cimport ok
from vhostrt.base.ticks cimport ticks_hz, ticks_now
from vhostrt.event.control cimport CALL_PENDING, call_done, call_on, call_t
from vhostrt.event.poller cimport poller_register, poller_unregister
from vhostrt.event.reactor cimport poller_t, thread_attach, thread_detach, thread_t
from vhostrt.event.thread cimport Thread
from vhostrt.virtio.blk cimport BLK_S_OK, BLK_T_IN, blk_header_t
from vhostrt.virtio.driver.split cimport (driver_add, driver_buffer_t, driver_done, driver_fini,
                                          driver_init, driver_publish, driver_t, driver_take)

cdef enum:
    RING_AT = 0
    HEADERS_AT = 2 << 20                # one header and one status byte for each descriptor
    STATUS_AT = 3 << 20
    DATA_AT = 4 << 20

GUEST = 0x100000000                     # where the guest's memory begins, for the device
USER = 0x7f0000000000                   # and for the client, as its messages would say

cdef struct client_t:
    driver_t driver
    poller_t poller
    thread_t *thread
    call_t *call
    uint8_t *memory
    uint64_t guest
    uint64_t data_bytes                 # of the data area
    uint32_t block_bytes                # of one request
    uint32_t batch
    uint64_t sectors                    # of the disk, as far as it is read
    uint64_t position                   # sector of the next request
    uint64_t left                       # requests to send
    uint64_t waiting                    # requests to take back
    uint64_t failed
    uint64_t started                    # ticks
    uint64_t took                       # ticks


cdef inline void client_send(client_t *c) noexcept nogil:
    """Add one read: header, data, status."""
    cdef driver_buffer_t buffers[3]
    cdef uint64_t slot = c.driver.free_head
    cdef blk_header_t *header = <blk_header_t *>(c.memory + HEADERS_AT) + slot
    header.type = BLK_T_IN
    header.reserved = 0
    header.sector = c.position
    c.memory[STATUS_AT + slot] = 0xff
    buffers[0].guest = c.guest + HEADERS_AT + slot * sizeof(blk_header_t)
    buffers[0].length = sizeof(blk_header_t)
    buffers[0].writable = False
    buffers[1].guest = c.guest + DATA_AT + slot * c.block_bytes
    buffers[1].length = c.block_bytes
    buffers[1].writable = True
    buffers[2].guest = c.guest + STATUS_AT + slot
    buffers[2].length = 1
    buffers[2].writable = True
    driver_add(&c.driver, buffers, 3)
    c.position += c.block_bytes >> 9
    if c.position > c.sectors:
        c.position = 0


cdef int client_poll(void *arg) noexcept nogil:
    """Take back a whole batch, then send the next."""
    cdef client_t *c = <client_t *>arg
    cdef uint32_t n = driver_done(&c.driver)
    cdef uint32_t written, _
    cdef int head
    if n < c.waiting:
        return 0
    for _ in range(n):
        head = driver_take(&c.driver, &written)
        if head < 0 or c.memory[STATUS_AT + head] != BLK_S_OK or written != c.block_bytes + 1:
            c.failed += 1
    c.waiting = min(<uint64_t>c.batch, c.left)
    if c.waiting == 0:
        c.took = ticks_now() - c.started
        poller_unregister(&c.poller)
        call_done(c.call, 0)
        return 1
    for _ in range(<uint32_t>c.waiting):
        client_send(c)
    c.left -= c.waiting
    driver_publish(&c.driver)
    return 1


cdef int client_begin(call_t *call) noexcept nogil:
    cdef client_t *c = <client_t *>call.arg
    c.call = call
    if c.thread.reactor is NULL:
        thread_attach(call.event.reactor, c.thread)
    c.started = ticks_now()
    poller_register(c.thread, &c.poller, 0)
    return CALL_PENDING


cdef int client_end(call_t *call) noexcept nogil:
    cdef client_t *c = <client_t *>call.arg
    thread_detach(c.thread)
    return 0


cdef class Client:
    """size: descriptors of the ring.  block: bytes of a request.  sectors: of the disk.

    Made and used by the control thread; run() awaits the reactor.
    """
    cdef client_t *c                    # owned
    cdef Thread thread
    cdef readonly int fd                # of the memory, for a Mapping
    cdef readonly object bytes          # its size

    def __cinit__(self, uint16_t size, uint32_t block, uint64_t sectors):
        self.fd = -1
        self.c = <client_t *>calloc(1, sizeof(client_t))
        if self.c is NULL:
            raise MemoryError
        self.c.data_bytes = <uint64_t>size * block
        self.bytes = DATA_AT + self.c.data_bytes
        self.fd = os.memfd_create("guest", os.MFD_CLOEXEC)
        os.ftruncate(self.fd, self.bytes)
        self.c.memory = <uint8_t *>mmap(NULL, self.bytes, PROT_READ | PROT_WRITE, MAP_SHARED,
                                        self.fd, 0)
        if <void *>self.c.memory == MAP_FAILED:
            self.c.memory = NULL
            raise MemoryError
        ok(driver_init(&self.c.driver, self.c.memory + RING_AT, size, False), "ring of the client")
        self.c.guest = GUEST
        self.c.block_bytes = block
        self.c.sectors = sectors - (block >> 9)
        self.c.poller.poll = client_poll
        self.c.poller.arg = self.c
        self.c.poller.fd = -1
        self.thread = Thread("client")
        self.c.thread = self.thread.t

    def __dealloc__(self):
        if self.c is not NULL:
            driver_fini(&self.c.driver)
            if self.c.memory is not NULL:
                munmap(self.c.memory, self.bytes)
            free(self.c)
        if self.fd >= 0:
            os.close(self.fd)

    @property
    def addresses(self) -> tuple:
        """(desc, avail, used) as the client's user addresses."""
        cdef char *base = <char *>self.c.memory
        return (USER + RING_AT, USER + (<char *>self.c.driver.avail - base),
                USER + (<char *>self.c.driver.used - base))

    async def run(self, int lcore, uint64_t requests, uint32_t batch):
        """Have `requests` reads done, `batch` at a time; return ns a request.

        RuntimeError when one of them failed.
        """
        if batch == 0 or batch * 3 > self.c.driver.size:
            raise ValueError(f"a batch of {batch} does not fit into the ring")
        self.c.left = requests
        self.c.batch = batch
        self.c.waiting = self.c.failed = 0
        await call_on(lcore, client_begin, self.c, self)
        if self.c.failed:
            raise RuntimeError(f"{self.c.failed} of {requests} requests failed")
        return self.c.took * 1e9 / ticks_hz() / requests

    async def detach(self, int lcore):
        """Leave the reactor."""
        await call_on(lcore, client_end, self.c, self)
