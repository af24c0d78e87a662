"""The device's side of a split virtqueue (virtio 1.4, split-ring).

Owner:    the queue that embeds it; the rings lie in guest memory, each inside one region.
Threads:  the queue's reactor.
Fails:    split_available answers -EPROTO when the driver's index is impossible.
"""
from libc.errno cimport EPROTO
from libc.stdint cimport uint16_t, uint32_t, uint64_t
from vhostrt.base.atomics cimport (fence_full, load_acquire_u16, read_once_u16, store_relaxed_u16,
                                   store_release_u16)
from vhostrt.base.check cimport dcheck

cdef extern from "<linux/virtio_ring.h>" nogil:
    enum:
        VRING_DESC_F_NEXT
        VRING_DESC_F_WRITE
        VRING_DESC_F_INDIRECT
        VRING_AVAIL_F_NO_INTERRUPT
        VRING_USED_F_NO_NOTIFY
    ctypedef struct vring_desc "struct vring_desc":
        uint64_t addr
        uint32_t len
        uint16_t flags
        uint16_t next
    ctypedef struct vring_avail "struct vring_avail":
        uint16_t flags
        uint16_t idx
        uint16_t *ring                  # size entries, then used_event
    ctypedef struct vring_used_elem "struct vring_used_elem":
        uint32_t id
        uint32_t len
    ctypedef struct vring_used "struct vring_used":
        uint16_t flags
        uint16_t idx
        vring_used_elem *ring           # size entries, then avail_event
    bint vring_need_event(uint16_t event, uint16_t new, uint16_t old)

cdef struct split_t:
    vring_desc *desc
    vring_avail *avail
    vring_used *used
    # Indices run freely through 2^16 and are masked on use.
    uint16_t size               # a power of two, at most 32768
    uint16_t next_avail         # next to pop
    uint16_t next_used          # next to fill; up to it is published, or will be in this iteration
    uint16_t published          # what used.idx says
    uint16_t signalled          # published when the driver was last considered for an interrupt
    bint event_idx              # VIRTIO_RING_F_EVENT_IDX
    bint signalled_valid        # False until the first decision: with an event, one that is due


cdef inline int split_available(const split_t *s) noexcept nogil:
    """Return how many chains wait, at most size, or -EPROTO.  Acquires what they point to."""
    cdef uint16_t n = load_acquire_u16(&s.avail.idx) - s.next_avail
    return n if n <= s.size else -EPROTO


cdef inline uint16_t split_head(const split_t *s, uint16_t ahead) noexcept nogil:
    """Return the head that lies `ahead` behind the next to pop.  Not checked against size."""
    return read_once_u16(&s.avail.ring[<uint16_t>(s.next_avail + ahead) & (s.size - 1)])


cdef inline void split_push(split_t *s, uint16_t head, uint32_t written) noexcept nogil:
    """Give a chain back, with the bytes written to it.  Seen by the driver after split_publish."""
    cdef vring_used_elem *e = &s.used.ring[s.next_used & (s.size - 1)]
    e.id = head
    e.len = written
    s.next_used += 1


cdef inline bint split_publish(split_t *s) noexcept nogil:
    """Show the driver all that was pushed; return whether it wants an interrupt for it."""
    cdef uint16_t old = s.signalled
    cdef bint first = not s.signalled_valid
    store_release_u16(&s.used.idx, s.next_used)
    s.published = s.next_used
    # The driver sets its flag or event, fences, and reads used.idx again; we do the reverse.
    fence_full()
    s.signalled = s.next_used
    s.signalled_valid = True
    if s.event_idx:
        return first or vring_need_event(read_once_u16(&s.avail.ring[s.size]), s.next_used, old)
    return not read_once_u16(&s.avail.flags) & VRING_AVAIL_F_NO_INTERRUPT


cdef inline void split_kicks_off(split_t *s) noexcept nogil:
    """Ask the driver not to kick.  With EVENT_IDX an event left behind does that (but for one
    kick in 65536)."""
    if not s.event_idx:
        store_relaxed_u16(&s.used.flags, VRING_USED_F_NO_NOTIFY)


cdef inline bint split_kicks_on(split_t *s) noexcept nogil:
    """Ask the driver to kick for the next chain; return whether one is there already."""
    if s.event_idx:
        store_relaxed_u16(<uint16_t *>&s.used.ring[s.size], s.next_avail)
    else:
        store_relaxed_u16(&s.used.flags, 0)
    # The driver publishes avail.idx, fences, and reads the flag or event; we do the reverse.
    fence_full()
    return load_acquire_u16(&s.avail.idx) != s.next_avail
