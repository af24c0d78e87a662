"""One connection to a vhost-user back end, as its front end.

Owner:   a Connection owns its socket.
Threads: one.
Fails:   TargetError with a sentence that names the socket and what the back end did; Refused when
         it answers a message with an error.
"""
import array
import contextlib
import errno
import os
import select
import socket
import time
from collections.abc import Sequence
from typing import Self

from vhostrt.vhost.messages import (FLAG_NEED_REPLY, FLAG_REPLY, HEADER, PAYLOAD_MAX, U64, VERSION,
                                    VERSION_MASK, Request)

WHY = {
    errno.ENOENT: "there is no such file: is the target running, and is this the socket of a disk?",
    errno.ECONNREFUSED: "nobody listens there: the target that made it has ended",
    errno.EACCES: "this user may not use it: change its mode or owner, or run as its owner",
    errno.EPROTOTYPE: "it is not a stream socket",
}
AT_ONCE = 0.0
RETRY_S = 0.02


class TargetError(Exception):
    """The back end cannot be used, or not any more; the text is a sentence for people."""


class Refused(TargetError):
    """The back end answered a message with an error."""


class Connection:
    """sock: a connected unix stream socket, ours from now on.  name: for people, the path.

    timeout: seconds to wait for each answer.  acknowledged is set once REPLY_ACK is negotiated.
    """

    def __init__(self, sock: socket.socket, name: str, timeout: float) -> None:
        self.sock = sock
        self.name = name
        self.timeout = timeout
        self.acknowledged = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.sock.close()

    def ask(self, request: Request, payload: bytes = b"") -> bytes:
        """Send a message that has an answer of its own; return that."""
        self._send(request, 0, payload, ())
        return self._answer(request)

    def ask_u64(self, request: Request) -> int:
        """As ask(), for an answer that is a number."""
        answer = self.ask(request)
        if len(answer) != U64.size:
            raise self.nonsense(request, f"{len(answer)} bytes instead of {U64.size}")
        return U64.unpack(answer)[0]

    def tell(self, request: Request, payload: bytes = b"", fds: Sequence[int] = ()) -> None:
        """Send a message that has no answer of its own.  Refused, where REPLY_ACK is in use."""
        self._send(request, FLAG_NEED_REPLY if self.acknowledged else 0, payload, fds)
        if self.acknowledged:
            answer = self._answer(request)
            if len(answer) != U64.size:
                raise self.nonsense(request, f"{len(answer)} bytes instead of {U64.size}")
            if U64.unpack(answer)[0]:
                raise Refused(f"{self.name}: the target refuses {request.name}")

    def lost(self) -> str:
        """Return why the connection cannot go on, or "" while the target is silent, as it should
        be."""
        poll = select.poll()
        poll.register(self.sock, select.POLLIN)
        if not poll.poll(AT_ONCE):
            return ""
        try:
            unasked = self.sock.recv(1, socket.MSG_PEEK)
        except OSError as error:
            return f"{self.name}: the connection to the target is lost: {error.strerror}"
        if unasked:
            return f"{self.name}: the target sent a message that nobody asked for"
        return f"{self.name}: the target closed the connection"

    def nonsense(self, request: Request, what: str) -> TargetError:
        """Return the error for an answer that no vhost-user back end gives."""
        return TargetError(f"{self.name}: the answer to {request.name} is {what}; is this the "
                           "vhost-user socket of a disk?")

    def _send(self, request: Request, flags: int, payload: bytes, fds: Sequence[int]) -> None:
        data = HEADER.pack(request, VERSION | flags, len(payload)) + payload
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        self.sock.settimeout(self.timeout)
        try:
            sent = self.sock.sendmsg([data], ancillary)
            if sent < len(data):
                self.sock.sendall(data[sent:])
        except TimeoutError:
            raise TargetError(f"{self.name}: the target did not take {request.name} within "
                              f"{self.timeout:g} s") from None
        except OSError as error:
            raise TargetError(f"{self.name}: the target closed the connection before "
                              f"{request.name} ({error.strerror})") from None

    def _receive(self, request: Request, size: int, end: float) -> bytes:
        data = b""
        while len(data) < size:
            try:
                self.sock.settimeout(max(0.001, end - time.monotonic()))
                piece = self.sock.recv(size - len(data))
            except TimeoutError:
                raise TargetError(f"{self.name}: the target did not answer {request.name} within "
                                  f"{self.timeout:g} s") from None
            except OSError as error:
                raise TargetError(f"{self.name}: the target closed the connection instead of "
                                  f"answering {request.name} ({error.strerror})") from None
            if not piece:
                raise TargetError(f"{self.name}: the target closed the connection instead of "
                                  f"answering {request.name}")
            data += piece
        return data

    def _answer(self, request: Request) -> bytes:
        end = time.monotonic() + self.timeout
        number, flags, size = HEADER.unpack(self._receive(request, HEADER.size, end))
        if number != request or flags & (VERSION_MASK | FLAG_REPLY) != VERSION | FLAG_REPLY:
            raise self.nonsense(request, f"not one (request {number}, flags {flags:#x})")
        if size > PAYLOAD_MAX:
            raise self.nonsense(request, f"said to have {size} bytes")
        return self._receive(request, size, end)


def connect(path: str, timeout: float) -> Connection:
    """Connect to a back end that listens."""
    end = time.monotonic() + timeout
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.setblocking(False)
    try:
        while (number := sock.connect_ex(path)) == errno.EAGAIN:        # a full backlog
            if time.monotonic() > end:
                raise TargetError(f"socket {path}: the target did not accept a connection within "
                                  f"{timeout:g} s")
            time.sleep(RETRY_S)
        if number:
            raise TargetError(f"socket {path}: {WHY.get(number, os.strerror(number))}")
    except OSError as error:            # such as a path that is too long
        sock.close()
        raise TargetError(f"socket {path}: {error}") from None
    except BaseException:
        sock.close()
        raise
    return Connection(sock, path, timeout)


def remove(path: str) -> None:
    """Remove a socket file that may not have come into being."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


def accept(path: str, timeout: float) -> Connection:
    """Listen on a path that is not there yet, and wait for one back end that connects to it."""
    with contextlib.ExitStack() as undo:
        listener = undo.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        try:
            if os.path.lexists(path):
                raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
            # Before the file is there, as a signal may come as soon as it is.
            undo.callback(remove, path)
            listener.bind(path)
            listener.listen(1)
            listener.settimeout(timeout)
            sock, _ = listener.accept()
        except TimeoutError:
            raise TargetError(f"socket {path}: no target connected within {timeout:g} s") from None
        except OSError as error:
            raise TargetError(f"socket {path} cannot be listened on: {error.strerror}") from None
        return Connection(sock, path, timeout)
