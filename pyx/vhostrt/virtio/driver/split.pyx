"""The driver's side of a split virtqueue: setting it up."""
from libc.errno cimport EINVAL, ENOMEM
from libc.stdint cimport uint16_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset
from vhostrt.virtio.split cimport vring_avail, vring_desc, vring_used

cdef enum:
    USED_ALIGN = 4                      # virtio 1.4, 2.7
    SIZE_MAX_SPLIT = 32768


cdef size_t avail_bytes(uint16_t size) noexcept nogil:
    return (6 + 2 * <size_t>size + USED_ALIGN - 1) & ~<size_t>(USED_ALIGN - 1)


cdef size_t driver_ring_bytes(uint16_t size) noexcept nogil:
    """Bytes of the three parts of a ring, one after the other."""
    return 16 * <size_t>size + avail_bytes(size) + 6 + 8 * <size_t>size


cdef int driver_init(driver_t *d, void *memory, uint16_t size, bint event_idx) noexcept nogil:
    """Lay an empty ring out in memory (16-aligned, driver_ring_bytes long).

    -EINVAL: size is not a power of two up to 32768.  -ENOMEM.
    """
    cdef uint16_t i
    memset(d, 0, sizeof(driver_t))
    if size == 0 or size > SIZE_MAX_SPLIT or size & (size - 1):
        return -EINVAL
    d.next = <uint16_t *>calloc(size, sizeof(uint16_t))
    d.length = <uint16_t *>calloc(size, sizeof(uint16_t))
    if d.next is NULL or d.length is NULL:
        driver_fini(d)
        return -ENOMEM
    memset(memory, 0, driver_ring_bytes(size))
    d.desc = <vring_desc *>memory
    d.avail = <vring_avail *>(<char *>memory + 16 * <size_t>size)
    d.used = <vring_used *>(<char *>d.avail + avail_bytes(size))
    d.size = size
    d.free_count = size
    d.event_idx = event_idx
    for i in range(size):
        d.next[i] = i + 1               # of the last one never followed: free_count ends before
    return 0


cdef void driver_fini(driver_t *d) noexcept nogil:
    """Free what the struct holds; the ring memory stays its owner's."""
    free(d.next)
    free(d.length)
    d.next = NULL
    d.length = NULL
