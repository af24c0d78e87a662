"""Hostile descriptors, rings and memory: CASES maps an id to (attack, outcomes that are right).

An attack gets the socket of a disk and returns what came of it: "failed" (the request completed,
and not with status OK), "done" (with status OK), "broken" (the err eventfd was signalled),
"closed", "silent" (nothing happened within some seconds).
"""
import fcntl
import os
import select
import time

from tests.lib import vhost_client as vc
from tests.lib.blk_client import IN, OK, OUT, Blk
from tests.lib.split_ring import DESC, INDIRECT, NEXT, WRITE, wait_eventfd

BAD = {"failed", "broken", "closed"}
ANY = {"failed", "broken", "closed", "done"}
FAR = 1 << 50                           # an address in no region
MAX64 = 1 << 64
PATIENCE = 5.0                          # seconds

CASES = {}


def case(name: str, outcomes=frozenset(BAD)):
    """Put an attack on a socket into CASES."""
    def add(function):
        assert name not in CASES, name
        CASES[name] = (function, outcomes)
        return function
    return add


def on_blk(name: str, outcomes=frozenset(BAD), **options):
    """Put an attack on a running Blk into CASES; it returns the heads to publish.

    The status byte under watch is blk.watched, made before the attack.
    """
    def add(function):
        @case(name, outcomes)
        def attack(path):
            with Blk(path, **options) as blk:
                blk.watched = blk.status()
                blk.read(0, 512)
                blk.rings[0].desc[:] = 0
                blk.rings[0].submit(*function(blk))
                return outcome(blk)
        return function
    return add


def chains(prefix: str, table: dict, outcomes=frozenset(BAD)):
    """Put one attack into CASES for every row: parts made from a Blk, or the other way round."""
    def add(function):
        for name, row in table.items():
            on_blk(f"{prefix}-{name}", outcomes)(lambda blk, row=row: function(blk, row))
        return function
    return add


def outcome(blk) -> str:
    """Wait for what comes of the request submitted and name it."""
    ring, end = blk.rings[0], time.monotonic() + PATIENCE
    while time.monotonic() < end:
        if ring.pending():
            ring.collect()
            if blk.get(blk.watched, 1)[0] == OK:
                return "done"
            if ring.wait_err(0.02):
                return "broken"
            blk.read(0, 512)            # the ring goes on
            return "failed"
        event = ring_event(blk)
        if event:
            return event
    return "silent"


def ring_event(blk) -> str | None:
    """Look for a signal on the err eventfd, or a closed connection, without the ring's memory.

    No answer is due, so a socket that can be read is at its end.
    """
    if wait_eventfd(blk.rings[0].err_fd, 0.005):
        return "broken"
    readable, _, _ = select.select([blk.client.sock], [], [], 0)
    return "closed" if readable else None


