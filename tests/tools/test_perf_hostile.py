"""vhostrt-perf and targets that answer nonsense, too late, or not at all: a sentence, no hang."""
import os
import signal
import socket
import struct
import threading

import pytest

from tests.lib.perf import (CAPACITY, Fake, config, perf, perf_json, refused, reply, start)
from tests.lib.vhost_client import F_PROTOCOL, P_CONFIG, P_MQ, Msg

QUICK = ("--timeout", "0.5", "--time", "2", "--quiet")
ERROR = struct.pack("=Q", 1)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "sock"


def close(fake):
    fake.sock.shutdown(socket.SHUT_RDWR)


def endless(fake):
    """Send a byte at a time, never a whole answer."""
    fake.sock.sendall(struct.pack("=III", Msg.GET_FEATURES, 5, 8))
    while not fake.stopped:
        fake.sock.sendall(b"x") if not threading.Event().wait(0.2) else None


ANSWERS = {
    "closed": (Msg.GET_FEATURES, close, "closed the connection instead of answering GET_FEATURES"),
    "silent": (Msg.GET_FEATURES, None, "did not answer GET_FEATURES within 0.5 s"),
    "half": (Msg.GET_FEATURES, struct.pack("=III", 1, 5, 8), "did not answer GET_FEATURES"),
    "drop by drop": (Msg.GET_FEATURES, endless, "GET_FEATURES"),
    "text": (Msg.GET_FEATURES, b"HTTP/1.1 400 Bad Request\r\n", "is this the vhost-user socket"),
    "other number": (Msg.GET_FEATURES, reply(2, bytes(8)), "the answer to GET_FEATURES is not one"),
    "no reply flag": (Msg.GET_FEATURES, struct.pack("=IIIQ", 1, 1, 8, 0), "is not one"),
    "short": (Msg.GET_FEATURES, reply(1, b"abc"), "GET_FEATURES is 3 bytes instead of 8"),
    "huge": (Msg.GET_FEATURES, struct.pack("=III", 1, 5, 1 << 31), "said to have 2147483648 bytes"),
    "config": (Msg.GET_CONFIG, reply(24, bytes(20)), "GET_CONFIG is 20 bytes instead of 72"),
    "no config": (Msg.GET_CONFIG, reply(24, b""), "does not tell how large its disk is"),
    "refusal": (Msg.SET_MEM_TABLE, reply(5, ERROR), "the target refuses SET_MEM_TABLE"),
    "ring": (Msg.SET_VRING_NUM, reply(8, ERROR), "the target refuses SET_VRING_NUM"),
    "long ack": (Msg.SET_OWNER, reply(3, bytes(16)), "SET_OWNER is 16 bytes instead of 8"),
    "late": (Msg.SET_VRING_KICK, close, "instead of answering SET_VRING_KICK"),
}


@pytest.mark.parametrize(("message", "answer", "text"), ANSWERS.values(), ids=ANSWERS)
def test_an_answer_that_is_none(path, message, answer, text):
    with Fake(path, {message: answer}):
        assert text in refused(path, *QUICK)


DISKS = {
    "no capacity": (config(capacity=0), "has 0 sectors"),
    "block size": (config(block_size=1000), "blocks of 1000 bytes, which cannot be"),
    "block size 0": (config(block_size=0), "blocks of 0 bytes"),
    "tiny": (config(capacity=1), "no block of 4096 for each of 1 queues"),
    "4 KiB blocks": (config(block_size=8192), "multiples of the disk's block of 8192 bytes"),
}


@pytest.mark.parametrize(("space", "text"), DISKS.values(), ids=DISKS)
def test_a_disk_that_cannot_be_used(path, space, text):
    with Fake(path, space=space):
        assert text in refused(path, *QUICK)


def test_a_segment_that_is_too_long(path):
    with Fake(path, features=0x160001240 | F_PROTOCOL | 2, space=config(size_max=2048)):
        assert "takes 2048 bytes in a piece" in refused(path, *QUICK)


def test_more_queues_than_there_are(path):
    with Fake(path):
        assert "has 4 queues, and --queues says 5" in refused(path, *QUICK, "-n", 5)


