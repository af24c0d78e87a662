"""Hostile vhost-user messages: CASES maps an id to (attack, outcomes that are right).

An attack gets an Enemy and returns what came of it: "refused" (answered with an error), "closed",
"accepted" (acknowledged as done), "answered" (with a reply of its own) or "broken" (the ring's err
eventfd was signalled). Where the protocol leaves the choice open, any of them is right: what such
an input must not do is checked by the test.
"""
import os
import socket
import struct
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path

from tests.lib import vhost_client as vc
from tests.lib.blk_client import Blk
from tests.lib.guest_memory import UADDR_SHIFT, Memory
from tests.lib.vhost_client import NEED_REPLY, VERSION, Closed, Msg, Refused

BAD = {"refused", "closed"}
NO_START = {"refused", "closed", "broken"}
ANY = {"refused", "closed", "accepted", "answered", "broken"}
FAR = 1 << 50                           # an address in no region
MAX32, MAX64 = (1 << 32) - 1, 1 << 64

CASES = {}


class Enemy:
    """A hostile session: a Blk whose ring is not started, and descriptors to close at the end."""

    def __init__(self, path, folder: Path):
        self.path, self.folder = path, folder
        self.blk = Blk(path, start=False)
        self.client, self.memory, self.ring = self.blk.client, self.blk.memory, self.blk.rings[0]
        self.open = []

    def close(self) -> None:
        """Close everything."""
        self.blk.close()
        for fd in self.open:
            os.close(fd)

    def keep(self, fd: int) -> int:
        """Remember to close `fd`; return it."""
        self.open.append(fd)
        return fd

    def hit(self, request: int, payload: bytes = b"", fds=(), size=None, flags=VERSION) -> str:
        """Send one message and ask for an acknowledgement; say what came of it."""
        try:
            self.client.send(request, flags | NEED_REPLY, payload, fds, size)
            return self.verdict(request)
        except Closed:
            return "closed"

    def verdict(self, request: int) -> str:
        """Read the answer to `request` and name it."""
        try:
            got, _flags, payload, fds = self.client.recv()
        except Closed:
            return "closed"
        for fd in fds:
            os.close(fd)
        assert got == request & MAX32, f"the answer to {request} names {got}"
        if len(payload) != 8:
            return "answered" if payload else "refused"
        return "refused" if any(payload) else "accepted"

    def start(self, **changes) -> str:
        """Start the ring with some values changed; say whether and how that was refused.

        `changes`: num, and desc, avail, used as front-end user addresses.
        """
        c, ring = self.client, self.ring
        addresses = {name: self.memory.uaddr(getattr(ring, f"{name}_gpa"))
                     for name in ("desc", "used", "avail")} | changes
        num = addresses.pop("num", ring.size)
        try:
            c.set_vring_num(0, num)
            c.set_vring_base(0, 0)
            c.set_vring_addr(0, **addresses)
            c.set_vring_call(0, ring.call_fd)
            c.set_vring_err(0, ring.err_fd)
            c.set_vring_kick(0, ring.kick_fd)
            c.set_vring_enable(0, True)
            ring.kick()
        except Refused:
            return "refused"
        except Closed:
            return "closed"
        return "broken" if ring.wait_err(5) else "accepted"


def case(name: str, outcomes=frozenset(BAD), **arguments):
    """Put an attack into CASES under `name`, with arguments bound."""
    def add(function):
        assert name not in CASES, name
        CASES[name] = (lambda enemy: function(enemy, **arguments), outcomes)
        return function
    return add


def cases(prefix: str, table: dict, outcomes=frozenset(BAD)):
    """Put an attack into CASES once for every row of `table`; the row is its second argument."""
    def add(function):
        for name, row in table.items():
            case(f"{prefix}-{name}", outcomes, row=row)(function)
        return function
    return add


# Framing.

@case("header-short-then-closed", {"closed"})
def header_short(enemy):
    enemy.client.send_bytes(struct.pack("=II", Msg.GET_FEATURES, VERSION))
    enemy.client.sock.shutdown(socket.SHUT_WR)
    return enemy.verdict(Msg.GET_FEATURES)


