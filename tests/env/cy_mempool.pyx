"""vhostrt.env.mempool at the C level: the caches of lcores, and threads that race."""
import errno
import os

import pytest

from cpython.pycapsule cimport PyCapsule_New
from hypothesis import given
from hypothesis import strategies as st
from libc.stdint cimport uint32_t, uint64_t, uintptr_t
from libc.string cimport memset
from vhostrt.base.atomics cimport fetch_add_u32
from vhostrt.base.check cimport IS_DEBUG
from vhostrt.env.lcore cimport LCORE_NONE, lcore_current, lcore_launch, lcore_wait
from vhostrt.env.mempool cimport (
    Mempool, mempool_audit, mempool_audit_t, mempool_cache, mempool_count, mempool_create,
    mempool_create_with, mempool_flush, mempool_free, mempool_get, mempool_get_one, mempool_grow,
    mempool_put, mempool_t, mempool_walk)
from vhostrt.env.ring cimport ring_count, ring_mp_enqueue

from vhostrt.env import lcore, memory

cdef enum:
    MOST = 600                  # objects a test holds
    HOLD = 24                   # objects a stress thread holds at most

CPUS = sorted(os.sched_getaffinity(0))


@pytest.fixture(autouse=True)
def environment():
    memory.init()
    lcore.init({2: CPUS, 3: CPUS, 70: CPUS})
    yield
    lcore.fini()
    memory.fini()


def test_caches_belong_to_the_lcores_enabled_at_creation():
    cdef mempool_t *mp = mempool_create(1000, 0, 64, 32, -1)
    assert [n for n in range(100) if mempool_cache(mp, n) is not NULL] == [2, 3, 70]
    for n in (1024, 5000, 0xFFFFFFFF):
        assert mempool_cache(mp, n) is NULL
    assert mempool_free(mp) == 0
    mp = mempool_create(1000, 0, 64, 0, -1)
    assert mempool_cache(mp, 2) is NULL
    assert mempool_free(mp) == 0


def test_the_last_put_is_the_next_to_get():
    cdef mempool_t *mp = mempool_create(1000, 0, 64, 32, -1)
    cdef void *objs[8]
    cdef void *again[8]
    cdef int i
    for who in (2, 70):
        assert mempool_get(mp, who, objs, 8) == 0
        mempool_put(mp, who, objs, 8)
        assert mempool_get(mp, who, again, 3) == 0
        assert [again[i] == objs[7 - i] for i in range(3)] == [True] * 3
        assert mempool_get_one(mp, who) == objs[4]
        mempool_put(mp, who, &objs[4], 4)
    assert mempool_count(mp) == 1000
    assert mempool_free(mp) == 0


def test_refill_and_flush():
    cdef mempool_t *mp = mempool_create(1000, 0, 64, 32, -1)
    cdef void *objs[MOST]
    cdef int i
    assert mempool_get(mp, 2, objs, 5) == 0
    assert mp.caches[2].len == 32, "a refill leaves the cache full"
    assert ring_count(mp.ring) == 1000 - 37
    assert mempool_get(mp, 2, &objs[5], 32) == 0
    assert mp.caches[2].len == 0
    mempool_put(mp, 2, objs, 32)
    for i in range(5):
        mempool_put(mp, 2, &objs[32 + i], 1)
    assert mp.caches[2].len == 37
    assert ring_count(mp.ring) == 1000 - 37
    assert mempool_get(mp, 3, objs, 11) == 0
    mempool_put(mp, 2, objs, 10)
    assert mp.caches[2].len == 47, "one short of 1.5 times the size"
    mempool_put(mp, 2, &objs[10], 1)
    assert mp.caches[2].len == 32, "at 1.5 times the size it is flushed down to the size"
    assert mempool_count(mp) == 1000
    assert mempool_free(mp) == 0


