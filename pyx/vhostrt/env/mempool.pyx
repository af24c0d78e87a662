"""Pools of objects of one size, with a cache for each lcore.

Owner:    whoever called mempool_create; an object belongs to its getter until it is put back.
Threads:  get and put from any; create, grow and free from the control thread.
Fails:    NULL or -errno; OSError with a sentence from the Python face.
"""
from libc.errno cimport EBUSY, EINVAL, ENOBUFS, ENOMEM, ENOSPC
from libc.stdint cimport uint32_t, uintptr_t
from vhostrt.base.atomics cimport load_relaxed_u32, store_relaxed_u32
from vhostrt.base.check cimport check, static_check
from vhostrt.base.errors cimport ok
from vhostrt.env.lcore cimport LCORE_MAX, LCORE_NONE, lcore_count, lcore_next
from vhostrt.env.memory cimport env_free, env_ready, env_zalloc
from vhostrt.env.ring cimport (RING_COUNT_MAX, RING_MP_MC, ring_count, ring_create, ring_free,
                               ring_mc_dequeue_bulk, ring_mp_enqueue)

cdef enum:
    CACHE_LINE = 64
    BATCH = 64                  # objects enqueued at a time when the pool grows
    SIZE_LIMIT = 1 << 30        # bytes of an object


