"""vhostrt.env.mempool from Python: counts, growth, refusals, and where the objects lie."""
import errno

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vhostrt.env import lcore, memory
from vhostrt.env.mempool import Mempool
from vhostrt.env.options import EnvOptions

pytestmark = pytest.mark.usefixtures("heap")


@pytest.mark.parametrize(("size", "stride"), [(1, 64), (32, 64), (64, 64), (65, 128), (4096, 4096)])
def test_every_object_once_on_cache_lines_of_its_own(size, stride):
    pool = Mempool(50, size)
    assert pool.stride == stride
    objects = pool.get(50)
    assert len(set(objects)) == 50
    assert all(at % 64 == 0 for at in objects)
    gaps = {b - a for a, b in zip(sorted(objects), sorted(objects)[1:], strict=False)}
    assert gaps == {stride}
    assert len(pool) == 0
    pool.put(objects)
    assert len(pool) == pool.count == 50


def test_get_is_all_or_nothing():
    pool = Mempool(10, 64)
    held = pool.get(6)
    with pytest.raises(OSError, match="get of 5 objects") as refused:
        pool.get(5)
    assert refused.value.errno == errno.ENOBUFS
    assert len(pool) == 4
    held += pool.get(4)
    assert len(set(held)) == 10
    pool.put(held)


def test_growth_up_to_its_most():
    pool = Mempool(8, 64, count_max=20)
    held = pool.get(8)
    pool.grow(10)
    assert (pool.count, len(pool)) == (18, 10)
    held += pool.get(10)
    assert len(set(held)) == 18
    with pytest.raises(OSError, match="growth by 3 objects") as refused:
        pool.grow(3)
    assert refused.value.errno == errno.ENOSPC
    pool.grow(2)
    held += pool.get(2)
    pool.put(held)
    assert len(pool) == 20
    pool.free()
    assert memory.stats()["blocks"] == 0


def test_growth_without_memory_adds_nothing():
    memory.fini()
    memory.init(EnvOptions(mem_size=4 << 20, no_huge=True))
    pool = Mempool(8, 4096, count_max=100_000)
    with pytest.raises(OSError, match="growth by 90000 objects") as refused:
        pool.grow(90_000)
    assert refused.value.errno == errno.ENOMEM
    assert (pool.count, len(pool)) == (8, 8)


@pytest.mark.parametrize(("asked", "count", "lcores", "size"), [
    (0, 1000, 1, 0), (100, 1000, 1, 100), (600, 10_000, 1, 512), (2**40, 10_000, 1, 512),
    (400, 1000, 2, 250), (400, 7, 1, 3), (400, 1, 1, 0),
])
def test_size_of_the_caches(asked, count, lcores, size):
    cpus = [lcore.detect(within_affinity=True)[0].id]
    lcore.init({n: cpus for n in range(lcores)})
    before = memory.stats()["blocks"]
    pool = Mempool(count, 64, cache=asked)
    assert pool.cache == size
    # The pool, its ring, its objects, and the caches.
    assert memory.stats()["blocks"] - before == 3 + (lcores if size else 0)


@pytest.mark.parametrize(("count", "size", "more"), [
    (0, 64, {}), (-1, 64, {}), (8, 0, {}), (8, -1, {}), (8, 2**31, {}), (2**30, 1, {}),
    (8, 64, {"count_max": 7}), (8, 64, {"cache": -1}),
])
def test_refused(count, size, more):
    with pytest.raises(OSError, match=f"pool of {count} objects of {size} bytes") as refused:
        Mempool(count, size, **more)
    assert refused.value.errno == errno.EINVAL
    assert memory.stats()["blocks"] == 0


def test_no_memory_leaves_nothing_behind():
    memory.fini()
    memory.init(EnvOptions(mem_size=2 << 20, no_huge=True))
    with pytest.raises(OSError, match="pool of 1000 objects of 4096 bytes") as refused:
        Mempool(1000, 4096)
    assert refused.value.errno == errno.ENOMEM
    assert memory.stats()["blocks"] == 0


def test_only_its_own_objects_are_taken_back():
    pool, other = Mempool(4, 64), Mempool(4, 64)
    held, foreign = pool.get(1), other.get(1)
    for address in (foreign[0], held[0] + 8, 0, 64):
        with pytest.raises(ValueError, match=f"{address:#x} is no object of this pool"):
            pool.put([held[0], address])
    assert len(pool) == 3
    pool.put(held)
    other.put(foreign)


def test_free_refuses_while_objects_are_out():
    pool = Mempool(4, 64)
    held = pool.get(3)
    with pytest.raises(OSError, match="pool with 3 of its 4 objects still out") as refused:
        pool.free()
    assert refused.value.errno == errno.EBUSY
    pool.put(held)
    pool.free()
    pool.free()
    for use in (pool.get, lambda: len(pool), lambda: pool.grow(1), lambda: pool.put([])):
        with pytest.raises(ValueError, match="the pool has been freed"):
            use()


@given(st.lists(st.one_of(st.integers(0, 12), st.integers(-12, -1)), max_size=60))
def test_every_object_is_somewhere(moves):
    pool, held = Mempool(16, 64, count_max=24), []
    for move in moves:
        if move >= 0 and move <= pool.count - len(held):
            held += pool.get(move)
        elif move < 0:
            pool.put(held[move:])
            del held[move:]
        elif pool.count < 24:
            pool.grow(1)
        assert len(set(held)) == len(held)
        assert len(pool) == pool.count - len(held)
    pool.put(held)
    every = pool.get(pool.count)
    assert len(set(every)) == pool.count and set(held) <= set(every)
    pool.put(every)
