"""Loops over a mempool, for bench_env_mempool and bench_peer_dpdk; they run where they are called.

Each does what test_loop of DPDK's mempool_perf_autotest does: gets `keep` objects in bulks, then
puts them in bulks, for a time; and returns the ticks that it took.
"""
from cython cimport unlikely
from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport free
from vhostrt.base.ticks cimport ticks_now
from vhostrt.env.lcore cimport LCORE_NONE
from vhostrt.env.mempool cimport Mempool, mempool_get, mempool_put, mempool_t

cdef extern from "<stdlib.h>" nogil:
    void *aligned_alloc(size_t align, size_t size)

cdef enum:
    KEEP_MAX = 512
    CHUNK = 65536               # objects between two looks at the clock


cdef inline bint get_and_put(mempool_t *mp, uint32_t who, void **objs, uint32_t keep,
                             uint32_t bulk, uint64_t times) noexcept nogil:
    """False when the pool had too few."""
    cdef uint32_t at
    for _ in range(times):
        at = 0
        while at < keep:
            if unlikely(mempool_get(mp, who, objs + at, bulk) < 0):
                return False
            at += bulk
        at = 0
        while at < keep:
            mempool_put(mp, who, objs + at, bulk)
            at += bulk
    return True


# In bulks of a size that is told, and of constant ones, which the compiler knows.

ctypedef bint (*loop_fn)(mempool_t *mp, uint32_t who, void **objs, uint32_t keep, uint32_t bulk,
                         uint64_t times) noexcept nogil


cdef bint any_size(mempool_t *mp, uint32_t who, void **objs, uint32_t keep, uint32_t bulk,
                   uint64_t times) noexcept nogil:
    return get_and_put(mp, who, objs, keep, bulk, times)


cdef bint constant_1(mempool_t *mp, uint32_t who, void **objs, uint32_t keep, uint32_t _bulk,
                     uint64_t times) noexcept nogil:
    return get_and_put(mp, who, objs, keep, 1, times)


cdef bint constant_32(mempool_t *mp, uint32_t who, void **objs, uint32_t keep, uint32_t _bulk,
                      uint64_t times) noexcept nogil:
    return get_and_put(mp, who, objs, keep, 32, times)


cdef loop_fn loop_of(uint32_t bulk, bint constant) noexcept:
    if not constant:
        return any_size
    if bulk == 1:
        return constant_1
    if bulk == 32:
        return constant_32
    return NULL


def loop(Mempool pool, lcore, uint32_t keep, uint32_t bulk, bint constant, uint64_t least) -> float:
    """Get `keep` objects and put them until that many ticks are over, or once; ticks an object.

    lcore: whose cache is used; None for no cache.
    """
    cdef uint32_t who = LCORE_NONE if lcore is None else lcore
    cdef uint64_t start, ticks = 0, objects = 0
    cdef bint done = True
    cdef loop_fn run = loop_of(bulk, constant)
    cdef void **objs = <void **>aligned_alloc(64, KEEP_MAX * sizeof(void *))
    if objs is NULL or run is NULL or keep > KEEP_MAX or keep % bulk:
        free(objs)
        raise ValueError(f"bulks of {bulk}, {keep} kept")
    with nogil:
        start = ticks_now()
        while True:
            done = run(pool.mp, who, objs, keep, bulk, CHUNK // keep)
            objects += CHUNK
            ticks = ticks_now() - start
            if not done or ticks >= least:
                break
    free(objs)
    if not done:
        raise RuntimeError("the pool had too few objects")
    return <double>ticks / <double>objects
