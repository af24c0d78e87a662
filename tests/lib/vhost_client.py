"""Front end of the vhost-user protocol, written from the specification for the conformance tests.

It shares no code with the target: plain sockets and struct. Every message is a method of Client;
Client.send() puts any bytes on the wire for the tests of hostile input.
Threads: one thread for each Client.
Fails: Closed when the back end closed the connection, TimeoutError when it does not answer,
Refused when it answers a message with an error.
"""
import array
import enum
import socket
import struct
import time
from typing import Self

VERSION = 1
REPLY = 1 << 2
NEED_REPLY = 1 << 3

F_LOG_ALL = 1 << 26
F_PROTOCOL = 1 << 30
P_MQ = 1 << 0
P_REPLY_ACK = 1 << 3
P_BACKEND_REQ = 1 << 5
P_CONFIG = 1 << 9
P_RESET_DEVICE = 1 << 13
P_INBAND = 1 << 14
P_CONFIGURE_MEM_SLOTS = 1 << 15
P_STATUS = 1 << 16

NO_FD = 1 << 8


class Msg(enum.IntEnum):
    """Request numbers of the front end."""

    GET_FEATURES = 1
    SET_FEATURES = 2
    SET_OWNER = 3
    RESET_OWNER = 4
    SET_MEM_TABLE = 5
    SET_LOG_BASE = 6
    SET_LOG_FD = 7
    SET_VRING_NUM = 8
    SET_VRING_ADDR = 9
    SET_VRING_BASE = 10
    GET_VRING_BASE = 11
    SET_VRING_KICK = 12
    SET_VRING_CALL = 13
    SET_VRING_ERR = 14
    GET_PROTOCOL_FEATURES = 15
    SET_PROTOCOL_FEATURES = 16
    GET_QUEUE_NUM = 17
    SET_VRING_ENABLE = 18
    SEND_RARP = 19
    NET_SET_MTU = 20
    SET_BACKEND_REQ_FD = 21
    IOTLB_MSG = 22
    SET_VRING_ENDIAN = 23
    GET_CONFIG = 24
    SET_CONFIG = 25
    GET_INFLIGHT_FD = 31
    SET_INFLIGHT_FD = 32
    RESET_DEVICE = 34
    VRING_KICK = 35
    GET_MAX_MEM_SLOTS = 36
    ADD_MEM_REG = 37
    REM_MEM_REG = 38
    SET_STATUS = 39
    GET_STATUS = 40


class BackendMsg(enum.IntEnum):
    """Request numbers of the back end, on its own channel."""

    CONFIG_CHANGE = 2
    VRING_CALL = 4
    VRING_ERR = 5


class Closed(ConnectionError):
    """The back end closed the connection."""


class Refused(Exception):
    """The back end answered a message with an error."""


