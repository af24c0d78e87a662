"""vhostrt.env.modes: what the options make of the memory, and what they cannot be together."""
import errno
import os
import re

import pytest

from tests.lib.hugepages import mounted, of_size, reserved
from tests.lib.recorded import System
from vhostrt.env import memory
from vhostrt.env.options import EnvOptions

MIB, GIB, HUGE = 1 << 20, 1 << 30, 2 << 20

pytestmark = pytest.mark.usefixtures("clean")

REFUSED = {
    "size < 0": (EnvOptions(mem_size=-1), errno.EINVAL, "memory of -1 bytes"),
    "size 2^63": (EnvOptions(mem_size=2**63), errno.EINVAL, f"memory of {2**63} bytes"),
    "node size < 0": (EnvOptions(socket_mem=(5, -1)), errno.EINVAL,
                      "memory of 5, -1 bytes on the NUMA nodes"),
    "both sizes": (EnvOptions(mem_size=MIB, socket_mem=(MIB,)), errno.EINVAL,
                   "a size of memory in all and one for each NUMA node exclude each other"),
    "-F and --mem-file": (EnvOptions(mem_file_dir="/x", mem_files=("/y",)), errno.EINVAL,
                          "a directory of reserved files and --mem-file exclude each other"),
    "-F and --no-huge": (EnvOptions(mem_file_dir="/x", no_huge=True), errno.EINVAL,
                         "reserved files and ordinary pages (--no-huge) exclude each other"),
    "--mem-file and --no-huge": (EnvOptions(mem_files=("/x",), no_huge=True), errno.EINVAL,
                                 "reserved files and ordinary pages (--no-huge)"),
    "--mem-file twice": (EnvOptions(mem_files=("/x", "/y", "/x")), errno.EINVAL,
                         "memory file /x is named more than once"),
    "--huge-dir and --no-huge": (EnvOptions(huge_dir="/x", no_huge=True), errno.EINVAL,
                                 "--huge-dir and --no-huge exclude each other"),
    "--huge-unlink and --no-huge": (EnvOptions(huge_unlink=True, no_huge=True), errno.EINVAL,
                                    "--huge-unlink and --no-huge exclude each other"),
    "--huge-dir and --in-memory": (EnvOptions(huge_dir="/x", in_memory=True), errno.EINVAL,
                                   "--huge-dir and --in-memory exclude each other"),
    "-F and --in-memory": (EnvOptions(mem_file_dir="/x", in_memory=True), errno.EINVAL,
                           "reserved files and --in-memory exclude each other"),
    "no hugetlbfs": (EnvOptions(huge_dir="/proc"), errno.EOPNOTSUPP,
                     "--huge-dir '/proc': no hugetlbfs is mounted there"),
    "no directory": (EnvOptions(huge_dir="/nowhere/x"), errno.EOPNOTSUPP,
                     "--huge-dir '/nowhere/x': no hugetlbfs is mounted there"),
    "-F nowhere": (EnvOptions(mem_file_dir="/nowhere/x"), errno.ENOENT,
                   "memory file /nowhere/x/vhost_spdk_reserved_0"),
    "--mem-file nowhere": (EnvOptions(mem_files=("/nowhere/x",)), errno.ENOENT,
                           "memory file /nowhere/x"),
    "too much": (EnvOptions(mem_size=1 << 50, no_huge=True), errno.ENOMEM,
                 "memory of 1073741824 MiB: "),
    "too much sorted": (EnvOptions(mem_size=1 << 50, legacy_mem=True), errno.ENOMEM, "free "),
    "too much of a node": (EnvOptions(socket_mem=(1 << 50,)), errno.ENOMEM,
                           "memory of 1073741824 MiB: "),
    "no such node": (EnvOptions(socket_mem=(*[0] * 900, 8 * MIB)), errno.ENODEV,
                     "memory of 8 MiB on NUMA node 900: this machine has the nodes 0"),
    "--mem-file twice by two names": (EnvOptions(mem_files=("/x", "/./x")), errno.EINVAL,
                                      "memory file /x is named more than once"),
    "NUL in --mem-file": (EnvOptions(mem_files=("/x\0y",)), errno.EINVAL,
                          "path '/x\\x00y' has a NUL in it"),
    "NUL in -F": (EnvOptions(mem_file_dir="\0"), errno.EINVAL, "path '\\x00' has a NUL in it"),
    "NUL in --huge-dir": (EnvOptions(huge_dir="a\0"), errno.EINVAL, "path 'a\\x00' has a NUL"),
    "lines in --mem-file": (EnvOptions(mem_files=("/a\nb",)), errno.ENOENT,
                            "memory file '/a\\nb': "),
    "a long --huge-dir": (EnvOptions(huge_dir="x" * 5000), errno.EOPNOTSUPP,
                          f"--huge-dir '{'x' * 60}: no hugetlbfs is mounted there"),
    "base not of this half": (EnvOptions(base_virtaddr=1 << 60), errno.ENOMEM,
                              "the record of the environment"),
}


