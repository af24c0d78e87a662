"""What runs in a guest of two NUMA nodes: the memory of the environment, page by page.

Every step that is not as it should be ends it with a sentence; the host looks at the exit status.
"""
import ctypes
import os
import re
import sys

from vhostrt.env import hugepages, memory, zone
from vhostrt.env.options import EnvOptions

MIB, HUGE = 1 << 20, 2 << 20
PAGES = 20                              # huge pages that each node has
LIBC = ctypes.CDLL(None, use_errno=True)
GET_MEMPOLICY, OF_ADDRESS = 239, 3      # the call on x86-64; MPOL_F_NODE and MPOL_F_ADDR


def check(fact, what):
    """End here when something is not so."""
    if not fact:
        sys.exit(f"not so: {what}")


def free():
    """Return the free huge pages of each node."""
    return tuple(count for _, count in hugepages.node_counts(HUGE).values())


def node_of(address):
    """Return the node that the page at an address is on, as the kernel has it."""
    node = ctypes.c_int(-1)
    rc = LIBC.syscall(GET_MEMPOLICY, ctypes.byref(node), None, ctypes.c_ulong(0),
                      ctypes.c_void_p(address), ctypes.c_ulong(OF_ADDRESS))
    check(rc == 0, f"the node of {address:#x} is told")
    return node.value


def pages_of(node):
    """Return node -> huge pages, or runs of 2 MiB, of all segments that count as a node's."""
    found = {}
    for segment in memory.segments():
        if segment["node"] == node:
            # What is not populated yet would be made present by the question.
            for at in range(segment["address"], segment["address"] + present(segment), HUGE):
                found[node_of(at)] = found.get(node_of(at), 0) + 1
    return found


def present(segment):
    """Return the bytes of a segment that are in memory, from its start."""
    with open("/proc/self/smaps") as maps:
        text = maps.read()
    first, last = segment["address"], segment["address"] + segment["size"]
    total = 0
    for start, end, body in re.findall(r"^([0-9a-f]+)-([0-9a-f]+) (.*?)^VmFlags", text,
                                       re.M | re.S):
        inside = min(int(end, 16), last) - max(int(start, 16), first)
        there = 1024 * sum(map(int, re.findall(
            r"^(?:Rss|Shared_Hugetlb|Private_Hugetlb): +(\d+)", body, re.M)))
        total += max(0, min(inside, there))
    return total


