"""vhostrt.env on huge pages: really reserved ones where the machine lets us, else the way without.

Each test has pages of 2 MiB and a hugetlbfs of its own; where the tests may have neither, it checks
instead that the same calls do without, and say so.
"""
import errno
import gc
import os
import re
import subprocess
import sys

import pytest

from tests.env.conftest import PAGES
from tests.lib.hugepages import of_size
from vhostrt.env import memory
from vhostrt.env.options import EnvOptions
from vhostrt.env.segment import Segment

MIB = 1 << 20


def reserved():
    return of_size(2 * MIB).total


def free_pages():
    """Return the huge pages that are there for us, whoever reserved them."""
    return of_size(2 * MIB).available


def huge_mib():
    """Return the MiB of huge pages that this process has touched."""
    with open("/proc/self/status") as file:
        return int(re.search(r"^HugetlbPages:\s*(\d+) kB", file.read(), re.M)[1]) // 1024


def reserved_file(directory):
    return os.path.join(directory, "vhost_spdk_reserved_0")


def test_a_segment_takes_huge_pages_when_there_are_enough(pages):
    before, pages = huge_mib(), free_pages() >= 3
    segment = Segment.create(5 * MIB)
    assert segment.kind == ("hugetlb" if pages else "memfd")
    assert segment.length == (6 if pages else 5) * MIB
    assert segment.page_size == (2 * MIB if pages else 4096)
    assert huge_mib() == before, "pages are touched before they are used"
    segment.populate()
    assert huge_mib() - before == (6 if pages else 0)
    segment.array()[-1] = 1
    segment.release()
    assert huge_mib() == before


def test_a_segment_does_without_when_there_are_not_enough_or_it_is_told_so(pages):
    assert Segment.create(1 << 42).kind == "memfd"
    assert Segment.create(2 * MIB, huge="never").kind == "memfd"
    if pages:
        assert Segment.create(2 * MIB, huge="always").kind == "hugetlb"


def test_the_pages_of_a_segment_are_its_own_from_the_start(pages):
    if not pages:
        with pytest.raises(OSError, match=r"\d+ of 24 huge pages of 2 MiB are free"):
            Segment.create(PAGES * 2 * MIB, huge="always")
        return
    first = Segment.create(16 * MIB, huge="always")
    # All pages but eight, and one of those: however few of the others are free, that fails.
    with pytest.raises(OSError, match="huge pages of 2 MiB are free") as refused:
        Segment.create((reserved() - 8 + 1) * 2 * MIB, huge="always")
    assert refused.value.errno == errno.ENOMEM
    first.populate()


def test_a_heap_with_a_limit_reserves_all_of_it(pages):
    before = huge_mib()
    sentence = memory.init(EnvOptions(mem_size=16 * MIB))
    if pages:
        assert sentence == "Memory: 16 MiB of huge pages of 2 MiB, reserved"
    else:
        assert re.fullmatch(r"Memory: ordinary pages, transparent huge pages asked for "
                            r"\(\d+ MiB of huge pages are free\)", sentence)
    assert memory.stats()["total"] == memory.stats()["limit"] == 16 * MIB
    assert memory.stats()["huge"] == (16 * MIB if pages else 0)
    assert huge_mib() - before == (2 if pages else 0), "more than the first page is touched"
    block = memory.zalloc(5 * MIB)
    assert huge_mib() - before == (6 if pages else 0)
    assert not block.array().any()
    del block
    memory.fini()
    assert huge_mib() == before


def test_a_heap_without_a_limit_takes_huge_pages_as_it_grows(pages):
    pages = free_pages() >= 2
    sentence = memory.init()
    assert ("huge pages of 2 MiB as long as there are any" in sentence) or not pages
    block = memory.zalloc(3 * MIB)
    assert memory.stats()["huge"] == (4 * MIB if pages else 0)
    beyond = memory.zalloc((reserved() + 2) * 2 * MIB)
    assert memory.stats()["huge"] == (4 * MIB if pages else 0), "more than there are"
    assert not beyond.array().any() and not block.array().any()


