"""vhostrt.env.heap: blocks of several nodes and page sizes, against a model of intervals."""
import errno
import signal
import subprocess
import sys

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from tests.lib import cy_heap

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
NO, WANTED, NEEDED = 0, 1, 2            # of one piece for a device


@pytest.fixture
def heap():
    """A heap with 4 MiB of node 0."""
    heap = cy_heap.Heap()
    heap.add(4 * MIB)
    yield heap
    heap.audit()


class Model(RuleBasedStateMachine):
    """Two nodes with a region each, one of them full of old data; what is out is in `live`."""

    blocks = Bundle("blocks")

    def __init__(self):
        super().__init__()
        self.heap = cy_heap.Heap()
        self.regions = {0: (self.heap.add(MIB), MIB), 1: (self.heap.add(512 * KIB, 1), 512 * KIB)}
        self.heap.dirty(*self.regions[1])
        self.live = {}                  # address -> (asked, node, byte it is full of)
        self.serial = 0

    def record(self, address, size, node, kept=0, byte=0):
        base, length = self.regions[node]
        assert base + 64 <= address and address + size <= base + length, "outside of its node"
        assert address % 64 == 0
        for other, (other_size, _, _) in self.live.items():
            assert address + size + 64 <= other or other + other_size + 64 <= address, "overlap"
        assert self.heap.bytes(address, size) == bytes([byte]) * kept + bytes(size - kept)
        self.serial = self.serial % 255 + 1
        self.heap.fill(address, size, self.serial)
        self.live[address] = (size, node, self.serial)

    @rule(target=blocks, size=st.integers(1, 300 * KIB), node=st.sampled_from([0, 1]),
          align=st.sampled_from([64, 256, 4096, 64 * KIB]),
          bound=st.sampled_from([0, 0, 64 * KIB, 512 * KIB]))
    def take(self, size, node, align, bound):
        if bound and size > bound:
            bound = 0
        address = self.heap.take(size, align, node, bound)
        if not address:
            assert self.heap.free_max(node) < size + 2 * max(align, bound) + 256
            return None
        assert address % align == 0
        assert not bound or address // bound == (address + size - 1) // bound
        assert self.heap.size(address) == size
        self.record(address, size, node)
        return address

    @rule(address=consumes(blocks))
    def give(self, address):
        if address is None:
            return
        size, _, byte = self.live.pop(address)
        assert self.heap.bytes(address, size) == bytes([byte]) * size, "somebody wrote into it"
        assert self.heap.give(address) == 0

    @rule(target=blocks, address=consumes(blocks), size=st.integers(1, 300 * KIB))
    def resize(self, address, size):
        if address is None:
            return None
        before, node, byte = self.live[address]
        rc = self.heap.resize(address, size)
        assert rc in (0, -errno.ENOMEM)
        assert rc == 0 or size > before, "it does not become smaller"
        if rc == 0:
            del self.live[address]
            self.record(address, size, node, min(before, size), byte)
        return address

    @invariant()
    def sound(self):
        self.heap.audit()
        for node in (0, 1):
            now = self.heap.stats(node)
            assert now["blocks"] == sum(1 for _, at, _ in self.live.values() if at == node)
            assert now["free"] == now["total"] - now["used"]
        assert self.heap.stats()["blocks"] == len(self.live)

    def teardown(self):
        for address in list(self.live):
            assert self.heap.give(address) == 0
        self.heap.audit()
        now = self.heap.stats()
        assert (now["used"], now["spaces"]) == (0, 2), "free neighbours were not merged"
        assert now["free_max"] == MIB


TestModel = Model.TestCase


def test_the_end_of_a_region_can_be_had(heap):
    first = heap.take(4 * MIB - 64)
    assert first and heap.free_max() == 0
    assert heap.take(1) == 0
    assert heap.give(first) == 0 and heap.free_max() == 4 * MIB - 64


def test_a_node_has_only_its_own_memory(heap):
    there = heap.add(MIB, 3)
    assert heap.take(64, node=2) == 0
    assert there < heap.take(512 * KIB, node=3) < there + MIB
    assert heap.take(2 * MIB, node=3) == 0, "memory of another node"
    assert heap.stats(3)["total"] == MIB and heap.stats(0)["blocks"] == 0
    assert heap.stats(2) == {**heap.stats(2), "total": 0, "free_max": 0}
    assert heap.stats()["total"] == 5 * MIB and heap.stats()["regions"] == 2


def test_pages_of_a_size(heap):
    large = heap.add(4 * MIB, page_size=2 * MIB)
    assert large <= heap.take(MIB, page_sizes=2 * MIB) < large + 4 * MIB
    assert heap.take(64, page_sizes=GIB) == 0
    assert large <= heap.take(64, page_sizes=GIB + 2 * MIB) < large + 4 * MIB
    assert heap.free_max(page_sizes=GIB) == 0
    assert heap.free_max(page_sizes=2 * MIB) < 3 * MIB < heap.free_max(page_sizes=4096)


@pytest.mark.parametrize(("bound", "size"), [(64, 64), (4096, 4000), (MIB, 700 * KIB)])
def test_a_bound_is_not_crossed(heap, bound, size):
    heap.take(100)
    for _ in range(2):
        address = heap.take(size, bound=bound)
        assert address and address // bound == (address + size - 1) // bound


