"""Loops over rings, for bench_env_ring: on one core, and from one core to another."""
from libc.stdint cimport uint32_t, uint64_t
from vhostrt.env.lcore cimport lcore_launch, lcore_wait
from vhostrt.env.ring cimport (Ring, ring_mc_dequeue, ring_mp_enqueue, ring_sc_dequeue,
                               ring_sp_enqueue, ring_t)

cdef extern from "<sched.h>" nogil:
    int sched_yield()

cdef enum:
    BURST_MAX = 32

cdef struct half_t:
    ring_t *ring
    uint64_t n                  # objects to receive
    uint32_t burst


def pairs(Ring ring, str kind, uint32_t burst, uint64_t n):
    """Enqueue and dequeue a burst, n times; kind says by which functions."""
    if kind == "sp_sc" and burst == 1:
        return one_sp_sc(ring.r, n)
    if kind == "mp_mc" and burst == 1:
        return one_mp_mc(ring.r, n)
    return burst_sp_sc(ring.r, burst, n) if kind == "sp_sc" else burst_mp_mc(ring.r, burst, n)


cdef uint64_t one_sp_sc(ring_t *r, uint64_t n) noexcept nogil:
    cdef void *obj = r
    cdef uint64_t moved = 0
    for _ in range(n):
        ring_sp_enqueue(r, &obj, 1)
        moved += ring_sc_dequeue(r, &obj, 1)
    return moved


cdef uint64_t one_mp_mc(ring_t *r, uint64_t n) noexcept nogil:
    cdef void *obj = r
    cdef uint64_t moved = 0
    for _ in range(n):
        ring_mp_enqueue(r, &obj, 1)
        moved += ring_mc_dequeue(r, &obj, 1)
    return moved


cdef uint64_t burst_sp_sc(ring_t *r, uint32_t burst, uint64_t n) noexcept nogil:
    cdef void *objs[BURST_MAX]
    cdef uint64_t moved = 0
    for _ in range(n):
        ring_sp_enqueue(r, objs, burst)
        moved += ring_sc_dequeue(r, objs, burst)
    return moved


cdef uint64_t burst_mp_mc(ring_t *r, uint32_t burst, uint64_t n) noexcept nogil:
    cdef void *objs[BURST_MAX]
    cdef uint64_t moved = 0
    for _ in range(n):
        ring_mp_enqueue(r, objs, burst)
        moved += ring_mc_dequeue(r, objs, burst)
    return moved


cdef int receive(void *arg) noexcept nogil:
    cdef half_t *half = <half_t *>arg
    cdef void *objs[BURST_MAX]
    cdef uint64_t left = half.n
    cdef uint32_t got, idle = 0
    while left:
        if half.ring.kind == 1:
            got = ring_sc_dequeue(half.ring, objs, min(left, <uint64_t>half.burst))
        else:
            got = ring_mc_dequeue(half.ring, objs, min(left, <uint64_t>half.burst))
        left -= got
        idle = 0 if got else idle + 1
        # Both may have been put on one CPU by the host.
        if idle > 10_000:
            sched_yield()
    return 0


def across(Ring ring, uint32_t lcore, uint32_t burst, uint64_t n):
    """Send n objects in bursts from this thread to an lcore, as the ring was made for."""
    cdef half_t half = half_t(ring.r, n // burst * burst, burst)
    cdef void *objs[BURST_MAX]
    cdef uint64_t left = half.n
    cdef uint32_t sent, idle = 0
    cdef int ret
    if lcore_launch(lcore, receive, &half) < 0:
        raise RuntimeError(f"lcore {lcore} is not there")
    with nogil:
        while left:
            if ring.r.kind == 1:
                sent = ring_sp_enqueue(ring.r, objs, burst)
            else:
                sent = ring_mp_enqueue(ring.r, objs, burst)
            left -= sent
            idle = 0 if sent else idle + 1
            if idle > 10_000:
                sched_yield()
        lcore_wait(lcore, &ret)
