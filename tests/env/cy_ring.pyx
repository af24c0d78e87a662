"""vhostrt.env.ring at the C level: wrapping indices, and threads that race."""
import os

from libc.stdint cimport uint32_t, uint64_t, uintptr_t
from libc.string cimport memset
from vhostrt.base.atomics cimport fetch_add_u32, fetch_add_u64, load_relaxed_u32
from vhostrt.env.ring cimport (
    RING_MP_MC, RING_MP_SC, RING_SP_SC, Ring, ring_count, ring_create, ring_dequeue, ring_enqueue,
    ring_mc_dequeue, ring_mc_dequeue_bulk, ring_mp_enqueue, ring_sc_dequeue,
    ring_size, ring_slots, ring_sp_enqueue, ring_t)

cdef extern from "<pthread.h>" nogil:
    ctypedef unsigned long pthread_t
    int pthread_create(pthread_t *thread, const void *attr, void *(*fn)(void *), void *arg)
    int pthread_join(pthread_t thread, void **result)

cdef extern from "<sched.h>" nogil:
    int sched_yield()

cdef enum:
    THREADS = 4                 # at most, on each side
    BURST = 7                   # no divisor of the ring, so that bursts wrap


def start_near_the_end(Ring ring):
    ring.r.prod_head = ring.r.prod_tail = ring.r.cons_head = ring.r.cons_tail = <uint32_t>-2


def test_indices_wrap():
    cdef void *objs[8]
    cdef Ring ring
    cdef uintptr_t i
    for kind in ("mp_sc", "sp_sc", "mp_mc"):
        ring = Ring(4, kind)
        start_near_the_end(ring)                                # two short of 2^32
        for i in range(3):
            objs[i] = <void *>(i + 1)
        assert ring_enqueue(ring.r, objs, 3) == 3
        assert ring_enqueue(ring.r, objs, 1) == 0, "the full ring is not seen across the wrap"
        assert ring_count(ring.r) == 3
        assert ring.r.prod_tail == 1 and ring.r.prod_head == 1
        assert ring_dequeue(ring.r, objs, 8) == 3
        assert [<uintptr_t>objs[i] for i in range(3)] == [1, 2, 3]
        assert ring_count(ring.r) == 0 and ring.r.cons_tail == 1


def test_sides_lie_on_their_own_cache_lines():
    cdef Ring ring = Ring(4)
    cdef uintptr_t base = <uintptr_t>ring.r
    assert base % 64 == 0
    assert [<uintptr_t>&ring.r.prod_head - base, <uintptr_t>&ring.r.cons_head - base,
            <uintptr_t>ring_slots(ring.r) - base] == [64, 128, 192]
    assert ring_size(65536) == 192 + 65536 * 8


def test_bulk_dequeue_takes_all_or_none():
    cdef Ring ring = Ring(8, "mp_mc")
    cdef void *objs[8]
    ring.enqueue([1, 2, 3])
    assert ring_mc_dequeue_bulk(ring.r, objs, 4) == 0
    assert ring_count(ring.r) == 3
    assert ring_mc_dequeue_bulk(ring.r, objs, 3) == 3
    assert ring_mc_dequeue_bulk(ring.r, objs, 1) == 0


def test_create_refuses():
    assert ring_create(3, RING_MP_SC, -1) is NULL
    assert ring_create(0, RING_MP_SC, -1) is NULL
    assert ring_create(0xffffffff, RING_MP_SC, -1) is NULL
    assert ring_create(8, 3, -1) is NULL


# Stress: producer p enqueues the words p << 32 | 0, 1, 2 ... in bursts of 1 to BURST; consumers
# take them in bursts, each checks that what it sees of one producer ascends, and all together
# see every word once.

ctypedef struct stress_t:
    ring_t *ring
    uint32_t words              # from each producer
    uint32_t producers
    uint32_t next_id            # which producer or consumer a starting thread is
    uint32_t seen               # words dequeued so far, by all consumers
    uint32_t disorder           # words that came out of order
    uint64_t sum                # of all words dequeued


cdef void *produce(void *arg) noexcept nogil:
    cdef stress_t *s = <stress_t *>arg
    cdef uint64_t tag = <uint64_t>fetch_add_u32(&s.next_id, 1) << 32
    cdef void *objs[BURST]
    cdef uint32_t sent = 0
    cdef uint32_t n, i, done
    while sent < s.words:
        n = min(min(sent % BURST + 1, s.words - sent), s.ring.capacity)
        for i in range(n):
            objs[i] = <void *><uintptr_t>(tag | (sent + i))
        if s.ring.kind == RING_SP_SC:
            done = ring_sp_enqueue(s.ring, objs, n)
        else:
            done = ring_mp_enqueue(s.ring, objs, n)
        sent += done
        if done == 0:
            sched_yield()
    return NULL


cdef void *consume(void *arg) noexcept nogil:
    cdef stress_t *s = <stress_t *>arg
    cdef void *objs[BURST]
    cdef uint32_t expected[THREADS]             # the least that may come, by producer
    cdef uint32_t n, i, word, tag
    cdef uint64_t total = 0
    memset(expected, 0, sizeof(expected))
    while load_relaxed_u32(&s.seen) < s.words * s.producers:
        if s.ring.kind == RING_MP_MC:
            n = ring_mc_dequeue(s.ring, objs, BURST)
        else:
            n = ring_sc_dequeue(s.ring, objs, BURST)
        for i in range(n):
            word = <uint32_t><uintptr_t>objs[i]
            tag = <uint32_t>(<uint64_t><uintptr_t>objs[i] >> 32)
            if tag >= s.producers or word < expected[tag]:
                fetch_add_u32(&s.disorder, 1)
            else:
                expected[tag] = word + 1
            total += <uint64_t><uintptr_t>objs[i]
        fetch_add_u32(&s.seen, n)
        if n == 0:
            sched_yield()
    fetch_add_u64(&s.sum, total)
    return NULL


def stress(kind, producers, consumers, count=16):
    """Run the threads until every word has come through once; the indices pass 2^32 on the way."""
    cdef stress_t s
    cdef pthread_t threads[2 * THREADS]
    cdef uint32_t i, n_producers = producers, n = producers + consumers
    cdef Ring ring = Ring(count, kind)
    start_near_the_end(ring)
    memset(&s, 0, sizeof(s))
    s.ring = ring.r
    each = 50_000 * int(os.environ.get("VHOSTRT_STRESS", "1"))
    s.words = each
    s.producers = producers
    with nogil:
        for i in range(n):
            pthread_create(&threads[i], NULL, produce if i < n_producers else consume, &s)
        for i in range(n):
            pthread_join(threads[i], NULL)
    words = sum((p << 32) * each for p in range(producers))
    words += producers * (each * (each - 1) // 2)
    assert s.disorder == 0
    assert s.seen == s.words * producers
    assert s.sum == words % 2**64
    assert ring_count(ring.r) == 0


def test_stress_sp_sc():
    stress("sp_sc", 1, 1)


def test_stress_mp_sc():
    stress("mp_sc", THREADS, 1)


def test_stress_mp_mc():
    stress("mp_mc", THREADS, THREADS)


def test_stress_mp_mc_of_the_smallest_ring():
    stress("mp_mc", 2, 2, count=2)
