"""Loops over a mempool, for bench_env_mempool and bench_peer_dpdk; they run where they are called.

Each does what test_loop of DPDK's mempool_perf_autotest does: gets `keep` objects in bulks, then
puts them in bulks; and returns the ticks that it took.
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


cdef bint any_size(mempool_t *mp, uint32_t who, void **objs, uint32_t keep, uint32_t bulk,
                   uint64_t times) noexcept nogil:
    return get_and_put(mp, who, objs, keep, bulk, times)


# Bulks of a constant size, which the compiler knows.

cdef bint constant_1(mempool_t *mp, uint32_t who, void **objs, uint32_t keep,
                     uint64_t times) noexcept nogil:
    return get_and_put(mp, who, objs, keep, 1, times)


cdef bint constant_32(mempool_t *mp, uint32_t who, void **objs, uint32_t keep,
                      uint64_t times) noexcept nogil:
    return get_and_put(mp, who, objs, keep, 32, times)


def loop(Mempool pool, lcore, uint32_t keep, uint32_t bulk, bint constant, uint64_t times) -> int:
    """Get `keep` objects and put them, that many times; with the cache of an lcore, or of none."""
    cdef uint32_t who = LCORE_NONE if lcore is None else lcore
    cdef uint64_t ticks
    cdef bint done
    cdef void **objs = <void **>aligned_alloc(64, KEEP_MAX * sizeof(void *))
    if objs is NULL or keep > KEEP_MAX or keep % bulk or constant and bulk not in (1, 32):
        free(objs)
        raise ValueError(f"bulks of {bulk}, {keep} kept")
    with nogil:
        ticks = ticks_now()
        if not constant:
            done = any_size(pool.mp, who, objs, keep, bulk, times)
        elif bulk == 1:
            done = constant_1(pool.mp, who, objs, keep, times)
        else:
            done = constant_32(pool.mp, who, objs, keep, times)
        ticks = ticks_now() - ticks
    free(objs)
    if not done:
        raise RuntimeError("the pool had too few objects")
    return ticks
