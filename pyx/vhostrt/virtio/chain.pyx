"""Read one descriptor chain of a split virtqueue into an iovec: the indirect table."""
from libc.errno cimport EFAULT, EMSGSIZE, EPROTO
from libc.stdint cimport uint32_t, uint64_t
from vhostrt.base.atomics cimport read_once_16
from vhostrt.base.check cimport static_check
from vhostrt.virtio.regions cimport regions_translate
from vhostrt.virtio.split cimport (VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, vring_desc)


cdef int read_entry(chain_t *c, uint64_t guest, vring_desc *d) noexcept nogil:
    """Copy one entry of an indirect table.  It must lie inside one region."""
    cdef uint64_t length = sizeof(vring_desc)
    cdef void *host
    static_check(sizeof(vring_desc) == 16)
    host = regions_translate(c.regions, c.hint, guest, &length)
    if host is NULL or length < sizeof(vring_desc):
        return -EFAULT
    read_once_16(d, host)
    return 0


cdef int chain_read_indirect(chain_t *c, uint64_t guest, uint32_t length) noexcept nogil:
    """Go on in an indirect table of `length` bytes (virtio 1.4, 2.7.5.3)."""
    cdef uint32_t entries = length // sizeof(vring_desc)
    cdef uint32_t left = min(entries, c.step_limit)
    cdef uint32_t index = 0
    cdef vring_desc d
    cdef int rc
    if length == 0 or length % sizeof(vring_desc):
        return -EPROTO
    if guest + length < guest:          # so guest + 16 * index does not wrap either
        return -EFAULT
    while left:
        left -= 1
        if index >= entries:
            return -EPROTO
        rc = read_entry(c, guest + sizeof(vring_desc) * <uint64_t>index, &d)
        if rc < 0:
            return rc
        if d.flags & VRING_DESC_F_INDIRECT:
            return -EPROTO
        rc = chain_add(c, &d)
        if rc < 0:
            return rc
        if not d.flags & VRING_DESC_F_NEXT:
            return 0
        index = d.next
    return -EPROTO if entries <= c.step_limit else -EMSGSIZE
