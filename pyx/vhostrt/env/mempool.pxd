"""Pools of objects of one size, with a cache for each lcore.

Owner:    whoever called mempool_create; an object belongs to its getter until it is put back.
Threads:  get and put from any: an lcore says its own id, every other thread LCORE_NONE and goes
          without a cache.  create, grow and free from the control thread.
Fails:    get is all or nothing: -ENOBUFS, even while other lcores' caches hold objects.
"""
from cython cimport unlikely
from libc.errno cimport ENOBUFS
from libc.stdint cimport uint32_t
from vhostrt.base.atomics cimport load_relaxed_u32, store_relaxed_u32
from vhostrt.base.check cimport dcheck
from vhostrt.env.lcore cimport LCORE_MAX
from vhostrt.env.ring cimport copy_objs, ring_mc_dequeue_bulk, ring_mp_enqueue, ring_t

cdef enum:
    MEMPOOL_CACHE_MAX = 512

cdef struct mempool_cache_t:
    # Used by its own lcore alone; objs[len - 1] is the last one put, and the next to get.
    uint32_t len                # objects in; others read it relaxed
    uint32_t size               # what a refill and a flush leave in
    uint32_t flush              # a put that reaches this flushes: 1.5 times size
    uint32_t unused
    void *objs[1]               # really 3 * size, more than a put before its flush ever fills

cdef struct mempool_chunk_t:
    # A block of objects; they begin a cache line further on.
    mempool_chunk_t *next
    uint32_t count

cdef struct mempool_t:
    ring_t *ring                # the objects that nobody has and no cache holds
    mempool_chunk_t *chunks
    uint32_t count              # objects there are; written by create and grow
    uint32_t count_max
    uint32_t stride             # bytes from one object to the next, whole cache lines
    uint32_t cache              # size of each cache; 0: none
    int node
    mempool_cache_t *caches[1024]       # by lcore id; NULL where there is none

cdef mempool_t *mempool_create(uint32_t count, uint32_t count_max, uint32_t size,
                               uint32_t cache, int node) noexcept nogil
cdef int mempool_grow(mempool_t *mp, uint32_t count) noexcept nogil
cdef int mempool_free(mempool_t *mp) noexcept nogil
cdef uint32_t mempool_count(mempool_t *mp) noexcept nogil
cdef bint mempool_owns(mempool_t *mp, const void *at) noexcept nogil
cdef int mempool_refill(mempool_t *mp, mempool_cache_t *cache, void **objs,
                        uint32_t n) noexcept nogil


cdef inline mempool_cache_t *mempool_cache(mempool_t *mp, uint32_t lcore) noexcept nogil:
    """Return the cache of an lcore, or NULL: LCORE_NONE, or it was not enabled at creation."""
    return mp.caches[lcore] if lcore < <uint32_t>LCORE_MAX else NULL


cdef inline int mempool_get(mempool_t *mp, uint32_t lcore, void **objs, uint32_t n) noexcept nogil:
    """Get n objects, the last put first; 0, or -ENOBUFS and none."""
    cdef mempool_cache_t *cache = mempool_cache(mp, lcore)
    cdef void **top
    cdef uint32_t have, i
    if cache is NULL:
        return 0 if ring_mc_dequeue_bulk(mp.ring, objs, n) == n else -ENOBUFS
    have = load_relaxed_u32(&cache.len)
    if unlikely(have < n):
        return mempool_refill(mp, cache, objs, n)
    top = cache.objs + have
    for i in range(n):
        objs[i] = top[-1 - <Py_ssize_t>i]
    store_relaxed_u32(&cache.len, have - n)
    return 0


cdef inline void *mempool_get_one(mempool_t *mp, uint32_t lcore) noexcept nogil:
    """Get one object; NULL when there is none."""
    cdef void *obj = NULL
    return obj if mempool_get(mp, lcore, &obj, 1) == 0 else NULL


cdef inline void mempool_put(mempool_t *mp, uint32_t lcore, void *const *objs,
                             uint32_t n) noexcept nogil:
    """Give n objects of this pool back."""
    cdef mempool_cache_t *cache = mempool_cache(mp, lcore)
    cdef uint32_t have
    cdef uint32_t done
    if cache is NULL or n > cache.size:
        done = ring_mp_enqueue(mp.ring, objs, n)
        dcheck(done == n)                                       # it has room for all there are
        return
    have = load_relaxed_u32(&cache.len)
    copy_objs(&cache.objs[have], objs, n)
    have += n
    if unlikely(have >= cache.flush):
        done = ring_mp_enqueue(mp.ring, &cache.objs[cache.size], have - cache.size)
        dcheck(done == have - cache.size)
        have = cache.size
    store_relaxed_u32(&cache.len, have)


cdef class Mempool:
    cdef mempool_t *mp          # owned; NULL after free
    cdef int require(self) except -1