def test_more_than_a_cache_holds_goes_past_it():
    cdef mempool_t *mp = mempool_create(1000, 0, 64, 32, -1)
    cdef void *objs[MOST]
    assert mempool_get(mp, 2, objs, 33) == 0
    assert mp.caches[2].len == 0
    assert ring_count(mp.ring) == 1000 - 33
    mempool_put(mp, 2, objs, 33)
    assert mp.caches[2].len == 0
    assert ring_count(mp.ring) == 1000
    assert mempool_free(mp) == 0


def test_get_is_all_or_nothing_and_uses_its_own_cache_only():
    cdef mempool_t *mp = mempool_create(200, 0, 64, 32, -1)
    cdef void *objs[200]
    cdef void *more[200]
    assert mempool_get(mp, 3, objs, 1) == 0                     # and 32 stay in the cache of 3
    assert mempool_get(mp, 2, more, 168) == -errno.ENOBUFS
    assert ring_count(mp.ring) == 167 and mp.caches[2].len == 0
    assert mempool_get(mp, LCORE_NONE, more, 168) == -errno.ENOBUFS
    assert mempool_get(mp, 2, more, 167) == 0
    assert mempool_get_one(mp, 2) is NULL
    assert mempool_get_one(mp, LCORE_NONE) is NULL
    assert mempool_get(mp, 3, &objs[1], 32) == 0, "its own cache"
    assert mempool_get_one(mp, 3) is NULL
    assert mempool_count(mp) == 0
    assert mempool_free(mp) == -errno.EBUSY
    mempool_put(mp, 2, more, 10)
    assert mempool_get(mp, 2, more, 11) == -errno.ENOBUFS
    assert mp.caches[2].len == 10, "a get that fails takes nothing"
    mempool_put(mp, LCORE_NONE, &more[10], 4)
    assert mempool_get(mp, 2, more, 14) == 0, "cache and ring together"
    mempool_put(mp, LCORE_NONE, more, 167)
    mempool_put(mp, 3, objs, 33)
    assert mempool_count(mp) == 200
    assert mempool_free(mp) == 0


def test_a_cache_of_one():
    cdef mempool_t *mp = mempool_create(8, 0, 64, 1, -1)
    cdef void *objs[8]
    cdef int i
    assert mp.cache == 1
    for i in range(8):
        objs[i] = mempool_get_one(mp, 2)
    assert len({<uintptr_t>objs[i] for i in range(8)} - {0}) == 8
    for i in range(8):
        mempool_put(mp, 2, &objs[i], 1)
        assert mp.caches[2].len <= 2
    assert mempool_count(mp) == 8
    assert mempool_free(mp) == 0


def test_create_refuses():
    for args in ((0, 0, 64, 0), (8, 7, 64, 0), (8, 8, 0, 0), (8, 0x40000000, 64, 0),
                 (8, 8, 0xffffffff, 0)):
        assert mempool_create(args[0], args[1], args[2], args[3], -1) is NULL
    assert memory.stats()["blocks"] == 0


# Initialiser and walk.

cdef void number(void *ctx, void *obj, uint32_t index) noexcept nogil:
    (<uint32_t *>obj)[0] = index + 1000
    fetch_add_u32(<uint32_t *>ctx, 1)


cdef void add_up(void *ctx, void *obj, uint32_t index) noexcept nogil:
    if (<uint32_t *>obj)[0] == index + 1000:
        (<uint64_t *>ctx)[0] += index


def test_initialiser_and_walk_see_each_object_once():
    cdef uint32_t calls = 0
    cdef uint64_t total = 0
    cdef mempool_t *mp = mempool_create_with(40, 100, 8, 0, -1, number, &calls)
    assert calls == 40
    assert mempool_grow(mp, 60) == 0
    assert calls == 100
    assert mempool_walk(mp, add_up, &total) == 100
    assert total == sum(range(100))
    assert mempool_free(mp) == 0


def test_initialiser_in_a_capsule():
    cdef uint32_t calls = 0
    cdef uint64_t total = 0
    capsule = PyCapsule_New(<void *>number, "void (void *, void *, uint32_t)", NULL)
    cdef Mempool pool = Mempool(7, 8, init=capsule, init_arg=<uintptr_t>&calls)
    assert calls == 7
    assert mempool_walk(pool.mp, add_up, &total) == 7
    assert total == sum(range(7))
    pool.free()


