"""Our own requests to a client, on the socket that SET_BACKEND_REQ_FD brings.

The client may be slow, silent or gone: nobody waits for it.  What is to be said is a set, so it
cannot grow: of each kind of message, and of each ring, one waits at most.

Owner:   the session; the channel owns the socket.
Threads: the control thread.
Fails:   never; a client that breaks the protocol here loses the channel, and a line says so.
"""
import asyncio
import os
import socket
import stat

from vhostrt.log_limit import Part
from vhostrt.vhost.messages import (FLAG_NEED_REPLY, FLAG_REPLY, HEADER, U64, VERSION,
                                    BackendRequest, ProtocolError)

# Of these the client is sent the next one of a ring when it has answered the one before.
IN_TURN = frozenset((BackendRequest.VRING_CALL, BackendRequest.VRING_ERR))
REPLY_SIZE = HEADER.size + U64.size
READ_SIZE = 4096
GONE = "it has closed its channel"


def is_stream(fd: int) -> bool:
    """Whether a descriptor is a unix stream socket."""
    if not stat.S_ISSOCK(os.fstat(fd).st_mode):
        return False
    with socket.socket(fileno=os.dup(fd)) as sock:
        return (sock.family, sock.type) == (socket.AF_UNIX, socket.SOCK_STREAM)


class BackendChannel:
    """name: str, of the session, for people.  say: the Part of its Limit of log lines.

    why: str, why there is no channel, or "".
    """

    def __init__(self, name: str, say: Part) -> None:
        self.name = name
        self.say = say
        self.why = "it has not asked for that"
        self.loop = asyncio.get_running_loop()
        self.sock: socket.socket | None = None
        self.need_reply = False         # whether messages ask for an answer
        self.due: dict[tuple[BackendRequest, bytes], None] = {}     # in the order they came
        self.unanswered: dict[tuple[BackendRequest, bytes], None] = {}
        self.rest = b""                 # of a message that the socket took a part of
        self.received = b""
        self.writing = False            # the loop calls send_due when the socket takes more

    def open(self, fd: int, need_reply: bool) -> None:
        """Use this socket from now on; what is due is sent there.  ProtocolError: fd is none.

        fd is ours from here on unless that fails.
        """
        if not is_stream(fd):
            raise ProtocolError("SET_BACKEND_REQ_FD came with a descriptor that is not a unix "
                                "stream socket")
        self.close("")
        self.sock = socket.socket(fileno=fd)
        self.need_reply = need_reply
        self.loop.add_reader(fd, self.receive)
        self.send_due()

    def close(self, why: str) -> None:
        """Let go of the socket; what is due stays due."""
        self.why = why
        if self.sock is None:
            return
        sock, self.sock = self.sock, None
        self.loop.remove_reader(sock.fileno())
        self.loop.remove_writer(sock.fileno())
        self.writing = False
        self.rest = self.received = b""
        self.unanswered.clear()
        sock.close()

    def lose(self, why: str) -> None:
        """Give the channel up."""
        self.say.warning("channel", f"{self.name}: the channel for requests to the client is "
                                    f"closed: {why}")
        self.close(why)

    def send(self, request: BackendRequest, payload: bytes = b"") -> None:
        """Send this as soon as there is a channel that takes it, once if it is due already."""
        self.due[request, payload] = None
        self.send_due()

    def next_due(self) -> tuple[BackendRequest, bytes] | None:
        return next((each for each in self.due
                     if each[0] not in IN_TURN or each not in self.unanswered), None)

    def send_due(self) -> None:
        """Send what the socket takes; the loop comes back for the rest."""
        while self.sock is not None:
            if not self.rest:
                each = self.next_due()
                if each is None:
                    break
                request, payload = each
                flags = VERSION | (FLAG_NEED_REPLY if self.need_reply else 0)
                self.rest = HEADER.pack(request, flags, len(payload)) + payload
                del self.due[each]
                if self.need_reply:
                    self.unanswered[each] = None
            try:
                # The client shares the descriptor's flags: O_NONBLOCK alone is not enough.
                n = self.sock.send(self.rest, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
            except BlockingIOError:
                break
            except ConnectionError:
                self.close(GONE)
                return
            except OSError as error:
                self.lose(os.strerror(error.errno))
                return
            self.rest = self.rest[n:]
        self.watch(bool(self.rest))

    def watch(self, writing: bool) -> None:
        """Have the loop call send_due when the socket takes more, or no longer."""
        if self.sock is None or writing == self.writing:
            return
        self.writing = writing
        if writing:
            self.loop.add_writer(self.sock.fileno(), self.send_due)
        else:
            self.loop.remove_writer(self.sock.fileno())

    def receive(self) -> None:
        """Take answers of the client."""
        try:
            # Without room for descriptors: the kernel drops those that come.
            data = self.sock.recv(READ_SIZE, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        except ConnectionError:
            data = b""
        except OSError as error:
            self.lose(os.strerror(error.errno))
            return
        if not data:
            self.close(GONE)
            return
        self.received += data
        while len(self.received) >= REPLY_SIZE:
            if not self.answered(self.received[:REPLY_SIZE]):
                return
            self.received = self.received[REPLY_SIZE:]
        self.send_due()

    def answered(self, reply: bytes) -> bool:
        """Take one answer; False when it is none, and the channel is lost."""
        request, flags, size = HEADER.unpack_from(reply)
        if size != U64.size or not flags & FLAG_REPLY \
                or request not in BackendRequest._value2member_map_:
            self.lose(f"message {request} with flags {flags:#x} and {size} bytes is not an answer")
            return False
        (code,) = U64.unpack_from(reply, HEADER.size)
        if code:
            self.say.warning("answer", f"{self.name}: the client answers "
                                       f"{BackendRequest(request).name} with error {code}")
        first = next((each for each in self.unanswered if each[0] == request), None)
        if first is not None:
            del self.unanswered[first]
        return True