def totals():
    return {node: now["total"] // MIB for node, now in memory.stats()["nodes"].items()}


def refused(call, code, what):
    try:
        call()
    except OSError as error:
        check(error.errno == code, f"{what}: {error}")
        return str(error)
    sys.exit(f"not so: {what} is refused")


def sorted_pages():
    """The split by lcores, what is left over, and that an explicit node is that node."""
    memory.init(EnvOptions(legacy_mem=True, mem_size=24 * MIB), {0: 1, 1: 3})
    check(totals() == {0: 6, 1: 18}, f"a quarter and the rest: {totals()}")
    check(free() == (PAGES - 3, PAGES - 9), f"the surplus is free again: {free()}")
    check(pages_of(0) == {0: 3} and pages_of(1) == {1: 9},
          f"pages are where they count: {pages_of(0)} {pages_of(1)}")
    rest = zone.reserve("rest", 0, node=1)
    check(rest.node == 1 and len(rest) > 17 * MIB, "all of node 1")
    refused(lambda: zone.reserve("more", 64, node=1), 12, "memory of a full node")
    refused(lambda: memory.zalloc(64, node=1), 12, "a block of a full node")
    check(zone.reserve("any", 64).node == 0, "any node that has room")
    zone.free("rest")
    zone.free("any")
    memory.fini()
    said = refused(lambda: memory.init(EnvOptions(legacy_mem=True, socket_mem=(0, 50 * MIB))), 12,
                   "more than node 1 has")
    check("on socket 1! Requested: 50MB, available: 40MB" in said, said)
    check(free() == (PAGES, PAGES), f"nothing is kept: {free()}")
    memory.init(EnvOptions(legacy_mem=True, mem_size=70 * MIB), {1: 2})
    check(totals() == {0: 30, 1: 40}, f"what a node has not is taken of the others: {totals()}")
    memory.fini()


def promised_pages():
    """A size that is not touched at the start."""
    print(memory.init(EnvOptions(mem_size=24 * MIB), {0: 1, 1: 3}))
    check(totals() == {0: 6, 1: 18}, f"split by lcores: {totals()}")
    block = memory.zalloc(15 * MIB, node=1)
    check(pages_of(1) == {1: 8}, f"pages of node 1: {pages_of(1)}")
    refused(lambda: memory.zalloc(8 * MIB, node=0), 12, "more than the share of node 0")
    block.free()
    memory.fini()


def as_needed():
    """Blocks of a node, of its huge pages while it has any, then of its ordinary ones."""
    memory.init(EnvOptions())
    first, second = memory.zalloc(5 * MIB, node=1), memory.zalloc(3 * MIB, node=0)
    check(free() == (PAGES - 2, PAGES - 3), f"pages of the node asked for: {free()}")
    check(pages_of(1) == {1: 3} and pages_of(0) == {0: 2}, "pages are where they count")
    large = memory.zalloc(40 * MIB, node=1)
    check(free()[0] == PAGES - 2, "huge pages of another node")
    check(memory.stats()["nodes"][1]["huge"] == 6 * MIB, "then ordinary ones")
    first.free()
    second.free()
    large.free()
    check(free() == (PAGES, PAGES), f"all of them are given back: {free()}")
    memory.fini()


def node_of_the_caller():
    """Any node is the one that the calling thread runs on, first."""
    memory.init(EnvOptions())
    for node in (1, 0):
        with open(f"/sys/devices/system/node/node{node}/cpulist") as file:
            os.sched_setaffinity(0, {int(file.read().split("-")[0])})
        block = memory.zalloc(3 * MIB)
        check(pages_of(node) == {node: 2} and not pages_of(1 - node), f"a block of node {node}")
        block.free()
    os.sched_setaffinity(0, range(os.cpu_count()))
    memory.fini()


def node_of_others():
    """Memory of a node that has not enough, when only that one will do."""
    memory.init(EnvOptions(no_huge=True, enforce_numa=True))
    block = memory.zalloc(20 * MIB, node=1)
    check(set(pages_of(1)) == {1}, f"ordinary pages of node 1: {pages_of(1)}")
    with open("/sys/devices/system/node/node1/meminfo") as file:
        there = int(re.search(r"MemFree:\s*(\d+)", file.read())[1]) * 1024
    # With that much of node 0 as well there would be enough.
    refused(lambda: memory.zalloc(there + 8 * MIB, node=1), 12, "more than node 1 has")
    check(pages_of(0) == {}, "memory of node 0")
    block.free()
    memory.fini()


def reserved_files(directory):
    """A file for each node, whose pages come from there."""
    memory.init(EnvOptions(mem_file_dir=directory, mem_size=9 * MIB))
    check(totals() == {0: 6, 1: 4}, f"halves in whole pages: {totals()}")
    check(pages_of(0) == {0: 3} and pages_of(1) == {1: 2}, "pages of each node")
    memory.fini()
    check(sorted(os.listdir(directory)) == ["vhost_spdk_reserved_0", "vhost_spdk_reserved_1"],
          "a file for each node")
    memory.init(EnvOptions(mem_files=tuple(f"{directory}/vhost_spdk_reserved_{n}" for n in (0, 1))))
    check(totals() == {0: 6, 1: 4}, f"the whole of each: {totals()}")
    memory.fini()
    for name in os.listdir(directory):
        os.unlink(os.path.join(directory, name))


def main(directory):
    check(hugepages.nodes() == [0, 1], f"two nodes: {hugepages.nodes()}")
    for node in (0, 1):
        there = hugepages.set_reserved(HUGE, PAGES, node)
        check(there == PAGES, f"{there} pages of node {node}")
    sorted_pages()
    promised_pages()
    as_needed()
    node_of_the_caller()
    node_of_others()
    reserved_files(directory)
    check(free() == (PAGES, PAGES), f"all pages are free at the end: {free()}")
    print("memory of two nodes: as it should be")


if __name__ == "__main__":
    main(sys.argv[1])
