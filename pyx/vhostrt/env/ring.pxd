"""Bounded rings of pointers between threads: one struct, two ways to move on each side.

Owner:    whoever called ring_create, or the owner of the memory given to ring_init.
Threads:  *_sp_* from one producer thread, *_mp_* from any number; *_sc_* from one consumer
          thread, *_mc_* from any number.  A ring is used one way on each side for its life.
          In shared memory (named_ring.pxd) the threads may be of several processes.
Fails:    each says how many it moved.  Without a suffix an enqueue moves all or nothing and a
          dequeue what is there; *_burst moves what fits, *_bulk all or nothing.
"""
from cython cimport unlikely
from libc.stdint cimport uint32_t
from vhostrt.base.atomics cimport (cas_u32, load_acquire_u32, load_relaxed_u32,
                                   store_relaxed_u32, store_release_u32, u32_line)
from vhostrt.base.check cimport dcheck

cdef extern from *:
    """
    #include <stdint.h>
    /* Four at a time: without the test for overlap that a plain loop starts with. */
    static inline void vh_copy_objs(void **to, void *const *from, uint32_t n)
    {
        uint32_t i = 0;
        for (; i + 4 <= n; i += 4)
            __builtin_memcpy(to + i, from + i, 4 * sizeof(void *));
        for (; i < n; i++)
            to[i] = from[i];
    }
    """
    void copy_objs "vh_copy_objs"(void **to, void *const *source, uint32_t n) nogil

cdef enum:
    # Kinds: many producers or a single one, many consumers or a single one.
    RING_MP_SC = 0
    RING_SP_SC = 1
    RING_MP_MC = 2
    RING_SP_MC = 3
    RING_EXACT = 0x10           # beside a kind: count objects fit, whatever number that is
    RING_COUNT_MAX = 0x40000000     # slots, 8 GiB of them

cdef struct ring_t:
    # Indices run freely through 2^32 and are masked on use, so tail - head is the fill even
    # after they wrap.  Each side has a head, moved when slots are taken, and a tail, moved
    # when they have been written or read; between the two a thread is still copying.
    uint32_t mask               # slots - 1; slots is a power of two
    uint32_t capacity           # usable slots: fewer than there are
    uint32_t kind               # RING_*, with RING_EXACT where it was asked for
    char name[32]               # of a named ring, by named_ring.pyx
    u32_line prod_head          # written by producers
    uint32_t prod_tail
    u32_line cons_head          # written by consumers
    uint32_t cons_tail

cdef size_t ring_size(uint32_t slots) noexcept nogil
cdef uint32_t ring_slots_for(uint32_t count, uint32_t kind) noexcept nogil
cdef int ring_init(ring_t *r, uint32_t count, uint32_t kind) noexcept nogil
cdef ring_t *ring_create(uint32_t count, uint32_t kind, int node) noexcept nogil
cdef void ring_free(ring_t *r) noexcept nogil
cdef void ring_await(const uint32_t *tail, uint32_t turn) noexcept nogil


cdef inline void **ring_slots(ring_t *r) noexcept nogil:
    """Return the slots; they follow the struct, on a cache line of their own."""
    return <void **>(r + 1)


cdef inline uint32_t ring_count(ring_t *r) noexcept nogil:
    """Return how many objects are in; from other threads a value of the recent past."""
    # The consumers' index first: read the other way round the difference could be negative.
    cdef uint32_t tail = load_acquire_u32(&r.cons_tail)
    return min(load_acquire_u32(&r.prod_tail) - tail, r.capacity)


cdef inline uint32_t ring_room(ring_t *r) noexcept nogil:
    """Return how many objects still fit; from other threads a value of the recent past."""
    return r.capacity - ring_count(r)


cdef inline bint ring_is_empty(ring_t *r) noexcept nogil:
    return ring_count(r) == 0


cdef inline bint ring_is_full(ring_t *r) noexcept nogil:
    return ring_count(r) == r.capacity


cdef inline bint ring_one_producer(ring_t *r) noexcept nogil:
    return (r.kind & 1) != 0            # RING_SP_SC, RING_SP_MC


cdef inline bint ring_one_consumer(ring_t *r) noexcept nogil:
    return (r.kind & 2) == 0            # RING_MP_SC, RING_SP_SC


