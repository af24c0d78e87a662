"""The block device layer: bdevs and channels as the control thread holds them."""
import uuid as uuid_module

from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport free
from libc.string cimport memset
from vhostrt.base.atomics cimport (load_acquire_u32, load_relaxed_u32, load_relaxed_u64,
                                   store_relaxed_u32, store_relaxed_u64)
from vhostrt.event.trace cimport TRACE_BDEV, TRACE_POINTS, trace, trace_on, trace_text

from vhostrt.event import trace as tracing

cdef extern from "<stdlib.h>" nogil:
    void *aligned_alloc(size_t align, size_t size)

cdef enum:
    CACHE_LINE = 64

TYPE_NAMES = ("read", "write", "flush", "unmap", "write_zeroes", "reset")

cdef enum:
    IO_START = TRACE_BDEV * TRACE_POINTS
    IO_DONE
    IOCH_CREATE
    IOCH_DESTROY

tracing.register("bdev", TRACE_BDEV, [
    tracing.Point(0, "BDEV_IO_START", (("type", "|".join(TYPE_NAMES)), ("offset", "int"),
                                       ("channel", "hex")), "bdev_io", "begin", "blocks"),
    tracing.Point(1, "BDEV_IO_DONE", (("rc", "signed"), ("channel", "hex")), "bdev_io", "end"),
    tracing.Point(2, "BDEV_IOCH_CREATE", (("bdev", "text"), ("lcore", "int")), "channel", "begin"),
    tracing.Point(3, "BDEV_IOCH_DESTROY", (("lcore", "int"),), "channel", "end"),
])


cdef void *zalloc_lines(size_t size) except NULL:
    """Zeroed memory in whole cache lines; MemoryError when there is none."""
    cdef size_t whole = (size + CACHE_LINE - 1) & ~<size_t>(CACHE_LINE - 1)
    cdef void *p = aligned_alloc(CACHE_LINE, whole)
    if p is NULL:
        raise MemoryError
    memset(p, 0, whole)
    return p


cdef int bdev_submit_traced(bdev_channel_t *channel, bdev_io_t *io) noexcept nogil:
    """Hand a request to the module, as bdev_submit does, and trace it."""
    cdef int rc
    trace(IO_START, io, <uint32_t>io.num_blocks, io.type, io.offset_blocks, <uint64_t>channel)
    rc = channel.submit(channel, io)
    if rc != 0:                         # else the request is not ours any more
        trace(IO_DONE, io, 0, <uint64_t>min(rc, 0), <uint64_t>channel)
    return rc


cdef void bdev_trace_done(bdev_io_t *io, int rc) noexcept nogil:
    trace(IO_DONE, io, 0, <uint64_t>rc, <uint64_t>io.channel)