@pytest.mark.parametrize(("options", "code", "said"), REFUSED.values(), ids=REFUSED)
def test_refused(options, code, said):
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(OSError, match=re.escape(said)) as refused:
        memory.init(options)
    assert refused.value.errno == code
    assert not memory.ready() and len(os.listdir("/proc/self/fd")) == before
    assert memory.init(EnvOptions(no_huge=True)).startswith("Memory: ordinary pages")


@pytest.mark.parametrize("prefix", [".", "..", "a/b", "a%b", "x" * 65, "a\0b"])
def test_prefixes_that_are_no_names(prefix):
    told = re.escape(ascii(prefix if len(prefix) < 60 else prefix[:57] + "..."))
    with pytest.raises(ValueError, match=f"prefix of files {told}: it "):
        memory.init(EnvOptions(file_prefix=prefix, shm_id=1))


def test_nothing_said_takes_huge_pages_while_there_are_any_and_then_others(pages):
    sentence = memory.init(EnvOptions())
    if pages:
        assert sentence == ("Memory: huge pages of 2 MiB as long as there are any, taken when "
                            "needed")
    assert memory.stats()["total"] == 0 and memory.stats()["limit"] is None
    free = of_size(HUGE).available
    first = memory.zalloc(HUGE - 64)
    beyond = memory.zalloc((free + 8) * HUGE)
    kinds = {s["kind"] for s in memory.segments()}
    assert kinds == ({"hugetlb", "memfd"} if pages else {"memfd"})
    del first, beyond
    assert of_size(HUGE).available == free


def test_a_size_of_0_is_none(pages):
    memory.init(EnvOptions(mem_size=0))
    assert memory.stats()["limit"] is None


def test_memory_of_each_node(pages):
    sentence = memory.init(EnvOptions(socket_mem=(10 * MIB,)))
    assert memory.stats()["nodes"][0]["total"] == memory.stats()["limit"] == 10 * MIB
    assert ("10 MiB of huge pages of 2 MiB, reserved" in sentence) == pages
    with pytest.raises(OSError):
        memory.zalloc(11 * MIB)


def test_huge_pages_of_a_directory(directory, tmp_path):
    if directory is None:
        with pytest.raises(OSError, match="no hugetlbfs is mounted there"):
            memory.init(EnvOptions(huge_dir=str(tmp_path)))
        return
    # A directory inside of a mount will do as well.
    inside = os.path.join(directory, "inside")
    os.mkdir(inside)
    for where in (directory, inside):
        memory.init(EnvOptions(huge_dir=where))
        block = memory.zalloc(5 * MIB)
        segment = memory.segments()[0]
        assert (segment["kind"], segment["page_size"], segment["file"]) == ("huge file", HUGE, "")
        with open("/proc/self/maps") as maps:
            line = next(line for line in maps if line.startswith(f"{segment['address']:x}-"))
        assert f"{where}/spdk_pid{os.getpid()}map_0 (deleted)" in line, "the name is still there"
        assert not block.array().any()
        del block
        memory.fini()


def mapped():
    """Return (inode, offset) of the mappings that the memory segments begin."""
    starts = {f"{segment['address']:x}" for segment in memory.segments()}
    with open("/proc/self/maps") as maps:
        return [(line.split()[4], int(line.split()[2], 16)) for line in maps
                if line.split("-")[0] in starts]


def permissions(address):
    """Return what the mapping that an address is in allows."""
    with open("/proc/self/maps") as maps:
        for line in maps:
            start, end = (int(text, 16) for text in line.split()[0].split("-"))
            if start <= address < end:
                return line.split()[1]
    return ""


@pytest.mark.parametrize("no_huge", [False, True])
def test_one_file_for_all_segments(pages, no_huge):
    memory.init(EnvOptions(single_file_segments=True, no_huge=no_huge))
    first, second = memory.zalloc(3 * MIB), memory.zalloc(9 * MIB)
    assert len(memory.segments()) == 2
    assert len({inode for inode, _ in mapped()}) == 1, "two files"
    assert len({offset for _, offset in mapped()}) == 2, "the same bytes twice"
    first.array()[:], second.array()[:] = 1, 2
    assert (first.array() == 1).all() and (second.array() == 2).all()
    huge = of_size(HUGE).available
    first.free()
    # What the file had there is given back, and its place is clear when it is used again.
    assert of_size(HUGE).available == huge + (2 if pages and not no_huge else 0)
    third = memory.zalloc(30 * MIB if no_huge else 12 * MIB)
    assert not third.array().any() and (second.array() == 2).all()
    del second, third
    memory.fini()


def test_without_that_each_segment_has_a_file():
    memory.init(EnvOptions(no_huge=True))
    first, second = memory.zalloc(3 * MIB), memory.zalloc(9 * MIB)
    assert len({inode for inode, _ in mapped()}) == 2
    del first, second


