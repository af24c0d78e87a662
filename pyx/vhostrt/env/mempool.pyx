"""Pools of objects of one size, with a cache for each lcore.

Owner:    whoever called mempool_create; an object belongs to its getter until it is put back.
Threads:  get and put from any; create, grow and free from the control thread.
Fails:    NULL or -errno; OSError with a sentence from the Python face.
"""
from collections import namedtuple

from libc.errno cimport EBUSY, EINVAL, ENOBUFS, ENOMEM, ENOSPC
from libc.stdint cimport uint8_t, uint32_t, uintptr_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset
from vhostrt.base.atomics cimport (exchange_u8, fetch_add_u32, load_acquire_ptr, load_relaxed_u32,
                                   load_relaxed_u64, store_relaxed_u32, store_relaxed_u64,
                                   store_release_ptr)
from vhostrt.base.capsule cimport function_of
from vhostrt.base.check cimport IS_DEBUG, check, static_check
from vhostrt.base.errors cimport ok
from vhostrt.env.lcore cimport LCORE_MAX, LCORE_NONE, LCORE_ROLE_OFF, lcore_role
from vhostrt.env.memory cimport env_free, env_ready, env_zalloc
from vhostrt.env.ring cimport (RING_COUNT_MAX, RING_EXACT, RING_MP_MC, ring_count, ring_create,
                               ring_free, ring_mc_dequeue_bulk, ring_mp_enqueue, ring_slots)

cdef enum:
    CACHE_LINE = 64
    BATCH = 64                  # objects enqueued at a time when the pool grows
    SIZE_LIMIT = 1 << 30        # bytes of an object

cdef const char *INIT = b"void (void *, void *, uint32_t)"


cdef uint32_t lcores() noexcept nogil:
    """Return how many lcores there are, those of services among them."""
    cdef uint32_t lcore, n = 0
    for lcore in range(<uint32_t>LCORE_MAX):
        n += lcore_role(lcore) != LCORE_ROLE_OFF
    return n