cdef inline void ring_put(ring_t *r, uint32_t head, void *const *objs, uint32_t n) noexcept nogil:
    """Copy objects into the slots from index head on."""
    cdef void **slots = ring_slots(r)
    cdef uint32_t i
    if unlikely((head & r.mask) + n > r.mask + 1):
        for i in range(n):
            slots[(head + i) & r.mask] = objs[i]
        return
    copy_objs(slots + (head & r.mask), objs, n)


cdef inline void ring_get(ring_t *r, uint32_t head, void **objs, uint32_t n) noexcept nogil:
    """Copy objects out of the slots from index head on."""
    cdef void **slots = ring_slots(r)
    cdef uint32_t i
    if unlikely((head & r.mask) + n > r.mask + 1):
        for i in range(n):
            objs[i] = slots[(head + i) & r.mask]
        return
    copy_objs(objs, slots + (head & r.mask), n)


# Enqueue.  `bulk` is a constant where it is called: the compiler leaves one of the two ways.

cdef inline uint32_t ring_sp_give(ring_t *r, void *const *objs, uint32_t n,
                                  bint bulk) noexcept nogil:
    """Enqueue n objects (bulk: all or nothing), as the only producer; return how many."""
    cdef uint32_t head = load_relaxed_u32(&r.prod_head)        # ours alone
    # Acquire, with the release of cons_tail in a dequeue: those slots have been read.
    cdef uint32_t room = r.capacity + load_acquire_u32(&r.cons_tail) - head
    dcheck(room <= r.capacity)
    if unlikely(n > room):
        n = 0 if bulk else room
    if n == 0:
        return 0
    store_relaxed_u32(&r.prod_head, head + n)
    ring_put(r, head, objs, n)
    # Release, with the acquire of prod_tail in a dequeue: the objects have arrived.
    store_release_u32(&r.prod_tail, head + n)
    return n


cdef inline uint32_t ring_mp_give(ring_t *r, void *const *objs, uint32_t n,
                                  bint bulk) noexcept nogil:
    """Enqueue n objects (bulk: all or nothing), beside other producers; return how many."""
    cdef uint32_t head, room, take
    while True:
        # Acquire, with the release in cas_u32 of the producer that moved the head here: we then
        # read no older cons_tail than it did, so the difference below cannot become negative.
        head = load_acquire_u32(&r.prod_head)
        # A head that is already old only makes the room look larger, and then the cas fails.
        room = r.capacity + load_acquire_u32(&r.cons_tail) - head
        take = n if n <= room else (0 if bulk else room)
        if take == 0:
            return 0
        if cas_u32(&r.prod_head, head, head + take):
            break
    ring_put(r, head, objs, take)
    # Acquire, with the release of the producer before us: what is published below covers its
    # objects too.
    if unlikely(load_acquire_u32(&r.prod_tail) != head):
        ring_await(&r.prod_tail, head)
    store_release_u32(&r.prod_tail, head + take)
    return take


cdef inline uint32_t ring_sp_enqueue(ring_t *r, void *const *objs, uint32_t n) noexcept nogil:
    """Enqueue n objects or none, as the only producer; return n or 0."""
    return ring_sp_give(r, objs, n, True)


cdef inline uint32_t ring_sp_enqueue_burst(ring_t *r, void *const *objs,
                                           uint32_t n) noexcept nogil:
    """Enqueue the first of n objects that fit, as the only producer; return how many."""
    return ring_sp_give(r, objs, n, False)


cdef inline uint32_t ring_mp_enqueue(ring_t *r, void *const *objs, uint32_t n) noexcept nogil:
    """Enqueue n objects or none, beside other producers; return n or 0."""
    return ring_mp_give(r, objs, n, True)


cdef inline uint32_t ring_mp_enqueue_burst(ring_t *r, void *const *objs,
                                           uint32_t n) noexcept nogil:
    """Enqueue the first of n objects that fit, beside other producers; return how many."""
    return ring_mp_give(r, objs, n, False)


# Dequeue.  The orders are those of an enqueue with the sides exchanged.

