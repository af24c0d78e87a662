"""Messages with descriptors over a unix stream socket, for the asyncio loop.

Owner:   a Message owns its descriptors until close(), except those that were taken out of it.
Threads: the control thread.
Fails:   ProtocolError when the stream is not vhost-user; ConnectionError when it breaks.
"""
import array
import asyncio
import os
import socket

from vhostrt.vhost.messages import (FDS_MAX, FLAG_REPLY, HEADER, PAYLOAD_MAX, VERSION,
                                    VERSION_MASK, ProtocolError, name_of)

FD_SPACE = socket.CMSG_SPACE(FDS_MAX * array.array("i").itemsize)
EVENTFD = "anon_inode:[eventfd]"


class Message:
    """One request of a client: request (int), flags (int), payload (bytes), fds (list of int)."""

    __slots__ = ("request", "flags", "payload", "fds")

    def __init__(self, request: int, flags: int, payload: bytes, fds: list[int]) -> None:
        self.request = request
        self.flags = flags
        self.payload = payload
        self.fds = fds

    def take_fds(self) -> list[int]:
        """Return the descriptors; they are the caller's from now on."""
        fds, self.fds = self.fds, []
        return fds

    def close(self) -> None:
        """Close every descriptor that nobody took."""
        close_all(self.take_fds())


def close_all(fds: list[int]) -> None:
    """Close descriptors, -1 being none."""
    for fd in fds:
        if fd >= 0:
            os.close(fd)


def is_eventfd(fd: int) -> bool:
    """True when the descriptor is an eventfd, and nothing on which a write could wait."""
    return os.readlink(f"/proc/self/fd/{fd}") == EVENTFD


class Channel:
    """One connection. receive() and send() are each used by one coroutine at a time."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.sock = sock
        self.loop = asyncio.get_running_loop()

    async def _ready(self, add, remove) -> None:
        """Wait until the loop calls back for this socket."""
        future = self.loop.create_future()
        fd = self.sock.fileno()
        add(fd, lambda: future.done() or future.set_result(None))
        try:
            await future
        finally:
            remove(fd)

    async def _receive(self, size: int, fds: list[int]) -> bytes:
        """Read `size` bytes, fewer at the end of the stream; append the descriptors to fds."""
        data = bytearray()
        while len(data) < size:
            try:
                piece, ancillary, flags, _ = self.sock.recvmsg(
                    size - len(data), FD_SPACE, socket.MSG_CMSG_CLOEXEC)
            except BlockingIOError:
                await self._ready(self.loop.add_reader, self.loop.remove_reader)
                continue
            for level, kind, content in ancillary:
                if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                    numbers = array.array("i")
                    numbers.frombytes(content[:len(content) // 4 * 4])
                    fds.extend(numbers)
            if flags & socket.MSG_CTRUNC or len(fds) > FDS_MAX:
                raise ProtocolError(f"more than {FDS_MAX} descriptors came with one message", True)
            if not piece:
                break
            data += piece
        return bytes(data)

    async def receive(self) -> Message | None:
        """Return the next message, or None when the client has gone.

        ProtocolError(fatal): not version 1, a reply, larger than any message, or broken off.
        """
        fds: list[int] = []
        try:
            header = await self._receive(HEADER.size, fds)
            if not header:
                close_all(fds)
                return None
            if len(header) < HEADER.size:
                raise ProtocolError("the stream ended inside a message header", True)
            request, flags, size = HEADER.unpack(header)
            if flags & VERSION_MASK != VERSION or flags & FLAG_REPLY:
                raise ProtocolError(f"{name_of(request)} has flags {flags:#x}, which is not a "
                                    "request of protocol version 1", True)
            if size > PAYLOAD_MAX:
                raise ProtocolError(f"{name_of(request)} announces {size} bytes; no message has "
                                    f"more than {PAYLOAD_MAX}", True)
            payload = await self._receive(size, fds)
            if len(payload) < size:
                raise ProtocolError(f"the stream ended inside {name_of(request)}", True)
        except BaseException:
            close_all(fds)
            raise
        return Message(request, flags, payload, fds)

    async def reply(self, request: int, payload: bytes) -> None:
        """Answer a request. ConnectionError when the client has gone."""
        data = HEADER.pack(request, VERSION | FLAG_REPLY, len(payload)) + payload
        while data:
            try:
                data = data[self.sock.send(data):]
            except BlockingIOError:
                await self._ready(self.loop.add_writer, self.loop.remove_writer)

    def shutdown(self) -> None:
        """End the stream: receive() returns None or fails soon."""
        try:
            self.sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass                        # the client was faster

    def close(self) -> None:
        """Close the socket. Nobody waits on it any more."""
        self.sock.close()
