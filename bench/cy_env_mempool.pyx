"""Loops over a mempool, for bench_env_mempool; they run on the thread that calls."""
from libc.stdint cimport uint32_t, uint64_t
from vhostrt.env.lcore cimport LCORE_NONE
from vhostrt.env.mempool cimport Mempool, mempool_get, mempool_get_one, mempool_put

cdef enum:
    BURST_MAX = 32


def pairs(Mempool pool, lcore, uint32_t burst, uint64_t n):
    """Get and put a burst, n times, with the cache of an lcore, or None: without one."""
    cdef uint32_t who = LCORE_NONE if lcore is None else lcore
    cdef void *objs[BURST_MAX]
    cdef uint64_t missed = 0
    with nogil:
        if burst == 1:
            for _ in range(n):
                objs[0] = mempool_get_one(pool.mp, who)
                mempool_put(pool.mp, who, objs, 1)
        else:
            for _ in range(n):
                missed += mempool_get(pool.mp, who, objs, burst) < 0
                mempool_put(pool.mp, who, objs, burst)
    return missed