# Flush and audit.

def test_flush_gives_a_cache_to_the_others():
    cdef mempool_t *mp = mempool_create(100, 0, 64, 16, -1)
    cdef void *objs[100]
    assert mempool_get(mp, 2, objs, 1) == 0
    assert mempool_get(mp, 3, &objs[1], 100 - 17 + 1) == -errno.ENOBUFS
    assert mempool_flush(mp, 2) == 16
    assert mempool_flush(mp, 2) == 0
    assert mp.caches[2].len == 0 and ring_count(mp.ring) == 99
    assert mempool_get(mp, 3, &objs[1], 99) == 0
    assert mempool_flush(mp, LCORE_NONE) == mempool_flush(mp, 7) == -errno.EINVAL
    mempool_put(mp, LCORE_NONE, objs, 100)
    assert (mp.caches[2].refills, mp.caches[2].flushes) == (1, 1)
    assert mp.caches[3].empty == 1
    assert mempool_free(mp) == 0


def audit_of(Mempool pool):
    return tuple(pool.audit())


def test_audit_of_caches():
    cdef Mempool pool = Mempool(100, 64, cache=16)
    cdef void *objs[5]
    assert mempool_get(pool.mp, 2, objs, 5) == 0
    assert audit_of(pool) == (100, 79, 16, 5, 0, 0)
    mempool_put(pool.mp, 3, objs, 5)
    assert audit_of(pool) == (100, 79, 21, 0, 0, 0)
    assert mempool_flush(pool.mp, 3) == 5


def put_twice():
    cdef Mempool pool = Mempool(40, 64, cache=4)
    cdef void *obj = mempool_get_one(pool.mp, 2)
    mempool_put(pool.mp, 2, &obj, 1)
    mempool_put(pool.mp, 3, &obj, 1)
    return pool, []


def put_foreign():
    cdef Mempool pool = Mempool(40, 64, cache=4)
    cdef void *obj = mempool_get_one(pool.mp, 2)
    cdef void *other = <char *>obj + 8
    mempool_put(pool.mp, 3, &other, 1)
    return pool, [<uintptr_t>obj]


@pytest.mark.parametrize(("breaks", "audit", "sentence"), [
    (put_twice, (40, 35, 6, 0, 1, 0), "; 1 put twice"),
    (put_foreign, (40, 35, 5, 1, 0, 1), "; 1 that are not its own"),
])
def test_what_is_put_wrongly_is_found(breaks, audit, sentence):
    """In a debug build at the put; else by the audit."""
    cdef Mempool pool
    if IS_DEBUG:
        child = os.fork()
        if child == 0:
            devnull = os.open(os.devnull, os.O_WRONLY)
            os.dup2(devnull, 2)
            lcore.fini()
            memory.fini()
            memory.init()
            lcore.init({2: CPUS, 3: CPUS})
            breaks()
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) < 0, "it was stopped"
        return
    pool, held = breaks()
    found = pool.audit()
    assert tuple(found) == audit
    assert not found.sound and str(found).endswith(sentence)
    pool.mp.caches[3].len = 0                                   # mended
    pool.put(held)
    assert pool.audit().sound


def test_audit_finds_what_is_wrong_in_the_ring_too():
    cdef Mempool pool = Mempool(10, 64, count_max=20)
    cdef void *objs[2]
    objs[0] = pool.mp.chunks
    objs[1] = NULL
    assert ring_mp_enqueue(pool.mp.ring, objs, 2) == 2
    found = pool.audit()
    assert (found.ring, found.foreign, found.out) == (12, 2, 0)
    assert str(found) == ("pool of 10 objects: 12 in the ring, 0 in caches, 0 out; 2 that are not "
                          "its own")
    pool.mp.ring.prod_head = pool.mp.ring.prod_tail = 10
    assert pool.audit().sound


