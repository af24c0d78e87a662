"""vhostrt.env.zone: named memory, against a dictionary, and every refusal."""
import errno
import gc
import re

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.lib import hugepages
from vhostrt.env import memory, zone
from vhostrt.env.options import EnvOptions

MIB, GIB = 1 << 20, 1 << 30

pytestmark = pytest.mark.usefixtures("heap")


def free_all():
    for one in zone.walk():
        one.free()


@pytest.fixture(autouse=True)
def no_zones(heap):
    yield
    gc.collect()
    if memory.ready():
        free_all()


def test_a_zone_is_zeroed_memory_of_the_size_that_was_asked_for():
    one = zone.reserve("one", 1000)
    assert (one.name, len(one), one.node, one.page_size) == ("one", 1024, 0, 4096)
    assert one.address % 64 == 0 and one.iova is None
    assert not one.array().any()
    segment = memory.segments()[0]
    assert segment["address"] < one.address < segment["address"] + segment["size"]
    assert one.segment == 0
    assert zone.dump() == (f"<zone one: 1024 bytes at {one.address:#x}, node 0, pages of 4 KiB>\n")


def test_arrays_share_the_memory_and_keep_the_zone():
    one = zone.reserve("one", 4096)
    grid = one.array("float64", (8, 4))
    grid[7, 3] = 2.5
    assert numpy.frombuffer(zone.lookup("one"), "float64")[31] == 2.5
    with pytest.raises(BufferError, match="zone one is in use: views of it live"):
        one.free()
    # Not by another object of the same zone either, nor by its name.
    with pytest.raises(BufferError, match="zone one is in use"):
        zone.lookup("one").free()
    with pytest.raises(BufferError, match="zone one is in use"):
        zone.free("one")
    del one
    gc.collect()
    grid[0, 0] = 1.0
    del grid
    zone.free("one")
    assert zone.lookup("one") is None


def test_memory_is_there_until_no_view_lives():
    one = zone.reserve("one", 4096)
    view = one.array()
    with pytest.raises(OSError, match="views of its zones are still in use") as refused:
        memory.fini()
    assert refused.value.errno == errno.EBUSY
    del view
    with pytest.raises(OSError, match="1 blocks .* still in use; zones: one") as refused:
        memory.fini()
    assert refused.value.errno == errno.EBUSY
    one.free()
    memory.fini()
    with pytest.raises(ValueError, match="memory is not initialised"):
        memoryview(one)


def test_a_zone_that_has_been_freed():
    one = zone.reserve("one", 64)
    other = zone.lookup("one")
    one.free()
    one.free()
    # The name may be used again, and that is another zone.
    again = zone.reserve("one", 64)
    for stale in (one, other):
        stale.free()
        with pytest.raises(ValueError, match="zone one has been freed"):
            stale.array()
    assert zone.lookup("one").address == again.address
    with pytest.raises(OSError, match="there is no zone two") as refused:
        zone.free("two")
    assert refused.value.errno == errno.ENOENT


def test_memory_of_a_freed_zone_is_zero_again():
    one = zone.reserve("one", 100_000)
    address = one.address
    one.array()[:] = 0xFF
    one.free()
    again = zone.reserve("two", 100_000)
    assert again.address == address and not again.array().any()


@pytest.mark.parametrize("align", [64, 4096, 2 * MIB])
def test_alignment(align):
    assert all(zone.reserve(f"z{n}", 100, align=align).address % align == 0 for n in range(4))


def test_a_small_alignment_is_that_of_a_cache_line():
    assert zone.reserve("one", 100, align=8).address % 64 == 0


def test_bound():
    for n in range(20):
        one = zone.reserve(f"z{n}", 3000, bound=4096)
        assert one.address // 4096 == (one.address + len(one) - 1) // 4096
    assert len(zone.reserve("whole", 0, bound=8192)) == 8192


def test_size_0_is_the_largest_free_space():
    memory.fini()
    memory.init(EnvOptions(mem_size=8 * MIB, no_huge=True))
    zone.reserve("first", MIB)
    rest = zone.reserve("rest", 0)
    assert 7 * MIB - 4096 < len(rest) < 7 * MIB
    with pytest.raises(OSError, match="the largest free space has 0 bytes") as refused:
        zone.reserve("more", 0)
    assert refused.value.errno == errno.ENOMEM


LONG = "x" * 32
REFUSED = {
    "too long": (LONG, {"size": 64}, errno.ENAMETOOLONG, "its name has more than 31 characters"),
    "no name": ("", {"size": 64}, errno.EINVAL, "make no sense"),
    "a NUL": ("a\0b", {"size": 64}, errno.EINVAL, "make no sense"),
    "there": ("there", {"size": 64}, errno.EEXIST, "there is one of that name"),
    "align 0": ("new", {"size": 64, "align": 3}, errno.EINVAL, "align 3, bound 0 make no sense"),
    "align < 0": ("new", {"size": 64, "align": -64}, errno.EINVAL, "align -64"),
    "bound": ("new", {"size": 64, "bound": 96}, errno.EINVAL, "bound 96 make no sense"),
    "above bound": ("new", {"size": 65, "bound": 64}, errno.EINVAL, "size 65"),
    "node -2": ("new", {"size": 64, "node": -2}, errno.EINVAL, "node -2"),
    "node 1024": ("new", {"size": 64, "node": 1024}, errno.EINVAL, "node 1024"),
    "flags": ("new", {"size": 64, "flags": 8}, errno.EINVAL, "flags 8"),
    "size < 0": ("new", {"size": -1}, errno.EINVAL, "size -1"),
    "size 2^63": ("new", {"size": 2**63}, errno.EINVAL, "make no sense"),
    "size 2^64": ("new", {"size": 2**64}, errno.EINVAL, "make no sense"),
    "no such memory": ("new", {"size": 2**50}, errno.ENOMEM, "there is no room for more"),
    "no such node": ("new", {"size": 64, "node": 900}, errno.ENOMEM, "space has 0 bytes"),
    "no such pages": ("new", {"size": 64, "flags": 2}, errno.ENOMEM, "flags 2"),
}


