"""vhostrt.env.hugepages: what the kernel shows, on recorded systems and on this one."""
import errno
import fcntl
import os
import re
import subprocess
import sys
import threading

import pytest

from tests.lib.recorded import GIB, KIB, MIB, System
from vhostrt.env import hugepages
from vhostrt.env.roots import Roots

# A file of the kernel, of this process alone, that takes less than it is told: the lowest nine
# bits of a decimal number, shown as eight hexadecimal digits.
TAKES_LESS = "/proc/self/coredump_filter"


@pytest.fixture
def system(tmp_path):
    return System(tmp_path)


def test_every_size_is_found_the_largest_first(system):
    system.huge(2 * MIB, 100, 60, 10, 3)
    system.huge(GIB, 4, 4)
    system.huge(64 * KIB)
    system.huge(32 * MIB, 1, 0)
    system.mount("/dev/hugepages")
    system.mount("/mnt/huge1G", "rw,relatime,pagesize=1024M")
    system.mount("/mnt/second", "rw,pagesize=2M,size=64M")
    assert hugepages.scan(system.roots) == [
        (GIB, 4, 4, 0, 0, ("/mnt/huge1G",)), (32 * MIB, 1, 0, 0, 0, ()),
        (2 * MIB, 100, 60, 10, 3, ("/dev/hugepages", "/mnt/second")), (64 * KIB, 0, 0, 0, 0, ())]


def test_pages_that_are_promised_are_not_available(system):
    system.huge(2 * MIB, 100, 60, 10)
    system.huge(GIB, 2, 1, 2)
    assert [page.available for page in hugepages.scan(system.roots)] == [0, 50]


def test_a_kernel_without_huge_pages(tmp_path):
    roots = Roots(*(str(tmp_path / name) for name in ("sys", "proc", "dev")))
    assert hugepages.scan(roots) == [] and hugepages.mount_of(2 * MIB, roots=roots) is None
    with pytest.raises(OSError, match="meminfo: No such file or directory"):
        hugepages.default_size(roots)
    System(tmp_path).write("proc/meminfo", "MemTotal: 8 kB\n")
    with pytest.raises(OSError, match="has no Hugepagesize: the kernel has no huge pages"):
        hugepages.default_size(roots)


@pytest.mark.parametrize("text", ["", " x kB", " kB"])
def test_a_default_size_that_cannot_be_read(system, text):
    system.write("proc/meminfo", f"Hugepagesize:{text}\n")
    with pytest.raises(OSError, match="the size of huge pages in .*/meminfo: "):
        hugepages.default_size(system.roots)


def test_counts_that_are_missing_or_unreadable_are_none(system):
    system.huge(2 * MIB, 5, 5)
    top = system.folder / "sys/kernel/mm/hugepages/hugepages-2048kB"
    (top / "resv_hugepages").unlink()
    (top / "surplus_hugepages").write_text("?")
    assert hugepages.scan(system.roots) == [(2 * MIB, 5, 5, 0, 0, ())]


@pytest.mark.parametrize("options, size", [
    ("rw", 2 * MIB), ("pagesize=2M", 2 * MIB), ("rw,pagesize=1G,mode=1", GIB),
    ("pagesize=64K", 64 * KIB), ("pagesize=2097152", 2 * MIB), ("pagesize=1024m", GIB),
    ("pagesize=", 0), ("pagesize=M", 0), ("pagesize=x2M", 0), ("pagesize=-2M", 0),
])
def test_the_page_size_of_a_mount(options, size):
    assert hugepages.option_size(options, 2 * MIB) == size


def test_mounts_that_are_none(system):
    system.mount("/a", kind="tmpfs")
    system.mount("/b", kind="hugetlbfs2")
    system.write("proc/mounts", "short\n" + (system.folder / "proc/mounts").read_text() + "\n")
    assert hugepages.mount_sizes(system.roots) == []


def test_mount_points_with_blanks_and_backslashes(system):
    system.mount("/my\\040huge\\134pages\\011x\\7")
    assert hugepages.mount_of(2 * MIB, roots=system.roots) == "/my huge\\pages\tx\\7"


