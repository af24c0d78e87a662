"""What a new user does wrong, and the one sentence that says what it is and what to do.

tests/e2e/test_mistakes.py has what is done wrong with QEMU.
"""
import os
import re
import socket

import pytest

from tests.lib.blk_client import Blk
from tests.lib.command import NOBODY, Place
from tests.lib.target import Target
from tests.lib.vhost_client import Client, Msg, Refused


@pytest.fixture
def place():
    with Place() as one:
        yield one


def sentence(place, *words):
    """Run the command, which ends at once; return the only thing that it complains of."""
    done = place.run(*words)
    assert done.returncode in (1, 2), done.stderr
    assert "Traceback" not in done.stderr
    lines = [line for line in done.stderr.splitlines()
             if line.startswith("vhostrt: ") or "*ERROR*" in line]
    assert len(lines) == 1, done.stderr
    return lines[0]


# Each has what is wrong, with its value, and what to do.
@pytest.mark.parametrize("words, wrong, advice", [
    (["-m", "cores"], "'cores' is neither a hexadecimal core mask nor a list",
     r"such as \[0-3,5\]"),
    (["-m", "0"], "core mask '0' names no core", "Try 'vhostrt --help'"),
    (["-m", "[900]"], "CPU 900 of lcore 900 does not exist", "this machine has 0.*choose among"),
    (["-s", "900G"], "memory of 921600 MiB: ", r"ask for no more \(-s\)"),
    (["--huge-dir", "/nowhere"], "--huge-dir '/nowhere': no hugetlbfs is mounted there",
     r"mount one \(vhostrt-hugepages mount\)"),
    (["--disk", "/nowhere/disk"], "/nowhere/disk cannot be opened .*: No such file",
     "make it .truncate"),
    (["-S", "/nowhere", "--disk", "malloc:1M"], "socket directory /nowhere is not there",
     "create it, or choose another with -S"),
])
def test_words(place, words, wrong, advice):
    line = sentence(place, *words)
    if advice.startswith("Try"):
        assert re.search(wrong, line)
    else:
        assert re.search(f"{wrong}.*{advice}", line), line


def test_no_huge_pages(place):
    """They are not needed; who insists on them is told how to have some."""
    line = sentence(place, "--legacy-mem", "-s", "900G")
    if "there are no free huge pages" in line:
        assert "reserve some, with vhostrt-hugepages, or leave --legacy-mem" in line
    else:
        assert re.search(r"Requested: 921600MB, available: \d+MB \(pages that could be had: ", line)


@pytest.mark.parametrize("size, whole", [(1000, 1024), (511, 512), (513, 1024)])
def test_a_file_that_is_not_a_multiple_of_the_block_size(place, size, whole):
    disk = place.folder / "disk"
    disk.write_bytes(bytes(size))
    line = sentence(place, "--disk", str(disk))
    assert f"the size of {disk}, {size} bytes, is not a whole number of 512-byte blocks" in line
    assert line.endswith(f"; truncate -s {whole} fills up the last one")
    os.truncate(disk, whole)            # as it says
    with place.start("--disk", str(disk)) as run:
        run.stop()


def test_an_empty_file(place):
    disk = place.folder / "disk"
    disk.touch()
    assert re.search("is empty; .*truncate -s 10G gives it a size", sentence(
        place, "--disk", str(disk)))


def test_no_permission_on_the_socket_directory():
    with Place(unprivileged=True) as place:
        place.sockets.chmod(0o500)
        line = sentence(place, "--disk", "malloc:1M")
        user = NOBODY if os.geteuid() == 0 else os.geteuid()
        assert (f"the socket directory {place.sockets} gives user {user} no right to make sockets "
                "in it (Permission denied): change its owner or mode, or choose another with -S"
                ) in line
        place.sockets.chmod(0o700)


def test_the_directory_is_warned_of_before_there_is_a_disk(place):
    with place.start("-S", "/nowhere/at/all") as run:
        assert re.search(r"\*WARNING\*: the socket directory /nowhere/at/all/? is not there .*: "
                         "create it, or choose another with -S", run.said())
        run.stop()


def test_a_socket_that_is_in_use(place):
    path = place.sockets / "vhost.0"
    with socket.socket(socket.AF_UNIX) as living:
        living.bind(str(path))
        living.listen()
        assert sentence(place, "--disk", "malloc:1M").endswith(
            f"socket {path} is in use by a running program: stop that, or choose another path")


def test_something_else_at_the_place_of_the_socket(place):
    path = place.sockets / "vhost.0"
    path.write_text("precious")
    assert sentence(place, "--disk", "malloc:1M").endswith(
        f"{path} exists and is not a socket: remove it, or choose another path")


# Clients

def test_more_queues_than_there_are():
    with Target(disks=["malloc:8M"]) as target, Blk(target.socket(0)) as blk:
        with pytest.raises(Refused):
            blk.client.tell_state(Msg.SET_VRING_NUM, 256, 128)
        assert re.search(r"refused: ring 256 does not exist: there are 256, so num-queues may be "
                         "no more", target.stderr())


def test_a_client_that_tells_no_memory():
    with Target(disks=["malloc:8M"]) as target:
        with Client(target.socket(0)) as client:
            client.set_features(client.get_features())
        with Client(target.socket(0)) as other:      # a look alone is no mistake
            other.get_features()
        target.rpc("vhost_delete_controller", ctrlr="disk0.sock")
        assert target.stderr().count("the client left without telling where its memory is: start "
                                     "QEMU with memory that is shared") == 1
