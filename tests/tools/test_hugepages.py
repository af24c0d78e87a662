"""vhostrt-hugepages as its user runs it: on recorded systems, and on this one where we may."""
import contextlib
import fcntl
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.lib.command import unprivileged_words
from tests.lib.recorded import GIB, MIB, System
from vhostrt.env import hugepages
from vhostrt.env.segment import Segment

ROOT = Path(__file__).resolve().parents[2]
COMMAND = [sys.executable, "-m", "vhostrt.tools.hugepages"]
# A file of the kernel, of the process alone, that takes less than it is told: see
# tests/env/test_hugepages_scan.py.
TAKES_LESS = "/proc/self/coredump_filter"


def run(*words, before=(), status=0):
    """Run the command; return what it printed on stdout, then what was on stderr."""
    done = subprocess.run([*before, *COMMAND, *map(str, words)], capture_output=True, text=True,
                          timeout=120, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == status, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    if status == 0:
        assert done.stderr == ""
    if status == 1:
        assert done.stderr.startswith("vhostrt-hugepages: ") and done.stderr.count("\n") == 1
    return done.stdout + done.stderr


@pytest.fixture
def system(tmp_path):
    """Two nodes, two sizes, one of them mounted."""
    system = System(tmp_path)
    system.huge(2 * MIB, 256, 250, 6, 1)
    system.huge(GIB, 4)
    for node, (total, free) in enumerate(((156, 150), (100, 100))):
        system.huge_on_node(node, 2 * MIB, total, free)
        system.huge_on_node(node, GIB, 4 * node, 0)
    system.mount("/dev/hugepages")
    return system


def on(system, *words, status=0):
    return run("--root", system.folder, *words, status=status)


# Show

@pytest.mark.parametrize("words", [[], ["show"]])
def test_show_is_a_table_of_sizes_and_nodes(system, words):
    assert on(system, *words) == (
        "PAGE SIZE        NODE  PAGES  FREE  PROMISED  SURPLUS   MEMORY  MOUNTED AT\n"
        "1 GiB             all      4     0         0        0    4 GiB  -\n"
        "                    0      0     0                           0\n"
        "                    1      4     0                       4 GiB\n"
        "2 MiB (default)   all    256   250         6        1  512 MiB  /dev/hugepages\n"
        "                    0    156   150                     312 MiB\n"
        "                    1    100   100                     200 MiB\n")


def test_show_as_json(system):
    assert json.loads(on(system, "show", "--json")) == {
        "default_size": 2 * MIB, "sizes": [
            {"size": GIB, "total": 4, "free": 0, "reserved": 0, "surplus": 0, "mounts": [],
             "nodes": [{"node": 0, "total": 0, "free": 0}, {"node": 1, "total": 4, "free": 0}]},
            {"size": 2 * MIB, "total": 256, "free": 250, "reserved": 6, "surplus": 1,
             "mounts": ["/dev/hugepages"],
             "nodes": [{"node": 0, "total": 156, "free": 150},
                       {"node": 1, "total": 100, "free": 100}]}]}


def test_show_without_huge_pages(tmp_path):
    assert "the kernel has no huge pages" in run("--root", tmp_path, status=1)
    assert json.loads(run("--root", tmp_path, "show", "--json")) == {"default_size": None,
                                                                   "sizes": []}


def test_show_on_this_machine():
    found = json.loads(run("show", "--json"))
    assert [size["size"] for size in found["sizes"]] == hugepages.sizes()
    assert run().count("\n") >= len(found["sizes"])


# Reserve and release, recorded

@pytest.mark.parametrize("words, count, said", [
    (["64M"], "32", "32 pages of 2 MiB: 64 MiB"), (["64"], "32", "32 pages of 2 MiB: 64 MiB"),
    (["--pages", "7"], "7", "7 pages of 2 MiB: 14 MiB"),
    (["2G", "--page-size", "2M"], "1024", "1024 pages of 2 MiB: 2 GiB"), (["0"], "0", "0 pages"),
])
def test_reserve(system, words, count, said):
    assert said in on(system, "reserve", *words)
    assert system.count(2 * MIB) == count
    assert system.count(2 * MIB, 0) == "156\n" and system.count(GIB) == "4\n"


def test_reserve_another_size_on_a_node(system):
    assert on(system, "reserve", "8G", "--page-size=1G", "--node=1") == \
        "8 pages of 1 GiB on NUMA node 1: 8 GiB\n"
    assert (system.count(GIB, 1), system.count(GIB), system.count(GIB, 0)) == ("8", "4\n", "0\n")


def test_release(system):
    assert on(system, "release") == "no pages of 2 MiB are reserved any more\n"
    assert (system.count(2 * MIB), system.count(GIB)) == ("0", "4\n")
    on(system, "release", "--node", "1", "--page-size", "1G")
    assert (system.count(GIB), system.count(GIB, 1)) == ("4\n", "0")


def test_a_kernel_that_gives_fewer(system):
    file = system.folder / "sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages"
    file.unlink()
    file.symlink_to(TAKES_LESS)
    assert "5 of 517 pages of 2 MiB could be had, and are kept: memory is short" in \
        on(system, "reserve", "--pages", "517", status=1)
    said = on(system, "setup", "--pages", "517", "--directory", "/dev/hugepages", status=1)
    assert "5 of 517 pages" in said and "mounted at /dev/hugepages already" in said


# Refusals

@pytest.mark.parametrize("words, sentence", [
    (["reserve", "3M"], "3 MiB is not a whole number of pages of 2 MiB"),
    (["reserve", "64M", "--page-size", "64k"], "no huge pages of 64 KiB; it has 1 GiB, 2 MiB"),
    (["mount", "--page-size", "16G"], "the kernel has no huge pages of 16 GiB; it has 1 GiB, 2"),
    (["reserve", "64M", "--node", "9"], "there is no NUMA node 9"),
    (["unmount", "/elsewhere"], "no hugetlbfs is mounted at /elsewhere"),
    (["unmount", "--page-size=1G"], "dev/hugepages-1G"),
    (["mount", "/dev/hugepages", "--page-size", "1G"],
     "pages of 2 MiB are mounted at /dev/hugepages already; name another directory"),
])
def test_what_cannot_be_done(system, words, sentence):
    assert sentence in on(system, *words, status=1)


@pytest.mark.parametrize("words, sentence", [
    (["nonsense"], "nonsense"), (["reserve"], "SIZE --pages is required"),
    (["reserve", "1.5G"], "'1.5G' is not a size"), (["reserve", "-1"], "-1"),
    (["reserve", "64M", "--pages", "3"], "not allowed with"),
    (["reserve", "--pages", "x"], "'x' is not a whole number"),
    (["release", "--node", "x"], "'x' is not a whole number"),
    (["mount", "--mode", "999"], "'999' is not a mode in octal"),
    (["mount", "--user", "no-such-user"], "there is no user 'no-such-user'"),
    (["mount", "--group", "no-such-group"], "there is no group 'no-such-group'"),
    (["show", "--page-size"], "--page-size"),
])
def test_bad_words(words, sentence):
    assert sentence in run(*words, status=2)


def test_help_names_every_command_and_option():
    text = run("--help")
    for name in ("show", "reserve", "setup", "release", "mount", "unmount", "--root", "examples:"):
        assert name in text
    for command, options in {"show": ["--json"], "release": ["--node", "--page-size"],
                             "reserve": ["SIZE", "--pages", "--node", "--page-size"],
                             "setup": ["SIZE", "--directory", "--user", "--group", "--mode"],
                             "mount": ["DIR", "--user", "--group", "--mode", "--page-size"],
                             "unmount": ["DIR", "--page-size"]}.items():
        text = run(command, "--help")
        for option in options:
            assert option in text, (command, option)


def test_already_mounted(system):
    assert on(system, "mount", "/dev/hugepages") == \
        "pages of 2 MiB are mounted at /dev/hugepages already\n"
    assert on(system, "setup", "64M", "--directory", "/dev/hugepages").splitlines() == [
        "32 pages of 2 MiB: 64 MiB", "pages of 2 MiB are mounted at /dev/hugepages already"]


def test_nobody_reads_what_is_printed():
    with open("/dev/full", "w") as full:
        done = subprocess.run([*COMMAND, "show"], stdout=full, stderr=subprocess.PIPE, text=True,
                              timeout=60)
    assert done.returncode == 1
    assert done.stderr == "vhostrt-hugepages: cannot print on stdout: No space left on device\n"


def test_the_command_is_installed():
    command = shutil.which("vhostrt-hugepages", path=os.path.dirname(sys.executable))
    assert command, "the tree is not installed: make build-tests"
    assert "PAGE SIZE" in subprocess.run([command], capture_output=True, text=True, timeout=60,
                                         check=True).stdout


# For real, in turn with other tests that change the machine's pages

@contextlib.contextmanager
def turn():
    """Wait for our turn with the system's huge pages; put their number back in the end."""
    size = 2 * MIB
    with open("/proc/sys/vm/nr_hugepages") as file:     # as tests/lib/hugepages.py does
        fcntl.flock(file, fcntl.LOCK_EX)
        before, = (page.total for page in hugepages.scan() if page.size == size)
        try:
            yield before
        finally:
            with contextlib.suppress(PermissionError):
                hugepages.set_reserved(size, before)


def may_reserve(before):
    """Whether this process may ask for huge pages, and mount."""
    try:
        hugepages.set_reserved(2 * MIB, before)
    except OSError:
        return False
    return os.geteuid() == 0


def total():
    return next(page.total for page in hugepages.scan() if page.size == 2 * MIB)


def test_without_root():
    as_user = unprivileged_words()
    with turn() as before, tempfile.TemporaryDirectory() as folder:     # pytest's are root's alone
        os.chmod(folder, 0o777)
        size = ["--page-size", "2M"]
        said = run("reserve", "--pages", before + 1, *size, before=as_user, status=1)
        assert re.search(r"number of huge pages of .* cannot be set: .*; this needs root$", said)
        assert run("release", *size, before=as_user, status=1).endswith("; this needs root\n")
        said = run("mount", f"{folder}/mount", *size, before=as_user, status=1)
        assert re.search(r"cannot be mounted at .*/mount: .*; this needs root$", said)
        assert os.listdir(folder) == [] and total() == before
    assert "PAGE SIZE" in run(before=as_user)


def test_pages_for_real(tmp_path):
    with turn() as before:
        wanted = before + 5
        words = ["reserve", "--pages", wanted, "--page-size", "2M"]
        if not may_reserve(before):
            assert "cannot be set" in run(*words, status=1)
            return
        assert f"{wanted} pages of 2 MiB: {2 * wanted} MiB" in run(*words)
        assert total() == wanted
        found = json.loads(run("show", "--json"))
        assert [size["total"] for size in found["sizes"] if size["size"] == 2 * MIB] == [wanted]
        segment = Segment.create(6 * MIB, huge="always")
        segment.populate()
        said = run("release", "--page-size", "2M", status=1)
        assert re.search(r"\d+ pages of 2 MiB are in use; they go when their users end", said)
        assert 3 <= total() <= wanted
        segment.release()
        run("reserve", "--pages", before, "--page-size", "2M")
        assert total() == before


def test_a_mount_for_real(tmp_path):
    path = tmp_path / "a b"
    words = ["--page-size", "2M", path]
    with turn() as before:
        if not may_reserve(before):
            assert "cannot be mounted" in run("mount", *words, status=1)
            return
        said = run("setup", "--pages", before + 2, "--page-size", "2M", "--directory", path,
                   "--mode", "0770", "--user", "65534", "--group", "nogroup")
        try:
            assert said.splitlines()[1] == f"pages of 2 MiB are mounted at {path}"
            about = path.stat()
            assert (about.st_mode & 0o7777, about.st_uid) == (0o770, 65534)
            assert os.statvfs(path).f_bsize == 2 * MIB
            assert hugepages.mount_of(2 * MIB, str(path)) == str(path)
            assert str(path) in run()
            assert "already" in run("mount", *words)
            file = os.open(path / "used", os.O_RDWR | os.O_CREAT, 0o600)
            assert "cannot be unmounted: Device or resource busy" in run("unmount", *words,
                                                                         status=1)
            os.close(file)
            segment = Segment.open(str(path / "used"), 2 * MIB)
            segment.array()[:] = 1
            segment.release()
        finally:
            assert run("unmount", *words) == f"{path} is unmounted\n"
        assert hugepages.mount_of(2 * MIB, str(path)) is None
        assert "no hugetlbfs is mounted" in run("unmount", *words, status=1)
