"""Hostile clients that use the protocol at length: every message with anything, again and again,
cut off anywhere, and in every order.

None may cost the target a descriptor, memory, or another client.
"""
import os
import random
import socket
import struct
from contextlib import suppress

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from tests.lib import vhost_client as vc
from tests.lib.blk_client import IN, OK, Blk
from tests.lib.guest_memory import UADDR_SHIFT, Region
from tests.lib.vhost_client import NEED_REPLY, NO_FD, VERSION, Closed, Msg, Refused

pytestmark = pytest.mark.timeout(300)

ALL = (vc.P_MQ | vc.P_REPLY_ACK | vc.P_BACKEND_REQ | vc.P_CONFIG | vc.P_RESET_DEVICE | vc.P_INBAND
       | vc.P_CONFIGURE_MEM_SLOTS | vc.P_STATUS)
FAR = 1 << 40
ROUNDS = 10_000
GROWTH = 8 << 20                        # bytes of memory that ROUNDS messages may cost


@pytest.fixture
def witness(target, disk):
    """A session that must not notice; in the end no defect may have been told."""
    with Blk(disk) as blk:
        blk.read(0, 512)
        yield blk
        assert blk.read(0, 512)
    for word in ("Traceback", "internal error", "Exception ignored"):
        assert word not in target.stderr(), target.stderr()


def state(index: int, num: int) -> bytes:
    return struct.pack("=II", index, num)


def u64(value: int) -> bytes:
    return struct.pack("=Q", value)


# Every message with anything

def odd_descriptors(folder) -> list[int]:
    """One of each kind that is neither an eventfd nor memory, and one of each that is."""
    pair, pipe = socket.socketpair(), os.pipe()
    memory = os.memfd_create("odd", os.MFD_CLOEXEC)
    os.ftruncate(memory, 1 << 20)
    return [os.open(folder, os.O_RDONLY), os.open("/dev/null", os.O_RDWR),
            os.open("/proc/self/mem", os.O_RDONLY), os.open("/proc/self/stat", os.O_RDONLY), *pipe,
            *(sock.detach() for sock in pair), memory, os.eventfd(0)]


@pytest.mark.parametrize("seed", range(4))
def test_any_message_with_any_payload_and_descriptors(target, disk, witness, tmp_path, seed):
    rng, fds = random.Random(seed), odd_descriptors(tmp_path)
    before = target.fds()
    client = None
    for i in range(1500):
        if client is None:
            client = vc.Client(disk)
            client.set_protocol_features(ALL)
            if i % 2:
                client.set_features(client.get_features())
        request = rng.choice((*range(48), 99, 1 << 31))
        size = rng.choice((0, 1, 4, 8, 12, 16, 20, 24, 40, 72, 264, 268, 4096))
        payload = rng.choice((bytes(size), b"\xff" * size, rng.randbytes(size)))
        flags = rng.choice((VERSION, VERSION | NEED_REPLY, VERSION | NEED_REPLY, 0, 2, 3,
                            VERSION | vc.REPLY, VERSION | 1 << 31))
        attached = [rng.choice(fds) for _ in range(rng.choice((0, 0, 1, 1, 2, 8)))]
        try:
            client.send(request, flags, payload, attached)
            client.send(Msg.GET_FEATURES, VERSION)
            while client.recv()[0] != Msg.GET_FEATURES:
                pass
        except (Closed, OSError):
            client.close()
            client = None
    if client is not None:
        client.close()
    for fd in fds:
        os.close(fd)
    target.await_fds(before)
    assert witness.read(0, 512)


WRONG_SIZES = {Msg.ADD_MEM_REG: 40, Msg.REM_MEM_REG: 40, Msg.VRING_KICK: 8, Msg.SET_STATUS: 8}


@pytest.mark.parametrize("request_", WRONG_SIZES, ids=lambda m: m.name)
@pytest.mark.parametrize("by", [-40, -8, -1, 1, 8, 2048])
def test_payload_of_a_wrong_size(disk, request_, by):
    with vc.Client(disk) as client:
        client.set_protocol_features(ALL)
        with pytest.raises(Refused):
            client.tell(request_, bytes(max(WRONG_SIZES[request_] + by, 0)))
        assert client.get_status() == 0


NO_MEMORY = {"directory": lambda folder: os.open(folder, os.O_RDONLY),
             "null": lambda _: os.open("/dev/null", os.O_RDWR),
             "zero": lambda _: os.open("/dev/zero", os.O_RDWR),
             "procfs": lambda _: os.open("/proc/self/mem", os.O_RDWR),
             "pipe": lambda _: os.pipe()[0],
             "socket": lambda _: socket.socketpair()[0].detach(),
             "eventfd": lambda _: os.eventfd(0),
             "path-only": lambda folder: os.open(folder, os.O_PATH)}


