"""Bounded rings of pointers between threads: creation, and the Python face."""
from cpython.buffer cimport PyBuffer_FillInfo
from libc.errno cimport EINVAL
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
    BATCH = 256                 # objects that the Python face moves at a time

KINDS = {"mp_sc": RING_MP_SC, "sp_sc": RING_SP_SC, "mp_mc": RING_MP_MC}


cdef size_t ring_size(uint32_t count) noexcept nogil:
    """Return the bytes of a ring of count slots, in whole cache lines."""
    static_check(sizeof(ring_t) == 3 * CACHE_LINE)
    return (sizeof(ring_t) + count * sizeof(void *) + CACHE_LINE - 1) & ~<size_t>(CACHE_LINE - 1)


cdef int ring_init(ring_t *r, uint32_t count, uint32_t kind) noexcept nogil:
    """Make an empty ring of ring_size(count) bytes at r, which starts a cache line.

    0, or -EINVAL unless count is a power of two from 2 to RING_COUNT_MAX and kind a RING_*.
    """
    if count < 2 or count > RING_COUNT_MAX or count & (count - 1) or kind > RING_MP_MC:
        return -EINVAL
    memset(r, 0, ring_size(count))
    r.mask = count - 1
    r.capacity = count - 1
    r.kind = kind
    return 0


cdef ring_t *ring_create(uint32_t count, uint32_t kind, int node) noexcept nogil:
    """Return a new ring on a NUMA node (-1: any), or NULL: no memory, or ring_init refuses.

    The memory is the environment's when that is initialised, and the C library's otherwise.
    """
    cdef ring_t *r
    if count > RING_COUNT_MAX:
        return NULL
    if env_ready():
        r = <ring_t *>env_zalloc(ring_size(count), CACHE_LINE, node)
    else:
        r = <ring_t *>aligned_alloc(CACHE_LINE, ring_size(count))
    if r is NULL:
        return NULL
    if ring_init(r, count, kind) < 0:
        ring_free(r)
        return NULL
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


cdef class Ring:
    """A ring for tests and for the control plane; it moves integers of pointer size.

    count is the number of slots, a power of two; one fewer can be used.  kind is "mp_sc",
    "sp_sc" or "mp_mc" and says which threads may call, as in ring.pxd.  Raises OSError EINVAL.
    """

    def __cinit__(self, count: int, kind: str = "mp_sc", node: int = -1):
        if kind not in KINDS:
            raise ValueError(f"ring of kind {kind!r}: the kinds are {', '.join(KINDS)}")
        if not 2 <= count <= RING_COUNT_MAX or count & (count - 1):
            ok(-EINVAL, f"ring of {count} slots, not a power of two from 2 to {RING_COUNT_MAX}")
        self.r = ring_create(count, KINDS[kind], node)
        if self.r is NULL:
            raise MemoryError(f"ring of {count} slots: {ring_size(count)} bytes cannot be had")
        self.shape = count

    def __dealloc__(self):
        ring_free(self.r)

    def __len__(self) -> int:
        return ring_count(self.r)

    def __getbuffer__(self, Py_buffer *view, int flags):
        PyBuffer_FillInfo(view, self, ring_slots(self.r), self.shape * sizeof(void *), 0, flags)

    @property
    def capacity(self) -> int:
        """Usable slots."""
        return self.r.capacity

    @property
    def slots(self):
        """The slots as a NumPy array of uint64 that shares the memory and keeps the ring."""
        import numpy
        return numpy.frombuffer(self, dtype=numpy.uint64)

    def enqueue(self, words) -> int:
        """Enqueue all integers of a sequence or none; return how many."""
        cdef list given = list(words)
        cdef uint32_t n = len(given)
        cdef uint32_t i
        cdef void **objs = <void **>malloc(max(n, 1) * sizeof(void *))
        if objs is NULL:
            raise MemoryError
        try:
            for i in range(n):
                objs[i] = <void *><uintptr_t>given[i]
            return ring_enqueue(self.r, objs, n)
        finally:
            free(objs)

    def dequeue(self, n: int = 1) -> list:
        """Return up to n integers, oldest first."""
        cdef void *objs[BATCH]
        cdef uint32_t i, want, got
        cdef list words = []
        while len(words) < n:
            want = min(<uint64_t>(n - len(words)), <uint64_t>BATCH)
            got = ring_dequeue(self.r, objs, want)
            for i in range(got):
                words.append(<uintptr_t>objs[i])
            if got < want:
                break
        return words