@pytest.mark.parametrize(("name", "asked", "code", "said"), REFUSED.values(), ids=REFUSED)
def test_refused(name, asked, code, said):
    zone.reserve("there", 64)
    with pytest.raises(OSError, match=re.escape(f"zone {name!a}: ") + f".*{said}") as refused:
        zone.reserve(name, **asked)
    assert refused.value.errno == code
    assert [one.name for one in zone.walk()] == ["there"]
    assert memory.stats()["blocks"] == 1


def test_the_longest_name():
    zone.reserve(LONG[:31], 64)
    assert zone.lookup(LONG[:31]).name == LONG[:31]
    assert zone.lookup(LONG) is None and zone.lookup("") is None and zone.lookup("a\0b") is None


def test_there_are_2560_zones_and_no_more():
    names = [f"z{n}" for n in range(2560)]
    for name in names:
        zone.reserve(name, 64)
    with pytest.raises(OSError, match="there are 2560 zones already") as refused:
        zone.reserve("more", 64)
    assert refused.value.errno == errno.ENOSPC
    # Full is said first, whatever else is wrong, as in DPDK.
    with pytest.raises(OSError) as refused:
        zone.reserve(LONG, 64)
    assert refused.value.errno == errno.ENOSPC
    assert [one.name for one in zone.walk()] == names
    zone.free("z1234")
    assert zone.lookup("z1234") is None and zone.lookup("z1235").name == "z1235"
    zone.reserve("again", 64)
    assert [one.name for one in zone.walk()][1234] == "again"


def test_before_init():
    memory.fini()
    for call in (lambda: zone.reserve("one", 64), lambda: zone.lookup("one"),
                 lambda: zone.free("one"), zone.walk, zone.dump):
        with pytest.raises(OSError, match="memory is not initialised") as refused:
            call()
        assert refused.value.errno == errno.ESRCH


NAMES = st.sampled_from(["a", "b", "c", "dd", "x" * 31])


@given(st.lists(st.one_of(
    st.tuples(st.just("reserve"), NAMES, st.integers(1, 200_000), st.sampled_from([64, 512, 8192])),
    st.tuples(st.just("free"), NAMES), st.tuples(st.just("lookup"), NAMES)), max_size=30))
def test_like_a_dictionary(moves):
    there = {}
    for what, name, *rest in moves:
        if what == "reserve" and name in there:
            with pytest.raises(OSError):
                zone.reserve(name, *rest[:1], align=rest[1])
        elif what == "reserve":
            one = zone.reserve(name, rest[0], align=rest[1])
            assert len(one) == -(-rest[0] // 64) * 64 and one.address % rest[1] == 0
            assert not any(memoryview(one))
            memoryview(one)[:] = bytes([len(there) + 1]) * len(one)
            there[name] = (one.address, bytes(memoryview(one)))
        elif name in there:
            found = zone.lookup(name)
            assert (found.address, memoryview(found)) == there[name]
            if what == "free":
                found.free()
                del there[name]
        else:
            assert zone.lookup(name) is None
        assert sorted(one.name for one in zone.walk()) == sorted(there)
        assert memory.stats()["blocks"] == len(there)
    free_all()
    assert memory.stats()["total"] == 0


# On huge pages.

def test_pages_of_2_mib(pages):
    memory.init(EnvOptions())
    if not pages:
        with pytest.raises(OSError, match="flags 1") as refused:
            zone.reserve("one", 3 * MIB, flags=zone.PAGES_2MB)
        assert refused.value.errno == errno.ENOMEM
    else:
        assert zone.reserve("one", 3 * MIB, flags=zone.PAGES_2MB).page_size == 2 * MIB
        assert zone.reserve("two", 64, flags=zone.PAGES_2MB | zone.PAGES_1GB).page_size == 2 * MIB
    hint = zone.reserve("hint", 64, flags=zone.PAGES_1GB | zone.SIZE_HINT_ONLY)
    assert hint.page_size in (4096, 2 * MIB, GIB)
    free_all()


def test_pages_of_1_gib():
    memory.fini()
    with hugepages.reserved(1, GIB) as there:
        memory.init(EnvOptions())
        if there:
            # Who does not ask gets them only where no others are reserved at all.
            block = memory.zalloc(64)
            others = hugepages.of_size(2 * MIB).total > 0
            assert (memory.segments()[0]["page_size"] < GIB) == others
            one = zone.reserve("one", 10 * MIB, flags=zone.PAGES_1GB)
            assert one.page_size == GIB and not any(memoryview(one)[::4096])
            one.free()
            del block
        else:
            with pytest.raises(OSError, match="flags 2"):
                zone.reserve("one", 10 * MIB, flags=zone.PAGES_1GB)
        memory.fini()


def test_one_piece_for_a_device(pages):
    memory.init(EnvOptions())
    if pages:
        # Nothing is known of the pages, so a piece is what lies in one of them.
        for n in range(4):
            one = zone.reserve(f"z{n}", MIB, flags=zone.IOVA_CONTIG)
            assert one.address // (2 * MIB) == (one.address + MIB - 1) // (2 * MIB)
    with pytest.raises(OSError, match="in one piece for a device") as refused:
        zone.reserve("large", 3 * MIB, flags=zone.IOVA_CONTIG)
    assert refused.value.errno == errno.ENOMEM
    free_all()
