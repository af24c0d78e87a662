"""vhostrt.env.memory: the heap, its limit, and where its memory comes from."""
import errno
import gc
import os
import re
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vhostrt.env import memory
from vhostrt.env.options import EnvOptions
from vhostrt.env.ring import Ring

MIB = 1 << 20


pytestmark = pytest.mark.usefixtures("heap")


def resident_kib():
    with open("/proc/self/status") as file:
        return int(re.search(r"^RssShmem:\s*(\d+)", file.read(), re.M)[1])


def test_nothing_is_taken_before_it_is_asked_for():
    assert memory.stats() == {"total": 0, "used": 0, "free": 0, "free_max": 0, "populated": 0,
                              "huge": 0, "blocks": 0, "spaces": 0, "segments": 0, "limit": None,
                              "nodes": {}}
    assert memory.segments() == []


def test_blocks_are_zeroed_aligned_and_writable():
    for size in (1, 63, 64, 65, 4096, 3 * MIB):
        block = memory.zalloc(size)
        assert len(block) == size and block.address % 64 == 0
        assert not block.array().any()
        block.array()[:] = 255


def test_a_freed_block_reads_zero_when_it_is_handed_out_again():
    block = memory.zalloc(100_000)
    address = block.address
    block.array()[:] = 7
    block.free()
    again = memory.zalloc(100_000)
    assert again.address == address
    assert not again.array().any()


@pytest.mark.parametrize("align", [64, 128, 4096, 2 * MIB])
def test_alignment(align):
    blocks = [memory.zalloc(100, align) for _ in range(5)]
    assert all(block.address % align == 0 for block in blocks)
    assert len({block.address for block in blocks}) == 5


def test_memory_is_there_when_it_is_handed_out_and_no_more_is():
    before = resident_kib()
    block = memory.zalloc(8 * MIB)
    assert 8192 <= resident_kib() - before <= 8192 + 4096
    assert memory.stats()["populated"] <= 12 * MIB
    block.free()
    assert memory.stats()["total"] == 0


def test_an_empty_segment_is_given_back():
    first, second = memory.zalloc(MIB), memory.zalloc(64 * MIB)
    assert memory.stats()["segments"] == 2
    second.free()
    assert memory.stats()["segments"] == 1
    first.free()
    assert memory.stats()["total"] == 0


def test_views_share_the_memory_and_hold_it():
    block = memory.zalloc(4096)
    view = block.array("uint32", (2, 4))
    view[1, 3] = 0x01020304
    assert bytes(memoryview(block)[28:32]) == b"\x04\x03\x02\x01"
    with pytest.raises(BufferError, match="1 views of it live"):
        block.free()
    del view
    block.free()
    block.free()
    assert block.address == 0 and len(block) == 0
    with pytest.raises(ValueError, match="the block has been freed"):
        memoryview(block)


def test_a_view_outlives_its_block_object():
    view = memory.zalloc(4096).array()
    gc.collect()
    view[:] = 5
    assert memory.stats()["blocks"] == 1
    del view
    gc.collect()
    assert memory.stats()["blocks"] == 0


@pytest.mark.parametrize(("size", "align", "code"), [
    (0, 64, errno.EINVAL), (-1, 64, errno.EINVAL), (2**63, 64, errno.EINVAL),
    (64, 0, errno.EINVAL), (64, 48, errno.EINVAL), (64, -64, errno.EINVAL),
    (2**61, 64, errno.ENOMEM), (64, 2**61, errno.ENOMEM),
])
def test_refused(size, align, code):
    with pytest.raises(OSError, match=f"block of {size} bytes") as refused:
        memory.zalloc(size, align)
    assert refused.value.errno == code
    assert memory.stats()["blocks"] == 0


def test_nodes():
    assert memory.zalloc(64, node=0).address
    for node in (-2, 512, 5000):
        with pytest.raises(OSError, match=f"there is no NUMA node {node}") as refused:
            memory.zalloc(64, node=node)
        assert refused.value.errno == errno.ENODEV