MOVES = st.lists(st.tuples(st.sampled_from([2, 3, 70, 0xFFFFFFFF]),
                           st.sampled_from(["get", "put", "flush"]), st.integers(0, 40)),
                 max_size=60)


@given(moves=MOVES, cache=st.sampled_from([0, 1, 5, 16]))
def test_audit_after_random_use(moves, cache):
    """Whatever lcores do, each object is in one place, and what is out is what they hold."""
    cdef mempool_audit_t audit
    cdef mempool_t *mp = mempool_create(100, 0, 64, cache, -1)
    cdef void *objs[40]
    cdef uint32_t who, n, i
    held = []
    for who, call, n in moves:
        if call == "get" and mempool_get(mp, who, objs, n) == 0:
            held += [<uintptr_t>objs[i] for i in range(n)]
            assert len(set(held)) == len(held), "an object was handed out twice"
        elif call == "put":
            n = min(n, len(held))
            for i in range(n):
                objs[i] = <void *><uintptr_t>held.pop()
            mempool_put(mp, who, objs, n)
        elif call == "flush":
            mempool_flush(mp, who)
        assert mempool_audit(mp, &audit) == 0
        assert audit.twice == audit.foreign == 0
        assert audit.out == len(held) == mp.count - mempool_count(mp)
    for address in held:
        objs[0] = <void *><uintptr_t>address
        mempool_put(mp, 3, objs, 1)
    assert mempool_free(mp) == 0


# Stress: each thread gets some objects, writes its mark into them, and looks whether the mark is
# still there before it puts them back, one by one or together.

ctypedef struct stress_t:
    mempool_t *mp
    uint32_t rounds
    uint32_t next_mark
    uint32_t taken              # marks that another thread changed
    uint32_t empty              # gets that found nothing


cdef int stress(void *arg) noexcept nogil:
    cdef stress_t *s = <stress_t *>arg
    cdef uint64_t mark = fetch_add_u32(&s.next_mark, 1) + 1
    cdef uint64_t seed = mark
    cdef void *objs[HOLD]
    cdef uint32_t n, i, r
    cdef uint32_t bad = 0
    for r in range(s.rounds):
        seed ^= seed << 13                                      # xorshift
        seed ^= seed >> 7
        seed ^= seed << 17
        n = <uint32_t>(seed >> 32) % HOLD + 1
        if mempool_get(s.mp, lcore_current(), objs, n) < 0:
            fetch_add_u32(&s.empty, 1)
            continue
        for i in range(n):
            (<uint64_t *>objs[i])[0] = mark << 32 | r
        for i in range(n):
            bad += (<uint64_t *>objs[i])[0] != (mark << 32 | r)
        if r & 1:
            mempool_put(s.mp, lcore_current(), objs, n)
        else:
            for i in range(n):
                mempool_put(s.mp, lcore_current(), &objs[i], 1)
    fetch_add_u32(&s.taken, bad)
    return 0


@pytest.mark.parametrize(("count", "cache"), [(400, 16), (400, 0), (90, 4)])
def test_stress_of_get_and_put(count, cache):
    cdef stress_t s
    cdef mempool_audit_t audit
    cdef int ret = 0, growth = 0
    cdef uint32_t i, _i
    cdef uint32_t *lcores = [2, 3, 70]
    memset(&s, 0, sizeof(s))
    s.mp = mempool_create(count, count + 100, 64, cache, -1)
    s.rounds = 10_000 * int(os.environ.get("VHOSTRT_STRESS", "1"))
    with nogil:
        for i in range(3):
            lcore_launch(lcores[i], stress, &s)
        for _i in range(10):
            growth += mempool_grow(s.mp, 10)
        stress(&s)                                              # here, without a cache
        for i in range(3):
            lcore_wait(lcores[i], &ret)
    assert s.taken == 0, "two threads had one object"
    assert growth == 0
    assert mempool_count(s.mp) == s.mp.count == count + 100
    assert mempool_audit(s.mp, &audit) == 0
    assert (audit.out, audit.twice, audit.foreign) == (0, 0, 0), "every object is home, once"
    assert mempool_free(s.mp) == 0
