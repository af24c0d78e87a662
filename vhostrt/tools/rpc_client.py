"""A connection to the RPC server of a target: one call after another, each waited for.

Threads:  any one at a time.
Fails:    ConnectionError when the target cannot be reached, LostError when it gave no whole answer,
          RpcError for an error that it answered; each says what in one sentence.
"""
import json
import socket
import time
from typing import Any, Self

from vhostrt.rpc.address import split_address
from vhostrt.values import shown

METHOD_NOT_FOUND = -32601
INVALID_PARAMS = -32602
READ_SIZE = 1 << 18


class LostError(Exception):
    """The target gave no whole answer: it ended, or took too long."""


class EndedError(LostError):
    """The target ended the connection, or itself."""


class RpcError(Exception):
    """The target answered with an error. code: int; message: str."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


def connect(address: str, timeout: float) -> socket.socket:
    """Return a socket that is connected to an RPC server: a path has a slash, else host[:port]."""
    try:
        if "/" not in address:
            return socket.create_connection(split_address(address), timeout)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.settimeout(timeout)
            sock.connect(address)
        except BaseException:
            sock.close()
            raise
        return sock
    except UnicodeError:
        why = "that is not the name of a host"
    except OSError as error:
        why = why_of(error)
    raise ConnectionError(f"no target answers at {shown(address)}: {why}") from None


def why_of(error: OSError) -> str:
    """Return what the system said, and what it most likely means."""
    if isinstance(error, TimeoutError):
        return "it does not take the connection in time"
    text = error.strerror or str(error)
    if isinstance(error, FileNotFoundError | ConnectionRefusedError):
        text += "; is it running, and with another -r?"
    elif isinstance(error, PermissionError):
        text += "; its socket belongs to another user (--rpc-socket-owner and --rpc-socket-mode of "
        text += "vhostrt give it to others)"
    return text


class Client:
    """A connection to the server at an address; a context manager that closes it.

    timeout: seconds that an answer may take.
    """

    def __init__(self, address: str, timeout: float) -> None:
        """Fails: ConnectionError."""
        self.address = address
        self.timeout = timeout
        self.calls = 0
        self.sock = connect(address, timeout)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.sock.close()

    def call(self, method: str, params: Any = None, timeout: float | None = None) -> Any:
        """Call a method and return its result. Fails: RpcError, LostError."""
        self.calls += 1
        request = {"jsonrpc": "2.0", "id": self.calls, "method": method}
        if params:
            request["params"] = params
        reply = self.exchange(json.dumps(request).encode(), method, timeout or self.timeout)
        if "error" in reply:
            error = reply["error"]
            raise RpcError(error.get("code", 0), str(error.get("message", "")))
        return reply.get("result")

    def exchange(self, request: bytes, what: str, timeout: float) -> dict[str, Any]:
        """Send a request and return its answer."""
        end = time.monotonic() + timeout
        received = bytearray()
        try:
            self.sock.settimeout(timeout)
            self.sock.sendall(request)
            while True:
                self.sock.settimeout(max(end - time.monotonic(), 0.001))
                piece = self.sock.recv(READ_SIZE)
                received += piece
                # The answer is one object: it cannot be whole before its last bracket is there.
                if received.rstrip().endswith(b"}"):
                    try:
                        return json.loads(received)
                    except ValueError:
                        pass
                if not piece:
                    raise ConnectionResetError
        except TimeoutError:
            raise LostError(f"{what}: no answer of the target within {timeout:g} s (-t)") from None
        except OSError:                 # the connection is gone
            raise EndedError(f"{what}: the target ended the connection without an answer") from None
