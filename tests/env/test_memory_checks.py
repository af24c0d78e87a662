"""Checks 7 to 11 of the specification of the runtime (part 20), by number."""
import errno
import fcntl
import os
import signal
import subprocess
import sys

import pytest

from vhostrt.env import memory, zone
from vhostrt.env.memory_plan import plan
from vhostrt.env.options import EnvOptions

MIB, HUGE = 1 << 20, 2 << 20


def make_files(directory, **sizes):
    """Make files of a hugetlbfs, of so many pages."""
    paths = []
    for name, count in sizes.items():
        paths.append(os.path.join(directory, name))
        with open(paths[-1], "wb") as file:
            os.ftruncate(file.fileno(), count * HUGE)
    return tuple(paths)


def test_7_memory_files_by_node(directory, tmp_path):
    if directory is None:
        with pytest.raises(OSError, match="memory file .*/a is not in a hugetlbfs directory"):
            (tmp_path / "a").write_bytes(b"not huge")
            memory.init(EnvOptions(mem_files=(str(tmp_path / "a"),)))
    else:
        files = make_files(directory, a=3, b=5)
        sentence = memory.init(EnvOptions(mem_files=files))
        assert sentence.startswith(f"Memory: 16 MiB of huge pages in {files[0]}, {files[1]}")
        on = {node: now["total"] for node, now in memory.stats()["nodes"].items()}
        assert on == {0: 3 * HUGE, 1: 5 * HUGE}, "the whole of each, by its position"
        segments = memory.segments()
        assert {s["file"]: s["node"] for s in segments} == dict(zip(files, (0, 1), strict=True))
        for before, after in zip(segments, segments[1:], strict=False):
            if before["node"] == after["node"] and before["iova"] is not None:
                assert before["iova"] + before["size"] != after["iova"], "one segment, not two"
        memory.fini()
    for names in (("a", "", "b"), ("",)):
        with pytest.raises(OSError, match=r"the name of the memory file of NUMA node \d .* empty"):
            memory.init(EnvOptions(mem_files=names))
    # The original drops a ninth name in silence.
    with pytest.raises(OSError, match="memory file ninth is the 9th of --mem-file") as refused:
        memory.init(EnvOptions(mem_files=tuple("abcdefgh") + ("ninth",)))
    assert refused.value.errno == errno.EINVAL
    assert not memory.ready()


def test_8_files_of_the_dead_go_and_all_others_stay(directory, tmp_path):
    where = directory or str(tmp_path)
    names = ("rtemap_0", "spdk_pid77map_12", "vhost_spdk_reserved_0", "map", "notes")
    make_files(where, **{name: 1 for name in names}) if directory else [
        (tmp_path / name).write_bytes(b"x") for name in names]
    with open(os.path.join(where, "livemap_3"), "wb") as live:
        fcntl.flock(live, fcntl.LOCK_SH)
        if directory:
            memory.init(EnvOptions(huge_dir=where))
            assert sorted(os.listdir(where)) == ["livemap_3", "map", "notes",
                                                 "vhost_spdk_reserved_0"]
            memory.fini()
            memory.init(EnvOptions(mem_file_dir=where, mem_size=HUGE))
        else:
            with pytest.raises(OSError, match="hugetlbfs"):
                memory.init(EnvOptions(huge_dir=where))
            # What is no directory of huge pages is not cleaned at all.
            assert len(os.listdir(where)) == 6
        assert os.path.exists(os.path.join(where, "vhost_spdk_reserved_0"))


def test_9_memory_by_lcores_the_rest_ascending_and_rounded_up_only_where_it_has_to_be():
    pages = {1 << 30: {0: 1, 1: 1}, HUGE: {0: 100, 1: 100}}
    # 3 of 4 lcores on node 1: three quarters; node 1 has no more than it has.
    assert plan({HUGE: pages[HUGE]}, {0: 1, 1: 3}, 160 * MIB) == {HUGE: {0: 20, 1: 60}}
    assert plan({HUGE: {0: 100, 1: 10}}, {0: 1, 1: 3}, 160 * MIB) == {HUGE: {0: 70, 1: 10}}
    # No page of 1 GiB while those of 2 MiB can supply the rest, and one when they cannot.
    assert plan(pages, {0: 1}, 150 * MIB) == {1 << 30: {}, HUGE: {0: 75}}
    assert plan(pages, {0: 1}, 300 * MIB) == {1 << 30: {0: 1}, HUGE: {}}


def test_10_zones(directory):
    if directory is None:
        memory.init(EnvOptions(no_huge=True))
    else:
        memory.init(EnvOptions(mem_files=make_files(directory, a=2, b=3)))
        assert zone.reserve("rest", 0, node=1).node == 1
        with pytest.raises(OSError) as refused:
            zone.reserve("more", 64, node=1)
        assert refused.value.errno == errno.ENOMEM, "another node has room, and is not asked"
        assert zone.reserve("any", 64).node == 0
    zone.reserve("one", 64)
    for name, code in (("one", errno.EEXIST), ("x" * 32, errno.ENAMETOOLONG)):
        with pytest.raises(OSError) as refused:
            zone.reserve(name, 64)
        assert refused.value.errno == code
    zone.reserve("x" * 31, 64)
    for each in zone.walk():
        each.free()


@pytest.mark.usefixtures("heap")
def test_11_freed_memory_reads_zero_and_a_double_free_is_reported():
    for take in (memory.malloc, memory.zalloc):
        block = take(10_000)
        address = block.address
        memoryview(block)[:] = b"\xFF" * 10_000
        block.free()
        block = take(10_000)
        assert block.address == address and not any(memoryview(block))
        block.free()
    code = ("from vhostrt.env import memory; memory.init(); b = memory.zalloc(64)\n"
            "memory.free(b.address)\nmemory.free(b.address)")
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    # The original ends the process; here only a debug build does.
    assert "memory is freed at 0x" in run.stderr
    assert run.returncode == -signal.SIGABRT or "OSError: [Errno 22] free of a block" in run.stderr
