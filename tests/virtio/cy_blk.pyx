"""vhostrt.virtio.blk: header, data and status of a request, however the driver cut them up."""
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from libc.stdint cimport uint8_t, uint32_t
from libc.string cimport memset
from vhostrt.bdev.core cimport iovec
from vhostrt.virtio.blk cimport blk_header_t, blk_take_header, blk_take_status
from vhostrt.virtio.chain cimport chain_t

cdef enum:
    IOVS = 64
    BYTES = 4096


cdef class Chain:
    """A chain as chain_read leaves it; its buffers lie one after the other in `memory`."""
    cdef chain_t c
    cdef iovec iovs[IOVS]
    cdef uint8_t memory[BYTES]

    def __init__(self, readable, writable):
        cdef uint32_t i
        cdef size_t at = 0
        memset(&self.c, 0, sizeof(self.c))
        self.c.iovs = self.iovs
        for i, length in enumerate([*readable, *writable]):
            self.iovs[i].iov_base = &self.memory[at]
            self.iovs[i].iov_len = length
            at += length
        self.c.readable = len(readable)
        self.c.count = len(readable) + len(writable)
        self.c.readable_bytes = sum(readable)
        self.c.writable_bytes = sum(writable)

    def fill(self, bytes raw):
        for i in range(len(raw)):
            self.memory[i] = raw[i]

    def header(self):
        """Return (index of the data's first iov, the header's bytes); -1 when it is refused."""
        cdef blk_header_t header
        cdef int first = blk_take_header(&self.c, &header)
        if first < 0:
            return -1
        return first, (<uint8_t *>&header)[:sizeof(header)]

    def status(self):
        """Return the offset of the status byte in memory, or None."""
        cdef uint8_t *status = blk_take_status(&self.c)
        if status is NULL:
            return None
        return status - &self.memory[0]

    def spans(self, int first, int end):
        """Return the (offset, length) of iovs."""
        return [(<uint8_t *>self.iovs[i].iov_base - &self.memory[0], self.iovs[i].iov_len)
                for i in range(first, end)]


def offsets(spans):
    """Return every byte's offset, in order; no span may be empty."""
    assert all(n > 0 for _, n in spans)
    return [at + i for at, n in spans for i in range(n)]


def test_header_and_status_alone():
    cdef Chain chain = Chain([16], [512, 1])
    chain.fill(struct.pack("<IIQ", 4, 77, 2**60 + 5))
    assert chain.header() == (1, struct.pack("<IIQ", 4, 77, 2**60 + 5))
    assert chain.status() == 16 + 512
    assert (chain.c.count, chain.c.writable_bytes) == (2, 512)


@pytest.mark.parametrize("readable", [[], [15], [1] * 15, [8, 7]], ids=str)
def test_a_header_too_short(readable):
    assert Chain(readable, [1]).header() == -1


def test_no_room_for_a_status():
    assert Chain([16], []).status() is None
    assert Chain([16, 512], []).status() is None


LENGTHS = st.lists(st.integers(1, 40), max_size=20)


@given(LENGTHS, LENGTHS)
@settings(max_examples=300, deadline=None, database=None)
def test_any_cut_like_the_model(readable, writable):
    """The header is the first 16 readable bytes, the status the last writable one."""
    cdef Chain chain = Chain(readable, writable)
    total = sum(readable)
    raw = bytes(i * 37 % 256 for i in range(total + sum(writable)))
    chain.fill(raw)
    header = chain.header()
    if total < 16:
        assert header == -1
    else:
        first, content = header
        assert content == raw[:16]
        assert offsets(chain.spans(first, len(readable))) == list(range(16, total))
    status = chain.status()
    if not writable:
        assert status is None and chain.c.count == len(readable)
    else:
        assert status == len(raw) - 1
        left = offsets(chain.spans(len(readable), <int>chain.c.count))
        assert left == list(range(total, len(raw) - 1))
        assert chain.c.writable_bytes == <uint32_t>len(left)
    # Nothing of the memory was touched.
    assert chain.memory[:len(raw)] == raw
