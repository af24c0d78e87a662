"""Requests of a virtio-blk disk, good and bad ones, as a guest's driver can make them."""
import struct

import pytest

from tests.lib.blk_client import (
    DISCARD,
    FLUSH,
    GET_ID,
    IN,
    IOERR,
    OK,
    OUT,
    UNSUPP,
    UNTOUCHED,
    WRITE_ZEROES,
    Blk,
)
from tests.lib.guest_memory import Memory
from tests.lib.split_ring import WRITE

pytestmark = pytest.mark.timeout(120)

SECTORS = (64 << 20) // 512
PATTERN = bytes(range(256)) * 16                    # 4 KiB


@pytest.fixture
def blk(disk):
    """A session with one ring of 256 entries."""
    with Blk(disk) as session:
        yield session


@pytest.fixture(params=["disk", "file_disk", "thread_disk"], ids=["ram", "file", "threads"])
def any_blk(request):
    """A session on a RAM disk, on one on a file, and on one that helper threads serve."""
    with Blk(request.getfixturevalue(request.param)) as session:
        yield session


# Good requests.

@pytest.mark.parametrize("sector", [0, 7, 40000])
@pytest.mark.parametrize("length", [512, 1024, 4096, 1 << 20])
def test_what_is_written_is_read(any_blk, sector, length):
    data = (PATTERN * (length // 4096 + 1))[:length]
    any_blk.write(sector, data)
    any_blk.flush()
    assert any_blk.read(sector, length) == data


def test_neighbours_of_a_write_are_untouched(any_blk):
    any_blk.write(100, b"\xaa" * 1536)
    any_blk.write(101, b"\xbb" * 512)
    assert any_blk.read(100, 1536) == b"\xaa" * 512 + b"\xbb" * 512 + b"\xaa" * 512


def test_last_sector(blk):
    blk.write(SECTORS - 1, b"\xcc" * 512)
    assert blk.read(SECTORS - 1, 512) == b"\xcc" * 512


def test_flush_ignores_its_sector(blk):
    assert blk.request(FLUSH, sector=1 << 60).status == OK


def test_get_id_is_the_padded_name(blk):
    reply = blk.request(GET_ID, read=20)
    assert reply == (OK, b"Disk0".ljust(20, b"\0"), 21)


def test_get_id_into_split_buffer(blk):
    status, first, second = blk.status(), blk.put(bytes(7)), blk.put(bytes(13))
    parts = [(blk.header(GET_ID), 16, 0), (first, 7, WRITE), (second, 13, WRITE),
             (status, 1, WRITE)]
    assert blk.run(blk.rings[0].chain(parts), status) == (OK, 21)
    assert blk.get(first, 7) + blk.get(second, 13) == blk.get_id()


# Refused requests: answered with a status, and the ring goes on.

@pytest.mark.parametrize("kind", [2, 3, 5, 24, 99, 1 << 31, (1 << 32) - 1])
def test_unknown_type(blk, kind):
    reply = blk.request(kind, read=512)
    assert reply.status == UNSUPP
    assert reply.data == bytes([UNTOUCHED]) * 512
    blk.read(0, 512)


@pytest.mark.parametrize("kind", [DISCARD, WRITE_ZEROES], ids=["DISCARD", "WRITE_ZEROES"])
def test_type_whose_feature_is_not_negotiated(blk, kind):
    blk.write(0, PATTERN)
    assert blk.request(kind, out=struct.pack("<QII", 0, 8, 0)).status == UNSUPP
    assert blk.read(0, 4096) == PATTERN


@pytest.mark.parametrize(("sector", "length"), [
    (SECTORS, 512), (SECTORS - 1, 1024), (SECTORS - 7, 4096), (1 << 40, 512), (1 << 55, 512),
    ((1 << 55) + 1, 4096), (1 << 63, 512), ((1 << 64) - 1, 512), ((1 << 64) - 1, 1024),
    ((1 << 64) - 8, 4096),
])
@pytest.mark.parametrize("kind", [IN, OUT], ids=["IN", "OUT"])
def test_out_of_range(any_blk, kind, sector, length):
    any_blk.write(0, PATTERN * 2)
    if kind == OUT:
        reply = any_blk.request(OUT, sector, out=b"\xff" * length)
    else:
        reply = any_blk.request(IN, sector, read=length)
    assert reply.status == IOERR
    assert any_blk.read(0, 8192) == PATTERN * 2


@pytest.mark.parametrize("length", [1, 100, 511, 513, 4095, 4097])
@pytest.mark.parametrize("kind", [IN, OUT], ids=["IN", "OUT"])
def test_length_that_is_no_multiple_of_a_sector(blk, kind, length):
    blk.write(0, PATTERN * 2)
    if kind == OUT:
        reply = blk.request(OUT, 0, out=b"\xff" * length)
    else:
        reply = blk.request(IN, 0, read=length)
    assert reply.status in (IOERR, UNSUPP)
    assert blk.read(0, 8192) == PATTERN * 2


@pytest.mark.parametrize("kind", [IN, OUT], ids=["IN", "OUT"])
def test_no_data_at_all(blk, kind):
    assert blk.request(kind).status in (OK, IOERR, UNSUPP)
    blk.read(0, 512)


def test_get_id_into_short_buffer(blk):
    assert blk.request(GET_ID, read=10).status in (OK, IOERR, UNSUPP)
    blk.read(0, 512)


def test_read_only_disk(read_only_disk):
    with Blk(read_only_disk) as blk:
        assert blk.read(0, 4096) == bytes(4096)
        for kind in (OUT, DISCARD, WRITE_ZEROES):
            assert blk.request(kind, 0, out=b"\xff" * 512).status in (IOERR, UNSUPP)
        assert blk.request(OUT, 0, out=b"\xff" * 512).status == IOERR
        blk.flush()
        assert blk.read(0, 4096) == bytes(4096)


# Layouts of a chain. A layout is a list of lengths; "s" stands for the status byte.

def cut(blk, gpa: int, total: int, lengths, flags: int) -> list[tuple[int, int, int]]:
    """Describe `total` bytes at `gpa` by descriptors of these lengths."""
    assert sum(lengths) == total
    parts = []
    for length in lengths:
        parts.append((gpa, length, flags))
        gpa += length
    return parts


READS = {                               # pieces of the header; pieces of the data and the status
    "usual": ([16], [4096, 1]),
    "header-1-15": ([1, 15], [4096, 1]),
    "header-8-8": ([8, 8], [4096, 1]),
    "header-in-bytes": ([1] * 16, [4096, 1]),
    "status-joined": ([16], [4097]),
    "status-joined-to-part": ([16], [512, 3585]),
    "data-in-odd-pieces": ([16], [1, 511, 513, 3071, 1]),
    "data-in-sectors": ([16], [512] * 8 + [1]),
    "zero-length-readable": ([0, 16, 0], [4096, 1]),
    "zero-length-writable": ([16], [0, 4096, 0, 1, 0]),
    "everything-odd": ([3, 0, 13], [0, 1, 4094, 2]),
    "many": ([16], [32] * 128 + [1]),
}
WRITES = {                              # pieces of header and data together; the status
    "usual": [16, 4096],
    "header-joined": [4112],
    "header-joined-to-part": [100, 4012],
    "header-split-and-joined": [5, 27, 4080],
    "data-in-odd-pieces": [16, 1, 511, 513, 3071],
    "zero-length": [0, 16, 0, 4096, 0],
    "many": [16] + [32] * 128,
}


@pytest.mark.parametrize("indirect", [False, True], ids=["direct", "indirect"])
@pytest.mark.parametrize("name", READS)
def test_layout_of_a_read(any_blk, name, indirect):
    any_blk.write(80, PATTERN)
    data = any_blk.put(b"\x55" * 4097)
    readable, writable = READS[name]
    parts = (cut(any_blk, any_blk.header(IN, 80), 16, readable, 0)
             + cut(any_blk, data, 4097, writable, WRITE))
    ring = any_blk.rings[0]
    head = ring.indirect(parts, slot=200) if indirect else ring.chain(parts)
    assert any_blk.run(head, data + 4096) == (OK, 4097)
    assert any_blk.get(data, 4096) == PATTERN


@pytest.mark.parametrize("indirect", [False, True], ids=["direct", "indirect"])
@pytest.mark.parametrize("name", WRITES)
def test_layout_of_a_write(any_blk, name, indirect):
    any_blk.write(80, bytes(4096))
    status = any_blk.status()
    out = any_blk.put(struct.pack("<IIQ", OUT, 0, 80) + PATTERN)
    parts = [*cut(any_blk, out, 4112, WRITES[name], 0), (status, 1, WRITE)]
    ring = any_blk.rings[0]
    head = ring.indirect(parts, slot=200) if indirect else ring.chain(parts)
    assert any_blk.run(head, status) == (OK, 1)
    assert any_blk.read(80, 4096) == PATTERN


@pytest.mark.parametrize("by", [1, 2, 3, 8, 511, 4095])
def test_buffers_at_odd_addresses(any_blk, by):
    blk, base = any_blk, any_blk.memory.alloc(5 * 4096, 4096)
    header, data, status = base + by, base + 4096 + by, base + 8192 + by
    for kind, flags in ((OUT, 0), (IN, WRITE)):
        blk.memory.view(header, 16)[:] = list(struct.pack("<IIQ", kind, 0, 80 + by))
        blk.memory.view(data, 4096)[:] = list(PATTERN if kind == OUT else bytes(4096))
        blk.memory.view(status, 1)[0] = UNTOUCHED
        parts = [(header, 16, 0), (data, 4096, flags), (status, 1, WRITE)]
        written = 4097 if kind == IN else 1
        assert blk.run(blk.rings[0].chain(parts), status) == (OK, written)
    assert blk.get(data, 4096) == PATTERN


def test_scattered_descriptors(blk):
    blk.write(3, PATTERN)
    data = blk.put(bytes(4097))
    parts = [(blk.header(IN, 3), 16, 0), (data, 4096, WRITE), (data + 4096, 1, WRITE)]
    assert blk.run(blk.rings[0].chain(parts, [255, 0, 128]), data + 4096) == (OK, 4097)
    assert blk.get(data, 4096) == PATTERN


def test_indirect_table_out_of_order(blk):
    blk.write(3, PATTERN)
    data = blk.put(bytes(4097))
    parts = [(blk.header(IN, 3), 16, 0), (data, 4096, WRITE), (data + 4096, 1, WRITE)]
    head = blk.rings[0].indirect(parts, slot=9, order=[0, 7, 2])
    assert blk.run(head, data + 4096) == (OK, 4097)
    assert blk.get(data, 4096) == PATTERN


def test_descriptors_before_the_indirect_one(blk):
    blk.write(3, PATTERN)
    data = blk.put(bytes(4097))
    ring = blk.rings[0]
    ring.indirect([(data, 4096, WRITE), (data + 4096, 1, WRITE)], slot=6)
    ring.desc[5] = (blk.header(IN, 3), 16, 1, 6)
    assert blk.run(5, data + 4096) == (OK, 4097)
    assert blk.get(data, 4096) == PATTERN


def test_chain_as_long_as_windows_sends(disk):
    with Blk(disk, size=1024) as blk:
        data = (PATTERN * 65)[:513 * 512]
        blk.write(0, data)
        back = blk.put(bytes(len(data) + 1))
        parts = [(blk.header(IN), 16, 0),
                 *cut(blk, back, len(data) + 1, [512] * 513 + [1], WRITE)]
        assert len(parts) == 515
        assert blk.run(blk.rings[0].chain(parts), back + len(data)) == (OK, len(data) + 1)
        assert blk.get(back, len(data)) == data
        status = blk.rings[0].indirect(parts, slot=1023)
        assert blk.run(status, back + len(data)) == (OK, len(data) + 1)


def test_chain_over_two_regions(any_blk):
    any_blk.write(3, PATTERN)
    head, data = any_blk.header(IN, 3, region=1), any_blk.put(bytes(4096))
    status = any_blk.status(region=1)
    parts = [(head, 16, 0), (data, 4096, WRITE), (status, 1, WRITE)]
    assert any_blk.run(any_blk.rings[0].chain(parts), status) == (OK, 4097)
    assert any_blk.get(data, 4096) == PATTERN


def test_buffer_across_adjacent_regions(disk):
    memory = Memory.adjacent(4 << 20, 4 << 20)
    with Blk(disk, memory=memory) as blk:
        blk.write(3, PATTERN)
        border = memory.regions[1].gpa
        status = blk.status()
        for at in (border - 1, border - 2048, border - 4095):
            memory.view(at, border - at)[:] = 0
            memory.view(border, 4096)[:] = 0
            parts = [(blk.header(IN, 3), 16, 0), (at, 4096, WRITE), (status, 1, WRITE)]
            assert blk.run(blk.rings[0].chain(parts), status) == (OK, 4097)
            assert blk.get(at, border - at) + blk.get(border, at + 4096 - border) == PATTERN


def test_header_and_table_across_adjacent_regions(disk):
    memory = Memory.adjacent(4 << 20, 4 << 20)
    with Blk(disk, memory=memory) as blk:
        blk.write(3, PATTERN)
        border = memory.regions[1].gpa
        header = struct.pack("<IIQ", IN, 0, 3)
        memory.view(border - 6, 6)[:] = list(header[:6])
        memory.view(border, 10)[:] = list(header[6:])
        data = blk.put(bytes(4097), region=1)
        parts = [(border - 6, 16, 0), (data, 4096, WRITE), (data + 4096, 1, WRITE)]
        assert blk.run(blk.rings[0].chain(parts), data + 4096) == (OK, 4097)
        assert blk.get(data, 4096) == PATTERN
