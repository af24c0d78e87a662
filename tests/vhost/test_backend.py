"""The channel for requests to a client, with a client of a few lines at the other end."""
import asyncio
import fcntl
import os
import socket
import struct

import pytest

from vhostrt.log_limit import Limit
from vhostrt.vhost.backend import BackendChannel
from vhostrt.vhost.messages import STATE, BackendRequest, ProtocolError

VERSION, REPLY, NEED_REPLY = 1, 4, 8
CALL, CHANGE = BackendRequest.VRING_CALL, BackendRequest.CONFIG_CHANGE
pytestmark = pytest.mark.timeout(60)


class Peer:
    """A channel and its client's end."""

    def __init__(self, need_reply: bool = True):
        self.need_reply = need_reply
        self.channel = BackendChannel("test", Limit("test").part())
        self.connect()

    def connect(self) -> None:
        """Give the channel one end of a new pair; keep another descriptor of it, as a client may.
        """
        self.end, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self.end.setblocking(False)
        self.theirs = theirs
        self.channel.open(os.dup(theirs.fileno()), self.need_reply)

    def messages(self) -> list[tuple[int, int, bytes]]:
        """What the client has been sent until now: request, flags, payload."""
        data = b""
        try:
            while part := self.end.recv(1 << 20):
                data += part
        except BlockingIOError:
            pass
        found = []
        while data:
            request, flags, size = struct.unpack_from("=III", data)
            assert len(data) >= 12 + size, "half a message"
            found.append((request, flags, data[12:12 + size]))
            data = data[12 + size:]
        return found

    async def answer(self, request: int, code: int = 0) -> None:
        await self.say(struct.pack("=IIIQ", request, VERSION | REPLY, 8, code))

    async def say(self, data: bytes) -> None:
        """Send anything and let the channel take it."""
        self.end.send(data)
        await asyncio.sleep(0.01)

    def close(self) -> None:
        self.channel.close("the test is over")
        self.end.close()
        self.theirs.close()


def case(test):
    """Run a test with a Peer in a loop."""
    def run(**arguments):
        async def within():
            peer = Peer()
            try:
                await test(peer, **arguments)
            finally:
                peer.close()
        asyncio.run(within())
    run.__name__ = test.__name__
    return run


@case
async def check_message(peer):
    peer.channel.send(CHANGE)
    assert peer.messages() == [(2, VERSION | NEED_REPLY, b"")]


def test_message():
    check_message()


@case
async def check_no_answer_wanted(peer):
    peer.channel.close("it is tried")
    peer.need_reply = False
    peer.connect()
    for _ in range(3):
        peer.channel.send(CALL, STATE.pack(7, 0))
    assert peer.messages() == [(4, VERSION, struct.pack("=II", 7, 0))] * 3


def test_no_answer_wanted():
    check_no_answer_wanted()


@case
async def check_calls_in_turn(peer):
    for _ in range(5):
        for ring in (1, 2):
            peer.channel.send(CALL, STATE.pack(ring, 0))
    assert [payload for _, _, payload in peer.messages()] == [STATE.pack(1, 0), STATE.pack(2, 0)]
    await peer.answer(CALL)
    assert [payload for _, _, payload in peer.messages()] == [STATE.pack(1, 0)]
    await peer.answer(CALL)
    await peer.answer(CALL)
    assert [payload for _, _, payload in peer.messages()] == [STATE.pack(2, 0)]
    await peer.answer(CALL)
    assert peer.messages() == []


def test_a_ring_is_called_again_when_the_client_has_answered():
    check_calls_in_turn()


@case
async def check_changes_are_not_held_back(peer):
    for _ in range(3):
        peer.channel.send(CHANGE)
    assert [request for request, _, _ in peer.messages()] == [2] * 3


def test_a_change_is_told_though_the_one_before_was_not_answered():
    check_changes_are_not_held_back()


@case
async def check_due_before_the_channel(peer):
    peer.channel.close("it is tried")
    peer.channel.send(CHANGE)
    peer.channel.send(CHANGE)
    peer.connect()
    assert [request for request, _, _ in peer.messages()] == [2]


def test_what_is_due_waits_for_a_channel():
    check_due_before_the_channel()