@case("payload-short-then-closed", {"closed"})
def payload_short(enemy):
    enemy.client.send(Msg.SET_FEATURES, VERSION | NEED_REPLY, bytes(4), size=8)
    enemy.client.sock.shutdown(socket.SHUT_WR)
    return enemy.verdict(Msg.SET_FEATURES)


@cases("size", {"257MiB": 257 << 20, "2GiB": 1 << 31, "max": MAX32, "64KiB": 1 << 16})
def header_size(enemy, row):
    return enemy.hit(Msg.GET_FEATURES, bytes(64), size=row)


@cases("version", {"0": 0, "2": 2, "3": 3})
def header_version(enemy, row):
    return enemy.hit(Msg.SET_OWNER, flags=row)


@case("reply-flag-in-a-request", ANY)
def reply_flag(enemy):
    return enemy.hit(Msg.SET_OWNER, flags=VERSION | vc.REPLY)


@cases("id", {"0": 0, "44": 44, "99": 99, "1000": 1000, "2^31": 1 << 31, "max": MAX32})
def unknown_id(enemy, row):
    return enemy.hit(row)


@cases("unnegotiated", {str(n): n for n in (6, 7, 19, 20, 22, 23, 26, 27, 28, 29, 30, 31, 32, 33,
                                            34, 35, 37, 38, 39, 41, 42, 43)}, ANY)
def unnegotiated(enemy, row):
    return enemy.hit(row, bytes(8))


