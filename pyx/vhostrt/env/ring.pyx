"""Bounded rings of pointers between threads: creation, and the Python face."""
from cpython.buffer cimport PyBuffer_FillInfo
from libc.errno cimport EINVAL, ENOMEM
from libc.stdint cimport uint32_t, uint64_t, uintptr_t
from libc.stdlib cimport free, malloc
from libc.string cimport memset
from vhostrt.base.atomics cimport cpu_pause, load_acquire_u32
from vhostrt.base.check cimport static_check
from vhostrt.base.errors cimport ok
from vhostrt.env.memory cimport env_free, env_owns, env_ready, env_zalloc

cdef extern from "<stdlib.h>" nogil:
    void *aligned_alloc(size_t align, size_t size)

cdef extern from "<sched.h>" nogil:
    int sched_yield()

cdef enum:
    CACHE_LINE = 64
    PAUSES = 64                 # about 1 us of waiting before the CPU is given away

KINDS = {"mp_sc": RING_MP_SC, "sp_sc": RING_SP_SC, "mp_mc": RING_MP_MC, "sp_mc": RING_SP_MC}
SIZE_LIMIT = 0x7fffffff         # as DPDK tells it; the largest power of two below it counts


cdef size_t ring_size(uint32_t slots) noexcept nogil:
    """Return the bytes of a ring of so many slots, in whole cache lines."""
    static_check(sizeof(ring_t) == 3 * CACHE_LINE)
    return (sizeof(ring_t) + slots * sizeof(void *) + CACHE_LINE - 1) & ~<size_t>(CACHE_LINE - 1)


cdef uint32_t ring_slots_for(uint32_t count, uint32_t kind) noexcept nogil:
    """Return the slots of a ring_init with these arguments; 0 when it refuses them."""
    cdef uint32_t slots = 2
    if kind & ~<uint32_t>(RING_EXACT | RING_SP_MC) or count > RING_COUNT_MAX:
        return 0
    if not kind & RING_EXACT:
        return 0 if count < 2 or count & (count - 1) else count
    if count == 0 or count == RING_COUNT_MAX:
        return 0
    while slots <= count:                                       # one is never used
        slots *= 2
    return slots


cdef int ring_init(ring_t *r, uint32_t count, uint32_t kind) noexcept nogil:
    """Make an empty ring at r, which starts a cache line: ring_size(ring_slots_for(...)) bytes.

    kind: RING_MP_SC, SP_SC, MP_MC or SP_MC.  count: slots, of which one is never used; beside
    RING_EXACT the objects that fit.
    0
    -EINVAL  count is no power of two from 2 to RING_COUNT_MAX (RING_EXACT: not 1 to
             RING_COUNT_MAX - 1), or no such kind
    """
    cdef uint32_t slots = ring_slots_for(count, kind)
    if slots == 0:
        return -EINVAL
    memset(r, 0, ring_size(slots))
    r.mask = slots - 1
    r.capacity = count if kind & RING_EXACT else slots - 1
    r.kind = kind
    return 0


cdef ring_t *ring_create(uint32_t count, uint32_t kind, int node) noexcept nogil:
    """Return a new ring on a NUMA node (-1: any), or NULL: no memory, or ring_init refuses.

    The memory is the environment's when that is initialised, and the C library's otherwise.
    """
    cdef ring_t *r
    cdef uint32_t slots = ring_slots_for(count, kind)
    if slots == 0:
        return NULL
    if env_ready():
        r = <ring_t *>env_zalloc(ring_size(slots), CACHE_LINE, node)
    else:
        r = <ring_t *>aligned_alloc(CACHE_LINE, ring_size(slots))
    if r is not NULL:
        ring_init(r, count, kind)
    return r


cdef void ring_free(ring_t *r) noexcept nogil:
    """Give a ring of ring_create back; NULL is allowed.  No thread may be in it any more."""
    if env_owns(r):
        env_free(r)
    else:
        free(r)


cdef void ring_await(const uint32_t *tail, uint32_t turn) noexcept nogil:
    """Wait until *tail is turn: the threads that took slots before us have published theirs.

    Such a thread may have been preempted between the two, so after a while the CPU goes to it.
    """
    cdef uint32_t n = 0
    while load_acquire_u32(tail) != turn:
        n += 1
        if n % PAUSES:
            cpu_pause()
        else:
            sched_yield()


# The Python face.

cdef uint32_t checked_kind(str kind, bint exact) except? 0xFFFFFFFF:
    """Return RING_* of a kind's name."""
    if kind not in KINDS:
        raise ValueError(f"ring of kind {kind!r}: the kinds are {', '.join(KINDS)}")
    return <uint32_t>KINDS[kind] | (RING_EXACT if exact else 0)


