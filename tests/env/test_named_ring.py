"""vhostrt.env.named_ring: rings that every process finds by their names, two real processes among
them."""
import errno
import os
import re

import pytest
from tests.lib.env_process import processes

from vhostrt.env import memory, named_ring, tailq, zone
from vhostrt.env.named_ring import NamedRing
from vhostrt.env.options import EnvOptions

WORDS = 20_000


@pytest.fixture
def rings(heap):
    """A function that makes named rings, which are freed afterwards."""
    made = []

    def make(*args, **kwargs):
        made.append(NamedRing(*args, **kwargs))
        return made[-1]
    yield make
    for ring in made:
        ring.free()


def test_a_ring_is_in_its_zone_and_in_the_list(rings):
    ring = rings("events", 8, "sp_mc")
    assert (ring.name, ring.kind, ring.capacity) == ("events", "sp_mc", 7)
    assert zone.lookup("RG_events") is not None
    assert tailq.find("RTE_RING", "events") == zone.lookup("RG_events").address
    assert named_ring.rings() == ["events"]
    ring.enqueue([1, 2])
    other = NamedRing.lookup("events")
    assert (other.name, other.kind, len(other), other.dequeue(9)) == ("events", "sp_mc", 2, [1, 2])
    assert other.slots[:2].tolist() == [1, 2]
    assert NamedRing.lookup("other") is NamedRing.lookup("a\0b") is None
    del other


def test_capacity_may_be_exact(rings):
    ring = rings("exact", 100, exact=True)
    assert (ring.capacity, ring.exact) == (100, True)
    assert ring.enqueue(range(100)) == 100 and ring.full


def test_names_as_spdk_gives_them(rings):
    numbers = [int(re.fullmatch(rf"ring_(\d+)_{os.getpid()}", rings("", 8).name)[1])
               for _ in range(3)]
    assert numbers == list(range(numbers[0], numbers[0] + 3))


def test_a_ring_stays_without_its_handle_and_goes_when_it_is_freed(rings):
    NamedRing("stays", 8).enqueue([7])
    ring = NamedRing.lookup("stays")
    assert ring.dequeue() == [7]
    ring.free()
    ring.free()
    assert NamedRing.lookup("stays") is None and zone.lookup("RG_stays") is None
    assert memory.stats()["blocks"] == 0
    for use in (lambda: len(ring), ring.dequeue, lambda: ring.enqueue([1]), lambda: ring.slots):
        with pytest.raises(ValueError, match="the ring has been freed"):
            use()


def test_free_is_refused_while_others_look(rings):
    ring = rings("shared", 8)
    for make in (lambda: NamedRing.lookup("shared"), lambda: zone.lookup("RG_shared").array(),
                 lambda: NamedRing.lookup("shared").slots, lambda: ring.slots,
                 lambda: memoryview(ring)):
        held = make()
        with pytest.raises(BufferError, match="ring 'shared' is in use"):
            ring.free()
        assert ring.enqueue([1]) == 1 and named_ring.rings() == ["shared"]
        del held
    with pytest.raises(OSError, match="still in use"):
        memory.fini()


@pytest.mark.parametrize(("name", "count", "number", "why"), [
    ("x" * 29, 8, errno.ENAMETOOLONG, "its name has more than 28 characters"),
    ("a\0b", 8, errno.EINVAL, "no such name"),
    ("there", 8, errno.EEXIST, "there is one of that name"),
    ("new", 7, errno.EINVAL, "Requested size is invalid, must be power of 2"),
    ("new", 2**24, errno.ENOMEM, "Cannot reserve memory"),
])
def test_refused(clean, name, count, number, why):
    memory.init(EnvOptions(mem_size=16 << 20, no_huge=True))
    there = NamedRing("there", 8)
    before = (memory.stats()["blocks"], named_ring.rings())
    with pytest.raises(OSError, match=why) as refused:
        NamedRing(name, count)
    assert refused.value.errno == number
    assert (memory.stats()["blocks"], named_ring.rings()) == before
    there.free()


def test_refused_node_and_kind(heap):
    with pytest.raises(OSError, match="Cannot reserve memory"):
        NamedRing("x", 8, node=5)
    with pytest.raises(OSError, match="no such NUMA node"):
        NamedRing("x", 8, node=5000)
    with pytest.raises(ValueError, match="'many'"):
        NamedRing("x", 8, "many")
    assert memory.stats()["blocks"] == 0


def test_without_memory_refused(clean):
    with pytest.raises(OSError, match="ring 'x' of 8 slots: memory is not initialised"):
        NamedRing("x", 8)
    assert NamedRing.lookup("x") is None


def test_longest_name(rings):
    assert rings("y" * 28, 8).name == "y" * 28


@pytest.fixture
def two(tmp_path, monkeypatch):
    """A primary and a secondary process, on ordinary pages."""
    if os.geteuid():
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    prefix = f"vhostrt-ring-{os.getpid()}"
    with processes(2) as (first, second):
        first.init(file_prefix=prefix, no_huge=True)
        second.init(file_prefix=prefix, proc_type="secondary")
        for process in (first, second):
            process("exec('from vhostrt.env.named_ring import NamedRing, rings')")
        yield first, second
        second.end()
        first("r.free()")
        first.end()


def test_two_processes_send_each_other_numbers(two):
    first, second = two
    first("(r := NamedRing('there', 64, 'mp_mc')).name")
    assert second("rings()") == ["there"]
    assert second("(r := NamedRing.lookup('there')).capacity") == 63
    assert first("r.enqueue(range(5))") == 5
    assert second("(len(r), r.dequeue_bulk(4))") == (5, [0, 1, 2, 3])
    assert second("r.enqueue_burst(range(100, 200))") == 62
    assert first("r.dequeue(100)") == [4, *range(100, 162)]
    assert first("len(r)") == second("len(r)") == 0


PUSH = """
def push(n):
    left = list(range(n))
    while left:
        del left[:r.enqueue_burst(left[:50])]
    return n
"""
PULL = """
def pull(n):
    seen = []
    while len(seen) < n:
        seen += r.dequeue(50)
    return seen == list(range(n)), len(r)
"""


def test_a_stream_of_numbers_between_two_processes(two):
    first, second = two
    first("(r := NamedRing('there', 64, 'sp_sc')).name")
    second("(r := NamedRing.lookup('there')).name")
    first(f"exec({PUSH!r})")
    second(f"exec({PULL!r})")
    first.send(f"push({WORDS})")
    assert second(f"pull({WORDS})") == (True, 0)
    assert first.answer() == WORDS


def test_only_the_primary_process_makes_and_frees(two):
    first, second = two
    first("(r := NamedRing('there', 64)).name")
    second("(r := NamedRing.lookup('there')).name")
    for call in ("r.free()", "NamedRing('new', 8)"):
        assert "only the primary process" in second(call)
    assert second("r.enqueue([1])") == 1, "the handle is as it was"
    assert first("r.dequeue()") == [1]
