"""What the tests of queues are made of: a client with a ring in shared memory, and a bdev that
answers when the test says so."""
import asyncio
import itertools
import os
import struct

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memset
from posix.mman cimport MAP_FAILED, MAP_SHARED, PROT_READ, PROT_WRITE, mmap, munmap
from vhostrt.base.atomics cimport load_relaxed_u32, store_relaxed_u32
from vhostrt.base.ticks cimport ticks_now
from vhostrt.bdev.core cimport (BDEV_FLUSH, BDEV_READ, BDEV_WRITE, Bdev, bdev_channel_t,
                                bdev_io_done, bdev_io_t)
from vhostrt.event.control cimport call_on, call_t
from vhostrt.virtio.driver.split cimport (driver_add, driver_buffer_t, driver_done, driver_fini,
                                          driver_init, driver_publish, driver_t, driver_take)

from vhostrt.vhost.view import Allowance, Mapping, Poison, View

IN, OUT, FLUSH, GET_ID = 0, 1, 4, 8
OK, IOERR, UNSUPP = 0, 1, 2
USER = 0x7f0000000000           # a client address is the guest address and this
RING_AT = 0x100000              # guest address of the ring's memory
RING_BYTES = 1 << 20
DATA_AT = 0x40000000            # guest address of the data
DATA_BYTES = 1 << 20


numbers = itertools.count()     # every memory has a name of its own


async def until(condition):
    """Wait until condition() holds, while the loop goes on."""
    for _ in range(60_000):
        if condition():
            return
        await asyncio.sleep(0.001)
    raise AssertionError("it never came")


cdef class Memory:
    """A memfd of a client and a mapping of the client's own."""
    cdef uint8_t *base
    cdef readonly int fd
    cdef readonly object guest, size, name

    def __cinit__(self, guest, size):
        self.guest, self.size, self.name = guest, size, f"client-{next(numbers)}"
        self.fd = os.memfd_create(self.name)
        os.ftruncate(self.fd, size)
        self.base = <uint8_t *>mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, self.fd, 0)
        assert <void *>self.base != MAP_FAILED

    def __dealloc__(self):
        munmap(self.base, self.size)
        os.close(self.fd)

    def mapping(self, poison, guest=None):
        guest = self.guest if guest is None else guest
        return Mapping.create(self.fd, guest, self.size, USER + guest, 0, poison,
                              Allowance())

    def mapped(self):
        """Return how many mappings this process has, the client's own aside."""
        with open("/proc/self/maps") as file:
            return file.read().count(f"/memfd:{self.name} ") - 1

    def truncate(self):
        """Take the memory away from under everybody."""
        os.ftruncate(self.fd, 0)

    def read(self, at, n):
        return os.pread(self.fd, n, at)

    def write(self, at, bytes raw):
        os.pwrite(self.fd, raw, at)


def view_of(*memories, poison=None):
    """A View of these memories."""
    poison = Poison() if poison is None else poison
    return View([memory.mapping(poison) for memory in memories])


