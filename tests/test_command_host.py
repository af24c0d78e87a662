"""The live command on its machine: threads, memory, descriptors, and users who are not root."""
import contextlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.lib import hugepages
from tests.lib.command import NOBODY, Place

HUGE_MIB = 2                            # of one page


@pytest.fixture
def place():
    with Place() as one:
        yield one


# Threads

def lcores_of(*, mask):
    return [n for n in range(1024) if mask >> n & 1]


@pytest.mark.parametrize("mask", [0x1, 0x2, 0x3])
def test_reactors_are_named_and_pinned(place, mask):
    with place.start("-m", hex(mask), "--disk", "malloc:8M") as run:
        lcores = lcores_of(mask=mask)
        threads = run.threads()
        for lcore in lcores:
            assert threads.pop(f"reactor_{lcore}") == [{lcore}]
        # All others keep off the lcores, where there are other CPUs for them.
        allowed = os.sched_getaffinity(0)
        for name, of_name in threads.items():
            for cpus in of_name:
                assert cpus == (allowed - set(lcores) or allowed), name
        assert f"Total cores available: {len(lcores)}" in run.said()
        run.stop()


def test_an_lcore_that_may_run_on_several_cpus(place):
    with place.start("--lcores", "7@(0-1)") as run:
        assert run.threads()["reactor_7"] == [{0, 1}]
        assert [r["lcore"] for r in run.rpc("framework_get_reactors")["reactors"]] == [7]
        run.stop()


def test_no_core_is_asked_for(place):
    allowed = os.sched_getaffinity(0)
    last = max(allowed)
    with place.start(preexec_fn=lambda: os.sched_setaffinity(0, {last})) as run:
        assert run.threads()[f"reactor_{last}"] == [{last}]
        run.stop()


@pytest.mark.parametrize("idle", ["spin", "sleep", "yield"])
def test_idle_policies(place, idle):
    with place.start("--idle", idle, "--disk", "malloc:8M") as run:
        assert f"Idle policy: {idle}" in run.said()
        run.stop()


# Descriptors and memory

