"""vhostrt-perf as its user runs it, and back ends that a test can spoil."""
import array
import contextlib
import json
import mmap
import os
import socket
import struct
import subprocess
import sys
import threading
from pathlib import Path
from typing import Self

from tests.lib.vhost_client import F_PROTOCOL, NEED_REPLY, P_CONFIG, P_MQ, P_REPLY_ACK, Msg

ROOT = Path(__file__).resolve().parents[2]
COMMAND = [sys.executable, "-m", "vhostrt.tools.perf"]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}
PATIENCE_S = 120
HEADER = struct.Struct("=III")
REPLY = 1 | 4
FDS = 8 * array.array("i").itemsize


def perf(*words, status=0):
    """Run the command to its end; return (stdout, stderr)."""
    done = subprocess.run([*COMMAND, *map(str, words)], capture_output=True, text=True,
                          timeout=PATIENCE_S, env=ENVIRONMENT, stdin=subprocess.DEVNULL)
    assert done.returncode == status, done.stdout + done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    return done.stdout, done.stderr


def perf_json(*words, status=0):
    """Run the command; return its result."""
    return json.loads(perf(*words, "--json", "-", "--quiet", status=status)[0])


def refused(*words, status=1):
    """Run a command that does not begin; return its one sentence."""
    out, err = perf(*words, status=status)
    first, *more = err.splitlines()
    assert out == "" and more == (["Try 'vhostrt-perf --help'."] if status == 2 else []), out + err
    assert first.startswith("vhostrt-perf: ")
    return first


def start(*words, **settings):
    """Start the command and leave it to run."""
    settings = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | settings
    return subprocess.Popen([*COMMAND, *map(str, words)], text=True, env=ENVIRONMENT,
                            stdin=subprocess.DEVNULL, **settings)


def receive(sock):
    """Return (header and payload, descriptors) of one message, or (b"", []) at the end."""
    data, fds = b"", []
    while len(data) < 12 or len(data) < 12 + HEADER.unpack(data[:12])[2]:
        wanted = 12 - len(data) if len(data) < 12 else 12 + HEADER.unpack(data[:12])[2] - len(data)
        piece, ancillary, *_ = sock.recvmsg(wanted, socket.CMSG_SPACE(FDS))
        for *_, content in ancillary:
            fds += array.array("i", content)
        if not piece:
            return b"", []
        data += piece
    return data, fds


class BackEnd:
    """One end of vhost-user that serves one front end on a thread; a context manager.

    connect: go to a socket that the front end makes; else make it.
    """

    def __init__(self, path, connect=False):
        self.path = str(path)
        self.sock = None
        self.stopped = False
        self.listener = socket.socket(socket.AF_UNIX)
        if not connect:
            self.listener.bind(self.path)
            self.listener.listen(1)
        self.thread = threading.Thread(target=self._main, args=(connect,))

    def __enter__(self) -> Self:
        self.thread.start()
        return self

    def __exit__(self, *_exc):
        self.stopped = True
        for sock in (self.sock, self.listener):
            with contextlib.suppress(OSError, AttributeError):
                sock.shutdown(socket.SHUT_RDWR)
        self.thread.join(30)
        assert not self.thread.is_alive()
        self.listener.close()

    def _main(self, connect):
        with contextlib.suppress(OSError):
            if connect:
                self._reach()
            else:
                self.sock, _ = self.listener.accept()
            with self.sock:
                self.serve(self.sock)

    def _reach(self):
        while not self.stopped:
            self.sock = socket.socket(socket.AF_UNIX)
            try:
                self.sock.connect(self.path)
                return
            except OSError:
                self.sock.close()
                threading.Event().wait(0.02)


class Relay(BackEnd):
    """Stands between a front end and a real target.

    hidden: feature bits that it takes away.  kept: a request that the target never gets.
    """

    def __init__(self, path, target, hidden=0, connect=False, kept=None):
        super().__init__(path, connect)
        self.target = str(target)
        self.hidden = hidden
        self.kept = kept
        self.requests = []

    def serve(self, sock):
        with socket.socket(socket.AF_UNIX) as there:
            there.connect(self.target)
            while True:
                data, fds = receive(sock)
                if not data:
                    return
                request, flags, _ = HEADER.unpack(data[:12])
                self.requests.append(request)
                if request == self.kept:
                    continue
                sent = there.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS,
                                               array.array("i", fds))] if fds else [])
                assert sent == len(data)
                for fd in fds:
                    os.close(fd)
                if flags & NEED_REPLY or request in ANSWERED:
                    answer, _ = receive(there)
                    if request == Msg.GET_FEATURES:
                        (word,) = struct.unpack("=Q", answer[12:])
                        answer = answer[:12] + struct.pack("=Q", word & ~self.hidden)
                    sock.sendall(answer)


ANSWERED = {Msg.GET_FEATURES, Msg.GET_VRING_BASE, Msg.GET_PROTOCOL_FEATURES, Msg.GET_QUEUE_NUM,
            Msg.GET_CONFIG}
CAPACITY = 131072                       # sectors


def config(capacity=CAPACITY, block_size=512, queues=4, size_max=0):
    return struct.pack("<QIIHBBIBBHIBxH", capacity, size_max, 126, 0, 0, 0, block_size, 0, 0, 0, 0,
                       0, queues).ljust(60, b"\0")


class Fake(BackEnd):
    """A back end that says all the right things, but where `instead` has a message.

    instead: Msg -> bytes to send, None for silence, or a function of the fake that may do anything.
    In the end it serves no request.  memory and rings are what it was told.
    """

    def __init__(self, path, instead=None, features=0x160001240 | F_PROTOCOL,
                 protocol=P_MQ | P_REPLY_ACK | P_CONFIG, space=None):
        super().__init__(path)
        self.instead = instead or {}
        self.answers = {Msg.GET_FEATURES: features, Msg.GET_PROTOCOL_FEATURES: protocol,
                        Msg.GET_QUEUE_NUM: 4}
        self.space = config() if space is None else space
        self.memory = None
        self.used = 0                   # where the used ring lies in the memory

    def serve(self, sock):
        self.sock = sock
        while True:
            data, fds = receive(sock)
            if not data:
                return
            request, flags, _ = HEADER.unpack(data[:12])
            self.learn(request, data[12:], fds)
            answer = self.instead.get(request, self.answer(request, flags, data[12:]))
            if callable(answer):
                answer = answer(self)
            if answer is not None:
                sock.sendall(answer)

    def learn(self, request, payload, fds):
        if request == Msg.SET_MEM_TABLE:
            self.memory = mmap.mmap(fds[0], struct.unpack("=IIQQQQ", payload)[3])
        if request == Msg.SET_VRING_ADDR:
            self.used = struct.unpack("=IIQQQQ", payload)[3] - 0x7f0000000000
        for fd in fds:
            os.close(fd)

    def answer(self, request, flags, payload):
        """Return what a good back end says, or None."""
        if request in self.answers:
            return reply(request, struct.pack("=Q", self.answers[request]))
        if request == Msg.GET_CONFIG:
            _, size, _ = struct.unpack("=III", payload[:12])
            return reply(request, payload[:12] + self.space[:size])
        if request == Msg.GET_VRING_BASE:
            return reply(request, payload)
        return reply(request, bytes(8)) if flags & NEED_REPLY else None


def reply(request, payload):
    """Return an answer in the wire's form."""
    return HEADER.pack(request, REPLY, len(payload)) + payload
