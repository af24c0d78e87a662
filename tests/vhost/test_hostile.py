"""Hostile clients and guests: each ends at most its own request or session.

Every case runs against one disk while a witness, a session on another disk, goes on. Afterwards
the process lives, the witness completes requests, the target has as many descriptors open as
before, and a fresh connection to the socket under attack works.
"""
import os
import struct
import time

import pytest

from tests.lib import vhost_client as vc
from tests.lib.blk_client import Blk
from tests.lib.target import Target
from tests.vhost import hostile_chains, hostile_messages
from tests.vhost.hostile_messages import Enemy

pytestmark = pytest.mark.timeout(120)

VICTIM, WITNESS, FILE = 0, 1, 2


class Arena:
    """A target under attack, with a session on another disk that must not notice."""

    def __init__(self, folder):
        image = folder / "disk.img"
        image.write_bytes(b"")
        with open(image, "r+b") as f:
            f.truncate(16 << 20)
        self.target = Target(disks=["malloc:64M", "malloc:16M", str(image)])
        self.folder = folder
        self.round = 0
        try:
            self.witness = Blk(self.target.socket(WITNESS))
            self.check_fresh(VICTIM)
            self.check_fresh(FILE)
            self.descriptors = self.target.fds()
        except BaseException:
            self.target.kill()
            raise

    def check_fresh(self, disk: int) -> None:
        """Connect to a disk and do requests, as a well-behaved client."""
        with Blk(self.target.socket(disk)) as blk:
            blk.write(8, b"fresh" * 102 + b"xx")
            assert blk.read(8, 512) == b"fresh" * 102 + b"xx"

    def check_witness(self) -> None:
        """Let the witness write and read."""
        self.round = (self.round + 1) % 251
        self.witness.write(0, bytes([self.round]) * 4096)
        assert self.witness.read(0, 4096) == bytes([self.round]) * 4096

    def check_unharmed(self, disk: int = VICTIM) -> None:
        """Check everything that an attack must not change, after its session ended."""
        assert self.target.alive(), f"the target ended: {self.target.stderr()}"
        self.check_witness()
        self.check_fresh(disk)
        self.target.await_fds(self.descriptors)
        for word in ("Traceback", "internal error", "Exception ignored"):
            assert word not in self.target.stderr(), self.target.stderr()

    def stop(self) -> None:
        """Stop the target in order."""
        self.witness.close()
        self.target.stop()


@pytest.fixture(scope="module")
def arenas(tmp_path_factory):
    """The arena in use, in a list: one that an attack has brought down is replaced."""
    running = [Arena(tmp_path_factory.mktemp("arena"))]
    yield running
    running[0].stop()


@pytest.fixture
def arena(arenas, tmp_path_factory):
    """An arena that is in order."""
    try:
        arenas[0].check_unharmed()
    except (AssertionError, OSError, vc.Refused):
        arenas[0].witness.close()
        arenas[0].target.kill()
        arenas[0] = Arena(tmp_path_factory.mktemp("arena"))
    return arenas[0]


@pytest.mark.parametrize("name", hostile_messages.CASES)
def test_message(arena, name):
    attack, right = hostile_messages.CASES[name]
    enemy = Enemy(arena.target.socket(VICTIM), arena.folder)
    try:
        outcome = attack(enemy)
        arena.check_witness()
    finally:
        enemy.close()
    assert outcome in right
    arena.check_unharmed()


@pytest.mark.parametrize("name", hostile_chains.CASES)
def test_chain(arena, name):
    attack, right = hostile_chains.CASES[name]
    assert attack(arena.target.socket(VICTIM)) in right
    arena.check_unharmed()


@pytest.mark.parametrize("name", [n for n in hostile_chains.CASES
                                  if n.startswith(("truncated", "closes", "data-at"))])
def test_chain_on_a_file(arena, name):
    attack, right = hostile_chains.CASES[name]
    assert attack(arena.target.socket(FILE)) in right
    arena.check_unharmed(FILE)


