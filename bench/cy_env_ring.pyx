"""Loops over rings, for bench_env_ring and bench_peer_dpdk: on one core, and between two.

Each does what one iteration of DPDK's ring_perf_autotest does, with objects in memory of the heap
as there, and returns the ticks that it took.
"""
from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport free
from libc.string cimport memset
from vhostrt.base.atomics cimport (cpu_pause, fetch_add_u32, load_acquire_u32, store_release_u32,
                                   u32_line)
from vhostrt.base.ticks cimport ticks_now
from vhostrt.env.lcore cimport lcore_launch, lcore_wait
from vhostrt.env.ring cimport (
    Ring, ring_mc_dequeue, ring_mc_dequeue_bulk, ring_mp_enqueue, ring_mp_enqueue_burst,
    ring_one_producer, ring_sc_dequeue, ring_sc_dequeue_bulk, ring_sp_enqueue,
    ring_sp_enqueue_burst, ring_t)

cdef extern from "<stdlib.h>" nogil:
    void *aligned_alloc(size_t align, size_t size)

cdef extern from "<sched.h>" nogil:
    int sched_yield()

cdef enum:
    BURST_MAX = 32
    PATIENCE = 10_000           # tries; the host may have put both sides on one CPU

ctypedef uint64_t (*loop_fn)(ring_t *r, void **objs, uint32_t n, uint64_t times) noexcept nogil


cdef uint64_t sp_sc_single(ring_t *r, void **objs, uint32_t _n, uint64_t times) noexcept nogil:
    cdef uint64_t start = ticks_now()
    for _ in range(times):
        ring_sp_enqueue(r, objs, 1)
        ring_sc_dequeue_bulk(r, objs, 1)
    return ticks_now() - start


cdef uint64_t mp_mc_single(ring_t *r, void **objs, uint32_t _n, uint64_t times) noexcept nogil:
    cdef uint64_t start = ticks_now()
    for _ in range(times):
        ring_mp_enqueue(r, objs, 1)
        ring_mc_dequeue_bulk(r, objs, 1)
    return ticks_now() - start


cdef uint64_t sp_sc_burst(ring_t *r, void **objs, uint32_t n, uint64_t times) noexcept nogil:
    cdef uint64_t start = ticks_now()
    for _ in range(times):
        ring_sp_enqueue_burst(r, objs, n)
        ring_sc_dequeue(r, objs, n)
    return ticks_now() - start


cdef uint64_t mp_mc_burst(ring_t *r, void **objs, uint32_t n, uint64_t times) noexcept nogil:
    cdef uint64_t start = ticks_now()
    for _ in range(times):
        ring_mp_enqueue_burst(r, objs, n)
        ring_mc_dequeue(r, objs, n)
    return ticks_now() - start


cdef uint64_t sp_sc_bulk(ring_t *r, void **objs, uint32_t n, uint64_t times) noexcept nogil:
    cdef uint64_t start = ticks_now()
    for _ in range(times):
        ring_sp_enqueue(r, objs, n)
        ring_sc_dequeue_bulk(r, objs, n)
    return ticks_now() - start


cdef uint64_t mp_mc_bulk(ring_t *r, void **objs, uint32_t n, uint64_t times) noexcept nogil:
    cdef uint64_t start = ticks_now()
    for _ in range(times):
        ring_mp_enqueue(r, objs, n)
        ring_mc_dequeue_bulk(r, objs, n)
    return ticks_now() - start


cdef uint64_t sp_sc_empty(ring_t *r, void **objs, uint32_t n, uint64_t times) noexcept nogil:
    cdef uint64_t start = ticks_now()
    for _ in range(times):
        ring_sc_dequeue_bulk(r, objs, n)
    return ticks_now() - start


cdef uint64_t mp_mc_empty(ring_t *r, void **objs, uint32_t n, uint64_t times) noexcept nogil:
    cdef uint64_t start = ticks_now()
    for _ in range(times):
        ring_mc_dequeue_bulk(r, objs, n)
    return ticks_now() - start


cdef loop_fn loop_of(str call, bint single) except NULL:
    if call == "single":
        return sp_sc_single if single else mp_mc_single
    if call == "burst":
        return sp_sc_burst if single else mp_mc_burst
    if call == "bulk":
        return sp_sc_bulk if single else mp_mc_bulk
    if call == "empty":
        return sp_sc_empty if single else mp_mc_empty
    raise ValueError(f"no loop of {call}")


