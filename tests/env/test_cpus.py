"""vhostrt.env.cpus: what is detected, here and on recorded trees."""
import os
import re

import pytest
from tests.lib.cpu_tree import cpu_tree

from vhostrt.env.cpus import cpu_list, detect, nodes_of
from vhostrt.env.roots import Roots

ALL = sorted(os.sched_getaffinity(0))


def test_this_machine():
    with open("/proc/cpuinfo") as file:
        known = [int(n) for n in re.findall(r"^processor\s*:\s*(\d+)", file.read(), re.M)]
    assert [cpu.id for cpu in detect()] == known


def test_cores_nodes_and_what_is_offline(tmp_path):
    roots = cpu_tree(tmp_path, {0: ("0\n", 0), 1: ("4\n", 1), 2: (None, 1), 10: ("x", None),
                                1023: ("7\n", 9), 1024: ("8\n", 0)})
    assert detect(roots=roots) == [(0, 0, 0), (1, 4, 1), (10, 0, 0), (1023, 7, 9)]


def test_a_large_machine(tmp_path):
    # Four sockets of 64 CPUs, numbered as Linux does with two threads a core.
    tree = {cpu: (f"{cpu % 32}\n", cpu // 32 % 4) for cpu in range(256)}
    cpus = detect(roots=cpu_tree(tmp_path, tree))
    assert [cpu.id for cpu in cpus] == list(range(256))
    assert {node: cpu_list(c.id for c in cpus if c.node == node) for node in range(4)} == {
        0: "0-31,128-159", 1: "32-63,160-191", 2: "64-95,192-223", 3: "96-127,224-255"}
    assert cpus[200] == (200, 8, 2)


def test_the_lowest_node_that_lists_a_cpu_is_its_own(tmp_path):
    roots = cpu_tree(tmp_path, {0: ("0", 10), 1: ("0", 2)})
    (tmp_path / "devices/system/node/node3/cpu0").mkdir(parents=True)
    (tmp_path / "devices/system/node/node4").mkdir()
    assert nodes_of(roots) == {0: 3, 1: 2}


def test_by_affinity_without_sysfs(tmp_path):
    assert detect(roots=Roots(sys=str(tmp_path))) == [(cpu, cpu, 0) for cpu in ALL]


def test_within_the_affinity():
    os.sched_setaffinity(0, ALL[:1])
    try:
        assert [cpu.id for cpu in detect(within_affinity=True)] == ALL[:1]
        assert len(detect()) >= len(ALL)
    finally:
        os.sched_setaffinity(0, ALL)


@pytest.mark.parametrize(("cpus", "text"), [
    ([], ""), ([3], "3"), ([0, 1, 2, 3, 8], "0-3,8"), ([5, 1, 2, 9, 10], "1-2,5,9-10"),
])
def test_cpu_list(cpus, text):
    assert cpu_list(cpus) == text