@pytest.mark.parametrize("part", [1, 11, 12, 13, 83], ids=lambda n: f"{n}-bytes")
def test_half_a_message_and_silence(arena, part):
    with Blk(arena.target.socket(VICTIM), start=False) as blk:
        payload = blk.memory.table()
        message = b"".join(x.to_bytes(4, "little") for x in (5, 1, len(payload))) + payload
        assert part < len(message)
        blk.client.send_bytes(message[:part], blk.memory.fds())
        for _ in range(5):
            arena.check_witness()
            time.sleep(0.05)
    arena.check_unharmed()


def test_300_connections_in_a_row(arena):
    for i in range(300):
        with vc.Client(arena.target.socket(VICTIM)) as client:
            if i % 3:
                assert client.get_features()
            if i % 3 == 2:
                client.send_bytes(b"\1\0\0")
        if not i % 50:
            arena.check_witness()
    arena.check_unharmed()


def test_100_connections_at_once(arena):
    clients = []
    try:
        for _ in range(100):
            clients.append(vc.Client(arena.target.socket(VICTIM)))
        arena.check_witness()
    finally:
        for client in clients:
            client.close()
    arena.target.await_fds(arena.descriptors)       # until then new ones may be turned away
    arena.check_unharmed()


def test_memory_beyond_the_address_space(arena):
    """Sessions that map all they may leave room for the memory of others."""
    clients, size = [], 1 << 46
    file = os.memfd_create("huge", os.MFD_CLOEXEC)
    try:
        os.ftruncate(file, size)
        while size >= 1 << 20:
            client = vc.Client(arena.target.socket(VICTIM))
            clients.append(client)
            client.set_protocol_features(vc.P_REPLY_ACK)
            taken = False
            while not taken and size >= 1 << 20:
                try:
                    client.tell(vc.Msg.SET_MEM_TABLE, struct.pack("=IIQQQQ", 1, 0, 0, size, 0, 0),
                                [file])
                    taken = True
                except vc.Refused:
                    size >>= 1
        arena.check_fresh(FILE)
    finally:
        os.close(file)
        for client in clients:
            client.close()
    arena.target.await_fds(arena.descriptors)
    arena.check_unharmed()


def test_rings_that_hold_every_descriptor(arena):
    """The sessions of one disk hold less than the 4096 descriptors below which it warns."""
    clients, refused = [], 0
    event = os.eventfd(0, os.EFD_CLOEXEC)
    try:
        for _ in range(6):
            clients.append(vc.Client(arena.target.socket(VICTIM)))
            clients[-1].set_protocol_features(vc.P_REPLY_ACK)
            for ring in range(256):
                try:
                    clients[-1].set_vring_call(ring, event)
                    clients[-1].set_vring_err(ring, event)
                except vc.Refused:
                    refused += 1
        assert refused == 2 * 256
        assert arena.target.fds() < arena.descriptors + 2 * 1024 + 64
        arena.check_fresh(FILE)
    finally:
        os.close(event)
        for client in clients:
            client.close()
    arena.target.await_fds(arena.descriptors)
    arena.check_unharmed()


def test_broken_ring_can_be_started_again(arena):
    with Blk(arena.target.socket(VICTIM)) as blk:
        ring = blk.rings[0]
        ring.submit(60000)
        assert ring.wait_err(), "a head beyond the ring breaks it"
        blk.client.get_vring_base(0)
        ring.reset(0)
        ring.start(blk.client)
        blk.write(0, b"\x66" * 512)
        assert blk.read(0, 512) == b"\x66" * 512
    arena.check_unharmed()


def test_broken_ring_leaves_the_other_queue(arena):
    with Blk(arena.target.socket(VICTIM), queues=2) as blk:
        blk.rings[0].submit(60000)
        assert blk.rings[0].wait_err(), "a head beyond the ring breaks it"
        blk.write(0, b"\x67" * 512, queue=1)
        assert blk.read(0, 512, queue=1) == b"\x67" * 512
    arena.check_unharmed()
