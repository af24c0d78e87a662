"""A RAM disk: blocks in memory of its own, copied on the reactor that asks.

Owner:    the bdev owns its segment, until it is freed; pages are taken when they are first written.
Threads:  requests of several reactors run at once; what two of them do to the same block at the
          same time is not ordered, as on any disk.
Source:   bdev_malloc_create.
"""
import asyncio

from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memcpy, memset
from vhostrt.base.check cimport dcheck
from vhostrt.base.errors cimport ok
from vhostrt.bdev.core cimport (BDEV_FLUSH, BDEV_READ, BDEV_RESET, BDEV_UNMAP, BDEV_WRITE,
                                BDEV_WRITE_ZEROES, Bdev, bdev_channel_t, bdev_io_t, iovec)
from vhostrt.env.segment cimport huge_pages_free, segment_map, segment_t, segment_unmap

cdef enum:
    HUGE_PAGE = 2 << 20


cdef inline void from_blocks(bdev_io_t *io, char *block) noexcept nogil:
    cdef iovec *iov
    cdef uint32_t i
    for i in range(io.iov_count):
        iov = &io.iovs[i]
        memcpy(iov.iov_base, block, iov.iov_len)
        block += iov.iov_len


cdef inline void to_blocks(bdev_io_t *io, char *block) noexcept nogil:
    cdef iovec *iov
    cdef uint32_t i
    for i in range(io.iov_count):
        iov = &io.iovs[i]
        memcpy(block, iov.iov_base, iov.iov_len)
        block += iov.iov_len


cdef inline bint iovs_fit(bdev_io_t *io, uint64_t size) noexcept nogil:
    """True when the iovs hold exactly `size` bytes: the contract of bdev_io_t, checked here because
    a longer list would run over the end of the store."""
    cdef uint64_t left = size
    cdef uint32_t i
    for i in range(io.iov_count):
        if io.iovs[i].iov_len > left:
            return False
        left -= io.iovs[i].iov_len
    return left == 0


cdef int malloc_submit(bdev_channel_t *channel, bdev_io_t *io) noexcept nogil:
    cdef uint64_t block_size = channel.bdev.block_size
    cdef char *block = <char *>channel.bdev.ctx + io.offset_blocks * block_size
    cdef uint64_t size = io.num_blocks * block_size     # inside the bdev: bdev_submit has checked
    if io.type == BDEV_READ:
        dcheck(iovs_fit(io, size))
        from_blocks(io, block)
    elif io.type == BDEV_WRITE:
        dcheck(iovs_fit(io, size))
        to_blocks(io, block)
    elif io.type == BDEV_UNMAP or io.type == BDEV_WRITE_ZEROES:
        memset(block, 0, size)
    return 1                            # a flush or reset has nothing to wait for


cdef int map_blocks(segment_t *segment, uint64_t size, int node) noexcept nogil:
    """Map zeroed memory: of huge pages when enough are free, else of ordinary ones."""
    if huge_pages_free() * HUGE_PAGE >= size and segment_map(segment, size, node, True) == 0:
        return 0
    return segment_map(segment, size, node, False)


cdef class MallocBdev(Bdev):
    """A RAM disk, all zeroes at first.

    num_blocks: int.  block_size: bytes, a power of two from 512 to 65536.  uuid: str or None.
    numa_id: int, the memory's NUMA node, or -1 for any.  ValueError names what cannot be had;
    OSError(ENOMEM) when the address space or memory is not there.
    """

    cdef segment_t segment              # owned; base is NULL when it has none

    def __init__(self, str name not None, uint64_t num_blocks, uint32_t block_size=512, uuid=None,
                 int numa_id=-1):
        super().__init__(name, "Malloc disk", uuid)
        self.setup(num_blocks, block_size,
                   1 << BDEV_READ | 1 << BDEV_WRITE | 1 << BDEV_FLUSH | 1 << BDEV_UNMAP
                   | 1 << BDEV_WRITE_ZEROES | 1 << BDEV_RESET, malloc_submit)
        ok(map_blocks(&self.segment, num_blocks * block_size, numa_id),
           f"memory of bdev {name}, {num_blocks * block_size} bytes")
        self.b.ctx = self.segment.base

    def __dealloc__(self):
        if self.segment.base is not NULL:
            segment_unmap(&self.segment)

    async def close(self):
        """Free the memory, on a helper thread: a large one takes its time."""
        await asyncio.get_running_loop().run_in_executor(None, self.unmap)

    def unmap(self):
        """Give the memory back, once."""
        cdef segment_t segment = self.segment
        self.segment.base = NULL
        if segment.base is not NULL:
            with nogil:
                segment_unmap(&segment)
