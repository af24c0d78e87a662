"""vhostrt.env.mempool at the C level: the caches of lcores, and threads that race."""
import errno
import os

import pytest

from libc.stdint cimport uint32_t, uint64_t, uintptr_t
from libc.string cimport memset
from vhostrt.base.atomics cimport fetch_add_u32
from vhostrt.env.lcore cimport LCORE_NONE, lcore_current, lcore_launch, lcore_wait
from vhostrt.env.mempool cimport (mempool_cache, mempool_count, mempool_create, mempool_free,
                                  mempool_get, mempool_get_one, mempool_grow, mempool_owns,
                                  mempool_put, mempool_t)
from vhostrt.env.ring cimport ring_count

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
def test_stress(count, cache):
    cdef stress_t s
    cdef int ret = 0, growth = 0
    cdef uint32_t i, _i, home, n
    cdef uint32_t *lcores = [2, 3, 70]
    cdef void *objs[MOST]
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
    # Every object is home, once.
    n = 0
    for i in range(3):
        home = s.mp.caches[lcores[i]].len if cache else 0
        assert mempool_get(s.mp, lcores[i], &objs[n], home) == 0
        n += home
    assert mempool_get(s.mp, LCORE_NONE, &objs[n], s.mp.count - n) == 0
    assert len({<uintptr_t>objs[i] for i in range(s.mp.count)}) == s.mp.count
    for i in range(s.mp.count):
        assert mempool_owns(s.mp, objs[i])
    mempool_put(s.mp, LCORE_NONE, objs, s.mp.count)
    assert mempool_free(s.mp) == 0