cdef inline uint32_t ring_sc_take(ring_t *r, void **objs, uint32_t n, bint bulk) noexcept nogil:
    """Dequeue n objects (bulk: all or nothing), as the only consumer; return how many."""
    cdef uint32_t head = load_relaxed_u32(&r.cons_head)        # ours alone
    # Acquire, with the release of prod_tail in an enqueue: the objects have arrived.
    cdef uint32_t used = load_acquire_u32(&r.prod_tail) - head
    dcheck(used <= r.capacity)
    if n > used:
        n = 0 if bulk else used
    if n == 0:
        return 0
    store_relaxed_u32(&r.cons_head, head + n)
    ring_get(r, head, objs, n)
    # Release, with the acquire of cons_tail in an enqueue: the slots have been read.
    store_release_u32(&r.cons_tail, head + n)
    return n


cdef inline uint32_t ring_mc_take(ring_t *r, void **objs, uint32_t n, bint bulk) noexcept nogil:
    """Dequeue n objects (bulk: all or nothing) beside other consumers; return how many."""
    cdef uint32_t head, used, take
    while True:
        head = load_acquire_u32(&r.cons_head)
        used = load_acquire_u32(&r.prod_tail) - head
        take = n if n <= used else (0 if bulk else used)
        if take == 0:
            return 0
        if cas_u32(&r.cons_head, head, head + take):
            break
    ring_get(r, head, objs, take)
    if unlikely(load_acquire_u32(&r.cons_tail) != head):
        ring_await(&r.cons_tail, head)
    store_release_u32(&r.cons_tail, head + take)
    return take


cdef inline uint32_t ring_sc_dequeue(ring_t *r, void **objs, uint32_t n) noexcept nogil:
    """Dequeue up to n objects, oldest first, as the only consumer; return how many."""
    return ring_sc_take(r, objs, n, False)


cdef inline uint32_t ring_sc_dequeue_bulk(ring_t *r, void **objs, uint32_t n) noexcept nogil:
    """Dequeue n objects or none, as the only consumer; return n or 0."""
    return ring_sc_take(r, objs, n, True)


cdef inline uint32_t ring_mc_dequeue(ring_t *r, void **objs, uint32_t n) noexcept nogil:
    """Dequeue up to n objects, beside other consumers; return how many."""
    return ring_mc_take(r, objs, n, False)


cdef inline uint32_t ring_mc_dequeue_bulk(ring_t *r, void **objs, uint32_t n) noexcept nogil:
    """Dequeue n objects or none, beside other consumers; return n or 0."""
    return ring_mc_take(r, objs, n, True)


# The way the ring was made for.

cdef inline uint32_t ring_enqueue(ring_t *r, void *const *objs, uint32_t n) noexcept nogil:
    """Enqueue n objects or none, the way the ring was made for; return n or 0."""
    if ring_one_producer(r):
        return ring_sp_enqueue(r, objs, n)
    return ring_mp_enqueue(r, objs, n)


cdef inline uint32_t ring_enqueue_burst(ring_t *r, void *const *objs, uint32_t n) noexcept nogil:
    """Enqueue the first of n objects that fit, the way the ring was made for; return how many."""
    if ring_one_producer(r):
        return ring_sp_enqueue_burst(r, objs, n)
    return ring_mp_enqueue_burst(r, objs, n)


cdef inline uint32_t ring_dequeue(ring_t *r, void **objs, uint32_t n) noexcept nogil:
    """Dequeue up to n objects, the way the ring was made for; return how many."""
    if ring_one_consumer(r):
        return ring_sc_dequeue(r, objs, n)
    return ring_mc_dequeue(r, objs, n)


cdef inline uint32_t ring_dequeue_bulk(ring_t *r, void **objs, uint32_t n) noexcept nogil:
    """Dequeue n objects or none, the way the ring was made for; return n or 0."""
    if ring_one_consumer(r):
        return ring_sc_dequeue_bulk(r, objs, n)
    return ring_mc_dequeue_bulk(r, objs, n)


cdef uint32_t checked_kind(str kind, bint exact) except? 0xFFFFFFFF
cdef int check_count(object count, uint32_t kind) except -1

cdef class Ring:
    cdef ring_t *r              # owned; NULL before __init__, or while that fails
    cdef Py_ssize_t shape       # slots
    cdef Py_ssize_t exports     # views of them that live
    cdef int require(self) except -1
    cdef uint32_t give(self, list words, bint bulk) except? 0xFFFFFFFF
    cdef list take(self, n, bint bulk)