@given(st.lists(st.one_of(st.tuples(st.integers(1, 300_000), st.sampled_from([64, 256, 8192])),
                          st.integers(0, 30)), max_size=50))
def test_like_a_set_of_intervals(moves):
    live = []
    for move in moves:
        if isinstance(move, tuple):
            block = memory.zalloc(*move)
            assert block.address % move[1] == 0
            assert not any(memoryview(block))
            memoryview(block)[:] = bytes([1 + len(live) % 255]) * move[0]
            live.append((block, bytes(memoryview(block))))
        elif live:
            block, content = live.pop(move % len(live))
            assert memoryview(block) == content, "another block wrote into this one"
            block.free()
        spans = sorted((b.address, b.address + len(b)) for b, _ in live)
        assert all(a[1] <= b[0] for a, b in zip(spans, spans[1:], strict=False))
        assert memory.stats()["blocks"] == len(live)
    for block, _ in live:
        block.free()
    assert memory.stats()["total"] == 0, "free neighbours were not merged"


def test_rings_live_in_the_heap():
    ring = Ring(1024)
    assert memory.stats()["blocks"] == 1
    ring.enqueue([1, 2, 3])
    assert ring.dequeue(4) == [1, 2, 3]
    del ring
    assert memory.stats()["blocks"] == 0


def test_a_ring_older_than_the_heap_is_not_freed_into_it():
    memory.fini()
    ring = Ring(1024)
    memory.init(EnvOptions(no_huge=True))
    assert memory.stats()["blocks"] == 0
    del ring


def test_fini_refuses_while_blocks_are_out():
    block = memory.zalloc(1000)
    with pytest.raises(OSError, match="memory: 1 blocks of .* still in use") as refused:
        memory.fini()
    assert refused.value.errno == errno.EBUSY
    assert memory.ready()
    block.free()
    memory.fini()
    memory.fini()
    assert not memory.ready()
    with pytest.raises(OSError, match="memory is not initialised"):
        memory.zalloc(64)


def test_init_twice():
    with pytest.raises(OSError, match="memory is already initialised") as refused:
        memory.init(EnvOptions(no_huge=True))
    assert refused.value.errno == errno.EALREADY


def test_init_and_fini_leave_no_descriptor():
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        block = memory.zalloc(MIB)
        assert len(os.listdir("/proc/self/fd")) == before + 1
        block.free()
        memory.fini()
        memory.init(EnvOptions(no_huge=True))
    assert len(os.listdir("/proc/self/fd")) == before


def test_the_limit_holds_and_all_of_it_can_be_had():
    memory.fini()
    memory.init(EnvOptions(mem_size=16 * MIB, no_huge=True))
    assert memory.stats()["limit"] == 16 * MIB
    blocks = [memory.zalloc(MIB) for _ in range(14)]
    with pytest.raises(OSError) as refused:
        memory.zalloc(4 * MIB)
    assert refused.value.errno == errno.ENOMEM
    assert memory.stats()["total"] == 16 * MIB
    del blocks
    assert len(memory.zalloc(16 * MIB - 64)) == 16 * MIB - 64


@pytest.mark.parametrize("limit", [-1, 2**63])
def test_a_limit_that_makes_no_sense(limit):
    memory.fini()
    with pytest.raises(OSError, match=f"memory of {limit} bytes") as refused:
        memory.init(EnvOptions(mem_size=limit))
    assert refused.value.errno == errno.EINVAL
    assert not memory.ready()


def test_a_limit_that_cannot_be_met_is_refused_with_what_there_is():
    memory.fini()
    with pytest.raises(OSError, match=r"memory of 1073741824 MiB: \d+ MiB can be had") as refused:
        memory.init(EnvOptions(mem_size=2**50))
    assert refused.value.errno == errno.ENOMEM
    assert not memory.ready()
    memory.init(EnvOptions(no_huge=True))


