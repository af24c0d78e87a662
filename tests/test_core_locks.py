"""vhostrt.core_locks: cores are claimed against other programs, ours and SPDK's."""
import contextlib
import fcntl
import os
import signal
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.lib.command import NOBODY, Place, unprivileged_words
from tests.lib.target import RpcError
from vhostrt.core_locks import FOLDER, Claimed, CoreLocks
from vhostrt.tracing import FLOCK

CPU = max(os.sched_getaffinity(0))
REAL = Path(FOLDER, f"spdk_cpu_lock_{CPU:03d}")

# What SPDK does: a POSIX lock on the whole file, and the process id in it as a C int.
SPDK = """
import fcntl, os, struct, sys
fd = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT, 0o600)
os.ftruncate(fd, 4)
try:
    fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
except OSError:
    print("refused", struct.unpack("=i", os.pread(fd, 4, 0))[0], flush=True)
    sys.exit(1)
os.pwrite(fd, struct.pack("=i", os.getpid()), 0)
print("claimed", flush=True)
sys.stdin.read()
"""


class Spdk:
    """Another program that claims a core; a context manager that ends it.  said: how it went."""

    def __init__(self, path):
        self.process = subprocess.Popen([sys.executable, "-c", SPDK, path], text=True,
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.pid = self.process.pid
        self.said = self.process.stdout.readline().split()

    def __enter__(self):
        return self

    def __exit__(self, *_exc):
        self.process.communicate()


@pytest.fixture
def common():
    """A folder like /var/tmp: everybody's, each his own files."""
    # On a tmpfs: where the numbers of devices in /proc/locks are those that stat tells.
    with tempfile.TemporaryDirectory(prefix="vhostrt-", dir="/dev/shm") as folder:
        os.chmod(folder, 0o1777)
        yield Path(folder)


def locks_in(folder, *cpus):
    return CoreLocks(frozenset(cpus), str(folder))


def test_a_claim_and_its_end(tmp_path):
    locks = locks_in(tmp_path, 0, 12, 1000)
    assert locks.claim() == ""
    files = sorted(tmp_path.iterdir())
    assert [file.name for file in files] == ["spdk_cpu_lock_000", "spdk_cpu_lock_012",
                                             "spdk_cpu_lock_1000"]
    for file in files:
        with Spdk(file) as other:
            assert other.said == ["refused", str(os.getpid())]
    assert locks.claim() == "" and len(locks.held) == 3
    # Last: this ends the lock, as it does with any descriptor of the file in this process.
    assert {file.read_bytes() for file in files} == {struct.pack("=i", os.getpid())}
    locks.release()
    assert list(tmp_path.iterdir()) == [] and locks.held == {}
    locks.release()


def test_no_core_means_no_file(tmp_path):
    locks = locks_in(tmp_path)
    assert locks.claim() == "" and list(tmp_path.iterdir()) == []


def test_spdk_sees_our_claim(tmp_path):
    locks = locks_in(tmp_path, 3)
    locks.claim()
    with Spdk(locks.path(3)) as other:
        assert other.said == ["refused", str(os.getpid())]
    locks.release()
    with Spdk(locks.path(3)) as other:
        assert other.said == ["claimed"]


def test_we_see_spdks_claim_and_take_all_or_nothing(tmp_path):
    locks = locks_in(tmp_path, 2, 3, 4)
    with Spdk(locks.path(3)) as other:
        with pytest.raises(Claimed) as error:
            locks.claim()
        assert str(error.value).startswith(
            f"Cannot create lock on core 3, probably process {other.pid} has claimed it: ")
        assert "-m" in str(error.value) and "--disable-cpumask-locks" in str(error.value)
        assert locks.held == {} and [path.name for path in tmp_path.iterdir()] == [
            "spdk_cpu_lock_003"]
    # What a program that ended has left behind is no claim.
    assert locks.claim() == "" and set(locks.held) == {2, 3, 4}
    locks.release()
    assert list(tmp_path.iterdir()) == []


def test_what_was_held_before_stays_when_more_cannot_be_had(tmp_path):
    locks = locks_in(tmp_path, 2)
    locks.claim()
    locks.cpus = frozenset((1, 2, 3))
    with Spdk(locks.path(3)):
        with pytest.raises(Claimed):
            locks.claim()
        assert set(locks.held) == {2}
        with Spdk(locks.path(2)) as other:
            assert other.said[0] == "refused"
    locks.release()


@pytest.mark.parametrize("text, told", [
    (b"", 0), (b"\0\0\0\0", 0), (b"\xff\xff\xff\xff", 0), (b"1", 0), (b"\2\0\0\0", 2)])
def test_the_kernel_knows_who_has_a_core_when_the_file_does_not_tell(common, text, told):
    locks = locks_in(common, 0)
    with Spdk(locks.path(0)) as other:
        Path(locks.path(0)).write_bytes(text)
        with pytest.raises(Claimed, match=f"process {told or other.pid} has"):
            locks.claim()


def put_link(path):
    os.symlink("/etc/passwd", path)


def put_second_name(path):
    Path(path).with_name("precious").write_text("of somebody")
    os.link(Path(path).with_name("precious"), path)


@pytest.mark.parametrize("put", [os.mkdir, os.mkfifo, put_link, put_second_name],
                         ids=["folder", "pipe", "link", "second name"])
def test_what_is_in_the_place_of_a_file_is_told_and_left_alone(tmp_path, put):
    locks = locks_in(tmp_path, 0, 1)
    put(locks.path(0))
    before = os.lstat(locks.path(0))
    sentence = locks.claim()
    assert sentence.startswith("core 0 is not claimed against other programs, as ")
    assert locks.path(0) in sentence and set(locks.held) == {1}
    locks.release()
    after = os.lstat(locks.path(0))
    assert (before.st_mode, before.st_size, before.st_ino) == (
        after.st_mode, after.st_size, after.st_ino)


def test_a_folder_that_is_not_there_is_told_once_for_all_cores(tmp_path):
    locks = locks_in(tmp_path / "none", 0, 1, 2, 5)
    assert locks.claim() == (f"core 0-2,5 is not claimed against other programs, as {tmp_path}/none"
                             "/spdk_cpu_lock_000 cannot be locked: No such file or directory")
    locks.release()


def test_a_file_that_was_removed_meanwhile_is_not_ours_to_remove(tmp_path):
    locks = locks_in(tmp_path, 0)
    locks.claim()
    os.unlink(locks.path(0))
    Path(locks.path(0)).write_text("of another")
    locks.release()
    assert Path(locks.path(0)).read_text() == "of another"


UNPRIVILEGED = """
import sys
from vhostrt.core_locks import Claimed, CoreLocks
locks = CoreLocks(frozenset((0,)), sys.argv[1])
try:
    print(locks.claim() or "claimed")
except Claimed as error:
    print(error)
locks.release()
"""


def as_nobody(folder):
    """Claim core 0 in a folder as an ordinary user; what came of it."""
    done = subprocess.run([*unprivileged_words(), sys.executable, "-c", UNPRIVILEGED, folder],
                          env={**os.environ, "PYTHONPATH": os.getcwd()}, capture_output=True,
                          text=True, timeout=60, check=True)
    return done.stdout.strip()


def test_an_ordinary_user_claims_a_core(common):
    assert as_nobody(common) == "claimed" and list(common.iterdir()) == []


def test_an_ordinary_user_in_a_folder_of_another(common):
    os.chmod(common, 0o500)
    if os.geteuid() != 0:
        assert "Permission denied" in as_nobody(common)
        return
    os.chmod(common, 0o755)
    sentence = as_nobody(common)
    assert sentence.startswith("core 0 is not claimed") and "Permission denied" in sentence


def test_an_ordinary_user_and_the_claim_of_another(common):
    """The file may not be opened, and the kernel tells of its lock all the same."""
    path = common / "spdk_cpu_lock_000"
    with Spdk(path) as other:
        said = as_nobody(common)
        assert said.startswith(f"Cannot create lock on core 0, probably process {other.pid} has")
    left = as_nobody(common)
    assert "Permission denied" in left if os.geteuid() == 0 else left == "claimed"


def test_root_takes_what_an_ordinary_user_left(common):
    path = common / "spdk_cpu_lock_000"
    path.write_bytes(struct.pack("=i", 77))
    if os.geteuid() == 0:
        os.chown(path, NOBODY, NOBODY)
    locks = locks_in(common, 0)
    assert locks.claim() == "" and path.read_bytes() == struct.pack("=i", os.getpid())
    locks.release()
    assert list(common.iterdir()) == []


# The program.

@pytest.fixture
def place():
    """A place whose program claims cores; one test of the machine at a time has them."""
    turn = os.open(FOLDER, os.O_RDONLY | os.O_DIRECTORY)
    fcntl.flock(turn, fcntl.LOCK_EX)
    with Place(claims=True) as one:
        yield one
    with contextlib.suppress(FileNotFoundError):
        REAL.unlink()
    os.close(turn)


def cores(*words):
    return ["-m", f"[{CPU}]", *words]


def locked_by(path=REAL):
    """Return the process that has the lock of a file, or None."""
    try:
        with open(path, "rb") as file:
            answer = fcntl.fcntl(file, fcntl.F_GETLK, FLOCK.pack(fcntl.F_RDLCK, 0, 0, 0, 0))
    except FileNotFoundError:
        return None
    kind, _, _, _, pid = FLOCK.unpack(answer)
    return None if kind == fcntl.F_UNLCK else pid


def test_the_program_claims_the_cores_that_it_was_given(place):
    with place.start(*cores()) as run:
        assert locked_by() == run.pid and REAL.read_bytes() == struct.pack("=i", run.pid)
        with Place(claims=True) as other:
            done = other.run(*cores())
            assert done.returncode == 1 and "Traceback" not in done.stderr
            assert (f"*ERROR*: Cannot create lock on core {CPU}, probably process {run.pid} has "
                    "claimed it") in done.stderr
            assert locked_by() == run.pid
        run.stop()
    assert not REAL.exists()


@pytest.mark.parametrize("words", [["--lcores", f"5@{CPU}"], ["-m", f"{1 << CPU:#x}"],
                                   ["--env-context", f"-l {CPU}"]])
def test_every_way_to_name_a_core_claims_it(place, words):
    with place.start(*words) as run:
        assert locked_by() == run.pid
        run.stop()


def test_the_global_section_claims(place):
    (place.folder / "conf").write_text(f"[Global]\nReactorMask {1 << CPU:#x}\n")
    with place.start("-c", str(place.folder / "conf")) as run:
        assert locked_by() == run.pid
        run.stop()


def test_a_core_nobody_asked_for_is_not_claimed(place):
    first = Path(FOLDER, f"spdk_cpu_lock_{min(os.sched_getaffinity(0)):03d}")
    with Place(claims=True) as other, place.start() as one, other.start() as two:
        assert locked_by(first) not in (one.pid, two.pid)
        one.stop()
        two.stop()


def test_a_shared_core(place):
    with place.start(*cores()) as run, Place(claims=True) as other:
        with other.start(*cores("--disable-cpumask-locks")) as second:
            assert "*NOTICE*: CPU core locks deactivated." in second.said()
            assert locked_by() == run.pid
            second.stop()
        assert locked_by() == run.pid
        run.stop()


def test_what_a_killed_program_left_is_no_claim(place):
    with place.start(*cores()) as run:
        run.process.send_signal(signal.SIGKILL)
        run.wait()
    assert REAL.exists() and locked_by() is None
    with Place(claims=True) as other, other.start(*cores()) as run:
        assert locked_by() == run.pid
        run.stop()
    assert not REAL.exists()


def test_a_start_that_fails_later_gives_the_core_back(place):
    done = place.run(*cores("-e", "nope"))
    assert done.returncode == 1 and not REAL.exists()


def test_claims_over_rpc(place):
    with place.start(*cores()) as run:
        assert run.rpc("framework_disable_cpumask_locks") is True
        assert not REAL.exists()
        with Spdk(REAL) as other:
            with pytest.raises(RpcError) as error:
                run.rpc("framework_enable_cpumask_locks")
            assert error.value.code == -32603 and str(error.value) == (
                f"-32603: Failed to claim CPU core: {CPU}, probably process {other.pid} has "
                "claimed it")
        assert run.rpc("framework_enable_cpumask_locks") is True
        assert run.rpc("framework_enable_cpumask_locks") is True
        assert locked_by() == run.pid
        run.stop()
    assert not REAL.exists()


def test_cores_that_nobody_asked_for_are_claimed_on_request(place):
    with place.start("--disable-cpumask-locks", *cores()) as run:
        assert not REAL.exists()
        assert run.rpc("framework_enable_cpumask_locks") is True
        assert locked_by() == run.pid
        os.unlink(REAL)
        os.mkdir(REAL)
        try:
            assert run.rpc("framework_disable_cpumask_locks") is True
            with pytest.raises(RpcError, match=f"core {CPU} is not claimed") as error:
                run.rpc("framework_enable_cpumask_locks")
            assert error.value.code == -32603
        finally:
            os.rmdir(REAL)
        run.stop()