@pytest.mark.parametrize("make", NO_MEMORY.values(), ids=NO_MEMORY)
def test_region_of_no_memory(target, disk, tmp_path, make):
    with Blk(disk) as blk:
        blk.client.set_protocol_features(ALL)
        fd, before = make(tmp_path), target.fds()
        with pytest.raises(Refused):
            blk.client.tell(Msg.ADD_MEM_REG, struct.pack(
                "=5Q", 0, FAR, 4096, FAR + UADDR_SHIFT, 0), [fd])
        os.close(fd)
        target.await_fds(before)
        assert blk.request(IN, 0, read=512).status == OK


# Again and again

def resident(target) -> int:
    """Bytes of memory that the target has in use."""
    with open(f"/proc/{target.pid}/statm", encoding="ascii") as f:
        return int(f.read().split()[1]) * os.sysconf("SC_PAGESIZE")


class Repeated:
    """A session with a running ring, and what can be told to it for ever."""

    def __init__(self, disk):
        self.blk = Blk(disk, queues=2)
        self.client, self.ring = self.blk.client, self.blk.rings[0]
        self.client.set_protocol_features(ALL)
        self.region = Region(FAR, 1 << 20)
        self.pair = socket.socketpair()

    def close(self) -> None:
        for sock in self.pair:
            sock.close()
        self.region.close()
        self.blk.close()

    def addresses(self) -> bytes:
        ring = self.ring
        return struct.pack("=IIQQQQ", 0, 1, *(self.blk.memory.uaddr(gpa) for gpa in (
            ring.desc_gpa, ring.used_gpa, ring.avail_gpa)), 0)


# name: the messages of one round, as (request, payload, descriptors)
SETTERS = {
    "SET_FEATURES": lambda r: [(Msg.SET_FEATURES, u64(r.blk.features), [])],
    "SET_PROTOCOL_FEATURES": lambda r: [(Msg.SET_PROTOCOL_FEATURES, u64(ALL), [])],
    "SET_MEM_TABLE": lambda r: [(Msg.SET_MEM_TABLE, r.blk.memory.table(), r.blk.memory.fds())],
    "ADD-REM_MEM_REG": lambda r: [
        (Msg.ADD_MEM_REG, bytes(8) + r.region.entry(), [r.region.fd]),
        (Msg.REM_MEM_REG, bytes(8) + r.region.entry(), [r.region.fd])],
    "ADD_MEM_REG": lambda r: [(Msg.ADD_MEM_REG, bytes(8) + r.region.entry(), [r.region.fd])],
    "SET_VRING_NUM": lambda r: [(Msg.SET_VRING_NUM, state(9, 32768), [])],
    "SET_VRING_ADDR": lambda r: [(Msg.SET_VRING_ADDR, r.addresses(), [])],
    "SET_VRING_BASE": lambda r: [(Msg.SET_VRING_BASE, state(9, 7), [])],
    "SET_VRING_KICK": lambda r: [(Msg.SET_VRING_KICK, u64(0), [r.ring.kick_fd])],
    "SET_VRING_CALL": lambda r: [(Msg.SET_VRING_CALL, u64(0), [r.ring.call_fd])],
    "SET_VRING_ERR": lambda r: [(Msg.SET_VRING_ERR, u64(0), [r.ring.err_fd])],
    "SET_VRING_CALL-none": lambda r: [(Msg.SET_VRING_CALL, u64(0), [r.ring.call_fd]),
                                      (Msg.SET_VRING_CALL, u64(NO_FD), [])],
    "SET_VRING_ENABLE": lambda r: [(Msg.SET_VRING_ENABLE, state(0, 0), []),
                                   (Msg.SET_VRING_ENABLE, state(0, 1), [])],
    "SET_BACKEND_REQ_FD": lambda r: [(Msg.SET_BACKEND_REQ_FD, b"", [r.pair[0].fileno()])],
    "SET_STATUS": lambda r: [(Msg.SET_STATUS, u64(15), [])],
    "RESET_DEVICE": lambda r: [(Msg.RESET_DEVICE, b"", [])],
    "GET_VRING_BASE": lambda r: [(Msg.GET_VRING_BASE, state(1, 0), [])],
    "VRING_KICK-of-another": lambda r: [(Msg.VRING_KICK, state(9, 0), [])],
    "stray-descriptors": lambda r: [(Msg.SET_OWNER, b"", [r.ring.call_fd] * 8)],
}


