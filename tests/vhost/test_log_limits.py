"""A hostile client does not fill the disk with log lines, and what is left out is counted."""
import re
import socket

from tests.lib.blk_client import Blk
from tests.lib.target import Target
from tests.lib.vhost_client import Client, Msg, Refused
from vhostrt.log_limit import BURST, BURST_ALL

AGAIN = re.compile(r"(\w+): (\d+) messages like this were suppressed: .*")


def lines_of(target, text):
    return [line for line in target.stderr().splitlines()
            if text in line and not AGAIN.search(line)]


def suppressed(target):
    return {(name, int(count)) for name, count in AGAIN.findall(target.stderr())}


def test_one_session_that_is_refused_again_and_again():
    with Target(disks=["malloc:8M"]) as target:
        with Blk(target.socket(0)) as blk:
            for _ in range(200):
                try:
                    blk.client.tell_state(Msg.SET_VRING_NUM, 0, 3)
                except Refused:
                    continue
                raise AssertionError("a ring of three descriptors was accepted")
            blk.write(0, b"x" * 512)
            target.rpc("vhost_delete_controller", ctrlr="disk0.sock")
        assert len(lines_of(target, "refused: ")) == BURST
        assert suppressed(target) == {("sock", 200 - BURST)}


def test_one_new_session_after_another():
    with Target(disks=["malloc:8M", "malloc:8M"]) as target:
        for _ in range(120):
            with socket.socket(socket.AF_UNIX) as client:
                client.settimeout(20)
                client.connect(str(target.socket(0)))
                client.sendall(b"\xff" * 12)
                assert client.recv(1) == b""
        # The other controller has a limit of its own.
        with Client(target.socket(1)) as other:
            other.send_bytes(b"\xff" * 12)
        with Blk(target.socket(0)) as blk:
            blk.write(0, b"x" * 512)
        for disk in ("disk0.sock", "disk1.sock"):
            target.rpc("vhost_delete_controller", ctrlr=disk)
        assert len(lines_of(target, "disk0.socks")) == BURST_ALL
        assert len(lines_of(target, "disk1.socks")) == 1
        assert suppressed(target) == {("sock", 120 - BURST_ALL)}
