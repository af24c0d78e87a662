"""Numbers of the virtio block device (virtio 1.4, 5.2) and the parts of a request."""
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy
from vhostrt.base.atomics cimport read_once_16
from vhostrt.bdev.core cimport iovec
from vhostrt.virtio.chain cimport chain_t

cdef enum:
    BLK_T_IN = 0
    BLK_T_OUT = 1
    BLK_T_FLUSH = 4
    BLK_T_GET_ID = 8
    BLK_T_DISCARD = 11
    BLK_T_WRITE_ZEROES = 13
    BLK_S_OK = 0
    BLK_S_IOERR = 1
    BLK_S_UNSUPP = 2
    BLK_ID_BYTES = 20
    BLK_SECTOR_SHIFT = 9

cdef struct blk_header_t:
    uint32_t type
    uint32_t reserved
    uint64_t sector

cdef int blk_gather_header(chain_t *c, blk_header_t *header) noexcept nogil


cdef inline int blk_take_header(chain_t *c, blk_header_t *header) noexcept nogil:
    """Copy the request header once and return the index of the iov where the data begins.

    -1: fewer than 16 readable bytes.  The header may be split or joined with the data anywhere;
    what follows it in its last iov stays there.
    """
    if c.readable and c.iovs[0].iov_len == sizeof(blk_header_t):
        read_once_16(header, c.iovs[0].iov_base)
        return 1
    return blk_gather_header(c, header)


cdef inline uint8_t *blk_take_status(chain_t *c) noexcept nogil:
    """Return where the status byte goes, cut off the end of the chain; NULL: none is writable."""
    cdef iovec *last
    if c.count == c.readable:           # iovs are never empty
        return NULL
    last = &c.iovs[c.count - 1]
    c.writable_bytes -= 1
    last.iov_len -= 1
    if last.iov_len == 0:
        c.count -= 1
    return <uint8_t *>last.iov_base + last.iov_len
