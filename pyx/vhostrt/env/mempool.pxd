"""Pools of objects of one size, with a cache for each lcore.

Owner:    whoever called mempool_create; an object belongs to its getter until it is put back.
Threads:  get and put from any: an lcore says its own id, every other thread LCORE_NONE and goes
          without a cache.  create, grow and free from the control thread.
Fails:    get is all or nothing: -ENOBUFS, even while other lcores' caches hold objects.  In debug
          builds a put of what is no object of the pool, or home already, stops the process; in the
          others mempool_audit finds it.
"""
from cython cimport unlikely
from libc.errno cimport ENOBUFS
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from vhostrt.base.atomics cimport load_relaxed_u32, store_relaxed_u32
from vhostrt.base.check cimport IS_DEBUG, dcheck
from vhostrt.env.lcore cimport LCORE_MAX
from vhostrt.env.ring cimport copy_objs, ring_mc_dequeue_bulk, ring_mp_enqueue, ring_t

cdef enum:
    MEMPOOL_CACHE_MAX = 512

cdef struct mempool_cache_t:
    # Used by its own lcore alone; objs[len - 1] is the last one put, and the next to get.
    uint32_t len                # objects in; others read it relaxed
    uint32_t size               # what a refill and a flush leave in
    uint32_t flush              # a put that reaches this flushes: 1.5 times size
    uint32_t empty              # gets that found too few; this and the next for statistics
    uint64_t refills
    uint64_t flushes
    void *objs[1]               # really 3 * size, more than a put before its flush ever fills

cdef struct mempool_chunk_t:
    # A block of objects; they begin a cache line further on.
    mempool_chunk_t *next
    uint8_t *marks              # in debug builds, for each object: 1 while it is out
    uint32_t count
    uint32_t first              # objects of the pool before these

# Called for each object, of which index is the number from 0 on.
ctypedef void (*mempool_fn)(void *ctx, void *obj, uint32_t index) noexcept nogil

cdef struct mempool_t:
    ring_t *ring                # the objects that nobody has and no cache holds
    mempool_chunk_t *chunks
    uint32_t count              # objects there are; written by create and grow
    uint32_t count_max
    uint32_t stride             # bytes from one object to the next, whole cache lines
    uint32_t size               # bytes of an object that were asked for
    uint32_t cache              # size of each cache; 0: none
    uint32_t empty              # gets without a cache that found too few
    int node
    mempool_fn init             # of new objects; NULL: they stay zero
    void *init_ctx
    mempool_cache_t *caches[1024]       # by lcore id; NULL where there is none

ctypedef struct mempool_audit_t:
    uint32_t count              # objects there are
    uint32_t ring               # entries of the ring, of which many may be wrong
    uint32_t cached             # entries of caches
    uint32_t out                # objects that are nowhere
    uint32_t twice              # entries of an object that has another entry
    uint32_t foreign            # entries that are no object

cdef mempool_t *mempool_create(uint32_t count, uint32_t count_max, uint32_t size,
                               uint32_t cache, int node) noexcept nogil
cdef mempool_t *mempool_create_with(uint32_t count, uint32_t count_max, uint32_t size,
                                    uint32_t cache, int node, mempool_fn init,
                                    void *ctx) noexcept nogil
cdef int mempool_grow(mempool_t *mp, uint32_t count) noexcept nogil
cdef int mempool_free(mempool_t *mp) noexcept nogil
cdef uint32_t mempool_count(mempool_t *mp) noexcept nogil
cdef bint mempool_owns(mempool_t *mp, const void *at) noexcept nogil
cdef uint32_t mempool_walk(mempool_t *mp, mempool_fn fn, void *ctx) noexcept nogil
cdef int mempool_audit(mempool_t *mp, mempool_audit_t *audit) noexcept nogil
cdef int mempool_flush(mempool_t *mp, uint32_t lcore) noexcept nogil
cdef void mempool_mark(mempool_t *mp, void *const *objs, uint32_t n, uint8_t out) noexcept nogil
cdef void mempool_flush_above(mempool_t *mp, mempool_cache_t *cache, uint32_t have,
                              uint32_t keep) noexcept nogil
cdef int mempool_get_shared(mempool_t *mp, void **objs, uint32_t n) noexcept nogil
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
        return mempool_get_shared(mp, objs, n)
    have = load_relaxed_u32(&cache.len)
    if unlikely(have < n):
        return mempool_refill(mp, cache, objs, n)
    top = cache.objs + have
    for i in range(n):
        objs[i] = top[-1 - <Py_ssize_t>i]
    store_relaxed_u32(&cache.len, have - n)
    if IS_DEBUG:
        mempool_mark(mp, objs, n, 1)
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
    if IS_DEBUG:
        mempool_mark(mp, objs, n, 0)
    if cache is NULL or n > cache.size:
        done = ring_mp_enqueue(mp.ring, objs, n)
        dcheck(done == n)                                       # it has room for all there are
        return
    have = load_relaxed_u32(&cache.len)
    copy_objs(&cache.objs[have], objs, n)
    have += n
    if unlikely(have >= cache.flush):
        mempool_flush_above(mp, cache, have, cache.size)
        return
    store_relaxed_u32(&cache.len, have)


cdef class Mempool:
    cdef mempool_t *mp          # owned; NULL after free
    cdef object keep            # what the initialiser needs
    cdef void *pattern          # of an initialiser that is bytes; owned
    cdef int require(self) except -1
    cdef void *new_pattern(self, bytes init, size_t size) except NULL
