"""A request cut into pieces by a kernel that moves as much as it likes each time."""
import random

from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memcpy
from vhostrt.bdev.core cimport (BDEV_WRITE, BDEV_WRITE_ZEROES, bdev_channel_t, bdev_io_t, bdev_t,
                                iovec)
from vhostrt.bdev.store cimport (STORE_IOVS, STORE_PIECE, STORE_ZEROES, piece_t, progress_of,
                                 store_advance, store_begin, store_piece, store_t)


cdef class Request:
    """A request over iovs of given lengths, and where its bytes should go."""

    cdef bdev_t bdev
    cdef bdev_channel_t channel
    cdef store_t store
    cdef bdev_io_t io
    cdef iovec iovs[3000]

    def __init__(self, kind, lengths, unsigned char[::1] data):
        cdef size_t at = 0
        self.bdev.block_size = 512
        self.channel.bdev = &self.bdev
        self.io.channel = &self.channel
        self.io.type = kind
        self.io.num_blocks = sum(lengths) // 512
        self.io.iovs = self.iovs
        for i, length in enumerate(lengths):
            self.iovs[<uint32_t>i].iov_base = &data[0] + at
            self.iovs[<uint32_t>i].iov_len = length
            at += length
            self.io.iov_count += 1
        store_begin(&self.io)


def lengths_of(rng, total):
    """Split total into lengths, some of them 0."""
    lengths = []
    while total:
        n = min(total, rng.choice((0, 1, 7, 512, 4096, rng.randrange(1, 9000))))
        lengths.append(n)
        total -= n
    return lengths


cdef size_t move(Request r, char *target, size_t budget):
    """Do what pwritev does with one piece, up to `budget` bytes; return how many bytes."""
    cdef piece_t piece
    cdef size_t moved = 0
    cdef size_t n
    cdef uint32_t i
    store_piece(&r.io, &r.store, &piece)
    assert 0 < piece.iov_count <= STORE_IOVS
    for i in range(piece.iov_count):
        n = min(piece.iovs[i].iov_len, budget - moved)
        memcpy(target + progress_of(&r.io).done + moved, piece.iovs[i].iov_base, n)
        moved += n
    return moved


def test_any_short_transfers_move_every_byte_once():
    cdef size_t moved
    rng = random.Random(7)
    for _ in range(200):
        total = 512 * rng.randrange(1, 200)
        data = bytearray(rng.randbytes(total))
        target = bytearray(total)
        lengths = lengths_of(rng, total)
        r = Request(BDEV_WRITE, lengths, data)
        done = False
        while not done:
            moved = move(r, target, rng.choice((1, 13, 511, 4096, total)))
            if moved == 0:
                # Only empty iovs at the front; a kernel answers 0 to that as well.
                assert lengths[0] == 0 and (<Request>r).io.iov_count > STORE_IOVS
                break
            done = store_advance(&(<Request>r).io, moved)
        assert target == data
        assert progress_of(&(<Request>r).io).done == total


def test_more_iovs_than_a_call_takes_go_in_several():
    data = bytearray(random.Random(1).randbytes(2560 * 512))
    target = bytearray(len(data))
    r = Request(BDEV_WRITE, [512] * 2560, data)
    calls = 0
    done = False
    while not done:
        done = store_advance(&(<Request>r).io, move(r, target, len(data)))
        calls += 1
    assert calls == 3
    assert target == data


def test_an_iov_longer_than_a_call_moves_goes_in_pieces():
    cdef piece_t piece
    data = bytearray(512)
    r = Request(BDEV_WRITE, [512], data)
    r.io.num_blocks = (<uint64_t>5 << 30) // 512
    r.iovs[0].iov_len = <size_t>5 << 30
    store_begin(&r.io)
    for i in range(5):
        store_piece(&r.io, &r.store, &piece)
        assert piece.iov_count == 1
        assert piece.iovs[0].iov_len == STORE_PIECE
        assert store_advance(&r.io, STORE_PIECE) == (i == 4)


def test_zeroes_go_in_pieces_of_the_page_of_zeroes():
    cdef piece_t piece
    data = bytearray(512)
    r = Request(BDEV_WRITE_ZEROES, [], data)
    r.store.zeroes = &r.store
    r.io.num_blocks = (2 * STORE_ZEROES + 512) // 512
    store_begin(&r.io)
    sizes = []
    done = False
    while not done:
        store_piece(&r.io, &r.store, &piece)
        assert piece.iovs[0].iov_base == &r.store
        sizes.append(piece.iovs[0].iov_len)
        done = store_advance(&r.io, piece.iovs[0].iov_len)
    assert sizes == [STORE_ZEROES, STORE_ZEROES, 512]
