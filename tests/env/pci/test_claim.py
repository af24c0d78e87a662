"""vhostrt.env.pci.claim: one process at a time has a device, also among real processes."""
import errno
import os
import re
import struct
import subprocess
import sys

import pytest

from vhostrt.env.pci.address import Address
from vhostrt.env.pci.claim import DIRECTORY, claim, owner_of, path_of

AT = Address.parse("0000:5e:00.0")


@pytest.fixture
def folder(tmp_path):
    return str(tmp_path)


@pytest.fixture
def other(folder):
    """Another process that has claimed the device, and gives it up when its input ends."""
    code = ("import sys; from vhostrt.env.pci.claim import claim, Address\n"
            "held = claim(Address.parse('5e:0.0'), sys.argv[1])\n"
            "print('claimed', flush=True); sys.stdin.read(); held.release()")
    with subprocess.Popen([sys.executable, "-c", code, folder], stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "claimed\n"
        yield process
        process.kill()


def locks():
    return [n for n in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{n}")
            and "spdk_pci_lock" in os.readlink(f"/proc/self/fd/{n}")]


def test_the_file_is_where_and_as_spdk_has_it(folder):
    assert path_of(AT) == "/var/tmp/spdk_pci_lock_0000:5e:00.0" == f"{DIRECTORY}/{path_name()}"
    held = claim(AT, folder)
    path = f"{folder}/{path_name()}"
    assert os.stat(path).st_mode & 0o777 == 0o600
    with open(path, "rb") as file:
        # Read here, in this process, it ends the lock: as in any program that does.
        assert struct.unpack("i", file.read()) == (os.getpid(),)
    held.release()
    held.release()
    assert os.listdir(folder) == [] and locks() == []


def path_name():
    return "spdk_pci_lock_0000:5e:00.0"


def test_a_conflict_names_the_process(folder, other):
    with pytest.raises(OSError, match=f"{AT}: probably process {other.pid} has claimed it"
                       ) as refused:
        claim(AT, folder)
    assert refused.value.errno == errno.EACCES
    assert owner_of(AT, folder) == other.pid
    assert locks() == []
    # Once more: the first attempt has not ended the other's lock.
    with pytest.raises(OSError, match=f"process {other.pid} has"):
        claim(AT, folder)


def test_a_device_is_free_when_its_process_gives_it_up(folder, other):
    other.stdin.close()
    assert other.wait(30) == 0
    assert owner_of(AT, folder) is None
    claim(AT, folder).release()


def test_a_device_is_free_when_its_process_is_killed(folder, other):
    other.kill()
    other.wait()
    assert os.listdir(folder) == [path_name()]
    assert owner_of(AT, folder) is None
    held = claim(AT, folder)
    assert owner_of(AT, folder) == os.getpid()
    held.release()


def test_this_process_claims_a_device_once(folder):
    held = claim(AT, folder)
    with pytest.raises(OSError, match=f"probably process {os.getpid()} has claimed it"):
        claim(AT, folder)
    assert len(locks()) == 1
    assert owner_of(AT, folder) == os.getpid()
    code = "import sys; from vhostrt.env.pci.claim import *\nprint(owner_of(Address.parse('5e:0'" \
           "), sys.argv[1]))"
    seen = subprocess.run([sys.executable, "-c", code, folder], capture_output=True, text=True)
    assert seen.stdout == f"{os.getpid()}\n", "the refused claim has ended the first"
    other = claim(Address.parse("5e:0.1"), folder)
    other.release()
    held.release()


def test_a_forked_child_does_not_give_the_device_up(folder):
    held = claim(AT, folder)
    child = os.fork()
    if child == 0:
        held.release()
        try:
            claim(AT, folder)
        except OSError as error:
            named = f"probably process {os.getppid()} has claimed it" in str(error)
            same = owner_of(AT, folder) == os.getppid()
            claim(Address.parse("5e:0.1"), folder).release()
            os._exit(0 if named and same else 2)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert os.listdir(folder) == [path_name()]
    held.release()


def test_a_file_that_was_removed_meanwhile(folder):
    held = claim(AT, folder)
    os.unlink(f"{folder}/{path_name()}")
    held.release()
    claim(AT, folder).release()


def test_a_file_that_cannot_be_made(folder):
    with pytest.raises(OSError, match=f"{AT} cannot be claimed: {folder}/none/.*No such file"):
        claim(AT, f"{folder}/none")
    os.symlink("/dev/null", f"{folder}/{path_name()}")
    with pytest.raises(OSError, match=re.escape("cannot be claimed")):
        claim(AT, folder)
    assert owner_of(AT, folder) is None