def fill(peer) -> int:
    """Leave the socket without room for a byte; return how many it holds."""
    peer.theirs.setblocking(False)
    sent, piece = 0, 1 << 16
    while piece:
        try:
            sent += peer.theirs.send(bytes(piece))
        except BlockingIOError:
            piece >>= 1
    return sent


@pytest.mark.parametrize("blocking", [False, True], ids=["O_NONBLOCK", "blocking"])
def test_a_client_that_does_not_read(blocking):
    """Nothing waits, nothing piles up, and nothing is lost or halved once it reads."""
    @case
    async def check(peer):
        filled = fill(peer)
        if blocking:
            flags = fcntl.fcntl(peer.theirs, fcntl.F_GETFL)
            fcntl.fcntl(peer.theirs, fcntl.F_SETFL, flags & ~os.O_NONBLOCK)
        for _ in range(1000):
            peer.channel.send(CHANGE)
            for ring in range(256):
                peer.channel.send(CALL, STATE.pack(ring, 0))
        assert len(peer.channel.due) + len(peer.channel.unanswered) < 520
        await asyncio.sleep(0.01)
        while filled:
            filled -= len(peer.end.recv(filled))
        await asyncio.sleep(0.05)
        got = peer.messages()
        assert {payload for request, _, payload in got if request == CALL} == {
            STATE.pack(ring, 0) for ring in range(256)}
        assert CHANGE in {request for request, _, _ in got}
    check()


@case
async def check_message_in_pieces(peer):
    payload = bytes(range(256)) * 8192              # more than a socket holds
    peer.channel.send(CALL, payload)
    peer.channel.send(CHANGE)
    data = b""
    while len(data) < len(payload) + 24:
        try:
            data += peer.end.recv(1 << 16)
        except BlockingIOError:
            await asyncio.sleep(0.001)
    assert data == struct.pack("=III", CALL, VERSION | NEED_REPLY, len(payload)) + payload \
        + struct.pack("=III", CHANGE, VERSION | NEED_REPLY, 0)


def test_a_message_that_the_socket_takes_in_pieces():
    check_message_in_pieces()


@pytest.mark.parametrize("junk", [
    struct.pack("=IIIQ", 2, VERSION | REPLY, 4096, 0), struct.pack("=IIIQ", 2, VERSION, 8, 0),
    struct.pack("=IIIQ", 99, VERSION | REPLY, 8, 0), b"\xff" * 4096,
], ids=["size", "no-reply-flag", "request", "noise"])
def test_junk_ends_the_channel(junk):
    @case
    async def check(peer):
        peer.channel.send(CHANGE)
        await peer.say(junk)
        assert peer.channel.sock is None
        peer.connect()
        peer.channel.send(CHANGE)
        assert [request for request, _, _ in peer.messages()] == [2]
    check()


@case
async def check_answer_in_bytes(peer):
    peer.channel.send(CALL, STATE.pack(0, 0))
    peer.messages()
    peer.channel.send(CALL, STATE.pack(0, 0))
    for byte in struct.pack("=IIIQ", CALL, VERSION | REPLY, 8, 0):
        assert peer.messages() == []
        await peer.say(bytes([byte]))
    assert len(peer.messages()) == 1


def test_an_answer_in_single_bytes():
    check_answer_in_bytes()


@case
async def check_unasked_answers(peer):
    for _ in range(10):
        await peer.answer(CALL, 1)
    peer.channel.send(CHANGE)
    assert len(peer.messages()) == 1


def test_answers_that_nobody_asked_for_do_no_harm():
    check_unasked_answers()


@case
async def check_client_gone(peer):
    peer.end.close()
    peer.channel.send(CHANGE)
    await asyncio.sleep(0.01)
    assert peer.channel.sock is None


def test_a_client_that_left():
    check_client_gone()


def odd_socket(kind: str):
    if kind == "datagram":
        return socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    if kind == "packets":
        return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)[0]
    return socket.socket(socket.AF_INET, socket.SOCK_STREAM)


@pytest.mark.parametrize("kind", ["datagram", "packets", "internet"])
def test_another_socket_is_refused(kind):
    @case
    async def check(peer):
        with odd_socket(kind) as sock, pytest.raises(ProtocolError, match="unix stream socket"):
            peer.channel.open(sock.fileno(), True)
        peer.channel.send(CHANGE)
        assert len(peer.messages()) == 1
    check()