def test_the_mount_of_a_size(system):
    system.mount("/first")
    system.mount("/second")
    system.mount("/large", "pagesize=1G")
    of = hugepages.mount_of
    assert of(2 * MIB, roots=system.roots) == "/first"
    assert of(2 * MIB, "/second", system.roots) == "/second"
    assert of(2 * MIB, "/second/", system.roots) == "/second"
    assert of(GIB, roots=system.roots) == "/large"
    for path in ("/large", "/second/below", "/sec", "", "/nowhere"):
        assert of(2 * MIB, path, system.roots) is None
    assert of(64 * KIB, roots=system.roots) is None


def test_counts_of_nodes(system):
    system.huge(2 * MIB, 12, 9)
    assert hugepages.node_counts(2 * MIB, system.roots) == {0: (12, 9)}, "a kernel without NUMA"
    system.huge_on_node(0, 2 * MIB, 8, 8)
    system.huge_on_node(10, 2 * MIB, 4, 1)
    system.huge_on_node(2, GIB, 1, 1)
    assert hugepages.node_counts(2 * MIB, system.roots) == {0: (8, 8), 2: (0, 0), 10: (4, 1)}
    assert hugepages.nodes(system.roots) == [0, 2, 10]


def test_asking_for_pages(system):
    system.huge(2 * MIB, 3, 3)
    system.huge_on_node(1, 2 * MIB, 3, 3)
    assert hugepages.set_reserved(2 * MIB, 100, roots=system.roots) == 100
    assert system.count(2 * MIB) == "100" and system.count(2 * MIB, 1) == "3\n"
    assert hugepages.set_reserved(2 * MIB, 0, 1, system.roots) == 0
    assert system.count(2 * MIB) == "100" and system.count(2 * MIB, 1) == "0"


def test_a_kernel_that_gives_fewer_pages(system):
    system.huge(2 * MIB)
    file = system.folder / "sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages"
    file.unlink()
    file.symlink_to(TAKES_LESS)
    with open(TAKES_LESS) as before:
        kept = int(before.read(), 16)
    try:
        assert hugepages.set_reserved(2 * MIB, 512 + 5, roots=system.roots) == 5
    finally:
        with open(TAKES_LESS, "w") as after:
            after.write(str(kept))


@pytest.mark.parametrize("size, node, code, sentence", [
    (GIB, None, errno.ENOENT, "the kernel has no huge pages of 1 GiB; it has 2 MiB, 64 KiB"),
    (3000, None, errno.ENOENT, "no huge pages of 3000 bytes"),
    (2 * MIB, 7, errno.ENODEV, "there is no NUMA node 7"),
    (64 * KIB, 0, errno.ENOENT, "the number of huge pages of 64 KiB on NUMA node 0 cannot be set"),
    (2 * MIB, 0, errno.EISDIR, "of 2 MiB on NUMA node 0 cannot be set: Is a directory"),
])
def test_pages_that_cannot_be_asked_for(system, size, node, code, sentence):
    system.huge(2 * MIB)
    system.huge(64 * KIB)
    (system.folder / "sys/devices/system/node/node0/hugepages/hugepages-2048kB/nr_hugepages"
     ).mkdir(parents=True)
    with pytest.raises(OSError, match=sentence) as refused:
        hugepages.set_reserved(size, 1, node, system.roots)
    assert refused.value.errno == code


def test_a_kernel_without_huge_pages_is_asked_for_some(system):
    with pytest.raises(OSError, match="has no huge pages of 2 MiB; it has none at all"):
        hugepages.set_reserved(2 * MIB, 1, roots=system.roots)


@pytest.mark.parametrize("size, text", [(2 * MIB, "2 MiB"), (GIB, "1 GiB"), (16 * GIB, "16 GiB"),
                                        (64 * KIB, "64 KiB"), (1000, "1000 bytes")])
def test_how_a_size_is_said(size, text):
    assert hugepages.size_text(size) == text


# Directories

