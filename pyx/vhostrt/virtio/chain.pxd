"""Read one descriptor chain of a split virtqueue into an iovec.

The guest writes these descriptors and may rewrite them at any time.  So each is copied once,
checked in the copy and never read again; and a chain has a budget of steps and of iovs.

Threads:  the queue's reactor.
"""
from libc.errno cimport EFAULT, EMSGSIZE, EPROTO
from libc.stdint cimport UINT32_MAX, uint16_t, uint32_t, uint64_t
from vhostrt.base.atomics cimport read_once_16
from vhostrt.base.check cimport dcheck
from vhostrt.bdev.core cimport iovec
from vhostrt.virtio.regions cimport regions_t, regions_translate
from vhostrt.virtio.split cimport (VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE,
                                   vring_desc)

cdef enum:
    CHAIN_MIN_LIMIT = 515       # iovs that a chain may have, whatever the queue's size

cdef struct chain_t:
    # Set by the caller.
    const vring_desc *desc      # the queue's table
    uint32_t desc_count
    const regions_t *regions
    uint32_t *hint              # of regions_translate
    bint indirect               # VIRTIO_RING_F_INDIRECT_DESC was negotiated
    iovec *iovs
    uint32_t iov_limit
    uint32_t step_limit         # descriptors, those of an indirect table counted
    # The result: iovs[0 .. readable) are for the device to read, [readable .. count) to write.
    uint32_t count
    uint32_t readable
    uint32_t readable_bytes
    uint32_t writable_bytes


cdef int chain_read_indirect(chain_t *c, uint64_t guest, uint32_t length) noexcept nogil


cdef inline int chain_add(chain_t *c, const vring_desc *d) noexcept nogil:
    """Append the memory of one descriptor.

    -EFAULT: not guest memory.  -EPROTO: readable after writable, or 4 GiB in one direction.
    -EMSGSIZE: more pieces than iov_limit.
    """
    cdef uint64_t guest = d.addr
    cdef uint64_t left = d.len
    cdef uint64_t piece
    cdef void *host
    if d.flags & VRING_DESC_F_WRITE:
        if d.len > UINT32_MAX - c.writable_bytes:
            return -EPROTO
        c.writable_bytes += d.len
    else:
        if c.count != c.readable or d.len > UINT32_MAX - c.readable_bytes:
            return -EPROTO
        c.readable_bytes += d.len
    while left:                         # each turn uses up one of iov_limit
        piece = left
        host = regions_translate(c.regions, c.hint, guest, &piece)
        if host is NULL:
            return -EFAULT
        if c.count >= c.iov_limit:
            return -EMSGSIZE
        c.iovs[c.count].iov_base = host
        c.iovs[c.count].iov_len = piece
        c.count += 1
        left -= piece
        guest += piece                  # wraps at 2^64 only to an address that is looked up again
    if not d.flags & VRING_DESC_F_WRITE:
        c.readable = c.count
    return 0


cdef inline int chain_read(chain_t *c, uint16_t head) noexcept nogil:
    """Read the chain that starts at `head`: 0, or -errno and the ring is broken.

    -EPROTO: an index outside the table, a loop, NEXT together with INDIRECT, a nested or
    ill-sized indirect table, or as chain_add.  -EFAULT, -EMSGSIZE: as chain_add.
    """
    cdef vring_desc d
    cdef uint32_t left = c.desc_count   # a longer chain has a loop
    cdef uint32_t index = head
    cdef int rc
    c.count = c.readable = 0
    c.readable_bytes = c.writable_bytes = 0
    while left:
        left -= 1
        if index >= c.desc_count:
            return -EPROTO
        read_once_16(&d, &c.desc[index])
        if d.flags & VRING_DESC_F_INDIRECT:
            if not c.indirect or d.flags & VRING_DESC_F_NEXT:
                return -EPROTO
            return chain_read_indirect(c, d.addr, d.len)
        rc = chain_add(c, &d)
        if rc < 0:
            return rc
        if not d.flags & VRING_DESC_F_NEXT:
            return 0
        index = d.next
    return -EPROTO