def test_memory_at_an_address():
    base = 0x310000000000
    memory.init(EnvOptions(base_virtaddr=base + 1, no_huge=True))
    blocks = [memory.zalloc(size * MIB) for size in (1, 8, 32)]
    for block in blocks:
        assert base + (16 << 20) < block.address < base + (64 << 30)
    # What goes leaves its place to the next one, and nobody else gets it.
    where = blocks[1].address
    blocks[1].free()
    assert permissions(where) == "---p"
    assert base < memory.zalloc(4 * MIB).address < base + (64 << 30)
    del blocks, block
    memory.fini()
    memory.init(EnvOptions(base_virtaddr=base, no_huge=True))
    with open("/proc/self/maps") as maps:
        assert any(line.startswith(f"{base:x}-") for line in maps)


def test_in_memory_means_that_nobody_attaches(pages):
    sentence = memory.init(EnvOptions(in_memory=True, shm_id=3, mem_size=4 * MIB))
    assert "attach" not in sentence
    assert not os.path.exists("/run/vhostrt/spdk3/config")
    assert {s["kind"] for s in memory.segments()} <= {"hugetlb", "memfd"}


def test_sorted_and_no_huge_is_no_huge():
    # SPDK says --no-huge --legacy-mem.
    assert memory.init(EnvOptions(no_huge=True, legacy_mem=True, mem_size=4 * MIB)) == (
        "Memory: ordinary pages, transparent huge pages asked for (as asked)")


def test_memory_of_the_node_asked_for_only(pages):
    memory.init(EnvOptions(enforce_numa=True, no_huge=not pages))
    assert len(memory.zalloc(5 * MIB, node=0)) == 5 * MIB
    with pytest.raises(OSError, match="there is no NUMA node 900") as refused:
        memory.zalloc(64, node=900)
    assert refused.value.errno == errno.ENODEV


def test_pages_of_1_gib_are_meant_where_no_others_are_reserved():
    with reserved(1, GIB) as there:
        options = EnvOptions(legacy_mem=True, mem_size=GIB - 4 * MIB)
        sentence = memory.init(options) if there else ""
        if there and not of_size(HUGE).available:
            assert sentence.startswith("Memory: 1024 MiB of huge pages of 1 GiB")
            assert memory.stats()["total"] == GIB
            assert len(memory.zalloc(1000 * MIB)) == 1000 * MIB
        memory.fini()


def test_a_hugetlbfs_with_a_limit_of_its_own(pages, tmp_path):
    if not pages:
        with pytest.raises(OSError, match="no hugetlbfs is mounted there"):
            memory.init(EnvOptions(huge_dir=str(tmp_path)))
        return
    with mounted(tmp_path, more=",size=4M"):
        said = memory.init(EnvOptions(huge_dir=str(tmp_path), mem_size=16 * MIB))
        assert re.search(r"\(huge pages in '.+: Cannot allocate memory\)$", said)
        memory.fini()
        with pytest.raises(OSError, match="reserved_0 of 16 MiB: 4 MiB are free"):
            memory.init(EnvOptions(mem_file_dir=str(tmp_path), mem_size=16 * MIB))
        assert os.listdir(tmp_path) == []


def test_a_memory_file_that_is_a_link(tmp_path):
    link = tmp_path / "link"
    link.symlink_to("file")
    with pytest.raises(OSError, match="link is a symbolic link: name the file itself"):
        memory.init(EnvOptions(mem_files=(str(link),)))


def test_a_directory_by_two_names_is_locked_once(directory):
    if directory is None:
        return
    files = (os.path.join(directory, "one"), os.path.join(directory, ".", "two"))
    for path in files:
        with open(path, "w") as file:
            file.truncate(HUGE)
    assert memory.init(EnvOptions(mem_files=files)).startswith("Memory: 4 MiB of huge pages in ")
    memory.fini()
    for path in files:
        os.unlink(path)


def test_pages_of_both_sizes(directory):
    with reserved(1, GIB) as there:
        if directory is None or not there:
            return
        for size, kept in ((GIB + 6 * MIB, {GIB: GIB, HUGE: 6 * MIB}), (6 * MIB, {HUGE: 6 * MIB})):
            memory.init(EnvOptions(legacy_mem=True, mem_size=size))
            found = {}
            for segment in memory.segments():
                found[segment["page_size"]] = found.get(segment["page_size"], 0) + segment["size"]
            assert found == kept
            memory.fini()
        assert of_size(GIB).available >= 1


def test_a_machine_on_paper_without_huge_pages(tmp_path):
    system = System(tmp_path)
    system.write("proc/meminfo", "MemTotal: 8000000 kB\nMemAvailable: 10240 kB\n")
    assert memory.init(EnvOptions(roots=system.roots)) == (
        "Memory: ordinary pages, transparent huge pages asked for (0 MiB of huge pages are free)")
    memory.fini()
    with pytest.raises(OSError, match="memory of 11 MiB: 10 MiB can be had"):
        memory.init(EnvOptions(roots=system.roots, mem_size=11 * MIB))
    with pytest.raises(OSError, match="there are no free huge pages"):
        memory.init(EnvOptions(roots=system.roots, legacy_mem=True))