def pairs(Ring ring, str call, uint32_t burst, uint64_t times) -> int:
    """Enqueue and dequeue a burst (or "empty": dequeue in vain), by the ring's kind; the ticks."""
    cdef loop_fn loop = loop_of(call, ring_one_producer(ring.r))
    cdef uint64_t ticks
    cdef void **objs = <void **>aligned_alloc(64, 64 * sizeof(void *))
    memset(objs, 0, 64 * sizeof(void *))
    with nogil:
        ticks = loop(ring.r, objs, burst, times)
    free(objs)
    return ticks


# Two cores: one side each, as DPDK's enqueue_bulk and dequeue_bulk.

cdef struct side_t:
    ring_t *ring
    uint64_t times
    uint32_t burst
    bint enqueues
    uint32_t *ready             # sides that are; they begin together
    uint64_t ticks


cdef uint32_t move(side_t *side, void **objs) noexcept nogil:
    if ring_one_producer(side.ring):
        if side.enqueues:
            return ring_sp_enqueue(side.ring, objs, side.burst)
        return ring_sc_dequeue_bulk(side.ring, objs, side.burst)
    if side.enqueues:
        return ring_mp_enqueue(side.ring, objs, side.burst)
    return ring_mc_dequeue_bulk(side.ring, objs, side.burst)


cdef int run_side(void *arg) noexcept nogil:
    cdef side_t *side = <side_t *>arg
    cdef void *objs[BURST_MAX]
    cdef uint32_t tries
    memset(objs, 0, sizeof(objs))
    fetch_add_u32(side.ready, 1)
    while load_acquire_u32(side.ready) < 2:
        sched_yield()
    side.ticks = ticks_now()
    for _ in range(side.times):
        tries = 0
        while move(side, objs) == 0:
            cpu_pause()
            tries += 1
            if tries % PATIENCE == 0:
                sched_yield()
    side.ticks = ticks_now() - side.ticks
    return 0


def across(Ring ring, uint32_t source, uint32_t target, uint32_t burst, uint64_t times) -> float:
    """Send bursts from one lcore to another; the ticks an object of both sides together."""
    cdef uint32_t ready = 0
    cdef side_t first = side_t(ring.r, times, burst, True, &ready, 0)
    cdef side_t second = side_t(ring.r, times, burst, False, &ready, 0)
    cdef int ret
    if lcore_launch(source, run_side, &first) < 0 or lcore_launch(target, run_side, &second) < 0:
        raise RuntimeError(f"lcores {source} and {target} are not there")
    with nogil:
        lcore_wait(source, &ret)
        lcore_wait(target, &ret)
    return (first.ticks + second.ticks) / <double>(times * burst)


# The way of a cache line there and back.

ctypedef struct ball_t:
    u32_line turn
    uint32_t pad[31]
    uint64_t times
    uint64_t ticks

cdef ball_t g_ball


cdef int play(void *arg) noexcept nogil:
    """Wait for our turn, and pass the line back; arg: 0 begins, 1 answers."""
    cdef uint32_t mine = arg is not NULL
    cdef uint64_t start = ticks_now()
    cdef uint32_t tries
    for _ in range(g_ball.times):
        tries = 0
        while load_acquire_u32(&g_ball.turn) != mine:
            cpu_pause()
            tries += 1
            if tries % PATIENCE == 0:
                sched_yield()
        store_release_u32(&g_ball.turn, not mine)
    if not mine:
        g_ball.ticks = ticks_now() - start
    return 0


def round_trip(uint32_t source, uint32_t target, uint64_t times) -> float:
    """Return the ticks that a cache line takes from one lcore to another and back."""
    cdef int ret
    g_ball.turn = 0
    g_ball.times = times
    if lcore_launch(target, play, <void *>1) < 0 or lcore_launch(source, play, NULL) < 0:
        raise RuntimeError(f"lcores {source} and {target} are not there")
    with nogil:
        lcore_wait(source, &ret)
        lcore_wait(target, &ret)
    return g_ball.ticks / <double>times
