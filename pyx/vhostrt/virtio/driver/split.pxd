"""The driver's side of a split virtqueue: what a guest does, for clients in user space.

Owner:    whoever calls driver_init owns the ring memory and the struct; driver_fini frees what
          the struct holds.
Threads:  one at a time.
Fails:    driver_add answers -ENOSPC when there are too few free descriptors; driver_take -EPROTO
          when the device gave back what it never had.
"""
from libc.errno cimport ENOSPC, EPROTO
from libc.stdint cimport uint16_t, uint32_t, uint64_t
from vhostrt.base.atomics cimport (fence_full, load_acquire_u16, read_once_u16, read_once_u32,
                                   store_relaxed_u16, store_release_u16)
from vhostrt.virtio.split cimport (VRING_AVAIL_F_NO_INTERRUPT, VRING_DESC_F_INDIRECT,
                                   VRING_DESC_F_NEXT, VRING_DESC_F_WRITE, VRING_USED_F_NO_NOTIFY,
                                   vring_avail, vring_desc, vring_need_event, vring_used)

cdef struct driver_buffer_t:
    uint64_t guest              # address as the device knows it
    uint32_t length             # bytes
    bint writable               # by the device

cdef struct driver_t:
    vring_desc *desc
    vring_avail *avail
    vring_used *used
    uint16_t *next              # owned: the chain after each descriptor, out of the device's reach
    uint16_t *length            # owned: descriptors of the chain with this head; 0 when it is free
    uint16_t size
    uint16_t free_head
    uint16_t free_count
    uint16_t next_avail         # runs freely
    uint16_t published          # what avail.idx says
    uint16_t last_used          # runs freely
    bint event_idx

cdef size_t driver_ring_bytes(uint16_t size) noexcept nogil
cdef int driver_init(driver_t *d, void *memory, uint16_t size, bint event_idx) noexcept nogil
cdef void driver_fini(driver_t *d) noexcept nogil


cdef inline int driver_add(driver_t *d, const driver_buffer_t *buffers, uint16_t n) noexcept nogil:
    """Put a chain of n buffers (readable ones first) on the ring; return its head.

    The device sees it after driver_publish.  -ENOSPC: fewer than n free descriptors.
    """
    cdef uint16_t head = d.free_head
    cdef uint16_t index = head
    cdef uint16_t i
    if n > d.free_count:
        return -ENOSPC
    for i in range(n):
        d.desc[index].addr = buffers[i].guest
        d.desc[index].len = buffers[i].length
        d.desc[index].flags = ((VRING_DESC_F_NEXT if i + 1 < n else 0)
                               | (VRING_DESC_F_WRITE if buffers[i].writable else 0))
        d.desc[index].next = d.next[index]
        index = d.next[index]
    d.free_head = index
    d.free_count -= n
    d.length[head] = n
    d.avail.ring[d.next_avail & (d.size - 1)] = head
    d.next_avail += 1
    return head


cdef inline int driver_add_indirect(driver_t *d, vring_desc *table, uint64_t guest,
                                    const driver_buffer_t *buffers, uint16_t n) noexcept nogil:
    """As driver_add, with the buffers in a table of their own: one descriptor of the ring.

    table: n descriptors of memory that the device sees at `guest`, until the chain is taken back.
    """
    cdef uint16_t head = d.free_head
    cdef uint16_t i
    if d.free_count == 0:
        return -ENOSPC
    for i in range(n):
        table[i].addr = buffers[i].guest
        table[i].len = buffers[i].length
        table[i].flags = ((VRING_DESC_F_NEXT if i + 1 < n else 0)
                          | (VRING_DESC_F_WRITE if buffers[i].writable else 0))
        table[i].next = i + 1
    d.desc[head].addr = guest
    d.desc[head].len = n * <uint32_t>sizeof(vring_desc)
    d.desc[head].flags = VRING_DESC_F_INDIRECT
    d.desc[head].next = 0
    d.free_head = d.next[head]
    d.free_count -= 1
    d.length[head] = 1
    d.avail.ring[d.next_avail & (d.size - 1)] = head
    d.next_avail += 1
    return head


cdef inline bint driver_publish(driver_t *d) noexcept nogil:
    """Show the device what was added; return whether it wants a kick for it."""
    cdef uint16_t old = d.published
    store_release_u16(&d.avail.idx, d.next_avail)
    d.published = d.next_avail
    # The device sets its flag or event, fences, and reads avail.idx again; we do the reverse.
    fence_full()
    if d.event_idx:
        return vring_need_event(read_once_u16(<uint16_t *>&d.used.ring[d.size]), d.next_avail, old)
    return not read_once_u16(&d.used.flags) & VRING_USED_F_NO_NOTIFY


cdef inline uint16_t driver_done(const driver_t *d) noexcept nogil:
    """Return how many chains the device has given back that were not taken yet."""
    return load_acquire_u16(&d.used.idx) - d.last_used


cdef inline int driver_take(driver_t *d, uint32_t *written) noexcept nogil:
    """Take one of driver_done's chains; return its head, whose descriptors are free again.

    *written: bytes the device says it wrote.  -EPROTO: a head that is not in use.
    """
    cdef uint16_t slot = d.last_used & (d.size - 1)
    cdef uint32_t head = read_once_u32(&d.used.ring[slot].id)
    cdef uint16_t index, n
    if head >= d.size or d.length[head] == 0:
        return -EPROTO
    written[0] = read_once_u32(&d.used.ring[slot].len)
    n = d.length[head]
    d.length[head] = 0
    index = <uint16_t>head
    d.free_count += n
    while n > 1:                        # counts down our own number, along our own links
        n -= 1
        index = d.next[index]
    d.next[index] = d.free_head
    d.free_head = <uint16_t>head
    d.last_used += 1
    return <int>head


cdef inline void driver_calls_off(driver_t *d) noexcept nogil:
    """Ask the device not to interrupt.  With EVENT_IDX an event left behind does that (but for one
    interrupt in 65536)."""
    if d.event_idx:
        store_relaxed_u16(&d.avail.ring[d.size], d.last_used - 1)
    else:
        store_relaxed_u16(&d.avail.flags, VRING_AVAIL_F_NO_INTERRUPT)


cdef inline bint driver_calls_on(driver_t *d) noexcept nogil:
    """Ask the device to interrupt for the next chain; return whether one is back already."""
    if d.event_idx:
        store_relaxed_u16(&d.avail.ring[d.size], d.last_used)
    else:
        store_relaxed_u16(&d.avail.flags, 0)
    # The device publishes used.idx, fences, and reads the flag or event; we do the reverse.
    fence_full()
    return load_acquire_u16(&d.used.idx) != d.last_used