@case("noise", {"closed"})
def noise(enemy):
    with suppress(Closed):
        for _ in range(20):
            enemy.client.send_bytes(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
    return enemy.verdict(0x20544547)


# Payloads of a wrong size.

SIZES = {Msg.SET_FEATURES: 8, Msg.SET_MEM_TABLE: 72, Msg.SET_VRING_NUM: 8, Msg.SET_VRING_ADDR: 40,
         Msg.SET_VRING_BASE: 8, Msg.GET_VRING_BASE: 8, Msg.SET_VRING_KICK: 8,
         Msg.SET_VRING_CALL: 8, Msg.SET_VRING_ERR: 8, Msg.SET_PROTOCOL_FEATURES: 8,
         Msg.SET_VRING_ENABLE: 8, Msg.GET_CONFIG: 20, Msg.SET_CONFIG: 20}
VALID = {Msg.GET_CONFIG: struct.pack("=III", 0, 8, 0), Msg.SET_CONFIG: struct.pack("=III", 0, 8, 0)}


@cases("payload", {f"{m.name}-{n}": (m, n) for m, right in SIZES.items()
                   for n in sorted({0, 1, right - 1, right + 1, right + 8, 2048})})
def payload_size(enemy, row):
    request, n = row
    return enemy.hit(request, (VALID.get(request, b"") + bytes(n))[:n])


@cases("payload-unasked", {m.name: m for m in (
    Msg.GET_FEATURES, Msg.SET_OWNER, Msg.RESET_OWNER, Msg.GET_PROTOCOL_FEATURES,
    Msg.GET_QUEUE_NUM, Msg.SET_BACKEND_REQ_FD)}, ANY)
def payload_unasked(enemy, row):
    return enemy.hit(row, bytes(24))


# Descriptors attached.

@cases("fds-unasked", {f"{m.name}-{n}": (m, n) for n in (1, 8) for m in (
    Msg.GET_FEATURES, Msg.SET_OWNER, Msg.SET_VRING_NUM, Msg.GET_VRING_BASE, Msg.GET_CONFIG)}, ANY)
def fds_unasked(enemy, row):
    request, n = row
    payload = bytes(8) if request in (Msg.SET_VRING_NUM, Msg.GET_VRING_BASE) else b""
    return enemy.hit(request, payload, [enemy.ring.call_fd] * n)


@case("fds-on-unknown-message", BAD)
def fds_on_unknown(enemy):
    return enemy.hit(1000, b"", [enemy.ring.call_fd] * 8)


@case("fds-as-many-as-the-kernel-takes", ANY)
def fds_many(enemy):
    return enemy.hit(Msg.GET_FEATURES, b"", [enemy.ring.call_fd] * 253)


@case("fds-on-a-short-header", ANY)
def fds_on_short_header(enemy):
    enemy.client.send_bytes(b"\1", [enemy.ring.call_fd] * 8)
    enemy.client.sock.shutdown(socket.SHUT_WR)
    return enemy.verdict(Msg.GET_FEATURES)


@case("fds-with-the-payload", ANY)
def fds_with_payload(enemy):
    enemy.client.send_bytes(struct.pack("=III", Msg.SET_OWNER, VERSION | NEED_REPLY, 0)[:6])
    enemy.client.send_bytes(struct.pack("=III", Msg.SET_OWNER, VERSION | NEED_REPLY, 0)[6:],
                            [enemy.ring.call_fd] * 3)
    return enemy.verdict(Msg.SET_OWNER)


@cases("fds-two", {m.name: m for m in (Msg.SET_VRING_KICK, Msg.SET_VRING_CALL,
                                       Msg.SET_VRING_ERR)}, ANY)
def fds_two(enemy, row):
    return enemy.hit(row, bytes(8), [enemy.ring.call_fd, enemy.ring.kick_fd])


@cases("no-fd", {m.name: m for m in (Msg.SET_VRING_KICK, Msg.SET_VRING_CALL, Msg.SET_VRING_ERR)})
def no_fd(enemy, row):
    return enemy.hit(row, bytes(8))


@cases("fd-in-spite-of-no-fd-bit", {m.name: m for m in (Msg.SET_VRING_KICK, Msg.SET_VRING_CALL,
                                                        Msg.SET_VRING_ERR)}, ANY)
def fd_in_spite(enemy, row):
    return enemy.hit(row, struct.pack("=Q", vc.NO_FD), [enemy.ring.call_fd])


def odd_fd(enemy, kind: str) -> int:
    """Open a descriptor that is no eventfd and no memory."""
    if kind == "file":
        fd, name = tempfile.mkstemp(dir=enemy.folder)
        os.unlink(name)
        os.ftruncate(fd, 1 << 20)
    elif kind == "memfd":
        fd = os.memfd_create("odd")
    elif kind == "pipe-read":
        fd, other = os.pipe()
        enemy.keep(other)
    elif kind == "pipe-write":
        other, fd = os.pipe()
        enemy.keep(other)
    elif kind == "socket":
        pair = socket.socketpair()
        enemy.keep(pair[0].detach())
        fd = pair[1].detach()
    else:
        fd = os.open(kind, os.O_RDONLY if os.path.isdir(kind) else os.O_RDWR)
    return enemy.keep(fd)


NO_EVENTFD = ("file", "memfd", "pipe-read", "pipe-write", "socket", "/dev/null", "/dev/zero", "/")


@cases("no-eventfd", {f"{m.name}-{k}": (m, k) for k in NO_EVENTFD for m in (
    Msg.SET_VRING_KICK, Msg.SET_VRING_CALL, Msg.SET_VRING_ERR)})
def no_eventfd(enemy, row):
    request, kind = row
    return enemy.hit(request, bytes(8), [odd_fd(enemy, kind)])


@cases("backend-channel", {k: k for k in ("file", "pipe-write", "/dev/null", "/")}, ANY)
def backend_channel(enemy, row):
    return enemy.hit(Msg.SET_BACKEND_REQ_FD, b"", [odd_fd(enemy, row)])


@case("backend-channel-without-fd", ANY)
def backend_channel_none(enemy):
    return enemy.hit(Msg.SET_BACKEND_REQ_FD)


# The memory table.

def table(*rows, count=None) -> bytes:
    """Make a SET_MEM_TABLE payload of (gpa, size, uaddr, offset) rows."""
    n = len(rows) if count is None else count
    return struct.pack("=II", n, 0) + b"".join(struct.pack("=QQQQ", *r) for r in rows)


PLAIN = (0x100000, 1 << 20, UADDR_SHIFT, 0)
APART = [(0x100000 + (i << 30), 1 << 20, UADDR_SHIFT + (i << 30), 0) for i in range(9)]


@cases("mem-count", {"0": 0, "9": 9, "max": MAX32, "2-of-1": 2})
def mem_count(enemy, row):
    return enemy.hit(Msg.SET_MEM_TABLE, table(PLAIN, count=row), [memfd(enemy)])


@case("mem-nine-whole-regions")
def mem_nine(enemy):
    return enemy.hit(Msg.SET_MEM_TABLE, table(*APART), [memfd(enemy)] * 9)


@cases("mem-fds", {"0-of-1": (1, 0), "1-of-2": (2, 1), "2-of-1": (1, 2), "8-of-1": (1, 8),
                   "8-of-7": (7, 8), "9-of-8": (8, 9)})
def mem_fds(enemy, row):
    regions, fds = row
    return enemy.hit(Msg.SET_MEM_TABLE, table(*APART[:regions]), [memfd(enemy)] * fds)


@cases("mem", {
    "size-0": [(0x100000, 0, UADDR_SHIFT, 0)],
    "size-beyond-fd": [(0x100000, (1 << 20) + 1, UADDR_SHIFT, 0)],
    "offset-beyond-fd": [(0x100000, 4096, UADDR_SHIFT, 1 << 20)],
    "size-and-offset-beyond-fd": [(0x100000, 1 << 20, UADDR_SHIFT, 4096)],
    "size-huge": [(0, 1 << 47, UADDR_SHIFT, 0)],
    "size-max": [(0, MAX64 - 1, 0, 0)],
    "size-2^63": [(0, 1 << 63, UADDR_SHIFT, 0)],
    "offset-max": [(0x100000, 4096, UADDR_SHIFT, MAX64 - 4096)],
    "offset-wraps": [(0x100000, 1 << 20, UADDR_SHIFT, MAX64 - (1 << 20) + 4096)],
    "gpa-wraps": [(MAX64 - 4096, 1 << 20, UADDR_SHIFT, 0)],
    "uaddr-wraps": [(0x100000, 1 << 20, MAX64 - 4096, 0)],
    "same-twice": [PLAIN, PLAIN],
    "gpa-overlaps": [PLAIN, (0x180000, 1 << 20, UADDR_SHIFT + (1 << 30), 0)],
    "gpa-overlaps-by-a-byte": [PLAIN, (0x100000 + (1 << 20) - 1, 4096, UADDR_SHIFT * 2, 0)],
})
def mem_region(enemy, row):
    return enemy.hit(Msg.SET_MEM_TABLE, table(*row), [memfd(enemy)] * len(row))


@case("mem-uaddr-overlaps", ANY)
def mem_uaddr_overlaps(enemy):
    rows = [PLAIN, (1 << 40, 1 << 20, UADDR_SHIFT + 4096, 0)]
    return enemy.hit(Msg.SET_MEM_TABLE, table(*rows), [memfd(enemy)] * 2)


@case("mem-offset-odd", ANY)
def mem_offset_odd(enemy):
    return enemy.hit(Msg.SET_MEM_TABLE, table((0x100000, 4096, UADDR_SHIFT, 13)), [memfd(enemy)])


def memfd(enemy, size: int = 1 << 20) -> int:
    """Make a memfd of `size` bytes."""
    fd = enemy.keep(os.memfd_create("hostile", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING))
    os.ftruncate(fd, size)
    return fd


@cases("mem-fd", {k: k for k in ("pipe-read", "socket", "/dev/null", "/dev/zero", "/", "memfd")})
def mem_fd(enemy, row):
    return enemy.hit(Msg.SET_MEM_TABLE, table(PLAIN), [odd_fd(enemy, row)])


@case("mem-fd-eventfd")
def mem_fd_eventfd(enemy):
    return enemy.hit(Msg.SET_MEM_TABLE, table(PLAIN), [enemy.ring.kick_fd])


@case("mem-fd-of-a-disk-file")
def mem_fd_disk(enemy):
    folders = (enemy.folder, Path("/var/tmp"), Path(__file__).parent, Path.home())
    for folder in folders:
        kind = subprocess.run(["stat", "-f", "-c", "%T", folder], capture_output=True, text=True,
                              check=True).stdout.strip()
        if kind not in ("tmpfs", "hugetlbfs", "ramfs"):
            with tempfile.TemporaryFile(dir=folder) as f:
                f.truncate(1 << 20)
                return enemy.hit(Msg.SET_MEM_TABLE, table(PLAIN), [f.fileno()])
    raise AssertionError("every folder is on tmpfs: there is no disk file to send")


@case("mem-fd-read-only")
def mem_fd_read_only(enemy):
    fd = enemy.keep(os.open(f"/proc/self/fd/{memfd(enemy)}", os.O_RDONLY))
    return enemy.hit(Msg.SET_MEM_TABLE, table(PLAIN), [fd])


# Rings.

INDEXED = (Msg.SET_VRING_NUM, Msg.SET_VRING_BASE, Msg.GET_VRING_BASE, Msg.SET_VRING_ENABLE)


@cases("index", {f"{m.name}-{i}": (m, i) for m in INDEXED
                 for i in ("queues", 256, 32768, 1 << 31, MAX32)})
def ring_index(enemy, row):
    request, index = row
    index = enemy.client.get_queue_num() if index == "queues" else index
    return enemy.hit(request, struct.pack("=II", index, 1))


@cases("index-SET_VRING_ADDR", {str(i): i for i in (256, 65536, MAX32)})
def ring_index_addr(enemy, row):
    addresses = [enemy.memory.uaddr(enemy.ring.desc_gpa)] * 3
    return enemy.hit(Msg.SET_VRING_ADDR, struct.pack("=IIQQQQ", row, 0, *addresses, 0))


@cases("index-fd", {f"{m.name}-bit-{bit}": (m, bit) for bit in (9, 31, 32, 63) for m in (
    Msg.SET_VRING_KICK, Msg.SET_VRING_CALL, Msg.SET_VRING_ERR)}, ANY)
def ring_index_fd(enemy, row):
    request, bit = row
    return enemy.hit(request, struct.pack("=Q", 1 << bit), [enemy.ring.kick_fd])


@cases("num", {str(n): n for n in (0, 3, 257, 32769, 65535, 65536, 1 << 31, MAX32)}, NO_START)
def ring_num(enemy, row):
    return enemy.start(num=row)


@cases("ring-misaligned", {f"{part}-{by}": (part, by) for part, by in (
    ("desc", 1), ("desc", 8), ("avail", 1), ("used", 1), ("used", 2))}, NO_START)
def ring_misaligned(enemy, row):
    part, by = row
    gpa = enemy.memory.alloc(1 << 16, 4096)
    return enemy.start(**{part: enemy.memory.uaddr(gpa) + by})


@cases("ring-outside", {f"{part}-{at:#x}": (part, at) for part in ("desc", "avail", "used")
                        for at in (0, 0x1000, FAR, MAX64 - 16)}, NO_START)
def ring_outside(enemy, row):
    part, at = row
    return enemy.start(**{part: at})


@cases("ring-across-the-end", {part: part for part in ("desc", "avail", "used")}, NO_START)
def ring_across(enemy, row):
    region = enemy.memory.regions[1]
    return enemy.start(**{row: region.uaddr + region.size - 32})


@cases("ring-across-adjacent-regions", {p: p for p in ("desc", "avail", "used")}, NO_START)
def ring_adjacent(enemy, row):
    memory = Memory.adjacent(8 << 20, 1 << 20)
    enemy.client.set_mem_table(memory)
    first = memory.regions[0]
    at = dict.fromkeys(("desc", "avail", "used"), first.uaddr) | {row: first.uaddr + (8 << 20) - 32}
    at["avail"] += 8192 if row != "avail" else 0
    at["used"] += 16384 if row != "used" else 0
    outcome = enemy.start(**at)
    memory.close()
    return outcome


@case("ring-with-guest-addresses", NO_START)
def ring_guest_addresses(enemy):
    ring = enemy.ring
    return enemy.start(desc=ring.desc_gpa, avail=ring.avail_gpa, used=ring.used_gpa)


@case("ring-parts-overlap", ANY)
def ring_overlap(enemy):
    at = enemy.memory.uaddr(enemy.ring.desc_gpa)
    return enemy.start(desc=at, avail=at, used=at)


@case("kick-before-everything", ANY)
def kick_first(enemy):
    os.eventfd_write(enemy.ring.kick_fd, 1)
    return enemy.hit(Msg.SET_VRING_KICK, bytes(8), [enemy.ring.kick_fd])


@case("enable-before-everything", ANY)
def enable_first(enemy):
    return enemy.hit(Msg.SET_VRING_ENABLE, struct.pack("=II", 0, 1))


@cases("enable-value", {"2": 2, "max": MAX32}, ANY)
def enable_value(enemy, row):
    return enemy.hit(Msg.SET_VRING_ENABLE, struct.pack("=II", 0, row))


@case("get-base-of-a-ring-that-never-ran", ANY)
def get_base_first(enemy):
    return enemy.hit(Msg.GET_VRING_BASE, bytes(8))


@case("get-base-again-and-again", ANY)
def get_base_again(enemy):
    enemy.ring.start(enemy.client)
    return [enemy.hit(Msg.GET_VRING_BASE, bytes(8)) for _ in range(50)][-1]


@cases("while-running", {
    "NUM": (Msg.SET_VRING_NUM, struct.pack("=II", 0, 8)),
    "BASE": (Msg.SET_VRING_BASE, struct.pack("=II", 0, 1000)),
    "ADDR": (Msg.SET_VRING_ADDR, struct.pack("=IIQQQQ", 0, 0, FAR, FAR, FAR, 0)),
    "FEATURES": (Msg.SET_FEATURES, bytes(8)),
    "OWNER": (Msg.RESET_OWNER, b""),
}, ANY)
def while_running(enemy, row):
    enemy.ring.start(enemy.client)
    enemy.blk.read(0, 512)
    return enemy.hit(*row)


@case("features-not-offered")
def features(enemy):
    return enemy.hit(Msg.SET_FEATURES, struct.pack("=Q", MAX64 - 1))


# Configuration.

@cases("get-config", {"257": (0, 257), "beyond": (256, 1), "across": (250, 7), "4096": (0, 4096),
                      "offset-max": (MAX32, 1), "offset-wraps": (MAX32 - 3, 8),
                      "size-max": (0, MAX32)})
def get_config(enemy, row):
    offset, size = row
    return enemy.hit(Msg.GET_CONFIG, struct.pack("=III", offset, size, 0) + bytes(min(size, 8192)))


@cases("get-config-claims", {"more": 64, "less": 4, "max": MAX32})
def get_config_claims(enemy, row):
    return enemy.hit(Msg.GET_CONFIG, struct.pack("=III", 0, row, 0) + bytes(8))


@cases("set-config", {"capacity": (0, 8, 0), "capacity-as-migration": (0, 8, 1),
                      "offset-max": (MAX32, 1, 0), "offset-wraps": (MAX32 - 3, 8, 0),
                      "flags": (0, 8, MAX32)})
def set_config(enemy, row):
    offset, size, flags = row
    return enemy.hit(Msg.SET_CONFIG, struct.pack("=III", offset, size, flags) + b"\xff" * size)


@case("set-config-claims-more")
def set_config_claims(enemy):
    return enemy.hit(Msg.SET_CONFIG, struct.pack("=III", 32, 200, 0) + bytes(1))


# Manners.

@case("never-reads-replies", ANY)
def never_reads(enemy):
    sock = enemy.client.sock
    sock.settimeout(1)
    message = struct.pack("=III", Msg.GET_FEATURES, VERSION, 0) * 100
    with suppress(TimeoutError, ConnectionError):
        for _ in range(1000):
            sock.sendall(message)
    return "closed"


@case("closes-right-after-sending", {"closed"})
def closes_at_once(enemy):
    for _ in range(20):
        with vc.Client(enemy.path) as client, suppress(vc.Closed):     # the target may be quicker
            client.send(Msg.SET_MEM_TABLE, VERSION, enemy.memory.table(), enemy.memory.fds())
            client.send(Msg.SET_VRING_KICK, VERSION, bytes(8), [enemy.ring.kick_fd])
    return "closed"
