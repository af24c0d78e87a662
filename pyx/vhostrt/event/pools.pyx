"""Pools of events and messages that grow, on the control thread, when they run low.

A pool begins small.  Whoever finds the cache of its lcore empty looks how many objects are left,
and asks for more in time; who needs one before they are there is told that there is none.

Owner:    pools.create and pools.free, by the control thread.
Threads:  pool_low: any.
"""
from libc.stdint cimport uint32_t
from vhostrt.base.atomics cimport (exchange_u32, load_acquire_ptr, load_relaxed_u32,
                                   store_release_ptr, store_release_u32)
from vhostrt.base.check cimport check
from vhostrt.env.mempool cimport (mempool_count, mempool_create, mempool_free, mempool_grow,
                                  mempool_t)
from vhostrt.env.ring cimport ring_count
from vhostrt.event.post cimport control_node_t, control_post

cdef enum:
    POOLS_MAX = 64
    LOW = 2048                          # objects that are left when more are asked for ...
    STEP = 16384                        # ... and how many at a time
    CACHE = 256                         # kept by each lcore

cdef struct growing_t:
    control_node_t more                 # asks the control thread for more
    mempool_t *pool                     # NULL: the slot is free
    uint32_t asked                      # `more` is on its way
    uint32_t failures                   # times that there was no memory for more

cdef growing_t g_pools[POOLS_MAX]       # written by the control thread


cdef void pool_low(mempool_t *pool) noexcept nogil:
    """Ask for more objects when few are left.  Any thread; when a cache was found empty."""
    cdef uint32_t i
    if ring_count(pool.ring) >= LOW or load_relaxed_u32(&pool.count) == pool.count_max:
        return
    for i in range(<uint32_t>POOLS_MAX):
        if load_acquire_ptr(&g_pools[i].pool) == pool:
            if not load_relaxed_u32(&g_pools[i].asked) and not exchange_u32(&g_pools[i].asked, 1):
                control_post(&g_pools[i].more)
            return


cdef void grow(void *arg) noexcept:
    """Make more.  On the control thread."""
    cdef growing_t *g = <growing_t *>arg
    cdef uint32_t room = 0
    cdef int rc = 0
    if g.pool is not NULL:              # else it was freed while the note was on its way
        room = g.pool.count_max - g.pool.count
    if room:
        with nogil:
            rc = mempool_grow(g.pool, min(room, <uint32_t>STEP))
    if rc < 0:
        g.failures += 1
    store_release_u32(&g.asked, 0)


cdef mempool_t *pool_create(uint32_t first, uint32_t most, size_t size, int node) except NULL:
    """Return a pool of `first` objects of size bytes that grows to `most`.

    node: NUMA node, or any where that one has no memory.  MemoryError.
    """
    cdef growing_t *g = NULL
    cdef uint32_t i
    for i in range(<uint32_t>POOLS_MAX):
        if g_pools[i].pool is NULL:
            g = &g_pools[i]
            break
    check(g is not NULL)                # two for each NUMA node with a reactor
    cdef mempool_t *pool = mempool_create(min(first, most), most, <uint32_t>size, CACHE, node)
    if pool is NULL and node >= 0:
        pool = mempool_create(min(first, most), most, <uint32_t>size, CACHE, -1)
    if pool is NULL:
        raise MemoryError(f"no memory for a pool of {first} objects of {size} bytes")
    # g.asked stays: a note of the slot's last pool may be on its way yet, and there is one of them.
    g.failures = 0
    g.more.run = grow
    g.more.arg = g
    store_release_ptr(&g.pool, pool)
    return pool


cdef void pool_free(mempool_t *pool) noexcept:
    """Free a pool; every object is home.  NULL is allowed."""
    cdef uint32_t i
    if pool is NULL:
        return
    for i in range(<uint32_t>POOLS_MAX):
        if g_pools[i].pool is pool:
            g_pools[i].pool = NULL
    mempool_free(pool)


def forget() -> None:
    """In a forked child: the pools are the parent's."""
    cdef uint32_t i
    for i in range(<uint32_t>POOLS_MAX):
        g_pools[i].pool = NULL


def stats() -> list:
    """Return a dict for each pool: objects there are (count), home, most, bytes from one to the
    next (stride), NUMA node (-1: any), failures to make more."""
    return [{"count": g_pools[i].pool.count, "home": mempool_count(g_pools[i].pool),
             "most": g_pools[i].pool.count_max, "stride": g_pools[i].pool.stride,
             "node": g_pools[i].pool.node, "failures": g_pools[i].failures}
            for i in range(POOLS_MAX) if g_pools[i].pool is not NULL]