cdef class Bdev:
    """A block device.  Subclasses are the modules: __init__ calls setup; open_channel and
    close_channel are overridden when channels of one reactor share something, and close when the
    bdev owns more than the base does.

    name: str, unique among bdevs.  uuid: str or None for a random one.  product_name: str.
    Threads: the control thread.  Source: bdev_get_bdevs.
    """

    def __cinit__(self, *args, **kwargs):
        self.b = <bdev_t *>zalloc_lines(sizeof(bdev_t))

    def __init__(self, str name not None, str product_name not None, uuid=None):
        if not name or len(name) > 255 or "/" in name or not name.isprintable():
            raise ValueError(f"bdev name {name!r} is not 1 to 255 printable characters without '/'")
        self.name = name
        self.product_name = product_name
        try:
            self.uuid = str(uuid_module.UUID(uuid) if uuid is not None else uuid_module.uuid4())
        except (ValueError, AttributeError, TypeError):
            raise ValueError(f"uuid {uuid!r} is not a UUID") from None
        self.driver_specific = {}
        self.hints = {}

    def __dealloc__(self):
        free(self.b)

    cdef int setup(self, uint64_t num_blocks, uint32_t block_size, uint32_t types,
                   bdev_submit_fn submit) except -1:
        """Set the geometry and the way in; ValueError names what is wrong with the geometry."""
        if block_size < 512 or block_size > 65536 or block_size & (block_size - 1):
            raise ValueError(f"block size {block_size} must be a power of two from 512 to 65536")
        if num_blocks == 0 or num_blocks > (<uint64_t>1 << 62) // block_size:
            raise ValueError(f"a bdev of {num_blocks} blocks of {block_size} bytes cannot be made")
        self.b.num_blocks = num_blocks
        self.b.block_size = block_size
        self.b.types = types
        self.submit = submit
        return 0

    cdef int set_size(self, uint64_t num_blocks) except -1:
        """Have another size from the next request on; ValueError when no bdev has it."""
        if num_blocks == 0 or num_blocks > (<uint64_t>1 << 62) // self.b.block_size:
            raise ValueError(f"bdev {self.name} cannot have {num_blocks} blocks of "
                             f"{self.b.block_size} bytes")
        store_relaxed_u64(&self.b.num_blocks, num_blocks)
        return 0

    cdef Channel channel_new(self, uint32_t lcore, void *ctx, bint writable):
        """A channel for one reactor; `writable` False leaves the modifying types out."""
        cdef Channel channel = Channel.__new__(Channel)
        channel.bdev = self
        channel.c.bdev = self.b
        channel.c.submit = self.submit
        channel.c.ctx = ctx
        channel.c.lcore = lcore
        channel.c.types = self.b.types
        if self.b.read_only or not writable:
            channel.c.types &= ~<uint32_t>BDEV_MODIFYING
        if trace_on(IOCH_CREATE):
            trace(IOCH_CREATE, channel.c, 0, trace_text(self.name.encode()), lcore)
        return channel

    async def open_channel(self, uint32_t lcore, bint writable=True):
        """Return a Channel to be used on reactor `lcore` only; OSError when it cannot be had."""
        return self.channel_new(lcore, NULL, writable)

    async def close_channel(self, Channel channel not None):
        """Give a channel back, once.  No request may be in flight on it."""
        self.check_idle(channel)

    cdef int check_idle(self, Channel channel) except -1:
        if channel.bdev is not self:
            raise ValueError(f"the channel is not one of bdev {self.name}")
        if channel.inflight:
            raise RuntimeError(f"bdev {self.name}: {channel.inflight} requests are in flight")
        return 0

    async def close(self):
        """Free what the bdev holds.  Every channel has been closed before."""

    def mark_removed(self):
        """From now on every submit on every channel fails with -ENODEV."""
        store_relaxed_u32(&self.b.removed, 1)

    @property
    def num_blocks(self) -> int:
        return load_relaxed_u64(&self.b.num_blocks)

    @property
    def block_size(self) -> int:
        """Bytes of one block."""
        return self.b.block_size

    @property
    def read_only(self) -> bool:
        return bool(self.b.read_only)

    @property
    def write_cache(self) -> bool:
        """True when written data is volatile until a flush."""
        return bool(self.b.write_cache)

    @property
    def removed(self) -> bool:
        return bool(load_relaxed_u32(&self.b.removed))

    @property
    def io_types(self) -> frozenset:
        """The names of what it can do: of TYPE_NAMES."""
        return frozenset(n for i, n in enumerate(TYPE_NAMES) if self.b.types >> i & 1)


cdef class Channel:
    """A way to one bdev for one reactor.  Made by Bdev.open_channel, ended by close_channel."""

    def __cinit__(self):
        self.c = <bdev_channel_t *>zalloc_lines(sizeof(bdev_channel_t))

    def __dealloc__(self):
        if self.c is not NULL:
            trace(IOCH_DESTROY, self.c, 0, self.c.lcore)
        free(self.c)

    @property
    def name(self) -> str:
        """As thread_get_io_channels shows it."""
        return f"bdev_{self.bdev.name}"

    @property
    def lcore(self) -> int:
        return self.c.lcore

    @property
    def inflight(self) -> int:
        """Requests submitted and not done; exact only when the reactor is not submitting."""
        return load_acquire_u32(&self.c.inflight)

    def stats(self) -> dict:
        """Return {type: (requests, blocks)} and "failed", counted since the channel was opened."""
        cdef int i
        out = {name: (load_relaxed_u64(&self.c.stats.requests[i]),
                      load_relaxed_u64(&self.c.stats.blocks[i]))
               for i, name in enumerate(TYPE_NAMES)}
        out["failed"] = load_relaxed_u64(&self.c.stats.failed)
        return out