cdef int check_count(object count, uint32_t kind) except -1:
    """Raise EINVAL for a count that ring_init refuses."""
    if 0 <= count <= RING_COUNT_MAX and ring_slots_for(count, kind):
        return 0
    if kind & RING_EXACT:
        ok(-EINVAL, f"ring of {count} objects: from 1 to {RING_COUNT_MAX - 1} can be had")
    ok(-EINVAL, f"ring of {count} slots: Requested size is invalid, must be power of 2, and do "
                f"not exceed the size limit {SIZE_LIMIT}")
    return 0


cdef class Ring:
    """A ring for tests and for the control plane; it moves integers of pointer size.

    count is the number of slots, a power of two; one fewer can be used.  With exact, count objects
    fit and it may be any number; the memory is that of the next power of two.  kind is "mp_sc",
    "sp_sc", "mp_mc" or "sp_mc" and says which threads may call, as in ring.pxd.  node: NUMA node,
    -1 for any.  It ends with the last reference.  OSError EINVAL or ENOMEM.
    """

    def __init__(self, count: int, kind: str = "mp_sc", node: int = -1, *, exact: bool = False):
        cdef uint32_t c_kind = checked_kind(kind, exact)
        check_count(count, c_kind)
        if self.r is not NULL:
            raise TypeError("a ring is made once")
        self.r = ring_create(count, c_kind, node)
        if self.r is NULL:
            size = ring_size(ring_slots_for(count, c_kind))
            ok(-ENOMEM, f"ring of {count} slots: Cannot reserve memory, {size} bytes")
        self.shape = self.r.mask + 1

    def __dealloc__(self):
        ring_free(self.r)

    cdef int require(self) except -1:
        if self.r is NULL:
            raise ValueError("the ring has been freed, or was never made")
        return 0

    def __len__(self) -> int:
        """Return how many objects are in."""
        self.require()
        return ring_count(self.r)

    def __getbuffer__(self, Py_buffer *view, int flags):
        self.require()
        PyBuffer_FillInfo(view, self, ring_slots(self.r), self.shape * sizeof(void *), 0, flags)
        self.exports += 1

    def __releasebuffer__(self, Py_buffer *view):
        self.exports -= 1

    @property
    def capacity(self) -> int:
        """Objects that fit."""
        self.require()
        return self.r.capacity

    @property
    def room(self) -> int:
        """Objects that still fit."""
        self.require()
        return ring_room(self.r)

    @property
    def empty(self) -> bool:
        """True when nothing is in."""
        self.require()
        return ring_is_empty(self.r)

    @property
    def full(self) -> bool:
        """True when nothing more fits."""
        self.require()
        return ring_is_full(self.r)

    @property
    def kind(self) -> str:
        """The name of its kind."""
        self.require()
        return {kind: name for name, kind in KINDS.items()}[self.r.kind & ~<uint32_t>RING_EXACT]

    @property
    def exact(self) -> bool:
        """True when the capacity is the count it was made with."""
        self.require()
        return bool(self.r.kind & RING_EXACT)

    @property
    def slots(self):
        """The slots as a NumPy array of uint64 that shares the memory and keeps the ring."""
        import numpy
        return numpy.frombuffer(self, dtype=numpy.uint64)

    def enqueue(self, words) -> int:
        """Enqueue all integers of a sequence or none; return how many."""
        return self.give(list(words), True)

    def enqueue_burst(self, words) -> int:
        """Enqueue the first integers of a sequence, those that fit; return how many."""
        return self.give(list(words), False)

    cdef uint32_t give(self, list words, bint bulk) except? 0xFFFFFFFF:
        cdef uint32_t n = len(words)
        cdef uint32_t i
        cdef void **objs
        self.require()
        objs = <void **>malloc(max(n, 1) * sizeof(void *))
        if objs is NULL:
            raise MemoryError
        try:
            for i in range(n):
                objs[i] = <void *><uintptr_t>words[i]
            return ring_enqueue(self.r, objs, n) if bulk else ring_enqueue_burst(self.r, objs, n)
        finally:
            free(objs)

    def dequeue(self, n: int = 1) -> list:
        """Return up to n integers, oldest first."""
        return self.take(n, False)

    def dequeue_bulk(self, n: int) -> list:
        """Return n integers, oldest first, or none of them while there are fewer."""
        return self.take(n, True)

    cdef list take(self, n, bint bulk):
        cdef void **objs
        cdef uint32_t i, got
        self.require()
        # More than it can hold are never there.
        cdef uint32_t want = min(max(n, 0), <uint64_t>self.r.capacity + 1)
        objs = <void **>malloc(max(want, 1) * sizeof(void *))
        if objs is NULL:
            raise MemoryError
        try:
            got = ring_dequeue_bulk(self.r, objs, want) if bulk else ring_dequeue(self.r, objs,
                                                                                  want)
            return [<uintptr_t>objs[i] for i in range(got)]
        finally:
            free(objs)