HOLD = "import fcntl,sys,time; f=open(sys.argv[1]); fcntl.flock(f,fcntl.LOCK_SH); print(1," \
       "flush=True); time.sleep(600)"


@pytest.fixture
def held(tmp_path):
    """A file that another process holds a shared lock on."""
    path = tmp_path / "live_map_7"
    path.touch()
    with subprocess.Popen([sys.executable, "-c", HOLD, path], stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        yield path
        process.kill()


def test_files_of_the_dead_are_removed_and_no_others(tmp_path, held):
    dead = ("spdk_pid7map_0", "rtemap_12", "a_map_b")
    stay = ("vhost_spdk_reserved_0", "rtemap", "map-1", ".rte_hugepage_info")
    for name in (*dead, *stay):
        (tmp_path / name).touch()
    (tmp_path / "folder_map_").mkdir()
    (tmp_path / "link_map_").symlink_to(tmp_path / "vhost_spdk_reserved_0")
    os.mkfifo(tmp_path / "fifo_map_")
    assert hugepages.clear_directory(str(tmp_path)) == sorted(dead)
    assert {path.name for path in tmp_path.iterdir()} == {
        *stay, held.name, "folder_map_", "link_map_", "fifo_map_"}
    assert hugepages.clear_directory(str(tmp_path)) == []


def test_a_name_that_is_a_new_file_s_by_the_time_of_the_lock_stays(tmp_path, monkeypatch):
    """Its owner removes a file, and makes one of the same name, between our two steps."""
    path = tmp_path / "rtemap_3"
    path.touch()
    flock = fcntl.flock

    def replaced_meanwhile(fd, operation):
        path.unlink()
        (tmp_path / "fresh").rename(path)
        flock(fd, operation)

    (tmp_path / "fresh").write_text("new")
    monkeypatch.setattr(hugepages.fcntl, "flock", replaced_meanwhile)
    assert hugepages.clear_directory(str(tmp_path)) == []
    assert path.read_text() == "new"


def test_the_lock_of_a_directory_is_waited_for(tmp_path):
    first = hugepages.lock_directory(str(tmp_path))
    assert fcntl.fcntl(first, fcntl.F_GETFD) & fcntl.FD_CLOEXEC
    had = []
    waiting = threading.Thread(target=lambda: had.append(hugepages.lock_directory(str(tmp_path))))
    waiting.start()
    waiting.join(0.05)
    assert waiting.is_alive() and not had
    os.close(first)
    waiting.join(60)
    os.close(had[0])


@pytest.mark.parametrize("call, verb", [(hugepages.lock_directory, "locked"),
                                        (hugepages.clear_directory, "read")])
def test_what_is_no_directory(call, verb, tmp_path):
    (tmp_path / "file").touch()
    before = os.listdir("/proc/self/fd")
    for name, why in (("none", "No such file or directory"), ("file", "Not a directory")):
        path = str(tmp_path / name)
        with pytest.raises(OSError, match=f"directory {re.escape(path)} cannot be {verb}: {why}"):
            call(path)
    assert len(os.listdir("/proc/self/fd")) == len(before)


# This machine

def test_this_machine_is_as_the_kernel_says():
    with open("/proc/meminfo") as file:
        counts = dict(re.findall(r"^(Huge\w+):\s*(\d+)", file.read(), re.M))
    if "Hugepagesize" not in counts:
        assert hugepages.scan() == []
        return
    size = hugepages.default_size()
    assert size == int(counts["Hugepagesize"]) * KIB
    page, = (page for page in hugepages.scan() if page.size == size)
    assert sorted(hugepages.sizes(), reverse=True) == [page.size for page in hugepages.scan()]
    assert page.total == int(counts["HugePages_Total"])
    assert sum(total for total, _ in hugepages.node_counts(size).values()) == page.total
    with open("/proc/self/mounts") as file:
        mounted = [line.split()[1] for line in file if line.split()[2] == "hugetlbfs"]
    assert sorted(m for page in hugepages.scan() for m in page.mounts) == sorted(mounted)