cdef class Client:
    """A ring of `size` descriptors, with a header and a status byte for each; data is apart."""
    cdef driver_t d
    cdef readonly Memory ring, data
    cdef readonly object addresses

    def __cinit__(self, uint16_t size=128, bint event_idx=False):
        self.ring = Memory(RING_AT, RING_BYTES)
        self.data = Memory(DATA_AT, DATA_BYTES)
        assert driver_init(&self.d, self.ring.base, size, event_idx) == 0
        base = USER + RING_AT - <uint64_t>self.ring.base
        self.addresses = (base + <uint64_t>self.d.desc, base + <uint64_t>self.d.avail,
                          base + <uint64_t>self.d.used)

    def __dealloc__(self):
        driver_fini(&self.d)

    def begin_at(self, uint16_t index):
        """Have the ring's indices stand where a session before this one left them."""
        self.d.next_avail = self.d.published = self.d.last_used = index
        self.d.avail.idx = self.d.used.idx = index

    def view(self, poison=None):
        return view_of(self.ring, self.data, poison=poison)

    def send(self, type, sector=0, lengths=(512,), at=0, publish=True):
        """Send a request whose data lies in buffers of these lengths from `at` on; its head."""
        cdef driver_buffer_t buffers[600]
        cdef uint16_t n = 1
        # Room for the header, and then the status, of the chain with this head.
        cdef uint64_t place = RING_BYTES // 2 + 32 * <uint64_t>self.d.free_head
        self.ring.write(place, struct.pack("<IIQB", type, 0, sector, 0xff))
        buffers[0] = driver_buffer_t(RING_AT + place, 16, False)
        for length in lengths:
            buffers[n] = driver_buffer_t(DATA_AT + at, length, type != OUT)
            at += length
            n += 1
        buffers[n] = driver_buffer_t(RING_AT + place + 16, 1, True)
        head = driver_add(&self.d, buffers, n + 1)
        assert head >= 0
        if publish:
            driver_publish(&self.d)
        return head

    def spoil(self, type="loop"):
        """Send a chain that cannot be, or an index that cannot."""
        cdef driver_buffer_t buffer = driver_buffer_t(DATA_AT, 16, False)
        if type == "index":
            self.d.avail.idx = self.d.avail.idx + self.d.size + 1
            return
        if type == "memory":
            buffer.guest = 0xdead0000
        head = driver_add(&self.d, &buffer, 1)
        if type == "loop":
            self.d.desc[<uint16_t>head].flags = 1
            self.d.desc[<uint16_t>head].next = head
        driver_publish(&self.d)

    def publish(self):
        driver_publish(&self.d)

    def no_interrupt(self, bint on=True):
        self.d.avail.flags = on

    def done(self):
        return driver_done(&self.d)

    def status(self, head):
        return self.ring.read(RING_BYTES // 2 + 32 * head + 16, 1)[0]

    def take(self):
        """Return [(head, status, written)] of what has come back."""
        cdef uint32_t written = 0
        cdef int head
        found = []
        while driver_done(&self.d):
            head = driver_take(&self.d, &written)
            assert head >= 0
            found.append((head, self.status(head), written))
        return found

    async def answers(self, n):
        """Wait for n answers and return them."""
        await until(lambda: self.done() >= n)
        return self.take()


# A bdev that holds its requests.

cdef struct held_t:
    bdev_io_t *first
    bdev_io_t *last
    uint32_t count
    int answer                  # of submit: 0 holds


cdef int held_submit(bdev_channel_t *channel, bdev_io_t *io) noexcept nogil:
    cdef held_t *h = <held_t *>channel.ctx
    if h.answer != 0:
        return h.answer
    io.next = NULL
    if h.first is NULL:
        h.first = io
    else:
        h.last.next = io
    h.last = io
    store_relaxed_u32(&h.count, h.count + 1)
    return 0


cdef struct letting_t:
    held_t *held
    uint32_t count
    int rc
    uint32_t fill               # byte for the data of reads


cdef int let_go(call_t *call) noexcept nogil:
    """Complete the first `count` requests; return how many."""
    cdef letting_t *letting = <letting_t *>call.arg
    cdef held_t *h = letting.held
    cdef uint64_t now = ticks_now()
    cdef bdev_io_t *io
    cdef uint32_t i, done = 0
    while done < letting.count and h.first is not NULL:
        io = h.first
        h.first = io.next
        store_relaxed_u32(&h.count, h.count - 1)
        if io.type == BDEV_READ and letting.rc == 0:
            for i in range(io.iov_count):
                memset(io.iovs[i].iov_base, letting.fill, io.iovs[i].iov_len)
        bdev_io_done(io, letting.rc, now)
        done += 1
    return <int>done


cdef class Letting:
    cdef letting_t c


cdef class HeldBdev(Bdev):
    """Requests wait until let_go, on the reactor that they came to.  A channel on each lcore."""
    cdef held_t h[2]            # by lcore

    def __init__(self, num_blocks=2048, block_size=512):
        super().__init__("held", "Held disk", None)
        self.setup(num_blocks, block_size, 1 << BDEV_READ | 1 << BDEV_WRITE | 1 << BDEV_FLUSH,
                   held_submit)

    async def open_channel(self, uint32_t lcore, bint writable=True):
        return self.channel_new(lcore, &self.h[lcore], writable)

    @property
    def held(self):
        return sum(load_relaxed_u32(&self.h[i].count) for i in range(2))

    def answer_at_once(self, int answer):
        """From now on submit answers this (1, or -errno; 0 holds again)."""
        self.h[0].answer = self.h[1].answer = answer

    def let_go(self, count=1, rc=0, fill=0x5a, uint32_t lcore=0):
        """Answer the oldest requests on their reactor; a future of how many there were."""
        cdef Letting letting = Letting.__new__(Letting)
        letting.c = [&self.h[lcore], count, rc, fill]
        return call_on(lcore, let_go, &letting.c, (self, letting))
