"""What the file-backed modules have in common: a request as a row of reads or writes.

A read or write may be cut short by the kernel, and a write of zeroes without the help of the file
system goes in pieces; both go on at the byte where they stopped.  The submitter's iovs are never
changed: what is left of the iov where it stopped is one plain piece, then the whole rest follows.

Threads:  any; a request is looked at by one thread at a time.
"""
from libc.stdint cimport uint32_t, uint64_t
from vhostrt.bdev.core cimport BDEV_WRITE_ZEROES, Bdev, bdev_io_t, bdev_submit_fn, iovec

cdef enum:
    STORE_IOVS = 1024           # UIO_MAXIOV: iovs of one system call
    STORE_PIECE = 1 << 30       # bytes of one plain piece: less than a system call's limit
    STORE_ZEROES = 1 << 20      # bytes of the page of zeroes below

cdef struct store_t:
    int fd
    bint offers_punch           # unmap by FALLOC_FL_PUNCH_HOLE
    uint32_t zero_by_write      # the file system refused FALLOC_FL_ZERO_RANGE; relaxed, any thread
    void *zeroes                # STORE_ZEROES bytes, read-only, shared by all

cdef struct progress_t:         # in bdev_io_t.module
    uint64_t done               # bytes
    uint64_t size               # bytes
    uint64_t offset             # bytes, of the request
    uint64_t iov                # the iov that byte `done` is in ...
    uint64_t iov_done           # ... and how many of its bytes are done
    uint64_t state              # the module's own

cdef struct piece_t:
    iovec one                   # the piece, when iovs points to it
    iovec *iovs
    uint32_t iov_count


cdef inline progress_t *progress_of(bdev_io_t *io) noexcept nogil:
    return <progress_t *>io.module


cdef inline void store_begin(bdev_io_t *io) noexcept nogil:
    """Prepare a request that bdev_submit has checked: no product or sum here can overflow."""
    cdef progress_t *p = progress_of(io)
    p.offset = io.offset_blocks * io.channel.bdev.block_size
    p.size = io.num_blocks * io.channel.bdev.block_size
    p.done = 0
    p.iov = 0
    p.iov_done = 0
    p.state = 0


cdef inline void store_piece(bdev_io_t *io, store_t *store, piece_t *piece) noexcept nogil:
    """Say what to read or write next, at byte p.offset + p.done.  Something is left to do."""
    cdef progress_t *p = progress_of(io)
    cdef iovec *iov
    if io.type == BDEV_WRITE_ZEROES:
        piece.one.iov_base = store.zeroes
        piece.one.iov_len = min(p.size - p.done, <uint64_t>STORE_ZEROES)
        piece.iovs = &piece.one
        piece.iov_count = 1
        return
    iov = &io.iovs[p.iov]
    if p.iov_done == 0 and iov.iov_len <= STORE_PIECE:
        piece.iovs = iov
        piece.iov_count = min(io.iov_count - <uint32_t>p.iov, <uint32_t>STORE_IOVS)
        return
    piece.one.iov_base = <char *>iov.iov_base + p.iov_done
    piece.one.iov_len = min(iov.iov_len - p.iov_done, <size_t>STORE_PIECE)
    piece.iovs = &piece.one
    piece.iov_count = 1


cdef inline bint store_advance(bdev_io_t *io, uint64_t bytes) noexcept nogil:
    """Take note of what a call has moved; True when nothing is left."""
    cdef progress_t *p = progress_of(io)
    p.done += bytes
    if p.done >= p.size:
        return True
    if io.type == BDEV_WRITE_ZEROES:
        return False
    p.iov_done += bytes
    # Ends: less than the sum of all iov lengths is done.  Empty iovs are stepped over.
    while p.iov_done >= io.iovs[p.iov].iov_len:
        p.iov_done -= io.iovs[p.iov].iov_len
        p.iov += 1
    return False


cdef class FileBdev(Bdev):
    cdef store_t *store                 # owned
    cdef readonly str filename
    cdef int open_with(self, uint32_t block_size, bint readonly, bdev_submit_fn submit) except -1
