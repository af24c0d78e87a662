"""Who may use the socket of a running controller, and what becomes of sockets of dead programs."""
import os
import signal
import socket
import stat
import subprocess
import sys

import pytest

from tests.lib.blk_client import Blk
from tests.lib.command import NOBODY, Place, unprivileged_words
from tests.lib.target import RpcError, Target

CONNECT = ("import socket, sys; s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]);"
           "s.settimeout(20);"
           "s.sendall(bytes.fromhex('010000000100000000000000')); print(len(s.recv(20)))")


def answered_to_nobody(path):
    """Return whether a process of the user nobody gets an answer at a socket; needs root."""
    words = [*unprivileged_words(), sys.executable, "-c", CONNECT, str(path)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, cwd="/")
    return done.stdout == "20\n"


@pytest.fixture(scope="module")
def target():
    disk = f"malloc:8M,mode=0660,group={os.getegid()},peers={os.geteuid()}"
    with Target(disks=[disk]) as running:
        running.folder.chmod(0o755)
        yield running


def create(target, name, **params):
    """Make a controller on a bdev of its own; return its socket."""
    target.rpc("bdev_null_create", name=f"bdev-{name}", num_blocks=64, block_size=512)
    target.rpc("vhost_create_blk_controller", ctrlr=name, dev_name=f"bdev-{name}", **params)
    return target.folder / name


def described(target, name):
    return target.rpc("vhost_get_controllers", name=name)[0]


def test_by_the_command_line(target):
    status = os.stat(target.socket(0))
    assert stat.S_IMODE(status.st_mode) == 0o660 and status.st_gid == os.getegid()
    about = described(target, "disk0.sock")
    assert {key: about[key] for key in ("mode", "group", "peers")} == {
        "mode": "0660", "group": str(os.getegid()), "peers": [str(os.geteuid())]}
    assert "owner" not in about
    with Blk(target.socket(0)) as blk:
        blk.write(0, b"x" * 512)


def test_by_rpc(target):
    path = create(target, "mine", mode="600", owner=os.geteuid(), group="root"
                  if os.geteuid() == 0 else os.getegid(), peers=[os.geteuid()])
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    with Blk(path) as blk:
        blk.read(0, 512)


@pytest.mark.parametrize("params, part", [
    ({"mode": "999"}, "mode '999' is not permissions in octal"), ({"mode": 438}, "'mode' must be"),
    ({"owner": "no-such-user"}, "there is no user 'no-such-user'"), ({"peers": []}, "empty list"),
    ({"group": 1.5}, "'group' must be"), ({"peers": [None]}, "'peers' must be"),
    ({"peers": "root"}, "'peers' must be"),
])
def test_what_an_rpc_refuses(target, params, part):
    target.rpc("bdev_null_create", name="refused", num_blocks=64, block_size=512)
    with pytest.raises(RpcError) as refused:
        target.rpc("vhost_create_blk_controller", ctrlr="refused", dev_name="refused", **params)
    assert part in str(refused.value) and refused.value.code == -32602
    assert not (target.folder / "refused").exists()
    assert target.rpc("bdev_null_delete", name="refused") is True


def test_other_users_are_turned_away(target):
    """A peer that is not named; where the tests may be another user, by one, else by the list."""
    path = create(target, "closed", mode="777", peers=[NOBODY + 1])
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(20)
        client.connect(str(path))
        assert client.recv(1) == b"", "a user who is not named was let in"
    said = (f"closed: process {os.getpid()} of user {os.geteuid()} was turned away: it is not "
            "among the peers of this controller")
    assert said in target.stderr()
    assert described(target, "closed")["sessions"] == []
    if os.geteuid() == 0:
        assert not answered_to_nobody(path)
        assert answered_to_nobody(create(target, "open", mode="777", peers=["nobody"]))
        assert answered_to_nobody(create(target, "all", mode="777"))
        assert not answered_to_nobody(create(target, "shut", mode="700"))


def test_the_socket_of_a_killed_program_is_replaced():
    with Place() as place:
        for _ in range(3):
            with place.start("--disk", "malloc:8M") as run:
                os.kill(run.pid, signal.SIGKILL)
                run.process.wait()
            assert (place.sockets / "vhost.0").is_socket()
        with place.start("--disk", "malloc:8M") as run:
            with Blk(place.sockets / "vhost.0") as blk:
                blk.write(0, b"x" * 512)
            run.stop()
        assert place.left() == {"lock"}


def test_two_programs_that_start_at_once():
    """With everything of their own but the socket: one serves it, the other says why not."""
    with Place() as one, Place() as other:
        words = "--disk", f"malloc:8M,socket={one.sockets}/shared"
        runs = [place.start(*words, ready=False) for place in (one, other)]
        try:
            ended = None
            while ended is None:
                ended = next((run for run in runs if run.process.poll() is not None), None)
            living, = (run for run in runs if run is not ended)
            assert ended.process.returncode == 1
            assert f"{one.sockets}/shared is in use by a running program" in ended.said()
            living.await_rpc()
            with Blk(one.sockets / "shared") as blk:
                blk.write(0, b"x" * 512)
            living.stop()
        finally:
            for run in runs:
                run.__exit__(None)