def test_a_block_larger_than_its_bound_is_not_had(heap):
    assert heap.take(8192, bound=4096) == 0


# Pages 0 and 1 follow each other for a device, 2 is elsewhere, 3 to 5 follow it.
SCATTERED = [20 * MIB, 22 * MIB, 90 * MIB, 92 * MIB, 94 * MIB, 96 * MIB]


@pytest.fixture
def scattered():
    heap = cy_heap.Heap()
    return heap, heap.add(12 * MIB, page_size=2 * MIB, iovas=SCATTERED)


def test_what_a_device_sees(scattered):
    scattered, base = scattered
    assert scattered.iova(base + 5) == 20 * MIB + 5
    assert scattered.iova(base + 3 * MIB, MIB) == 23 * MIB
    assert scattered.iova(base + 3 * MIB, MIB + 1) is None, "it is in two pieces"
    assert scattered.iova(base + 4 * MIB, 8 * MIB) == 90 * MIB
    assert scattered.iova(base + 4 * MIB, 8 * MIB + 1) is None, "beyond the end"
    assert scattered.iova(base - 1) is None
    scattered.devices_see_addresses()
    assert scattered.iova(base + 3 * MIB, 4 * MIB) == base + 3 * MIB


def test_a_block_in_one_piece(scattered):
    scattered, base = scattered
    assert scattered.free_max(whole=NEEDED) == 8 * MIB
    first = scattered.take(3 * MIB, whole=NEEDED)
    assert first == base + 64
    second = scattered.take(2 * MIB, whole=NEEDED)
    assert second >= base + 4 * MIB, "over the break"
    assert scattered.iova(second, 2 * MIB)
    assert scattered.take(7 * MIB, whole=NEEDED) == 0
    assert scattered.give(first) == scattered.give(second) == 0
    # Where it is only wanted, a larger one is had in pieces.
    assert scattered.take(10 * MIB, whole=NEEDED) == 0
    large = scattered.take(10 * MIB, whole=WANTED)
    assert large == base + 64 and scattered.iova(large, 10 * MIB) is None


def test_pages_of_which_nothing_is_known_are_apart_where_one_piece_is_needed():
    heap = cy_heap.Heap()
    base = heap.add(8 * MIB, page_size=2 * MIB)
    assert heap.take(MIB, whole=NEEDED) == base + 64
    assert heap.take(MIB + 64, whole=NEEDED) >= base + 2 * MIB
    assert heap.take(3 * MIB, whole=NEEDED) == 0
    assert heap.take(3 * MIB, whole=WANTED)


def test_devices_that_see_addresses_see_one_piece():
    heap = cy_heap.Heap()
    heap.add(8 * MIB, page_size=2 * MIB)
    heap.devices_see_addresses()
    assert heap.take(7 * MIB, whole=NEEDED)


def test_a_block_grows_and_shrinks_where_it_is(heap):
    block, neighbour = heap.take(1000), heap.take(1000)
    assert heap.resize(block, 2000) == -errno.ENOMEM, "into its neighbour"
    heap.give(neighbour)
    assert heap.resize(block, 100_000) == 0
    assert heap.resize(block, 100) == 0
    assert heap.take(64) < block + 1000, "what it gave back is handed out"
    assert heap.resize(block, 64, align=2 * MIB) == -errno.ENOMEM


def test_an_empty_region_is_dropped_unless_it_is_kept():
    heap = cy_heap.Heap()
    heap.add(MIB, keep=False)
    first, second = heap.take(64), heap.take(64)
    assert heap.give(first) == 0 and heap.give(second) == 1
    assert heap.stats()["regions"] == 0 and heap.take(64) == 0
    heap.add(MIB)
    assert heap.give(heap.take(64)) == 0 and heap.stats()["regions"] == 1


def test_there_are_so_many_regions_and_no_more():
    heap = cy_heap.Heap()
    for _ in range(300):                # slots are used again
        heap.add(128 * KIB, keep=False)
        assert heap.give(heap.take(64)) == 1
    assert heap.stats()["regions"] == 0


def test_there_are_so_many_nodes_and_no_more(heap):
    for node in range(1, 64):
        assert heap.add(128 * KIB, node) > 0
    assert heap.add(128 * KIB, 64) == -errno.ENOSPC
    assert heap.stats()["regions"] == 64


WRONG = {
    "twice": "block = heap.take(64); heap.give(block); answer = heap.give(block)",
    "foreign": "answer = heap.give(4096)",
    "inside": "block = heap.take(256); answer = heap.give(block + 64)",
    "behind": "answer = heap.give(base + (4 << 20) - 64)",
    "resized": "block = heap.take(64); heap.give(block); answer = heap.resize(block, 128)",
}


@pytest.mark.parametrize("code", WRONG.values(), ids=WRONG)
def test_a_wrong_free_is_said_once_and_answered_and_ends_a_debug_build(code):
    program = f"""if 1:
        from tests.lib.cy_heap import Heap
        heap = Heap(); base = heap.add(4 << 20)
        {code}
        heap.give(0x7777)
        heap.audit()
        print(answer)
    """
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    said = "vhostrt: memory is freed at 0x"
    assert run.stderr.count(said) == 1
    if run.returncode == -signal.SIGABRT:
        assert "check failed" in run.stderr     # a debug build
    else:
        assert (run.returncode, run.stdout) == (0, f"{-errno.EINVAL}\n")