def repeat(session: Repeated, messages, rounds: int) -> None:
    """Send the messages so often; wait for each answer only when there are some behind."""
    client, behind = session.client, 0
    for _ in range(rounds):
        for request, payload, fds in messages:
            client.send(request, VERSION | NEED_REPLY, payload, fds)
            behind += 1
        while behind > 50:
            client.recv()
            behind -= 1
    for _ in range(behind):
        client.recv()


@pytest.mark.parametrize("name", SETTERS)
def test_setters_again_and_again_cost_nothing(target, disk, witness, name):
    session = Repeated(disk)
    try:
        messages = SETTERS[name](session)
        repeat(session, messages, ROUNDS // 10)
        fds, memory = target.fds(), resident(target)
        repeat(session, messages, ROUNDS)
        target.await_fds(fds)
        assert resident(target) < memory + GROWTH
    finally:
        session.close()
    assert witness.read(0, 512)


# Cut off anywhere

def conversation(blk: Blk) -> list[tuple[int, bytes, list[int]]]:
    """The messages that start a ring."""
    ring = blk.rings[0]
    addresses = struct.pack("=IIQQQQ", 0, 0, *(blk.memory.uaddr(gpa) for gpa in (
        ring.desc_gpa, ring.used_gpa, ring.avail_gpa)), 0)
    region = blk.memory.regions[0]
    return [(Msg.SET_PROTOCOL_FEATURES, u64(ALL), []), (Msg.SET_FEATURES, u64(blk.features), []),
            (Msg.SET_MEM_TABLE, blk.memory.table(), blk.memory.fds()),
            (Msg.REM_MEM_REG, bytes(8) + region.entry(), [region.fd]),
            (Msg.ADD_MEM_REG, bytes(8) + region.entry(), [region.fd]),
            (Msg.SET_BACKEND_REQ_FD, b"", [blk.client.sock.fileno()]),
            (Msg.SET_STATUS, u64(15), []),
            (Msg.SET_VRING_NUM, state(0, ring.size), []), (Msg.SET_VRING_BASE, state(0, 0), []),
            (Msg.SET_VRING_ADDR, addresses, []), (Msg.SET_VRING_CALL, u64(0), [ring.call_fd]),
            (Msg.SET_VRING_ERR, u64(0), [ring.err_fd]),
            (Msg.SET_VRING_ENABLE, state(0, 1), []),
            (Msg.SET_VRING_KICK, u64(0), [ring.kick_fd]), (Msg.GET_VRING_BASE, state(0, 0), [])]


@pytest.mark.parametrize("part", [0, 1, 12, -1, None], ids=["between", "1", "12", "last", "after"])
def test_a_socket_that_closes_in_the_middle(target, disk, witness, part):
    with Blk(disk, start=False) as blk:
        messages = conversation(blk)
        before = target.fds()
        for cut in range(len(messages)):
            with vc.Client(disk) as client, suppress(Closed):
                for request, payload, fds in messages[:cut]:
                    client.send(request, VERSION | NEED_REPLY, payload, fds)
                request, payload, fds = messages[cut]
                data = struct.pack("=III", request, VERSION, len(payload)) + payload
                if part != 0:
                    client.send_bytes(data[:part], fds)
        target.await_fds(before)
    assert witness.read(0, 512)


# Until the limit answers

def test_rings_of_the_largest_size_until_the_limit_answers(target, disk, witness):
    before, sessions, started = target.fds(), [], 0
    try:
        with pytest.raises(Refused):
            while started < 1000:
                sessions.append(Blk(disk, queues=4, size=32768, start=False))
                for ring in sessions[-1].rings:
                    ring.start(sessions[-1].client)
                    started += 1
        assert 4 <= started <= 8
        assert witness.read(0, 512)
    finally:
        for each in sessions:
            each.close()
    target.await_fds(before)
    with Blk(disk, size=32768) as blk:
        assert blk.read(0, 512)


def test_regions_until_the_limit_answers(target, disk, witness):
    """Those of a controller are limited together; another session keeps what it has."""
    before, sessions, added = target.fds(), [], 0
    file = os.memfd_create("small", os.MFD_CLOEXEC)
    os.ftruncate(file, 4096)
    try:
        with pytest.raises(Refused):
            while added < 10_000:
                sessions.append(vc.Client(disk))
                sessions[-1].set_protocol_features(ALL)
                for i in range(509):
                    sessions[-1].tell(Msg.ADD_MEM_REG, struct.pack(
                        "=5Q", 0, FAR + i * 4096, 4096, FAR + i * 4096, 0), [file])
                    added += 1
        assert 509 < added <= 2048
        assert witness.read(0, 512)
    finally:
        os.close(file)
        for each in sessions:
            each.close()
    target.await_fds(before)


# In every order

class Disorder(RuleBasedStateMachine):
    """One session that is told anything in any order; in the end an orderly start must work."""

    disk = None

    @initialize()
    def connect(self) -> None:
        self.blk = Blk(self.disk, start=False)
        self.client, self.ring = self.blk.client, self.blk.rings[0]
        self.client.set_protocol_features(ALL)
        self.region = Region(FAR, 1 << 20)

    def told(self, request: int, payload: bytes = b"", fds=()) -> None:
        with suppress(Refused):
            self.client.tell(request, payload, fds)

    @rule(bits=st.sampled_from([0, vc.F_PROTOCOL, 1 << 32, 1 << 32 | vc.F_PROTOCOL, 1 << 63]))
    def features(self, bits: int) -> None:
        self.told(Msg.SET_FEATURES, u64(bits))

    @rule()
    def table(self) -> None:
        self.told(Msg.SET_MEM_TABLE, self.blk.memory.table(), self.blk.memory.fds())

    @rule(which=st.integers(0, 2), add=st.booleans())
    def regions(self, which: int, add: bool) -> None:
        region = [*self.blk.memory.regions, self.region][which]
        request = Msg.ADD_MEM_REG if add else Msg.REM_MEM_REG
        self.told(request, bytes(8) + region.entry(), [region.fd] if add else [])

    @rule(request=st.sampled_from([Msg.SET_VRING_NUM, Msg.SET_VRING_BASE, Msg.SET_VRING_ENABLE]),
          index=st.integers(0, 1), num=st.sampled_from([0, 1, 3, 256, 32768, 65536]))
    def number(self, request: int, index: int, num: int) -> None:
        self.told(request, state(index, num))

    @rule(index=st.integers(0, 1), right=st.booleans())
    def addresses(self, index: int, right: bool) -> None:
        ring, uaddr = self.ring, self.blk.memory.uaddr
        parts = [uaddr(g) for g in (ring.desc_gpa, ring.used_gpa, ring.avail_gpa)] \
            if right else [FAR + UADDR_SHIFT, 1, 1 << 63]
        self.told(Msg.SET_VRING_ADDR, struct.pack("=IIQQQQ", index, 0, *parts, 0))

    @rule(request=st.sampled_from([Msg.SET_VRING_KICK, Msg.SET_VRING_CALL, Msg.SET_VRING_ERR]),
          index=st.integers(0, 1), given=st.booleans())
    def descriptor(self, request: int, index: int, given: bool) -> None:
        fds = {Msg.SET_VRING_KICK: self.ring.kick_fd, Msg.SET_VRING_CALL: self.ring.call_fd,
               Msg.SET_VRING_ERR: self.ring.err_fd}
        self.told(request, u64(index | (0 if given else NO_FD)), [fds[request]] if given else [])

    @rule(index=st.integers(0, 1))
    def kick(self, index: int) -> None:
        self.told(Msg.VRING_KICK, state(index, 0))

    @rule(index=st.integers(0, 1))
    def base(self, index: int) -> None:
        self.client.get_vring_base(index)

    @rule()
    def reset(self) -> None:
        self.told(Msg.RESET_DEVICE)

    @rule(status=st.sampled_from([0, 1, 15, 64, 128, 255, 256]))
    def status(self, status: int) -> None:
        self.told(Msg.SET_STATUS, u64(status))
        assert self.client.get_status() < 256

    @rule()
    def channel(self) -> None:
        if self.client.backend is not None:
            self.client.backend.close()
        self.client.set_backend_req_fd()

    @rule(head=st.sampled_from([0, 255, 60000]))
    def chains(self, head: int) -> None:
        self.ring.submit(head)

    def teardown(self) -> None:
        if not hasattr(self, "blk"):
            return
        self.client.reset_device()
        self.client.set_features(self.blk.features)
        self.client.set_mem_table(self.blk.memory)
        self.ring.reset(0)
        self.ring.start(self.client)
        assert self.blk.request(IN, 0, read=512).status == OK
        self.region.close()
        self.blk.close()


def test_messages_in_every_order(target, disk, witness):
    before = target.fds()
    machine = type("Machine", (Disorder,), {"disk": disk})
    run_state_machine_as_test(machine, settings=settings(
        max_examples=200, stateful_step_count=40, deadline=None, database=None,
        suppress_health_check=list(HealthCheck)))
    target.await_fds(before)
    assert witness.read(0, 512)