def await_event(blk) -> str:
    """Wait for "broken" or "closed" without touching the ring's memory."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        event = ring_event(blk)
        if event:
            return event
    return "silent"


def read_parts(blk) -> list[tuple[int, int, int]]:
    """Describe a good read of one sector."""
    return [(blk.header(IN), 16, 0), (blk.put(bytes(512)), 512, WRITE), (blk.watched, 1, WRITE)]


# Indices and heads.

def publish_index(blk, index: int) -> list[int]:
    blk.rings[0].chain(read_parts(blk))
    blk.rings[0].avail_idx[0] = index
    blk.rings[0].next_avail = index
    return []


@chains("avail-jump", {str(n): n for n in (257, 300, 32768, 65535)})
def avail_jump(blk, row):
    return publish_index(blk, (blk.rings[0].next_avail + row) & 0xFFFF)


@on_blk("avail-goes-back")
def avail_back(blk):
    return publish_index(blk, (blk.rings[0].next_avail - 1) & 0xFFFF)


@chains("head", {str(n): n for n in (256, 257, 32768, 65535)})
def head_outside(blk, row):
    blk.rings[0].chain(read_parts(blk))
    return [row]


@on_blk("head-twice", ANY)
def head_twice(blk):
    head = blk.rings[0].chain(read_parts(blk))
    return [head] * 200


@on_blk("descriptor-all-zero")
def all_zero(blk):
    return [5]


@on_blk("every-descriptor-shared", ANY)
def shared(blk):
    """Publish 256 heads that all run into one chain."""
    ring = blk.rings[0]
    ring.chain(read_parts(blk), [253, 254, 255])
    ring.desc[:253] = ring.desc[253]
    return list(range(253))


# Links.

@chains("next", {str(n): n for n in (256, 1000, 65535)})
def next_outside(blk, row):
    ring = blk.rings[0]
    ring.chain(read_parts(blk))
    ring.desc[1]["flags"] |= NEXT
    ring.desc[1]["next"] = row
    return [0]


def beyond_table(path, slots) -> str:
    """Tell a ring of 16 as one of 8, and use good descriptors that are not in its table."""
    with Blk(path, size=16, start=False) as blk:
        ring, blk.watched = blk.rings[0], blk.status()
        ring.configure(blk.client, num=8)
        blk.client.set_vring_kick(0, ring.kick_fd)
        blk.client.set_vring_enable(0, True)
        ring.submit(ring.chain(read_parts(blk), slots))
        return outcome(blk)


for _name, _slots in {"next": [0, 1, 8], "head": [8, 1, 2], "all": [8, 9, 10]}.items():
    case(f"{_name}-beyond-the-table")(lambda path, slots=_slots: beyond_table(path, slots))


@chains("loop", {"of-1": [0], "of-2": [1, 0], "of-3": [1, 2, 0], "of-1-at-the-end": [1, 2, 2],
                 "of-256": [*range(1, 256), 0]})
def loop(blk, row):
    for slot, follower in enumerate(row):
        blk.rings[0].desc[slot] = (blk.scratch, 16, NEXT, follower)
    return [0]


@on_blk("loop-of-writable")
def loop_writable(blk):
    ring = blk.rings[0]
    ring.desc[0] = (blk.header(IN), 16, NEXT, 1)
    ring.desc[1] = (blk.scratch, 512, NEXT | WRITE, 1)
    return [0]


# Addresses and lengths.

ADDRESSES = {"0": 0, "outside": FAR, "max": MAX64 - 1, "wraps": MAX64 - 8, "hole": "hole",
             "across-the-end": "across", "one-beyond": "end"}


def place(blk, row) -> int:
    """Turn a row of ADDRESSES into an address."""
    region = blk.memory.regions[0]
    end = region.gpa + region.size
    return {"hole": end + 4096, "across": end - 8, "end": end}.get(row, row)


@chains("header-at", ADDRESSES)
def header_at(blk, row):
    parts = read_parts(blk)
    parts[0] = (place(blk, row), 16, 0)
    return [blk.rings[0].chain(parts)]


@chains("data-at", ADDRESSES)
def data_at(blk, row):
    parts = read_parts(blk)
    parts[1] = (place(blk, row), 512, WRITE)
    return [blk.rings[0].chain(parts)]


@chains("out-data-at", ADDRESSES)
def out_data_at(blk, row):
    parts = [(blk.header(OUT), 16, 0), (place(blk, row), 512, 0), (blk.watched, 1, WRITE)]
    return [blk.rings[0].chain(parts)]


@chains("status-at", {k: v for k, v in ADDRESSES.items() if k != "across-the-end"})
def status_at(blk, row):
    parts = read_parts(blk)
    parts[2] = (place(blk, row), 1, WRITE)
    return [blk.rings[0].chain(parts)]


@chains("data-length", {"2GiB": 1 << 31, "max": (1 << 32) - 1, "beyond-region": 32 << 20})
def data_length(blk, row):
    parts = read_parts(blk)
    parts[1] = (parts[1][0], row, WRITE)
    return [blk.rings[0].chain(parts)]


@on_blk("total-beyond-4GiB")
def total_length(blk):
    region = blk.memory.regions[0]
    parts = read_parts(blk)
    data = (region.gpa, region.size, WRITE)
    return [blk.rings[0].chain([parts[0], *[data] * 254, parts[2]])]


# Direction and shape.

@on_blk("no-writable-byte")
def no_writable(blk):
    return [blk.rings[0].chain([(blk.header(IN), 16, 0), (blk.scratch, 512, 0)])]


@on_blk("status-readable")
def status_readable(blk):
    parts = read_parts(blk)
    parts[2] = (blk.watched, 1, 0)
    return [blk.rings[0].chain(parts)]


@on_blk("status-of-length-0")
def status_empty(blk):
    return [blk.rings[0].chain([(blk.header(IN), 16, 0), (blk.watched, 0, WRITE)])]


@chains("header-short", {str(n): n for n in (0, 1, 8, 15)})
def header_short(blk, row):
    return [blk.rings[0].chain([(blk.header(IN), row, 0), *read_parts(blk)[1:]])]


@on_blk("header-only")
def header_only(blk):
    return [blk.rings[0].chain([(blk.header(IN), 16, 0)])]


@on_blk("header-writable")
def header_writable(blk):
    parts = read_parts(blk)
    return [blk.rings[0].chain([(parts[0][0], 16, WRITE), *parts[1:]])]


@on_blk("status-only")
def status_only(blk):
    return [blk.rings[0].chain([(blk.watched, 1, WRITE)])]


@on_blk("readable-after-writable")
def readable_after_writable(blk):
    header, data, status = read_parts(blk)
    return [blk.rings[0].chain([data, header, status])]


@on_blk("readable-last")
def readable_last(blk):
    return [blk.rings[0].chain([*read_parts(blk), (blk.scratch, 512, 0)])]


@on_blk("read-into-readable", ANY)
def read_into_readable(blk):
    header, data, status = read_parts(blk)
    return [blk.rings[0].chain([header, (data[0], 512, 0), status])]


@on_blk("write-from-writable", ANY)
def write_from_writable(blk):
    _header, data, status = read_parts(blk)
    return [blk.rings[0].chain([(blk.header(OUT), 16, 0), data, status])]


# Indirect tables.

@chains("indirect-length", {str(n): n for n in (0, 1, 15, 16, 17, 32, 47, (1 << 32) - 1)})
def indirect_length(blk, row):
    ring = blk.rings[0]
    ring.indirect(read_parts(blk))
    ring.desc[0]["len"] = row
    return [0]


@on_blk("indirect-length-beyond-the-region", ANY)
def indirect_beyond(blk):
    """Claim a table of 4 GiB, of which the chain uses three entries that are there."""
    blk.rings[0].indirect(read_parts(blk))
    blk.rings[0].desc[0]["len"] = (1 << 32) - 16
    return [0]


@chains("indirect-at", {k: v for k, v in ADDRESSES.items() if k != "max"})
def indirect_at(blk, row):
    blk.rings[0].desc[0] = (place(blk, row), 48, INDIRECT, 0)
    return [0]


@on_blk("indirect-nested")
def indirect_nested(blk):
    ring = blk.rings[0]
    ring.indirect(read_parts(blk))
    inner = blk.put(ring.desc[:1].tobytes())
    ring.desc[0] = (inner, 16, INDIRECT, 0)
    return [0]


@on_blk("indirect-to-itself")
def indirect_itself(blk):
    ring = blk.rings[0]
    ring.desc[0] = (ring.desc_gpa, 16, INDIRECT, 0)
    return [0]


@on_blk("indirect-with-next")
def indirect_with_next(blk):
    ring = blk.rings[0]
    parts = read_parts(blk)
    ring.indirect(parts[:2])
    ring.desc[0]["flags"] |= NEXT
    ring.desc[0]["next"] = 1
    ring.desc[1] = (*parts[2], 0)
    return [0]


@chains("indirect-next", {str(n): n for n in (3, 4, 1000, 65535)})
def indirect_next(blk, row):
    ring = blk.rings[0]
    ring.indirect(read_parts(blk))
    table = blk.memory.view(int(ring.desc[0]["addr"]), 48).view(DESC)
    table[1]["flags"] |= NEXT
    table[1]["next"] = row
    return [0]


@on_blk("indirect-next-to-a-good-entry-beyond")
def indirect_beyond_table(blk):
    blk.rings[0].indirect(read_parts(blk), order=[0, 1, 5])
    blk.rings[0].desc[0]["len"] = 48
    return [0]


@on_blk("indirect-loop")
def indirect_loop(blk):
    blk.rings[0].indirect(read_parts(blk))
    table = blk.memory.view(int(blk.rings[0].desc[0]["addr"]), 48).view(DESC)
    table[2]["flags"] |= NEXT
    table[2]["next"] = 1
    return [0]


@on_blk("indirect-of-20000", ANY)
def indirect_long(blk):
    parts = read_parts(blk)
    data = (blk.scratch, 16, WRITE)
    return [blk.rings[0].indirect([parts[0], *[data] * 20000, parts[2]])]


@case("indirect-without-its-feature", ANY)
def indirect_without_feature(path):
    with Blk(path, start=False) as blk:
        blk.client.set_features(blk.features & ~(1 << 28))
        blk.rings[0].start(blk.client)
        blk.watched = blk.status()
        blk.rings[0].submit(blk.rings[0].indirect(read_parts(blk)))
        return outcome(blk)


# Memory that goes away.

def truncated(path, region: int, kind: int) -> str:
    """Cut the file of a region off under a running ring and use what is gone."""
    with Blk(path, start=False) as blk:
        blk.rings[0].start(blk.client)
        blk.read(0, 512)
        blk.watched = blk.status()
        data, length = blk.put(bytes(1 << 20), region=1), 1 << 20
        flags = WRITE if kind == IN else 0
        parts = [(blk.header(kind), 16, 0), (data, length, flags), (blk.watched, 1, WRITE)]
        head = blk.rings[0].chain(parts)
        os.ftruncate(blk.memory.regions[region].fd, 0)
        if region == 0:                 # the ring itself is gone: touch nothing
            blk.rings[0].kick()
            return await_event(blk)
        blk.rings[0].submit(head)
        return outcome(blk)


@case("truncated-read-buffer")
def truncated_read(path):
    return truncated(path, 1, IN)


@case("truncated-write-buffer")
def truncated_write(path):
    return truncated(path, 1, OUT)


@case("truncated-ring", {"broken", "closed"})
def truncated_ring(path):
    return truncated(path, 0, IN)


@case("truncated-and-grown-again", {"failed", "broken", "closed", "done"})
def truncated_and_grown(path):
    with Blk(path) as blk:
        blk.watched = blk.status()
        region = blk.memory.regions[1]
        data = blk.put(bytes(512), region=1)
        os.ftruncate(region.fd, 0)
        os.ftruncate(region.fd, region.offset + region.size)
        parts = [(blk.header(IN), 16, 0), (data, 512, WRITE), (blk.watched, 1, WRITE)]
        blk.rings[0].submit(blk.rings[0].chain(parts))
        return outcome(blk)


@case("ring-memory-taken-away", {"broken", "closed", "failed", "done", "silent"})
def ring_memory_taken(path):
    """Replace the whole table with requests in flight."""
    with Blk(path) as blk:
        blk.watched = blk.status()
        blk.rings[0].submit(*[blk.rings[0].chain(read_parts(blk))] * 100)
        blk.memory.regions.reverse()
        region = blk.memory.regions.pop()
        try:
            blk.client.set_mem_table(blk.memory)
        except vc.Refused:
            return "failed"
        except vc.Closed:
            return "closed"
        finally:
            blk.memory.regions.append(region)
        return await_event(blk)


# Eventfds.

def fill(fd: int, blocking: bool) -> None:
    """Bring an eventfd to its maximum; a write to a blocking one then sleeps."""
    if blocking:
        fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) & ~os.O_NONBLOCK)
    os.eventfd_write(fd, MAX64 - 2)


def full_call(path, blocking: bool, early: bool) -> str:
    """Do requests while the call eventfd is full, from the start on or later.

    One that blocks as well may break the ring: the target cannot call.
    """
    with Blk(path, start=False) as blk:
        ring, blk.watched = blk.rings[0], blk.status()
        if early:
            fill(ring.call_fd, blocking)
        ring.start(blk.client)
        if not early:
            blk.read(0, 512)
            ring.wait_call()
            fill(ring.call_fd, blocking)
        for _ in range(20):
            ring.submit(ring.chain(read_parts(blk)))
            result = outcome(blk)
            if result != "done":
                break
        return result


for _blocking in (False, True):
    for _early in (False, True):
        case(f"call-full{'-early' * _early}{'-blocking' * _blocking}",
             {"done", "broken"} if _blocking else {"done"})(
                 lambda path, b=_blocking, e=_early: full_call(path, b, e))


@case("call-made-blocking-while-full", {"done"})
def call_made_blocking(path):
    with Blk(path) as blk:
        blk.rings[0].wait_call(0.1)
        fill(blk.rings[0].call_fd, False)
        blk.read(0, 512)
        fd = blk.rings[0].call_fd
        fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) & ~os.O_NONBLOCK)
        blk.read(0, 512)
        return "done"


@case("kick-blocking", {"done"})
def kick_blocking(path):
    with Blk(path, start=False) as blk:
        fd = blk.rings[0].kick_fd
        fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) & ~os.O_NONBLOCK)
        blk.rings[0].start(blk.client)
        blk.read(0, 512)
        return "done"


@case("err-full-and-blocking", {"broken", "closed", "failed"})
def err_full(path):
    with Blk(path, start=False) as blk:
        fill(blk.rings[0].err_fd, True)
        blk.rings[0].start(blk.client)
        blk.watched = blk.status()
        blk.rings[0].submit(60000)
        return outcome(blk)


@case("same-eventfd-for-everything", {"done"})
def same_eventfd(path):
    with Blk(path, start=False) as blk:
        ring = blk.rings[0]
        ring.configure(blk.client)
        ring_fd = ring.kick_fd
        blk.client.set_vring_call(0, ring_fd)
        blk.client.set_vring_err(0, ring_fd)
        blk.client.set_vring_kick(0, ring_fd)
        blk.client.set_vring_enable(0, True)
        blk.read(0, 512)
        return "done"


@case("closes-with-requests-in-flight", {"done"})
def closes_in_flight(path):
    for _ in range(20):
        with Blk(path) as blk:
            blk.watched = blk.status()
            data = (blk.scratch, 1 << 20, WRITE)
            head = blk.rings[0].chain([(blk.header(IN), 16, 0), data, (blk.watched, 1, WRITE)])
            blk.rings[0].submit(*[head] * 80)
    return "done"
