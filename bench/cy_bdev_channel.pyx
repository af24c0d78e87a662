"""A loop that submits requests to a channel, for the benchmarks of bdevs that answer at once."""
from libc.stdint cimport uint8_t, uint64_t
from libc.string cimport memset
from vhostrt.base.check cimport check
from vhostrt.bdev.core cimport BDEV_READ, Channel, bdev_io_t, bdev_submit, iovec


cdef void never(bdev_io_t *io, int rc) noexcept nogil:
    check(False)                        # done at once means that this is not called


def reads(Channel channel not None, uint64_t span, uint64_t n):
    """Read 4 KiB n times, one after the other over the first `span` bytes; return the last byte.

    Nobody else uses the channel meanwhile, so no reactor has to run.
    """
    cdef uint64_t blocks = 4096 // channel.bdev.block_size
    cdef uint64_t last = span // channel.bdev.block_size - blocks
    cdef uint64_t _, first = 0
    cdef iovec iov
    cdef bdev_io_t io
    buffer = bytearray(4096)
    cdef uint8_t[::1] view = buffer
    memset(&io, 0, sizeof(io))
    iov.iov_base = &view[0]
    iov.iov_len = 4096
    io.iovs = &iov
    io.iov_count = 1
    io.type = BDEV_READ
    io.num_blocks = blocks
    io.done = never
    with nogil:
        for _ in range(n):
            io.offset_blocks = first
            check(bdev_submit(channel.c, &io) == 1)
            first = 0 if first >= last else first + blocks
    return buffer[4095]
