"""A disk that forgets: writes are dropped, reads leave the buffers as they are.

Fails:    never, once it is made.
Source:   bdev_null_create.
"""
from libc.stdint cimport uint32_t, uint64_t
from vhostrt.bdev.core cimport (BDEV_READ, BDEV_RESET, BDEV_WRITE, BDEV_WRITE_ZEROES, Bdev,
                                bdev_channel_t, bdev_io_t)


cdef int null_submit(bdev_channel_t *channel, bdev_io_t *io) noexcept nogil:
    return 1


cdef class NullBdev(Bdev):
    """A disk that forgets.

    num_blocks: int.  block_size: bytes, a power of two from 512 to 65536.  uuid: str or None.
    ValueError names what cannot be had.
    """

    def __init__(self, str name not None, uint64_t num_blocks, uint32_t block_size=512, uuid=None):
        super().__init__(name, "Null disk", uuid)
        self.setup(num_blocks, block_size,
                   1 << BDEV_READ | 1 << BDEV_WRITE | 1 << BDEV_WRITE_ZEROES | 1 << BDEV_RESET,
                   null_submit)

    def set_num_blocks(self, uint64_t num_blocks):
        """Have another size from the next request on; ValueError when no bdev has it."""
        self.set_size(num_blocks)