cdef int add_caches(mempool_t *mp) noexcept nogil:
    """Give each enabled lcore its cache; 0 or -ENOMEM."""
    cdef mempool_cache_t *cache
    cdef uint32_t lcore
    cdef size_t size = sizeof(mempool_cache_t) + 3 * <size_t>mp.cache * sizeof(void *)
    for lcore in range(<uint32_t>LCORE_MAX):
        if lcore_role(lcore) == LCORE_ROLE_OFF or mp.cache == 0:
            continue
        cache = <mempool_cache_t *>env_zalloc(size, CACHE_LINE, -1)
        if cache is NULL:
            return -ENOMEM
        cache.size = mp.cache
        cache.flush = max(mp.cache * 3 // 2, mp.cache + 1)
        mp.caches[lcore] = cache
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


cdef mempool_t *mempool_create(uint32_t count, uint32_t count_max, uint32_t size,
                               uint32_t cache, int node) noexcept nogil:
    """Return a pool of count zeroed objects of size bytes, each on its own cache lines, or NULL.

    count_max: up to how many it may grow; 0: not at all.  cache: objects that each lcore enabled
    now may keep, at most 512 and a share of half the objects.  node: NUMA node, -1 for any.
    NULL: no memory, or not initialised; count or size 0; count above count_max; too large.
    """
    return mempool_create_with(count, count_max, size, cache, node, NULL, NULL)


cdef mempool_t *mempool_create_with(uint32_t count, uint32_t count_max, uint32_t size,
                                    uint32_t cache, int node, mempool_fn init,
                                    void *ctx) noexcept nogil:
    """Do as mempool_create, and call init for each object, now and when the pool grows."""
    cdef mempool_t *mp
    cdef uint32_t share = count // 2 // max(lcores(), <uint32_t>1)
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
    mp.size = size
    mp.stride = (size + CACHE_LINE - 1) // CACHE_LINE * CACHE_LINE
    mp.init = init
    mp.init_ctx = ctx
    mp.cache = min(min(cache, <uint32_t>MEMPOOL_CACHE_MAX), share)
    mp.node = node
    mp.ring = ring_create(count_max, RING_MP_MC | RING_EXACT, node)
    if mp.ring is NULL or add_caches(mp) < 0 or mempool_grow(mp, count) < 0:
        release(mp)
        return NULL
    return mp


# Objects.

cdef inline void *object_of(mempool_t *mp, mempool_chunk_t *chunk, uint32_t i) noexcept nogil:
    """Return the i-th object of a chunk, of which i may be the end."""
    return <char *>chunk + CACHE_LINE + <size_t>i * mp.stride


cdef void walk_chunk(mempool_t *mp, mempool_chunk_t *chunk, mempool_fn fn,
                     void *ctx) noexcept nogil:
    cdef uint32_t i
    if fn is not NULL:
        for i in range(chunk.count):
            fn(ctx, object_of(mp, chunk, i), chunk.first + i)


cdef uint32_t mempool_walk(mempool_t *mp, mempool_fn fn, void *ctx) noexcept nogil:
    """Call fn for each object there is, home or out; return how many.  Control thread."""
    cdef mempool_chunk_t *chunk = mp.chunks
    while chunk is not NULL:
        walk_chunk(mp, chunk, fn, ctx)
        chunk = chunk.next
    return mp.count


cdef mempool_chunk_t *find(mempool_t *mp, const void *at, uint32_t *i) noexcept nogil:
    """Return the chunk that an object is in, and which it is there; NULL: it is no object."""
    cdef mempool_chunk_t *chunk = <mempool_chunk_t *>load_acquire_ptr(&mp.chunks)
    cdef uintptr_t first, end
    while chunk is not NULL:
        first = <uintptr_t>object_of(mp, chunk, 0)
        end = <uintptr_t>object_of(mp, chunk, chunk.count)
        if first <= <uintptr_t>at < end:
            i[0] = <uint32_t>((<uintptr_t>at - first) // mp.stride)
            return chunk if (<uintptr_t>at - first) % mp.stride == 0 else NULL
        chunk = chunk.next
    return NULL


cdef bint mempool_owns(mempool_t *mp, const void *at) noexcept nogil:
    """True for the address of an object of this pool."""
    cdef uint32_t i
    return find(mp, at, &i) is not NULL


cdef void mempool_mark(mempool_t *mp, void *const *objs, uint32_t n, uint8_t out) noexcept nogil:
    """Note that objects go out, or come home; stop when one is none, or is there already."""
    cdef mempool_chunk_t *chunk
    cdef uint32_t i, at = 0
    for i in range(n):
        chunk = find(mp, objs[i], &at)
        check(chunk is not NULL)                                # it is no object of this pool
        if chunk.marks is not NULL:
            check(exchange_u8(&chunk.marks[at], out) != out)    # put twice, or handed out twice


# The life of a pool.

cdef int mempool_grow(mempool_t *mp, uint32_t count) noexcept nogil:
    """Add count zeroed objects; readers go on meanwhile.  Control thread.

    0
    -EINVAL  count is 0
    -ENOSPC  more than count_max; none was added
    -ENOMEM  none was added
    """
    cdef mempool_chunk_t *chunk
    cdef void *objs[BATCH]
    cdef uint32_t done = 0
    cdef uint32_t n, i
    if count == 0:
        return -EINVAL
    if count > mp.count_max - mp.count:
        return -ENOSPC
    chunk = <mempool_chunk_t *>env_zalloc(CACHE_LINE + <size_t>count * (mp.stride + IS_DEBUG),
                                          CACHE_LINE, mp.node)
    if chunk is NULL:
        return -ENOMEM
    chunk.count = count
    chunk.first = mp.count
    if IS_DEBUG:
        chunk.marks = <uint8_t *>object_of(mp, chunk, count)    # behind the last object
    walk_chunk(mp, chunk, mp.init, mp.init_ctx)
    chunk.next = mp.chunks
    # Release, with the acquire in find: whoever gets one of these objects finds its chunk.
    store_release_ptr(&mp.chunks, chunk)
    store_relaxed_u32(&mp.count, mp.count + count)
    while done < count:
        n = min(count - done, <uint32_t>BATCH)
        for i in range(n):
            objs[i] = object_of(mp, chunk, done + i)
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


# Caches.

cdef int mempool_get_shared(mempool_t *mp, void **objs, uint32_t n) noexcept nogil:
    """Get n objects past any cache; 0, or -ENOBUFS and none."""
    if ring_mc_dequeue_bulk(mp.ring, objs, n) != n:
        fetch_add_u32(&mp.empty, 1)
        return -ENOBUFS
    if IS_DEBUG:
        mempool_mark(mp, objs, n, 1)
    return 0


cdef void mempool_flush_above(mempool_t *mp, mempool_cache_t *cache, uint32_t have,
                              uint32_t keep) noexcept nogil:
    """Leave the first `keep` of the `have` objects in a cache, and give the others to the ring."""
    check(ring_mp_enqueue(mp.ring, &cache.objs[keep], have - keep) == have - keep)
    store_relaxed_u32(&cache.len, keep)
    store_relaxed_u64(&cache.flushes, load_relaxed_u64(&cache.flushes) + 1)


cdef int mempool_flush(mempool_t *mp, uint32_t lcore) noexcept nogil:
    """Give what the cache of an lcore holds to the ring, for others to get.

    By that lcore, or while it does not use the pool.  The number of objects; -EINVAL: no cache.
    """
    cdef mempool_cache_t *cache = mempool_cache(mp, lcore)
    cdef uint32_t have
    if cache is NULL:
        return -EINVAL
    have = load_relaxed_u32(&cache.len)
    if have:
        mempool_flush_above(mp, cache, have, 0)
    return have


cdef int refill(mempool_t *mp, mempool_cache_t *cache, void **objs, uint32_t n) noexcept nogil:
    """Get n objects, more than the cache holds; 0, or -ENOBUFS and none."""
    cdef uint32_t have = load_relaxed_u32(&cache.len)
    cdef uint32_t want = cache.size + n - have
    cdef uint32_t i
    # A small get leaves the cache full, so that the next ones do not come here.
    if n <= cache.size and ring_mc_dequeue_bulk(mp.ring, &cache.objs[have], want) == want:
        for i in range(n):
            objs[i] = cache.objs[cache.size + n - 1 - i]
        store_relaxed_u32(&cache.len, cache.size)
        store_relaxed_u64(&cache.refills, load_relaxed_u64(&cache.refills) + 1)
        return 0
    if ring_mc_dequeue_bulk(mp.ring, &objs[have], n - have) != n - have:
        store_relaxed_u32(&cache.empty, load_relaxed_u32(&cache.empty) + 1)
        return -ENOBUFS
    for i in range(have):
        objs[i] = cache.objs[have - 1 - i]
    store_relaxed_u32(&cache.len, 0)
    return 0


cdef int mempool_refill(mempool_t *mp, mempool_cache_t *cache, void **objs,
                        uint32_t n) noexcept nogil:
    """Get n objects, more than the cache holds; 0, or -ENOBUFS and none."""
    cdef int rc = refill(mp, cache, objs, n)
    if IS_DEBUG and rc == 0:
        mempool_mark(mp, objs, n, 1)
    return rc


# Audit.

cdef void account(mempool_t *mp, const void *obj, uint8_t *seen,
                  mempool_audit_t *audit) noexcept nogil:
    """Note one entry."""
    cdef uint32_t i = 0
    cdef mempool_chunk_t *chunk = find(mp, obj, &i)
    if chunk is NULL:
        audit.foreign += 1
    elif seen[chunk.first + i]:
        audit.twice += 1
    else:
        seen[chunk.first + i] = 1
        audit.out -= 1


cdef int mempool_audit(mempool_t *mp, mempool_audit_t *audit) noexcept nogil:
    """Look where every object is, while nobody gets, puts or grows.  Control thread.

    0, or -ENOMEM.  All is well when nothing is twice, nothing foreign, and out is what was got.
    """
    cdef uint8_t *seen = <uint8_t *>calloc(mp.count, 1)
    cdef mempool_cache_t *cache
    cdef uint32_t i, lcore
    memset(audit, 0, sizeof(mempool_audit_t))
    if seen is NULL:
        return -ENOMEM
    audit.count = audit.out = mp.count
    audit.ring = ring_count(mp.ring)
    for i in range(audit.ring):
        account(mp, ring_slots(mp.ring)[(mp.ring.cons_tail + i) & mp.ring.mask], seen, audit)
    for lcore in range(<uint32_t>LCORE_MAX):
        cache = mp.caches[lcore]
        if cache is not NULL:
            audit.cached += cache.len
            for i in range(cache.len):
                account(mp, cache.objs[i], seen, audit)
    free(seen)
    return 0


# The Python face.

cdef struct pattern_t:
    const char *bytes_
    size_t size                 # of them
    size_t object               # bytes to fill


cdef void fill(void *ctx, void *obj, uint32_t _index) noexcept nogil:
    """Repeat a pattern over an object."""
    cdef pattern_t *pattern = <pattern_t *>ctx
    cdef size_t done = 0
    while done < pattern.object:
        memcpy(<char *>obj + done, pattern.bytes_, min(pattern.size, pattern.object - done))
        done += pattern.size


cdef void note(void *ctx, void *obj, uint32_t index) noexcept nogil:
    (<uintptr_t *>ctx)[index] = <uintptr_t>obj


class Audit(namedtuple("Audit", "count ring cached out twice foreign")):
    """Where the objects of a pool are: entries of the ring and of caches, objects that are out.

    twice: entries of objects that have another; foreign: entries that are none of its objects.
    """

    @property
    def sound(self) -> bool:
        """True when each object is in one place or out, and there is nothing else."""
        return not self.twice and not self.foreign

    def __str__(self) -> str:
        text = (f"pool of {self.count} objects: {self.ring} in the ring, {self.cached} in caches, "
                f"{self.out} out")
        if self.twice:
            text += f"; {self.twice} put twice"
        if self.foreign:
            text += f"; {self.foreign} that are not its own"
        return text


cdef class Mempool:
    """A pool for tests and for the control plane, which has no cache; objects are addresses.

    count objects of size bytes; count_max: how many there may be after grow (0: count); cache:
    objects each lcore may keep; node: NUMA node, -1 for any.  init: bytes, which are repeated over
    each new object, or a capsule of a C function `void (void *, void *, uint32_t)`, noexcept
    nogil, that is called with init_arg, the object and its number.  OSError with a sentence.
    """

    def __cinit__(self, count: int, size: int, *, count_max: int = 0, cache: int = 0,
                  node: int = -1, init=None, init_arg: int = 0):
        cdef mempool_fn fn = NULL
        cdef void *ctx = <void *><uintptr_t>init_arg
        what = f"pool of {count} objects of {size} bytes"
        most = count_max or count
        if not 0 < count <= most < RING_COUNT_MAX or not 0 < size <= SIZE_LIMIT or cache < 0:
            ok(-EINVAL, f"{what}, at most {most}, caches of {cache}")
        self.keep = init
        if isinstance(init, bytes):
            fn = fill
            ctx = self.new_pattern(init, size)
        elif init is not None:
            fn = <mempool_fn>function_of(init, INIT, f"initialiser of a {what}")
        self.mp = mempool_create_with(count, most, size, min(cache, MEMPOOL_CACHE_MAX), node, fn,
                                      ctx)
        if self.mp is NULL:
            ok(-ENOMEM, what)

    def __dealloc__(self):
        mempool_free(self.mp)
        free(self.pattern)

    cdef void *new_pattern(self, bytes init, size_t size) except NULL:
        """Return the context of fill; it is freed with the pool."""
        cdef pattern_t *pattern
        if not init:
            raise ValueError("the pattern of a pool's objects has no bytes")
        self.pattern = calloc(1, sizeof(pattern_t))
        if self.pattern is NULL:
            raise MemoryError
        pattern = <pattern_t *>self.pattern
        pattern.bytes_ = init
        pattern.size = len(init)
        pattern.object = size
        return pattern

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

    @property
    def size(self) -> int:
        """Bytes of an object, as it was asked for."""
        self.require()
        return self.mp.size

    @property
    def node(self) -> int:
        """The NUMA node it was asked for on; -1: any."""
        self.require()
        return self.mp.node

    def objects(self) -> list:
        """Return the addresses of all objects, home or out, by their numbers."""
        self.require()
        cdef uintptr_t *found = <uintptr_t *>calloc(self.mp.count, sizeof(uintptr_t))
        cdef uint32_t i
        if found is NULL:
            raise MemoryError
        try:
            return [found[i] for i in range(mempool_walk(self.mp, note, found))]
        finally:
            free(found)

    def audit(self) -> Audit:
        """Look where every object is, while nobody else uses the pool; str() is a sentence."""
        self.require()
        cdef mempool_audit_t audit
        ok(mempool_audit(self.mp, &audit), f"audit of a pool of {self.mp.count} objects")
        return Audit(audit.count, audit.ring, audit.cached, audit.out, audit.twice, audit.foreign)

    def flush(self, lcore: int) -> int:
        """Give what an lcore's cache holds to the others, while it does not use the pool.

        Return the number of objects; OSError EINVAL when it has no cache.
        """
        self.require()
        return ok(mempool_flush(self.mp, lcore), f"flush of the cache of lcore {lcore}")

    def stats(self) -> dict:
        """Return counts: count, home, ring, out, empty (gets that found too few without a cache).

        caches: lcore -> {"objects", "refills", "flushes", "empty"}.
        """
        self.require()
        cdef mempool_cache_t *cache
        home = mempool_count(self.mp)
        found = {"count": self.mp.count, "home": home, "out": self.mp.count - home,
                 "ring": ring_count(self.mp.ring), "empty": load_relaxed_u32(&self.mp.empty),
                 "caches": {}}
        for lcore in range(LCORE_MAX):
            cache = mempool_cache(self.mp, lcore)
            if cache is not NULL:
                found["caches"][lcore] = {
                    "objects": load_relaxed_u32(&cache.len),
                    "refills": load_relaxed_u64(&cache.refills),
                    "flushes": load_relaxed_u64(&cache.flushes),
                    "empty": load_relaxed_u32(&cache.empty)}
        return found

    def dump(self) -> str:
        """Return a table for people."""
        now = self.stats()
        lines = [f"pool of {now['count']} objects of {self.size} bytes, {self.stride} apart, node "
                 f"{self.node}, caches of {self.cache}: {now['ring']} in the ring, {now['out']} "
                 f"out, {now['empty']} gets in vain"]
        lines += [f"cache of lcore {lcore}: {one['objects']} objects, {one['refills']} refills, "
                  f"{one['flushes']} flushes, {one['empty']} gets in vain"
                  for lcore, one in now["caches"].items()]
        return "\n".join(lines)

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
