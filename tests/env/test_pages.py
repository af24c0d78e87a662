"""vhostrt.env.pages: huge pages sorted by physical address, against the kernel's own tables."""
import os
import re
import subprocess
import sys

import pytest

from tests.env.conftest import PAGES
from tests.lib.hugepages import available, can_limit, limited
from vhostrt.env import memory
from vhostrt.env.options import EnvOptions
from vhostrt.env.pages import physical_addresses

MIB, HUGE = 1 << 20, 2 << 20


def physical(address):
    """Return the physical address of a page that is present, as /proc/self/pagemap has it."""
    with open("/proc/self/pagemap", "rb") as file:
        file.seek(address // 4096 * 8)
        frame = int.from_bytes(file.read(8), "little") & (1 << 55) - 1
    return frame * 4096 if frame else None


def pages_of(segments):
    return [at for s in segments for at in range(s["address"], s["address"] + s["size"], HUGE)]


def runs(addresses):
    """Return into how many runs of consecutive pages physical addresses fall."""
    return sum(i == 0 or at != addresses[i - 1] + HUGE for i, at in enumerate(addresses))


def check_against_the_kernel(segments):
    """Segments are those runs that the kernel says are physically consecutive."""
    seen = [physical(at) for at in pages_of(segments)]
    if not physical_addresses():
        assert all(s["iova"] is None for s in segments)
        return
    assert seen == [s["iova"] + at for s in segments for at in range(0, s["size"], HUGE)]
    assert len(segments) == runs(seen)
    for at in pages_of(segments)[:3]:
        assert memory.virt2iova(at + 12345) == physical(at) + 12345


def no_pages_said():
    with pytest.raises(OSError, match="Cannot get hugepage information|Not enough memory") as error:
        memory.init(EnvOptions(legacy_mem=True, mem_size=1 << 40))
    assert not memory.ready()
    return error


def in_files():
    """Return the bytes that the files of our memory have."""
    links = {f"/proc/self/fd/{n}": os.path.realpath(f"/proc/self/fd/{n}")
             for n in os.listdir("/proc/self/fd")}
    return sum(os.stat(fd).st_blocks * 512 for fd, name in links.items()
               if "memfd:vhostrt" in name)


def take_everything():
    """Start with all free pages; the bytes that were free, and the sentence."""
    for _ in range(9):                  # others of this machine may take and give some meanwhile
        free = available()
        sentence = memory.init(EnvOptions(legacy_mem=True))
        if memory.stats()["total"] == free:
            break
        memory.fini()
    return free, sentence


def test_every_free_page_is_taken_and_sorted(pages):
    if not pages:
        no_pages_said()
        return
    free, sentence = take_everything()
    assert memory.stats()["total"] == memory.stats()["limit"] == free == in_files()
    assert memory.stats()["populated"] == free
    segments = [s for s in memory.segments() if s["page_size"] == HUGE]
    check_against_the_kernel(segments)
    if physical_addresses():
        # By address, and in memory without a gap.
        assert [s["iova"] for s in segments] == sorted(s["iova"] for s in segments)
        said = len(memory.segments())
        assert sentence.endswith(f", {said} contiguous segment{'s' * (said != 1)}")
    assert f" {len(pages_of(segments)) * 2} MiB of huge pages of 2 MiB" in sentence
    ends = [s["address"] + s["size"] for s in segments]
    assert ends[:-1] == [s["address"] for s in segments[1:]]
    memory.fini()
    assert available() >= PAGES * HUGE


def test_the_surplus_is_given_back(pages):
    if not pages:
        no_pages_said()
        return
    for _ in range(5):                  # as above
        take_everything()
        lowest = [physical(at) for at in
                  pages_of(s for s in memory.segments() if s["page_size"] == HUGE)][:5]
        memory.fini()
        memory.init(EnvOptions(legacy_mem=True, mem_size=9 * MIB))
        kept = [physical(at) for at in pages_of(memory.segments())]
        if kept == lowest:
            break
        memory.fini()
    assert kept == lowest, "other pages than the first ones"
    assert memory.stats()["total"] == 10 * MIB == in_files(), "pages that are kept for nothing"
    check_against_the_kernel(memory.segments())


def test_blocks_may_lie_over_pieces_and_are_in_one_where_that_can_be(pages):
    if not pages:
        no_pages_said()
        return
    memory.init(EnvOptions(legacy_mem=True, mem_size=PAGES * HUGE))
    whole = memory.zalloc(2 * MIB - 64)
    if physical_addresses():
        assert whole.iova == physical(whole.address) + whole.address % 4096
        assert physical(whole.address + len(whole) - 1) == (
            (whole.iova + len(whole) - 1) // 4096 * 4096)
    large = memory.zalloc((PAGES - 3) * HUGE)
    large.array()[:] = 7
    assert not whole.array().any()
    del whole, large


def test_pages_are_zero_whoever_had_them(pages):
    if not pages:
        no_pages_said()
        return
    for _ in range(2):
        memory.init(EnvOptions(legacy_mem=True, mem_size=PAGES * HUGE))
        block = memory.zalloc(20 * HUGE)
        assert not block.array().any()
        block.array()[:] = 0xEE
        del block
        memory.fini()


def test_devices_that_see_addresses_need_no_sorting(pages):
    if not pages:
        no_pages_said()
        return
    sentence = memory.init(EnvOptions(legacy_mem=True, mem_size=16 * MIB, iova_mode="va"))
    assert sentence == "Memory: 16 MiB of huge pages of 2 MiB"
    segments = memory.segments()
    assert len(segments) == 1 and segments[0]["iova"] == segments[0]["address"]


def test_too_few_pages_are_said_with_how_many_could_be_had(pages):
    error = no_pages_said().value
    if pages:
        assert "Requested: 1048576MB, available: " in error.strerror
        assert re.search(r"\b\d+ of \d+ free ones of 2 MiB", error.strerror)


def test_a_limit_of_a_control_group_is_no_signal_and_is_said(pages):
    code = """if 1:
        import os, sys
        group = sys.argv[1]
        open(group, "w").write(str(os.getpid()))
        from vhostrt.env import memory
        from vhostrt.env.options import EnvOptions
        print(memory.init(EnvOptions(legacy_mem=True)).split(",")[0])
        memory.fini()
        try: memory.init(EnvOptions(legacy_mem=True, mem_size=12 << 20))
        except OSError as refused: print(refused)
        memory.init(EnvOptions(mem_size=12 << 20))
        try: memory.zalloc(11 << 20)
        except OSError as refused: print(refused, memory.stats()["populated"] >> 20)
        memory.fini()
        memory.init(EnvOptions())           # where others can be had, they are
        print(len(memory.zalloc(11 << 20)), memory.stats()["huge"])
        memory.fini()
        # A group that has a process in it cannot be removed.
        open(os.path.join(os.path.dirname(os.path.dirname(group)), "cgroup.procs"), "w").write(
            str(os.getpid()))
    """
    if not pages or not can_limit():
        no_pages_said()
        return
    with limited(5) as group:
        run = subprocess.run([sys.executable, "-c", code, group], capture_output=True, text=True)
    assert (run.returncode, run.stderr) == (0, "")
    first, short, block, other = run.stdout.splitlines()
    assert first == "Memory: 10 MiB of huge pages of 2 MiB"
    assert short.startswith("[Errno 12] Not enough memory available! Requested: 12MB, "
                            "available: 10MB (pages that could be had: ")
    assert re.search(r"\b5 of \d+ free ones of 2 MiB", short)
    assert block == ("[Errno 12] block of 11534336 bytes: 5 of 6 pages of 2 MiB could be had: "
                     "Cannot allocate memory 10")
    assert other == "11534336 0"


def test_a_limit_of_no_pages_at_all(pages):
    code = """if 1:
        import os, sys
        group = sys.argv[1]
        open(group, "w").write(str(os.getpid()))
        from vhostrt.env import memory
        from vhostrt.env.options import EnvOptions
        try: memory.init(EnvOptions(legacy_mem=True))
        except OSError as refused: print(refused.strerror)
        open(os.path.join(os.path.dirname(os.path.dirname(group)), "cgroup.procs"), "w").write(
            str(os.getpid()))
    """
    if not pages or not can_limit():
        no_pages_said()
        return
    with limited(0) as group:
        run = subprocess.run([sys.executable, "-c", code, group], capture_output=True, text=True)
    assert run.stderr == ""
    assert run.stdout.startswith("Cannot get hugepage information: there are no free huge pages (")
    assert "vhostrt-hugepages" in run.stdout


# Files that keep their pages.

def reserved(directory):
    return os.path.join(directory, "vhost_spdk_reserved_0")


def test_a_reserved_file_is_sorted_and_split_only_where_it_has_to_be(directory, tmp_path):
    if directory is None:
        with pytest.raises(OSError, match="is not in a hugetlbfs directory"):
            memory.init(EnvOptions(mem_file_dir=str(tmp_path), mem_size=6 * MIB))
        return
    for _ in range(2):
        memory.init(EnvOptions(mem_file_dir=directory, mem_size=20 * MIB))
        assert {s["file"] for s in memory.segments()} == {reserved(directory)}
        check_against_the_kernel(memory.segments())
        before = {physical(at) for at in pages_of(memory.segments())}
        memory.fini()
    # The pages are the same ones, and stay in the file.
    memory.init(EnvOptions(mem_file_dir=directory))
    assert {physical(at) for at in pages_of(memory.segments())} == before
    assert memory.stats()["total"] == 20 * MIB
    memory.fini()
    memory.init(EnvOptions(mem_file_dir=directory, iova_mode="va"))
    assert len(memory.segments()) == 1, "one region a file"


def test_part_of_a_reserved_file(directory, tmp_path):
    if directory is None:
        with pytest.raises(OSError, match="is not in a hugetlbfs directory"):
            memory.init(EnvOptions(mem_files=(str(tmp_path / "none"),)))
        return
    memory.init(EnvOptions(mem_file_dir=directory, mem_size=20 * MIB))
    memory.fini()
    memory.init(EnvOptions(mem_file_dir=directory, mem_size=5 * MIB))
    assert memory.stats()["total"] == 6 * MIB and os.path.getsize(reserved(directory)) == 20 * MIB
    assert len(memory.zalloc(5 * MIB)) == 5 * MIB