cdef int add_caches(mempool_t *mp) noexcept nogil:
    """Give each enabled lcore its cache; 0 or -ENOMEM."""
    cdef mempool_cache_t *cache
    cdef uint32_t lcore = lcore_next(LCORE_NONE)
    cdef size_t size = sizeof(mempool_cache_t) + 3 * <size_t>mp.cache * sizeof(void *)
    while lcore != LCORE_NONE and mp.cache:
        cache = <mempool_cache_t *>env_zalloc(size, CACHE_LINE, -1)
        if cache is NULL:
            return -ENOMEM
        cache.size = mp.cache
        cache.flush = max(mp.cache * 3 // 2, mp.cache + 1)
        mp.caches[lcore] = cache
        lcore = lcore_next(lcore)
    return 0


cdef void release(mempool_t *mp) noexcept nogil:
    """Free whatever a pool has, also one half made."""
    cdef mempool_chunk_t *chunk = mp.chunks
    cdef mempool_chunk_t *next_
    cdef uint32_t lcore
    while chunk is not NULL:
        next_ = chunk.next
        env_free(chunk)
        chunk = next_
    for lcore in range(<uint32_t>LCORE_MAX):
        env_free(mp.caches[lcore])
    ring_free(mp.ring)
    env_free(mp)


cdef uint32_t slots_for(uint32_t count) noexcept nogil:
    """Return the slots of a ring that holds count objects."""
    cdef uint32_t slots = 2
    while slots <= count:
        slots *= 2
    return slots


cdef mempool_t *mempool_create(uint32_t count, uint32_t count_max, uint32_t size,
                               uint32_t cache, int node) noexcept nogil:
    """Return a pool of count zeroed objects of size bytes, each on its own cache lines, or NULL.

    count_max: up to how many it may grow; 0: not at all.  cache: objects that each lcore enabled
    now may keep, at most 512 and a share of half the objects.  node: NUMA node, -1 for any.
    NULL: no memory, or not initialised; count or size 0; count above count_max; too large.
    """
    cdef mempool_t *mp
    cdef uint32_t share = count // 2 // max(lcore_count(), <uint32_t>1)
    static_check(sizeof(mempool_chunk_t) <= CACHE_LINE)
    if count_max == 0:
        count_max = count
    if count == 0 or size == 0 or count > count_max:
        return NULL
    if count_max >= RING_COUNT_MAX or size > SIZE_LIMIT:
        return NULL
    mp = <mempool_t *>env_zalloc(sizeof(mempool_t), CACHE_LINE, node)
    if mp is NULL:
        return NULL
    mp.count_max = count_max
    mp.stride = (size + CACHE_LINE - 1) // CACHE_LINE * CACHE_LINE
    mp.cache = min(min(cache, <uint32_t>MEMPOOL_CACHE_MAX), share)
    mp.node = node
    mp.ring = ring_create(slots_for(count_max), RING_MP_MC, node)
    if mp.ring is NULL or add_caches(mp) < 0 or mempool_grow(mp, count) < 0:
        release(mp)
        return NULL
    return mp


cdef int mempool_grow(mempool_t *mp, uint32_t count) noexcept nogil:
    """Add count zeroed objects; readers go on meanwhile.  Control thread.

    0
    -EINVAL  count is 0
    -ENOSPC  more than count_max; none was added
    -ENOMEM  none was added
    """
    cdef mempool_chunk_t *chunk
    cdef void *objs[BATCH]
    cdef char *at
    cdef uint32_t done = 0
    cdef uint32_t n, i
    if count == 0:
        return -EINVAL
    if count > mp.count_max - mp.count:
        return -ENOSPC
    chunk = <mempool_chunk_t *>env_zalloc(CACHE_LINE + <size_t>count * mp.stride, CACHE_LINE,
                                          mp.node)
    if chunk is NULL:
        return -ENOMEM
    chunk.count = count
    chunk.next = mp.chunks
    mp.chunks = chunk
    store_relaxed_u32(&mp.count, mp.count + count)
    at = <char *>chunk + CACHE_LINE
    while done < count:
        n = min(count - done, <uint32_t>BATCH)
        for i in range(n):
            objs[i] = at + <size_t>(done + i) * mp.stride
        check(ring_mp_enqueue(mp.ring, objs, n) == n)           # it has room for count_max
        done += n
    return 0


cdef int mempool_free(mempool_t *mp) noexcept nogil:
    """Give a pool back; NULL is allowed.  No lcore may use it any more.  Control thread.

    0, or -EBUSY while objects are out, and then nothing is done.
    """
    if mp is NULL:
        return 0
    # In a forked child the memory is not there.
    if not env_ready():
        return -EINVAL
    if mempool_count(mp) != mp.count:
        return -EBUSY
    release(mp)
    return 0


cdef uint32_t mempool_count(mempool_t *mp) noexcept nogil:
    """Return how many objects are home; while others get and put, a value of the recent past."""
    cdef uint32_t count = ring_count(mp.ring)
    cdef uint32_t lcore
    for lcore in range(<uint32_t>LCORE_MAX):
        if mp.caches[lcore] is not NULL:
            count += load_relaxed_u32(&mp.caches[lcore].len)
    return min(count, load_relaxed_u32(&mp.count))


cdef bint mempool_owns(mempool_t *mp, const void *at) noexcept nogil:
    """True for the address of an object of this pool."""
    cdef mempool_chunk_t *chunk = mp.chunks
    cdef uintptr_t first, end
    while chunk is not NULL:
        first = <uintptr_t>chunk + CACHE_LINE
        end = first + <size_t>chunk.count * mp.stride
        if first <= <uintptr_t>at < end:
            return (<uintptr_t>at - first) % mp.stride == 0
        chunk = chunk.next
    return False


cdef int mempool_refill(mempool_t *mp, mempool_cache_t *cache, void **objs,
                        uint32_t n) noexcept nogil:
    """Get n objects, more than the cache holds; 0, or -ENOBUFS and none."""
    cdef uint32_t have = load_relaxed_u32(&cache.len)
    cdef uint32_t want = cache.size + n - have
    cdef uint32_t i
    # A small get leaves the cache full, so that the next ones do not come here.
    if n <= cache.size and ring_mc_dequeue_bulk(mp.ring, &cache.objs[have], want) == want:
        for i in range(n):
            objs[i] = cache.objs[cache.size + n - 1 - i]
        store_relaxed_u32(&cache.len, cache.size)
        return 0
    if ring_mc_dequeue_bulk(mp.ring, &objs[have], n - have) != n - have:
        return -ENOBUFS
    for i in range(have):
        objs[i] = cache.objs[have - 1 - i]
    store_relaxed_u32(&cache.len, 0)
    return 0


cdef class Mempool:
    """A pool for tests and for the control plane, which has no cache; objects are addresses.

    count objects of size bytes; count_max: how many there may be after grow (0: count); cache:
    objects each lcore may keep; node: NUMA node, -1 for any.  OSError with a sentence.
    """

    def __cinit__(self, count: int, size: int, *, count_max: int = 0, cache: int = 0,
                  node: int = -1):
        what = f"pool of {count} objects of {size} bytes"
        most = count_max or count
        if not 0 < count <= most < RING_COUNT_MAX or not 0 < size <= SIZE_LIMIT or cache < 0:
            ok(-EINVAL, f"{what}, at most {most}, caches of {cache}")
        self.mp = mempool_create(count, most, size, min(cache, MEMPOOL_CACHE_MAX), node)
        if self.mp is NULL:
            ok(-ENOMEM, what)

    def __dealloc__(self):
        mempool_free(self.mp)

    cdef int require(self) except -1:
        if self.mp is NULL:
            raise ValueError("the pool has been freed")
        return 0

    def __len__(self) -> int:
        self.require()
        return mempool_count(self.mp)

    @property
    def count(self) -> int:
        """Objects there are, home or out."""
        self.require()
        return self.mp.count

    @property
    def cache(self) -> int:
        """Objects that each lcore keeps."""
        self.require()
        return self.mp.cache

    @property
    def stride(self) -> int:
        """Bytes from one object to the next."""
        self.require()
        return self.mp.stride

    def get(self, n: int = 1) -> list:
        """Return the addresses of n objects; OSError ENOBUFS when there are not so many."""
        self.require()
        cdef void *objs[BATCH]
        cdef uint32_t i
        if not 0 <= n <= BATCH:
            ok(-EINVAL, f"get of {n} objects, not of 0 to {BATCH}")
        ok(mempool_get(self.mp, LCORE_NONE, objs, n), f"get of {n} objects")
        return [<uintptr_t>objs[i] for i in range(<uint32_t>n)]

    def put(self, objects) -> None:
        """Give objects of this pool back; ValueError for an address that is none."""
        self.require()
        cdef void *at
        cdef list given = list(objects)
        for address in given:
            if not mempool_owns(self.mp, <void *><uintptr_t>address):
                raise ValueError(f"{address:#x} is no object of this pool")
        for address in given:
            at = <void *><uintptr_t>address
            mempool_put(self.mp, LCORE_NONE, &at, 1)

    def grow(self, count: int) -> None:
        """Add count objects; OSError ENOSPC beyond count_max, ENOMEM without memory."""
        self.require()
        if not 0 < count < RING_COUNT_MAX:
            ok(-EINVAL, f"growth by {count} objects")
        ok(mempool_grow(self.mp, count), f"growth by {count} objects")

    def free(self) -> None:
        """Give the pool back; OSError EBUSY while objects are out.  Again: nothing."""
        if self.mp is not NULL:
            out = self.mp.count - mempool_count(self.mp)
            what = f"pool with {out} of its {self.mp.count} objects still out"
            ok(mempool_free(self.mp), what)
            self.mp = NULL