def test_every_descriptor_is_closed_on_exec(place):
    store = place.folder / "disk"
    store.write_bytes(bytes(1 << 20))
    with place.start("--disk", "malloc:8M", "--disk", str(store)) as run:
        found = {}                      # what it is -> its flags
        for fd in Path(f"/proc/{run.pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):        # closed meanwhile
                flags = int(re.search(r"flags:\s*(\d+)", run.file(f"fdinfo/{fd.name}"))[1], 8)
                if int(fd.name) > 2:
                    found[f"{fd.name} {os.readlink(fd)}"] = flags
        for what in ("socket:", "anon_inode:[eventfd]", "anon_inode:[eventpoll]", "pipe:",
                     str(store), str(place.lock)):
            assert any(what in name for name in found), found
        inherited = [name for name, flags in found.items() if not flags & os.O_CLOEXEC]
        assert inherited == []
        run.stop()


def test_idle_memory(place, record_property):
    with place.start() as run:
        resident = int(re.search(r"VmRSS:\s*(\d+) kB", run.file("status"))[1])
        print(f"resident memory of an idle target: {resident / 1024:.1f} MiB")
        record_property("resident_kib", resident)
        run.stop()


def huge_mapped(run):
    """Return how many MiB of huge pages a process has in memory."""
    sizes = re.findall(r"_Hugetlb:\s*(\d+) kB", run.file("smaps"))
    return sum(map(int, sizes)) >> 10


@contextlib.contextmanager
def huge_pages(count):
    """Ask the system for more huge pages, where that is allowed; yield how many are free."""
    with hugepages.reserved(count):
        yield hugepages.of_size(HUGE_MIB << 20).available


def test_huge_pages_are_used_when_they_are_there(place):
    with huge_pages(40) as free, place.start("-s", "64") as run:
        if free * HUGE_MIB >= 64:
            assert "Memory: 64 MiB of huge pages of 2 MiB, reserved" in run.said()
            assert huge_mapped(run) >= HUGE_MIB
        else:
            assert "Memory: ordinary pages" in run.said()
            assert huge_mapped(run) == 0
        run.stop()


def test_huge_pages_as_they_are_needed(place):
    with huge_pages(40) as free, place.start("--disk", "malloc:16M") as run:
        said = "huge pages of 2 MiB as long as there are any" if free else "ordinary pages"
        assert f"Memory: {said}" in run.said()
        assert (huge_mapped(run) > 0) == (free > 0)
        run.stop()


def test_no_huge_takes_none(place):
    with huge_pages(40), place.start("--no-huge", "-s", "64") as run:
        assert "Memory: ordinary pages, transparent huge pages asked for (as asked)" in run.said()
        assert huge_mapped(run) == 0
        run.stop()


@pytest.mark.parametrize("words, said", [
    (["-s", "64", "--in-memory"], "Memory: 64 MiB of huge pages of 2 MiB, reserved"),
    (["-s", "64", "--enforce-numa"], "Memory: 64 MiB of huge pages of 2 MiB, reserved"),
    (["-s", "64", "--legacy-mem"],
     r"Memory: 64 MiB of huge pages of 2 MiB, (\d+ contiguous segments?|no physical addresses)"),
    (["-g", "--disk", "malloc:16M"], "Memory: huge pages of 2 MiB as long as there are any"),
])
def test_choices_of_memory(place, words, said):
    with huge_pages(40) as free:
        if free * HUGE_MIB < 64 and "--legacy-mem" in words:
            assert "there are no free huge pages" in place.run(*words).stderr
            return
        with place.start(*words) as run:
            if free * HUGE_MIB >= 64:
                assert re.search(said, run.said()) and huge_mapped(run) > 0
            else:
                assert "Memory: ordinary pages" in run.said()
            run.stop()


def test_huge_pages_of_a_directory(place, tmp_path):
    with huge_pages(40) as free, hugepages.mounted(tmp_path) as mounted:
        words = ["-i", str(os.getpid()), "--huge-dir", str(tmp_path), "--disk", "malloc:16M"]
        if not mounted or not free:
            assert mounted or "no hugetlbfs is mounted there" in place.run(*words).stderr
            return
        with place.start(*words) as run:
            assert any(f"spdk{os.getpid()}map_" in path.name for path in tmp_path.iterdir())
            run.stop()
        assert list(tmp_path.iterdir()) == []
        with place.start(*words, "-R") as run:
            assert list(tmp_path.iterdir()) == [] and huge_mapped(run) > 0
            run.stop()


def test_where_memory_is_mapped(place):
    with place.start("--base-virtaddr", "0x300000000000", "--disk", "malloc:8M") as run:
        assert re.search("^3000", run.file("maps"), re.M)
        run.stop()


ATTACH = """if 1:
    import sys
    from vhostrt import env
    with env.init(shm_id=int(sys.argv[1]), proc_type="secondary") as environment:
        print(environment.memory)
"""


def test_another_process_attaches_to_its_memory(place):
    number = str(os.getpid())
    with place.start("-i", number, "--disk", "malloc:8M") as run:
        assert f"; other processes attach as spdk{number}" in run.said()
        done = subprocess.run([sys.executable, "-c", ATTACH, number], env=place.environment,
                              capture_output=True, text=True, timeout=120)
        assert done.returncode == 0 and done.stdout.startswith("Memory: "), done.stderr
        assert run.answers("spdk_get_version")
        run.stop()
    done = subprocess.run([sys.executable, "-c", ATTACH, number], env=place.environment,
                          capture_output=True, text=True, timeout=120)
    assert f"there is no primary process of spdk{number} to attach to" in done.stderr


def test_what_was_said_about_devices_has_the_bus_looked_at(place):
    with place.start("-A", "ff:1f.7") as run:
        assert "option -A: there is no PCI device 0000:ff:1f.7" in run.said()
        assert re.search(r"PCI bus: 0 of \d+ devices may be used", run.said())
        assert re.search("VFIO .*Addresses for devices: ", run.said(), re.S)
        run.stop()
    with place.start("-u") as run:
        assert "PCI bus" not in run.said()
        run.stop()


# Without root

def test_without_root():
    with Place(unprivileged=True) as place:
        store = place.folder / "disk"
        store.write_bytes(bytes(1 << 20))
        store.chmod(0o666)
        with place.start("--disk", "malloc:8M", "--disk", str(store), "-m", "0x1") as run:
            if os.geteuid() == 0:
                assert f"Uid:\t{NOBODY}\t" in run.file("status")
            assert run.threads()["reactor_0"] == [{0}]
            assert len(run.rpc("vhost_get_controllers")) == 2
            run.stop()
        store.unlink()
        assert place.left() == {"lock"}


def test_default_places_without_root():
    with Place(unprivileged=True) as place:
        runtime = place.folder / "runtime"
        runtime.mkdir()
        runtime.chmod(0o777)
        place.environment["XDG_RUNTIME_DIR"] = str(runtime)
        place.environment["TMPDIR"] = str(place.folder)
        # Without --lock-file; /run belongs to root, unless a vhostrt of root's has been there.
        words = [word for word in place.words() if not word.startswith("--lock-file")]
        place.words = lambda *more: [*words, *more]
        with place.start() as run:
            if not os.access("/run/vhostrt", os.F_OK) or os.geteuid() == 0:
                lock = runtime / "vhostrt" / "vhostrt.lock"
                assert lock.read_text() == f"{run.pid}\n"
                assert lock.stat().st_mode & 0o777 == 0o600
            run.stop()
