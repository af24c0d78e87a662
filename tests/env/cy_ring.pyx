"""vhostrt.env.ring at the C level: wrapping indices, and threads that race."""
import errno
import os

import pytest

from hypothesis import given
from hypothesis import strategies as st
from libc.stdint cimport uint32_t, uint64_t, uintptr_t
from libc.string cimport memset
from vhostrt.base.atomics cimport fetch_add_u32, fetch_add_u64, load_relaxed_u32
from vhostrt.env.ring cimport (
    RING_EXACT, RING_MP_MC, RING_MP_SC, RING_SP_MC, RING_SP_SC, Ring, ring_count, ring_create,
    ring_dequeue, ring_dequeue_bulk, ring_enqueue, ring_enqueue_burst, ring_free, ring_init,
    ring_is_empty, ring_is_full, ring_mc_dequeue, ring_mc_dequeue_bulk, ring_mp_enqueue,
    ring_mp_enqueue_burst, ring_room, ring_sc_dequeue, ring_sc_dequeue_bulk, ring_size, ring_slots,
    ring_slots_for, ring_sp_enqueue, ring_sp_enqueue_burst, ring_t)

cdef extern from "<pthread.h>" nogil:
    ctypedef unsigned long pthread_t
    int pthread_create(pthread_t *thread, const void *attr, void *(*fn)(void *), void *arg)
    int pthread_join(pthread_t thread, void **result)

cdef extern from "<sched.h>" nogil:
    int sched_yield()

cdef enum:
    THREADS = 4                 # at most, on each side
    BURST = 7                   # no divisor of the ring, so that bursts wrap
    MOST = 16                   # objects a move of the model test is of

KINDS = ["mp_sc", "sp_sc", "mp_mc", "sp_mc"]


def start_near_the_end(Ring ring):
    ring.r.prod_head = ring.r.prod_tail = ring.r.cons_head = ring.r.cons_tail = <uint32_t>-2


def test_indices_wrap():
    cdef void *objs[8]
    cdef Ring ring
    cdef uintptr_t i
    for kind in KINDS:
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


def test_the_kinds_are_the_functions_they_name():
    for kind, one_producer, one_consumer in ((RING_MP_SC, 0, 1), (RING_SP_SC, 1, 1),
                                             (RING_MP_MC, 0, 0), (RING_SP_MC, 1, 0)):
        assert bool(kind & 1) == one_producer and (kind & 2 == 0) == one_consumer


cdef uint32_t give(ring_t *r, int call, void **objs, uint32_t n) noexcept nogil:
    """Enqueue by one of the six functions."""
    if call == 0:
        return ring_sp_enqueue(r, objs, n)
    if call == 1:
        return ring_mp_enqueue(r, objs, n)
    if call == 2:
        return ring_enqueue(r, objs, n)
    if call == 3:
        return ring_sp_enqueue_burst(r, objs, n)
    if call == 4:
        return ring_mp_enqueue_burst(r, objs, n)
    return ring_enqueue_burst(r, objs, n)


cdef uint32_t take(ring_t *r, int call, void **objs, uint32_t n) noexcept nogil:
    """Dequeue by one of the six functions."""
    if call == 0:
        return ring_sc_dequeue_bulk(r, objs, n)
    if call == 1:
        return ring_mc_dequeue_bulk(r, objs, n)
    if call == 2:
        return ring_dequeue_bulk(r, objs, n)
    if call == 3:
        return ring_sc_dequeue(r, objs, n)
    if call == 4:
        return ring_mc_dequeue(r, objs, n)
    return ring_dequeue(r, objs, n)


MOVES = st.lists(st.tuples(st.booleans(), st.integers(0, 5), st.integers(0, MOST)), max_size=80)


