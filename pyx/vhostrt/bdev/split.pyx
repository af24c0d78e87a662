"""A part of another bdev: its blocks from one on, as a disk of its own.

Owner:    who makes the parts has the base open (vhostrt.bdev.splits); the channel of a part owns
          one of the base, and the requests that it hands on.
Threads:  a channel's requests are handed on and come back on its reactor.
Source:   bdev_split_create.
"""
import struct
import uuid as uuid_module

from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from vhostrt.bdev.core cimport (Bdev, Channel, bdev_channel_t, bdev_io_done, bdev_io_t,
                                bdev_submit)

cdef enum:
    CHILDREN = 128                      # requests of one channel at the base; the rest waits

# The namespace of SPDK's uuids of parts.
NAMESPACE = uuid_module.UUID("976b899e-3e1e-4d71-ab69-c2b08e9df8b8")

cdef struct child_t:
    bdev_io_t io                        # first: the one is the other
    bdev_io_t *parent
    part_t *part

cdef struct part_t:                     # of one channel; its reactor's alone
    bdev_channel_t *base
    uint64_t start                      # block of the base that is our first
    bdev_io_t *unused                   # children, by io.next
    bdev_io_t *first                    # parents that wait for a child, by next ...
    bdev_io_t *last                     # ... up to this one
    child_t children[CHILDREN]


cdef int part_hand_on(part_t *part, bdev_io_t *io, uint64_t start) noexcept nogil:
    """Give a request to the base, with an unused child; the answer is bdev_submit's.

    start: ticks, when the base gets it.
    """
    cdef child_t *child = <child_t *>part.unused
    cdef int rc
    part.unused = child.io.next
    child.parent = io
    child.io.iovs = io.iovs
    child.io.iov_count = io.iov_count
    child.io.type = io.type
    # No overflow: bdev_submit has found the request inside the part, which is inside the base.
    child.io.offset_blocks = part.start + io.offset_blocks
    child.io.num_blocks = io.num_blocks
    child.io.start = start
    child.io.done = part_done
    rc = bdev_submit(part.base, &child.io)
    if rc != 0:
        child.io.next = part.unused
        part.unused = &child.io
    return rc


cdef int part_submit(bdev_channel_t *channel, bdev_io_t *io) noexcept nogil:
    cdef part_t *part = <part_t *>channel.ctx
    if part.unused is not NULL and part.first is NULL:
        return part_hand_on(part, io, io.start)
    io.next = NULL
    if part.first is NULL:
        part.first = io
    else:
        part.last.next = io
    part.last = io
    return 0


cdef void part_done(bdev_io_t *io, int rc) noexcept nogil:
    """The base has done a child: those that wait have their turn, then its parent is done."""
    cdef child_t *child = <child_t *>io
    cdef part_t *part = child.part
    cdef bdev_io_t *parent = child.parent
    cdef bdev_io_t *waiting
    cdef uint64_t now = io.start + io.took
    cdef int answer
    io.next = part.unused
    part.unused = io
    while part.first is not NULL and part.unused is not NULL:
        waiting = part.first
        part.first = waiting.next
        answer = part_hand_on(part, waiting, now)
        if answer != 0:
            bdev_io_done(waiting, min(answer, 0), now)
    # Last: with the last request of a channel the channel may go.
    bdev_io_done(parent, rc, now)


def uuid_of(base not None, uint64_t start, uint64_t num_blocks) -> str:
    """Return the uuid of a part: SPDK's, of the base's uuid (str) and the blocks."""
    from hashlib import sha1
    name = uuid_module.UUID(base).bytes + struct.pack("<QQ", start, num_blocks)
    digest = sha1(NAMESPACE.bytes + name, usedforsecurity=False).digest()
    return str(uuid_module.UUID(bytes=digest[:16], version=5))


cdef class Part:
    """What a channel of a part has: its requests for the base, and a channel there."""

    cdef part_t *p                      # owned
    cdef Channel base                   # keeps p.base alive

    def __cinit__(self, Channel base not None, uint64_t start):
        cdef int i
        self.p = <part_t *>calloc(1, sizeof(part_t))
        if self.p is NULL:
            raise MemoryError
        self.base = base
        self.p.base = base.c
        self.p.start = start
        for i in range(CHILDREN):
            self.p.children[i].part = self.p
            self.p.children[i].io.next = self.p.unused
            self.p.unused = &self.p.children[i].io

    def __dealloc__(self):
        free(self.p)


cdef class PartBdev(Bdev):
    """The blocks from `start` on of another bdev, num_blocks of them.

    name: str.  base: Bdev, which the maker keeps open as long as there are parts.
    ValueError: the blocks are not inside the base.
    """

    cdef Bdev base
    cdef readonly uint64_t start        # block of the base

    def __init__(self, str name not None, Bdev base not None, uint64_t start, uint64_t num_blocks):
        if num_blocks > base.num_blocks or start > base.num_blocks - num_blocks:
            raise ValueError(f"{num_blocks} blocks from {start} on are not inside {base.name}, "
                             f"which has {base.num_blocks}")
        super().__init__(name, "Split Disk", uuid_of(base.uuid, start, num_blocks))
        self.setup(num_blocks, base.b.block_size, base.b.types, part_submit)
        self.b.read_only = base.b.read_only
        self.b.write_cache = base.b.write_cache
        self.base = base
        self.start = start
        self.driver_specific["split"] = {"base_bdev": base.name, "offset_blocks": start}

    async def open_channel(self, uint32_t lcore, bint writable=True):
        """Return a Channel to be used on reactor `lcore` only; OSError when it cannot be had."""
        cdef Part part
        cdef Channel channel
        base = await self.base.open_channel(lcore, writable)
        try:
            part = Part(base, self.start)
            channel = self.channel_new(lcore, part.p, writable)
        except BaseException:
            await self.base.close_channel(base)
            raise
        channel.station = part
        return channel

    async def close_channel(self, Channel channel not None):
        """Give a channel back, once.  No request may be in flight on it."""
        cdef Part part
        self.retire(channel)
        part, channel.station = channel.station, None
        await self.base.close_channel(part.base)