class Client:
    """One vhost-user connection; it owns its socket.

    `ack` is set once REPLY_ACK is negotiated; every message that has no reply of its own then asks
    for one, and a refusal raises Refused.
    """

    def __init__(self, path: str, timeout: float = 20.0):
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(timeout)
        self._connect(str(path), time.monotonic() + timeout)
        self.ack = False
        self.backend = None             # our end of the back end's own request channel

    def _connect(self, path: str, end: float) -> None:
        """Connect; wait while the back end's queue of connections is full."""
        while True:
            try:
                self.sock.connect(path)
                return
            except BlockingIOError:
                if time.monotonic() > end:
                    raise TimeoutError(f"{path} accepts no connection") from None
                time.sleep(0.01)

    def close(self) -> None:
        """Close the connection and the back end's request channel."""
        self.sock.close()
        if self.backend is not None:
            self.backend.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc) -> None:
        self.close()

    # The wire.

    def send_bytes(self, data: bytes, fds=()) -> None:
        """Send any bytes, the fds with the first of them; Closed when nobody listens."""
        control = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        try:
            n = self.sock.sendmsg([data], control)
            if n < len(data):           # an empty send fails when the target has closed meanwhile
                self.sock.sendall(data[n:])
        except (BrokenPipeError, ConnectionResetError) as e:
            raise Closed(str(e)) from e

    def send(self, request: int, flags: int, payload: bytes = b"", fds=(), size=None) -> None:
        """Send one message; `size` overrides the length that the header claims."""
        n = len(payload) if size is None else size
        self.send_bytes(struct.pack("=III", request & 0xFFFFFFFF, flags, n) + payload, fds)

    def recv(self) -> tuple[int, int, bytes, list[int]]:
        """Receive one message: request, flags, payload, fds; the caller owns the fds."""
        try:
            head, fds = self._take(12)
            request, flags, size = struct.unpack("=III", head)
            payload, more = self._take(size) if size else (b"", [])
        except ConnectionResetError as e:
            raise Closed(str(e)) from e
        return request, flags, payload, fds + more

    def _take(self, n: int) -> tuple[bytes, list[int]]:
        data, fds = b"", []
        while len(data) < n:
            part, got, _flags, _addr = socket.recv_fds(self.sock, n - len(data), 16)
            if not part:
                raise Closed("the back end closed the connection")
            data, fds = data + part, fds + got
        return data, fds

    def ask(self, request: int, payload: bytes = b"", fds=()) -> bytes:
        """Send a message that has a reply of its own; return the payload of the reply."""
        self.send(request, VERSION, payload, fds)
        got, flags, answer, got_fds = self.recv()
        assert got == request, f"reply to {request} names request {got}"
        assert flags == VERSION | REPLY, f"reply to {request} has flags {flags:#x}"
        assert not got_fds, f"reply to {request} carries {len(got_fds)} fds"
        return answer

    def tell(self, request: int, payload: bytes = b"", fds=(), ack=None) -> None:
        """Send a message without a reply of its own; with REPLY_ACK await the acknowledgement."""
        ack = self.ack if ack is None else ack
        self.send(request, VERSION | (NEED_REPLY if ack else 0), payload, fds)
        if ack:
            self.expect_ack(request)

    def expect_ack(self, request: int) -> None:
        """Receive the acknowledgement of `request`; Refused when it is not zero."""
        got, flags, answer, _fds = self.recv()
        assert got == request, f"acknowledgement of {request} names request {got}"
        assert flags & 7 == VERSION | REPLY, f"acknowledgement has flags {flags:#x}"
        assert len(answer) == 8, f"acknowledgement of {request} has {len(answer)} bytes"
        if any(answer):
            raise Refused(f"request {request}: {int.from_bytes(answer, 'little')}")

    def ask_u64(self, request: int, payload: bytes = b"") -> int:
        """Like ask() where the reply is one 64-bit number."""
        answer = self.ask(request, payload)
        assert len(answer) == 8, f"reply to {request} has {len(answer)} bytes"
        return struct.unpack("=Q", answer)[0]

    def tell_u64(self, request: int, value: int, fds=()) -> None:
        """Like tell() where the payload is one 64-bit number."""
        self.tell(request, struct.pack("=Q", value), fds)

    def tell_state(self, request: int, index: int, num: int) -> None:
        """Like tell() where the payload is a ring index and a number."""
        self.tell(request, struct.pack("=II", index, num))

    # Features.

    def get_features(self) -> int:
        return self.ask_u64(Msg.GET_FEATURES)

    def set_features(self, bits: int) -> None:
        self.tell_u64(Msg.SET_FEATURES, bits)

    def get_protocol_features(self) -> int:
        return self.ask_u64(Msg.GET_PROTOCOL_FEATURES)

    def set_protocol_features(self, bits: int) -> None:
        """Choose protocol features; from here on REPLY_ACK is used when it is among them."""
        self.tell_u64(Msg.SET_PROTOCOL_FEATURES, bits)
        self.ack = bool(bits & P_REPLY_ACK)

    def set_owner(self) -> None:
        self.tell(Msg.SET_OWNER)

    def reset_owner(self) -> None:
        self.tell(Msg.RESET_OWNER)

    def get_queue_num(self) -> int:
        return self.ask_u64(Msg.GET_QUEUE_NUM)

    # Memory.

    def set_mem_table(self, memory) -> None:
        """Share every region of `memory` (tests.lib.guest_memory.Memory)."""
        self.tell(Msg.SET_MEM_TABLE, memory.table(), memory.fds())

    def get_max_mem_slots(self) -> int:
        return self.ask_u64(Msg.GET_MAX_MEM_SLOTS)

    def add_mem_reg(self, region) -> None:
        self.tell(Msg.ADD_MEM_REG, bytes(8) + region.entry(), [region.fd])

    def rem_mem_reg(self, region) -> None:
        self.tell(Msg.REM_MEM_REG, bytes(8) + region.entry())

    # Rings.

    def set_vring_num(self, index: int, num: int) -> None:
        self.tell_state(Msg.SET_VRING_NUM, index, num)

    def set_vring_base(self, index: int, base: int) -> None:
        self.tell_state(Msg.SET_VRING_BASE, index, base)

    def set_vring_addr(self, index: int, desc: int, used: int, avail: int,
                       flags: int = 0, log: int = 0) -> None:
        """Give the front-end user addresses of the three parts of a ring."""
        self.tell(Msg.SET_VRING_ADDR,
                  struct.pack("=IIQQQQ", index, flags, desc, used, avail, log))

    def get_vring_base(self, index: int) -> int:
        """Stop ring `index`; return the index of the next available entry."""
        answer = self.ask(Msg.GET_VRING_BASE, struct.pack("=II", index, 0))
        got, num = struct.unpack("=II", answer)
        assert got == index, f"GET_VRING_BASE of ring {index} answers for ring {got}"
        return num

    def set_vring_kick(self, index: int, fd: int | None) -> None:
        self._set_vring_fd(Msg.SET_VRING_KICK, index, fd)

    def set_vring_call(self, index: int, fd: int | None) -> None:
        self._set_vring_fd(Msg.SET_VRING_CALL, index, fd)

    def set_vring_err(self, index: int, fd: int | None) -> None:
        self._set_vring_fd(Msg.SET_VRING_ERR, index, fd)

    def _set_vring_fd(self, request: int, index: int, fd: int | None) -> None:
        self.tell_u64(request, index | (NO_FD if fd is None else 0), () if fd is None else (fd,))

    def set_vring_enable(self, index: int, on: bool) -> None:
        self.tell_state(Msg.SET_VRING_ENABLE, index, int(on))

    def vring_kick(self, index: int) -> None:
        """Notify ring `index` in-band."""
        self.tell_state(Msg.VRING_KICK, index, 0)

    # The device.

    def reset_device(self) -> None:
        self.tell(Msg.RESET_DEVICE)

    def set_status(self, status: int) -> None:
        self.tell_u64(Msg.SET_STATUS, status)

    def get_status(self) -> int:
        return self.ask_u64(Msg.GET_STATUS)

    # The rest.

    def get_config(self, offset: int, size: int, flags: int = 0) -> bytes:
        """Read `size` bytes of the device configuration; Refused on the empty reply."""
        answer = self.ask(Msg.GET_CONFIG, struct.pack("=III", offset, size, flags) + bytes(size))
        if not answer:
            raise Refused("GET_CONFIG")
        got = struct.unpack("=III", answer[:12])
        assert got[:2] == (offset, size), f"GET_CONFIG {offset}+{size} answers {got[0]}+{got[1]}"
        assert len(answer) == 12 + size, f"GET_CONFIG of {size} answers {len(answer)} bytes"
        return answer[12:]

    def set_config(self, offset: int, data: bytes, flags: int = 0) -> None:
        self.tell(Msg.SET_CONFIG, struct.pack("=III", offset, len(data), flags) + data)

    def set_backend_req_fd(self) -> None:
        """Hand over one end of a socket pair; the other becomes self.backend."""
        self.backend, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self.backend.settimeout(self.sock.gettimeout())
        with theirs:
            self.tell(Msg.SET_BACKEND_REQ_FD, b"", [theirs.fileno()])

    def recv_backend(self) -> tuple[int, int, bytes]:
        """Receive one request of the back end: request, flags, payload; TimeoutError."""
        head = self.backend.recv(12, socket.MSG_WAITALL)
        if len(head) < 12:
            raise Closed("the back end closed its channel")
        request, flags, size = struct.unpack("=III", head)
        return request, flags, self.backend.recv(size, socket.MSG_WAITALL) if size else b""

    def answer_backend(self, request: int, code: int = 0) -> None:
        """Acknowledge a request of the back end."""
        self.backend.sendall(struct.pack("=IIIQ", request, VERSION | REPLY, 8, code))