def test_no_huge_takes_none(pages):
    assert memory.init(EnvOptions(mem_size=8 * MIB, no_huge=True)) == (
        "Memory: ordinary pages, transparent huge pages asked for (as asked)")
    assert memory.zalloc(4 * MIB).address
    assert memory.stats()["huge"] == 0


def test_a_reserved_file_is_as_large_as_asked_and_outlives_the_heap(directory, tmp_path):
    if directory is None:
        with pytest.raises(OSError, match="vhost_spdk_reserved_0 is not in a hugetlbfs dir"):
            memory.init(EnvOptions(mem_size=6 * MIB, mem_file_dir=str(tmp_path)))
        assert os.listdir(tmp_path) == [] and not memory.ready()
        return
    path = reserved_file(directory)
    sentence = memory.init(EnvOptions(mem_size=6 * MIB, mem_file_dir=directory))
    assert re.fullmatch(rf"Memory: 6 MiB of huge pages in {path}, (\d contiguous segments?|no "
                        "physical addresses)", sentence)
    assert os.path.getsize(path) == 6 * MIB
    assert os.stat(path).st_mode & 0o777 == 0o600
    assert memory.stats()["limit"] == memory.stats()["total"] == 6 * MIB
    block = memory.zalloc(5 * MIB)
    block.array()[:] = 0xEE
    with pytest.raises(OSError, match="block of 2097152 bytes"):
        memory.zalloc(2 * MIB)
    del block
    memory.fini()
    with Segment.open(path).array()[:8 * MIB].data as content:
        assert content[3 * MIB] == 0xEE, "the file keeps its pages"
    gc.collect()
    # Old data is in the file, and a block is zeroed all the same.
    memory.init(EnvOptions(mem_file_dir=directory))
    assert memory.stats()["total"] == 6 * MIB, "without a size, the whole of the file"
    assert not memory.zalloc(5 * MIB).array().any()


def test_a_reserved_file_grows_and_is_never_cut(directory, tmp_path):
    if directory is None:
        with pytest.raises(OSError, match="is not in a hugetlbfs directory"):
            Segment.open(str(tmp_path / "file"), 2 * MIB)
        return
    for asked, size in ((2, 2), (8, 8), (4, 8)):
        memory.init(EnvOptions(mem_size=asked * MIB, mem_file_dir=directory))
        assert memory.stats()["total"] == asked * MIB
        memory.fini()
        assert os.path.getsize(reserved_file(directory)) == size * MIB


def test_a_reserved_file_has_one_owner(directory, tmp_path):
    if directory is None:
        with pytest.raises(OSError, match="No such file"):
            memory.init(EnvOptions(mem_size=2 * MIB, mem_file_dir=str(tmp_path / "none")))
        return
    memory.init(EnvOptions(mem_size=2 * MIB, mem_file_dir=directory))
    code = ("import sys; from vhostrt.env import memory\n"
            "from vhostrt.env.options import EnvOptions\n"
            "try: memory.init(EnvOptions(mem_size=2 << 20, mem_file_dir=sys.argv[1]))\n"
            "except OSError as refused: print(refused)")
    run = subprocess.run([sys.executable, "-c", code, directory], capture_output=True, text=True)
    assert run.stdout == (f"[Errno 11] memory file {reserved_file(directory)} is "
                          "another process's: Resource temporarily unavailable\n")
    memory.fini()
    run = subprocess.run([sys.executable, "-c", code, directory], capture_output=True, text=True)
    assert run.stdout == ""


def test_a_reserved_file_that_cannot_be_met_says_how_much_there_is(directory, tmp_path):
    if directory is None:
        with pytest.raises(OSError, match=r"memory of 1048576 MiB: \d+ MiB can be had"):
            memory.init(EnvOptions(mem_size=1 << 40))
        return
    with pytest.raises(OSError, match=r"reserved_0 of 1048576 MiB: \d+ MiB are free") as refused:
        memory.init(EnvOptions(mem_size=1 << 40, mem_file_dir=directory))
    assert refused.value.errno == errno.ENOMEM
    assert os.listdir(directory) == []
    assert not memory.ready()