def test_a_device_that_tells_nothing(path):
    """Neither protocol features nor a config space: the size has to be said."""
    with Fake(path, features=0x120000000):
        assert "say it with --size" in refused(path, *QUICK)


def test_requests_that_are_never_answered(path):
    with Fake(path):
        out, err = perf(path, *QUICK, "-q", 7, status=1)
    assert "has not answered 7 requests of queue 0 within 0.5 s" in err
    assert "no request was answered" in out


def ruin(fake):
    """Give back a request that was never there."""
    fake.memory[fake.used:fake.used + 12] = struct.pack("<HHII", 0, 1, 77777, 1)
    return reply(Msg.SET_VRING_ENABLE, bytes(8))


def jump(fake):
    """Say that 60000 requests are done."""
    fake.memory[fake.used:fake.used + 4] = struct.pack("<HH", 0, 60000)
    return reply(Msg.SET_VRING_ENABLE, bytes(8))


@pytest.mark.parametrize("spoil", [ruin, jump])
def test_a_ring_that_is_spoilt(path, spoil):
    with Fake(path, {Msg.SET_VRING_ENABLE: spoil}):
        _, err = perf(path, *QUICK, status=1)
    assert "gave back a request that it never had, in queue 0" in err


def test_memory_cannot_be_taken_away(path):
    """The back end has the file too: it may not shrink it."""
    tried = []

    def shrink(fake):
        with pytest.raises(OSError):
            fake.memory.resize(4096)
        tried.append(1)
        return reply(Msg.SET_VRING_ENABLE, bytes(8))

    with Fake(path, {Msg.SET_VRING_ENABLE: shrink}):
        perf(path, *QUICK, status=1)
    assert tried


@pytest.mark.parametrize(("spoil", "text"), [
    (lambda fake: fake.sock.sendall(b"hello"), "sent a message that nobody asked for"),
    (close, "the target closed the connection")], ids=["unasked", "closed"])
def test_a_connection_that_ends_in_the_run(path, spoil, text):
    fake = Fake(path)
    with fake:
        run = start(path, "--time", 60, "--timeout", 30)
        while fake.memory is None or not fake.used:
            assert run.poll() is None
            threading.Event().wait(0.02)
        threading.Event().wait(0.5)
        spoil(fake)
        _, err = run.communicate(timeout=60)
    assert run.returncode == 1 and text in err and "Traceback" not in err


def test_nobody_there(path, tmp_path):
    assert "there is no such file" in refused(path, *QUICK)
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
    assert "nobody listens there" in refused(path, *QUICK)
    assert "no target connected within 0.5 s" in refused(tmp_path / "new", "--listen", *QUICK)
    assert not os.path.exists(tmp_path / "new")
    assert "cannot be listened on: Address already in use" in refused(path, "--listen", *QUICK)


def test_a_queue_of_connections_that_is_full(path):
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(0)
        with socket.socket(socket.AF_UNIX) as first:
            first.connect(str(path))
            assert "within 0.5 s" in refused(path, *QUICK)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_it_waits_for_an_answer(path, number):
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(1)
        run = start(path, "--timeout", 1000)
        with listener.accept()[0]:
            run.send_signal(number)
            out, err = run.communicate(timeout=60)
    assert (run.returncode, out, err) == (130, "", "")


def test_a_signal_while_it_waits_for_a_target(path):
    run = start(path, "--listen", "--timeout", 1000)
    while not path.exists():
        assert run.poll() is None
        threading.Event().wait(0.02)
    run.send_signal(signal.SIGTERM)
    out, err = run.communicate(timeout=60)
    assert (run.returncode, out, err) == (130, "", "") and not path.exists()


def test_features_that_nobody_knows(path):
    """All bits set: only those that are wanted are taken."""
    with Fake(path, features=2**64 - 1 - 2, protocol=2**64 - 1):
        found = perf_json(path, "--timeout", "0.5", "--time", 1, status=1)
    assert int(found["target"]["features"], 16) & (1 << 34 | 1 << 26) == 0
    assert int(found["target"]["protocol_features"], 16) == P_MQ | P_CONFIG | 8
    assert found["target"]["capacity"] == CAPACITY * 512
