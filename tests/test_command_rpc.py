"""vhostrt's options of the RPC server, of the program as it is run."""
import os
import socket

import pytest

from tests.lib.command import Place
from tests.lib.target import rpc_call


@pytest.fixture
def place():
    with Place() as one:
        yield one


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_several_addresses_their_mode_and_their_group(place):
    second, port = place.folder / "second", free_port()
    group = 23456 if os.geteuid() == 0 else os.getgroups()[0]
    words = ["-r", str(place.rpc), "-r", str(second), "-r", f"127.0.0.1:{port}",
             "--rpc-socket-mode", "0660", "--rpc-socket-owner", f":{group}"]
    with place.start(*words) as run:
        for path in (place.rpc, second):
            about = os.stat(path)
            assert about.st_mode & 0o777 == 0o660 and about.st_gid == group
            assert rpc_call(path, "rpc_get_methods")
        with socket.create_connection(("127.0.0.1", port), 30) as client:
            client.sendall(b'{"jsonrpc": "2.0", "id": 1, "method": "spdk_get_version"}')
            assert b"vhostrt v" in client.recv(4096)
        run.stop()
    assert not second.exists() and not place.rpc.exists()


def test_one_address_that_cannot_be_had_ends_the_start(place):
    done = place.run("-r", str(place.rpc), "-r", str(place.folder / "no" / "folder"))
    assert done.returncode == 1 and "no/folder" in done.stderr
    assert not place.rpc.exists()


@pytest.mark.parametrize("words, sentence", [
    (["-r", "/a", "-r", "/a"], "option -r names an address twice: /a, /a"),
    (["--rpc-socket-mode", "rw"], "option --rpc-socket-mode: 'rw' is not a mode in octal"),
    (["--rpc-socket-owner", "no.such"], "option --rpc-socket-owner: there is no user 'no.such'"),
])
def test_refusals(place, words, sentence):
    done = place.run(*words)
    assert done.returncode == 2 and sentence in done.stderr