@pytest.mark.parametrize("kind", [RING_MP_SC, RING_SP_SC, RING_MP_MC, RING_SP_MC])
@given(moves=MOVES, exact=st.integers(0, 12))
def test_every_call_is_like_a_list_across_the_wrap(kind, moves, exact):
    """Calls 0 to 2 are all or nothing, 3 to 5 move what fits; the indices pass 2^32 at once."""
    cdef void *objs[MOST]
    cdef uint32_t i, n, made = 0
    cdef ring_t *r = ring_create(exact or 8, kind | (RING_EXACT if exact else 0), -1)
    model = []
    r.prod_head = r.prod_tail = r.cons_head = r.cons_tail = <uint32_t>-2
    for enqueues, call, n in moves:
        most = r.capacity - len(model) if enqueues else len(model)
        expected = n if n <= most else (most if call >= 3 else 0)
        if enqueues:
            for i in range(n):
                objs[i] = <void *><uintptr_t>(made + i + 1)
            assert give(r, call, objs, n) == expected
            model += range(made + 1, made + 1 + expected)
            made += n
        else:
            assert take(r, call, objs, n) == expected
            assert [<uintptr_t>objs[i] for i in range(expected)] == model[:expected]
            del model[:expected]
        assert ring_count(r) == len(model) and ring_room(r) == r.capacity - len(model)
        assert ring_is_empty(r) == (model == [])
        assert ring_is_full(r) == (len(model) == r.capacity)
    ring_free(r)


@pytest.mark.parametrize(("count", "kind", "slots"), [
    (0, RING_MP_SC, 0), (1, RING_MP_SC, 0), (3, RING_MP_SC, 0), (0xffffffff, RING_MP_SC, 0),
    (0x80000000, RING_MP_SC, 0), (2, RING_MP_SC, 2), (0x40000000, RING_SP_MC, 0x40000000),
    (8, 4, 0), (8, 0x20, 0), (8, RING_EXACT | 4, 0), (0, RING_EXACT, 0), (1, RING_EXACT, 2),
    (8, RING_EXACT | RING_SP_MC, 16), (0x3fffffff, RING_EXACT, 0x40000000),
    (0x40000000, RING_EXACT, 0), (0xffffffff, RING_EXACT, 0),
])
def test_slots_for_a_count(uint32_t count, uint32_t kind, uint32_t slots):
    assert ring_slots_for(count, kind) == slots


def test_create_and_init_refuse():
    cdef Ring ring = Ring(8)
    assert ring_create(3, RING_MP_SC, -1) is NULL
    assert ring_create(0, RING_MP_SC, -1) is NULL
    assert ring_create(0xffffffff, RING_MP_SC, -1) is NULL
    assert ring_create(8, 4, -1) is NULL
    assert ring_create(0, RING_EXACT, -1) is NULL
    for count, kind in ((3, RING_MP_SC), (8, 4), (0, RING_EXACT)):
        assert ring_init(ring.r, count, kind) == -errno.EINVAL
    assert ring.r.capacity == 7, "a refused init changes nothing"


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
        # Bulk and burst in turn.
        done = ring_enqueue(s.ring, objs, n) if sent & 8 else ring_enqueue_burst(s.ring, objs, n)
        sent += done
        if done == 0:
            sched_yield()
    return NULL


cdef void *consume(void *arg) noexcept nogil:
    cdef stress_t *s = <stress_t *>arg
    cdef void *objs[BURST]
    cdef uint32_t expected[THREADS]             # the least that may come, by producer
    cdef uint32_t n, i, word, tag
    cdef uint32_t turn = 0
    cdef uint64_t total = 0
    memset(expected, 0, sizeof(expected))
    while load_relaxed_u32(&s.seen) < s.words * s.producers:
        turn += 1
        if turn & 1:
            n = ring_dequeue(s.ring, objs, BURST)
        else:
            n = ring_dequeue_bulk(s.ring, objs, 2 if s.ring.capacity > 1 else 1)
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


def stress(kind, producers, consumers, count=16, exact=False):
    """Run the threads until every word has come through once; the indices pass 2^32 on the way."""
    cdef stress_t s
    cdef pthread_t threads[2 * THREADS]
    cdef uint32_t i, n_producers = producers, n = producers + consumers
    cdef Ring ring = Ring(count, kind, exact=exact)
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


def test_stress_sp_mc():
    stress("sp_mc", 1, THREADS)


def test_stress_mp_mc_of_exact_capacity():
    stress("mp_mc", THREADS, THREADS, count=11, exact=True)


def test_stress_mp_mc_of_the_smallest_ring():
    stress("mp_mc", 2, 2, count=2)
