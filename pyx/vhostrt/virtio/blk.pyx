"""Parts of a virtio block request: the header, when it is not alone in its descriptor."""
from libc.stdint cimport uint8_t, uint32_t
from libc.string cimport memcpy
from vhostrt.base.check cimport static_check
from vhostrt.bdev.core cimport iovec
from vhostrt.virtio.chain cimport chain_t


cdef int blk_gather_header(chain_t *c, blk_header_t *header) noexcept nogil:
    """As blk_take_header, for a header in several pieces or in one with the data.

    Every byte is copied once, so the header is consistent even if the guest rewrites it.
    """
    cdef uint8_t *to = <uint8_t *>header
    cdef uint32_t left = sizeof(blk_header_t)
    cdef uint32_t i = 0
    cdef uint32_t n
    cdef iovec *iov
    static_check(sizeof(blk_header_t) == 16)
    if c.readable_bytes < sizeof(blk_header_t):
        return -1
    while left:                         # ends: the iovs hold at least 16 bytes
        iov = &c.iovs[i]
        n = <uint32_t>min(<size_t>left, iov.iov_len)
        memcpy(to, iov.iov_base, n)
        to += n
        left -= n
        if n == iov.iov_len:
            i += 1
        else:
            iov.iov_base = <uint8_t *>iov.iov_base + n
            iov.iov_len -= n
    return i