def test_memory_that_the_system_cannot_give_is_an_error_and_no_signal():
    # The heap's file is cut short behind its back: touching it would be SIGBUS.
    code = """if 1:
        import os
        from vhostrt.env import memory, zone
        from vhostrt.env.options import EnvOptions
        memory.init(EnvOptions(mem_size=8 << 20, no_huge=True))
        first = memory.zalloc(1000)
        fd = next(int(n) for n in os.listdir('/proc/self/fd')
                  if os.readlink(f'/proc/self/fd/{n}').startswith('/memfd:vhostrt'))
        os.ftruncate(fd, 262144)
        try:
            memory.zalloc(1 << 20)
        except OSError as refused:
            print(refused)
        try:
            zone.reserve('cut', 1 << 20)
        except OSError as refused:
            print(refused)
        try:
            first.resize(1 << 20)
        except OSError as refused:
            print(refused)
        try:
            memory.zalloc(64 << 20)
        except OSError as refused:
            print(refused)
        print(memory.stats()['blocks'], memory.stats()['populated'], len(memory.zalloc(1000)))
    """
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (run.returncode, run.stderr) == (0, "")
    block, named, larger, full, counts = run.stdout.splitlines()
    had = r"64 of \d+ pages of 4 KiB could be had: Cannot allocate memory"
    assert re.fullmatch(rf"\[Errno 12\] block of 1048576 bytes: {had}", block)
    assert re.fullmatch(rf"\[Errno 12\] zone 'cut': size 1048576, .*: {had}", named)
    assert re.fullmatch(rf"\[Errno 12\] block of 1000 bytes to be of 1048576: {had}", larger)
    # The shortages before are none of a block that there is no room for.
    assert re.search(r"block of 67108864 bytes: the largest free space has \d+ bytes: ", full)
    assert counts == "1 262144 1000"


def test_a_forked_child_gets_no_memory_and_drops_what_it_inherited():
    block, ring = memory.zalloc(4096), Ring(64)
    child = os.fork()
    if child == 0:
        try:
            memory.zalloc(64)
        except OSError as refused:
            del block, ring
            gc.collect()
            memory.fini()
            os._exit(0 if refused.errno == errno.ESRCH else 1)
        os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert memory.stats()["blocks"] == 2
    block.free()
    del ring


def test_numpy_is_not_imported_before_it_is_used():
    code = ("import sys; from vhostrt.env import memory, ring, lcore; memory.init(); "
            "b = memory.zalloc(64); r = ring.Ring(8); print('numpy' in sys.modules)")
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "False\n"


ALONE = """if 1:
    import gc, sys, threading
    from vhostrt.env import memory, tailq, zone
    from vhostrt.env.options import EnvOptions
    memory.init(EnvOptions(no_huge=True))
    kept = [zone.reserve(f"zone {i}", 64) for i in range(30)]
    looks = (memory.stats, memory.segments, memory.primary_pid, zone.walk, zone.dump, tailq.dump,
             lambda: zone.lookup("zone 29"), lambda: memory.zalloc(64).free())
"""


def alone(code):
    """Run code in a process of its own, as what is looked for is that it stands still."""
    return subprocess.run([sys.executable, "-c", ALONE + code], timeout=60).returncode


def test_garbage_with_memory_in_it_is_not_collected_while_the_tables_are_looked_at():
    assert alone("""
    gc.set_threshold(1)
    for look in looks * 50:
        knot = [memory.zalloc(64)]
        knot.append(knot)
        del knot
        look()
    assert gc.isenabled()
    gc.collect()
    assert memory.stats()["blocks"] == 30
    gc.disable()
    zone.walk()
    assert not gc.isenabled()
    """) == 0


def test_threads_that_look_at_the_tables_at_once_do_not_wait_for_each_other_for_ever():
    assert alone("""
    sys.setswitchinterval(1e-6)
    def run(look):
        for _ in range(300):
            look()
    threads = [threading.Thread(target=run, args=(look,)) for look in looks * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    """) == 0
