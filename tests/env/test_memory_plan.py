"""vhostrt.env.memory_plan: which pages of which node are kept, on machines that are on paper."""
import errno
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.lib.recorded import System
from vhostrt.env import memory_plan
from vhostrt.env.memory_plan import plan

MIB, GIB = 1 << 20, 1 << 30
M2 = 2 * MIB


def test_without_a_size_everything_is_kept():
    pages = {GIB: {0: 1}, M2: {0: 7, 1: 3}}
    assert plan(pages, {0: 1}, None) == pages


SPLITS = {
    "one node": ({M2: {0: 10}}, {0: 4}, 8 * MIB, {M2: {0: 4}}),
    "by lcores": ({M2: {0: 100, 1: 100}}, {0: 1, 1: 3}, 80 * MIB, {M2: {0: 10, 1: 30}}),
    "a node without lcores": ({M2: {0: 100, 1: 100}}, {1: 2}, 20 * MIB, {M2: {1: 10}}),
    "a node with too little": ({M2: {0: 2, 1: 100}}, {0: 1, 1: 1}, 40 * MIB, {M2: {0: 2, 1: 18}}),
    "the rest in ascending order": ({M2: {0: 9, 1: 9, 2: 9}}, {2: 1}, 40 * MIB,
                                    {M2: {0: 9, 1: 2, 2: 9}}),
    "rounded up": ({M2: {0: 10}}, {0: 1}, 5 * MIB, {M2: {0: 3}}),
    "large pages first": ({GIB: {0: 2}, M2: {0: 512}}, {0: 1}, GIB + 6 * MIB,
                          {GIB: {0: 1}, M2: {0: 3}}),
    "no large page where small ones do": ({GIB: {0: 2}, M2: {0: 512}}, {0: 1}, 512 * MIB,
                                          {GIB: {}, M2: {0: 256}}),
    "a large page where small ones do not": ({GIB: {0: 2}, M2: {0: 10}}, {0: 1}, 512 * MIB,
                                             {GIB: {0: 1}, M2: {}}),
    "lcores that nobody told of": ({M2: {0: 4, 1: 4}}, {}, 12 * MIB, {M2: {0: 4, 1: 2}}),
    "half a page each": ({M2: {0: 4, 1: 4}}, {0: 1, 1: 1}, 6 * MIB, {M2: {0: 2, 1: 2}}),
}


@pytest.mark.parametrize(("pages", "lcores", "memory", "kept"), SPLITS.values(), ids=SPLITS)
def test_split(pages, lcores, memory, kept):
    assert plan(pages, lcores, memory) == kept


def test_each_node_gives_what_is_asked_of_it():
    pages = {GIB: {1: 2}, M2: {0: 10, 1: 10}}
    assert plan(pages, {0: 1}, None, (4 * MIB, GIB)) == {GIB: {1: 1}, M2: {0: 2}}
    assert plan(pages, {0: 1}, None, (0, 3 * MIB)) == {GIB: {}, M2: {1: 2}}


SHORT = {
    "in all": ({M2: {0: 3, 1: 4}}, 20 * MIB, (),
               "Not enough memory available! Requested: 20MB, available: 14MB"),
    "on a node": ({M2: {0: 3, 1: 4}}, None, (4 * MIB, 10 * MIB),
                  "Not enough memory available on socket 1! Requested: 10MB, available: 8MB"),
    "on no such node": ({M2: {0: 3}}, None, (0, 0, 2 * MIB),
                        "Not enough memory available on socket 2! Requested: 2MB, available: 0MB"),
    "part of a MiB": ({M2: {0: 1}}, 2 * MIB + 1, (),
                      "Not enough memory available! Requested: 3MB, available: 2MB"),
}


@pytest.mark.parametrize(("pages", "memory", "each", "said"), SHORT.values(), ids=SHORT)
def test_too_little_is_said_with_what_there_is(pages, memory, each, said):
    with pytest.raises(OSError) as refused:
        plan(pages, {0: 1, 1: 1}, memory, each)
    assert (refused.value.errno, refused.value.strerror) == (errno.ENOMEM, said)


COUNTS = st.dictionaries(st.integers(0, 3), st.integers(0, 20))


@given(st.fixed_dictionaries({GIB: COUNTS, 32 * MIB: COUNTS, M2: COUNTS}), COUNTS,
       st.integers(1, 30 * GIB))
def test_enough_is_kept_and_not_more_than_there_is(pages, lcores, memory):
    there = sum(size * count for size, of in pages.items() for count in of.values())
    if memory > there:
        with pytest.raises(OSError):
            plan(pages, lcores, memory)
        return
    kept = plan(pages, lcores, memory)
    for size, of in kept.items():
        assert all(0 < count <= pages[size][node] for node, count in of.items())
    total = sum(size * count for size, of in kept.items() for count in of.values())
    assert total >= memory
    for node in {node for of in kept.values() for node in of}:
        # A page too many on a node is the smallest that is kept there, or more was not needed.
        smallest = min(size for size, of in kept.items() if of.get(node))
        assert memory_plan.on_node(kept, node) - smallest < memory


def test_shares_of_reserved_files(tmp_path):
    def path(node):
        return str(tmp_path / f"vhost_spdk_reserved_{node}")

    assert memory_plan.shares(5 * MIB, str(tmp_path), [0, 1, 4]) == {
        path(0): (2 * MIB, 0), path(1): (2 * MIB, 1), path(4): (MIB, 4)}
    assert memory_plan.shares(MIB, str(tmp_path), [0, 1]) == {path(0): (MIB, 0)}
    assert memory_plan.shares(None, str(tmp_path), [0, 1], (0, 3 * MIB)) == {path(1): (3 * MIB, 1)}
    (tmp_path / "vhost_spdk_reserved_1").write_bytes(b"there")
    assert memory_plan.shares(None, str(tmp_path), [0, 1]) == {path(0): (GIB, 0), path(1): (0, 1)}


@pytest.fixture
def system(tmp_path):
    system = System(tmp_path)
    system.write("proc/meminfo", "MemTotal: 4096 kB\nMemAvailable: 3072 kB\n")
    return system


def test_available_is_what_is_free(system):
    assert memory_plan.available(system.roots) == 3 * MIB
    assert memory_plan.physical_memory(system.roots) == 4 * MIB


def test_available_is_within_every_control_group_above(system):
    system.write("proc/self/cgroup", "4:memory:/old\n0::/a/b\n")
    system.write("sys/fs/cgroup/a/b/memory.max", "max\n")
    system.write("sys/fs/cgroup/a/b/memory.current", "1000\n")
    assert memory_plan.available(system.roots) == 3 * MIB
    system.write("sys/fs/cgroup/a/memory.max", f"{2 * MIB}\n")
    system.write("sys/fs/cgroup/a/memory.current", f"{MIB}\n")
    assert memory_plan.available(system.roots) == MIB
    system.write("sys/fs/cgroup/memory.max", "100\n")
    system.write("sys/fs/cgroup/memory.current", "200\n")
    assert memory_plan.available(system.roots) == 0


def test_this_machine():
    assert 0 < memory_plan.available() <= memory_plan.physical_memory()
    assert memory_plan.physical_memory() <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
