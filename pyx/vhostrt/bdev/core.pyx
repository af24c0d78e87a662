"""The block device layer: bdevs and channels as the control thread holds them."""
import asyncio
import uuid as uuid_module

from cython cimport unlikely
from libc.errno cimport ENOMEM
from libc.stdint cimport UINT64_MAX, uint32_t, uint64_t
from libc.stdlib cimport free
from libc.string cimport memset
from vhostrt.base.atomics cimport (load_acquire_u32, load_relaxed_u32, load_relaxed_u64,
                                   store_relaxed_u32, store_relaxed_u64, store_release_u32)
from vhostrt.base.check cimport dcheck
from vhostrt.base.histogram cimport Histogram, counted, histogram_index, histogram_t
from vhostrt.event.control cimport call_on, call_t
from vhostrt.event.trace cimport TRACE_BDEV, TRACE_POINTS, trace, trace_on, trace_text

from vhostrt.base.histogram import TICKS_MAX
from vhostrt.event import trace as tracing

cdef extern from "<errno.h>" nogil:
    int ECANCELED

cdef extern from "<stdlib.h>" nogil:
    void *aligned_alloc(size_t align, size_t size)

cdef enum:
    CACHE_LINE = 64
    COUNTERS = 3 * BDEV_TYPES + BDEV_ERRORS             # words of bdev_counters_t

TYPE_NAMES = ("read", "write", "flush", "unmap", "write_zeroes", "reset")
ERROR_NAMES = ("nomem", "aborted", "failed")            # in the order of BDEV_NOMEM ...

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


# Statistics, on the reactor

cdef void bdev_count_error(bdev_channel_t *channel, int rc) noexcept nogil:
    """Count a request that failed with -errno."""
    cdef uint32_t cause = BDEV_FAILED
    if rc == -ENOMEM:
        cause = BDEV_NOMEM
    elif rc == -ECANCELED:
        cause = BDEV_ABORTED
    counted(&channel.stats.counters.errors[cause], 1)


cdef inline void count_time(bdev_stats_t *stats, uint32_t type, uint64_t took,
                            uint64_t n) noexcept nogil:
    """Count n requests of one type that took so long each."""
    counted(&stats.counters.ticks[type], took * n)
    if took < stats.ticks_min[type]:
        store_relaxed_u64(&stats.ticks_min[type], took)
    if took > stats.ticks_max[type]:
        store_relaxed_u64(&stats.ticks_max[type], took)
    if unlikely(stats.histogram is not NULL and stats.histogram_types >> type & 1):
        counted(&stats.histogram.bucket[histogram_index(stats.histogram, took)], n)


cdef void bdev_settle(bdev_channel_t *channel, uint64_t start, uint64_t now) noexcept nogil:
    """Count the time, from ticks `start` to `now`, of the requests that bdev_submit did at once in
    between: an equal share for each, as nobody looked at the clock between them."""
    cdef bdev_stats_t *stats = &channel.stats
    cdef uint64_t n[BDEV_TYPES]
    cdef uint64_t total = 0
    cdef uint64_t share = now - start if now > start else 0     # clocks of two CPUs may differ
    cdef uint32_t i
    for i in range(<uint32_t>BDEV_TYPES):
        n[i] = stats.counters.ops[i] - stats.settled[i]
        total += n[i]
    if total == 0:
        return
    if total > 1:                       # a division takes as long as the rest of this
        share //= total
    for i in range(<uint32_t>BDEV_TYPES):
        if n[i]:
            stats.settled[i] += n[i]
            count_time(stats, i, share, n[i])


cdef void bdev_io_done(bdev_io_t *io, int rc, uint64_t now) noexcept nogil:
    """Called by a module, on the channel's reactor, when a request that it took (0) is done.

    now: ticks; one look at the clock does for all that one poll finds done.
    """
    cdef bdev_channel_t *channel = io.channel
    cdef bdev_stats_t *stats = &channel.stats
    dcheck(channel.inflight > 0)
    io.took = now - io.start if now > io.start else 0
    if unlikely(rc < 0):
        bdev_count_error(channel, rc)
    else:
        counted(&stats.counters.ops[io.type], 1)
        counted(&stats.counters.blocks[io.type], io.num_blocks)
        stats.settled[io.type] += 1
        count_time(stats, io.type, io.took, 1)
    if unlikely(trace_any(TRACE_BDEV)):
        trace(IO_DONE, io, 0, <uint64_t>rc, <uint64_t>channel)
    # Release, with the acquire in Channel.inflight: who sees 0 there may free the channel.
    store_release_u32(&channel.inflight, channel.inflight - 1)
    io.done(io, rc)


cdef void extremes_clear(bdev_stats_t *stats) noexcept nogil:
    cdef uint32_t i
    for i in range(<uint32_t>BDEV_TYPES):
        store_relaxed_u64(&stats.ticks_min[i], UINT64_MAX)
        store_relaxed_u64(&stats.ticks_max[i], 0)


cdef int clear_call(call_t *call) noexcept nogil:
    extremes_clear(&(<bdev_channel_t *>call.arg).stats)
    return 0


cdef struct keep_t:
    # What a histogram_call brings; the control thread's again after the answer.
    bdev_channel_t *channel
    histogram_t *histogram      # NULL: none is kept
    uint32_t types


cdef int histogram_call(call_t *call) noexcept nogil:
    cdef keep_t *keep = <keep_t *>call.arg
    keep.channel.stats.histogram_types = keep.types
    keep.channel.stats.histogram = keep.histogram
    return 0


# On the control thread

cdef class Totals:
    """Sums of what channels have counted, and the extremes of their times."""

    def __cinit__(self):
        memset(&self.s, 0, sizeof(bdev_stats_t))
        extremes_clear(&self.s)

    cdef void add(self, bdev_stats_t *stats) noexcept:
        """Add what is counted, and take the extremes along."""
        cdef uint64_t *to = <uint64_t *>&self.s.counters
        cdef uint64_t *of = <uint64_t *>&stats.counters
        cdef uint32_t i
        for i in range(<uint32_t>COUNTERS):
            to[i] += load_relaxed_u64(&of[i])
        for i in range(<uint32_t>BDEV_TYPES):
            self.s.ticks_min[i] = min(self.s.ticks_min[i], load_relaxed_u64(&stats.ticks_min[i]))
            self.s.ticks_max[i] = max(self.s.ticks_max[i], load_relaxed_u64(&stats.ticks_max[i]))

    cdef dict since(self, Totals base, str reset):
        """Return what was counted since the last reset; and with `reset` begin anew: with "all" the
        counters, with "error" those of errors."""
        cdef Totals told = Totals()
        cdef uint64_t *to = <uint64_t *>&told.s.counters
        cdef uint64_t *of = <uint64_t *>&base.s.counters
        cdef uint32_t i
        told.add(&self.s)
        for i in range(<uint32_t>COUNTERS):
            to[i] -= of[i]
        if reset == "all":
            base.s.counters = self.s.counters
        elif reset == "error":
            base.s.counters.errors = self.s.counters.errors
        return told.describe()

    def describe(self) -> dict:
        """Return {type name: {"ops", "blocks", "ticks", "ticks_min", "ticks_max"}} and, under
        "errors", {cause: count}.  The extremes are 0 when there were none."""
        cdef uint32_t i
        cdef bdev_stats_t *s = &self.s
        told = {}
        for i, name in enumerate(TYPE_NAMES):
            least = s.ticks_min[i]
            told[name] = {"ops": s.counters.ops[i], "blocks": s.counters.blocks[i],
                          "ticks": s.counters.ticks[i],
                          "ticks_min": 0 if least == UINT64_MAX else least,
                          "ticks_max": s.ticks_max[i]}
        told["errors"] = {name: s.counters.errors[<uint32_t>i]
                          for i, name in enumerate(ERROR_NAMES)}
        return told


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
        self.channels = set()
        self.gone = Totals()
        self.base = Totals()
        self.histogram_lock = asyncio.Lock()

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
        if self.histogram_gone is not None:
            channel.histogram = self.histogram_gone.alike()
            channel.c.stats.histogram = channel.histogram.h
            channel.c.stats.histogram_types = self.histogram_types
        self.channels.add(channel)
        if trace_on(IOCH_CREATE):
            trace(IOCH_CREATE, channel.c, 0, trace_text(self.name.encode()), lcore)
        return channel

    async def open_channel(self, uint32_t lcore, bint writable=True):
        """Return a Channel to be used on reactor `lcore` only; OSError when it cannot be had."""
        return self.channel_new(lcore, NULL, writable)

    async def close_channel(self, Channel channel not None):
        """Give a channel back, once.  No request may be in flight on it."""
        self.retire(channel)

    cdef int retire(self, Channel channel) except -1:
        """Keep what the channel has counted.  The reactor does not use it any more."""
        if channel not in self.channels:
            raise ValueError(f"the channel is not one of bdev {self.name} that is open")
        if channel.inflight:
            raise RuntimeError(f"bdev {self.name}: {channel.inflight} requests are in flight")
        self.channels.remove(channel)
        self.gone.add(&channel.c.stats)
        self.retire_histogram(channel.histogram)
        return 0

    cdef int retire_histogram(self, Histogram histogram) except -1:
        if (self.histogram_gone is not None and histogram is not None
                and self.histogram_gone.is_like(histogram)):
            self.histogram_gone.add(histogram)
        return 0

    cdef Totals counted_so_far(self):
        """Sum up what its channels have counted since it was made."""
        cdef Totals totals = Totals()
        cdef Channel channel
        totals.add(&self.gone.s)
        for channel in self.channels:
            totals.add(&channel.c.stats)
        return totals

    def totals(self) -> dict:
        """Return what its channels have counted since it was made; see Totals.describe.  It never
        becomes less."""
        return self.counted_so_far().describe()

    def inflight(self) -> int:
        """Return how many requests are under way."""
        return sum(channel.inflight for channel in self.channels)

    async def iostat(self, str reset="none", bint per_channel=False):
        """Return what was counted since the last reset, as totals does; or a list of (channel,
        that) of the open channels.

        reset: "none", or what begins anew behind it: "all", "error" (counters of errors), "maxmin"
        (extremes of times).
        """
        cdef Channel channel
        if per_channel:
            told = [(channel, channel.since(reset)) for channel in self.channels]
        else:
            told = self.counted_so_far().since(self.base, reset)
        if reset in ("all", "maxmin"):
            if not per_channel:
                extremes_clear(&self.gone.s)
            for channel in tuple(self.channels):
                await call_on(channel.c.lcore, clear_call, channel.c, channel)
        return told

    async def keep_histogram(self, types, granularity=7, least=0, most=TICKS_MAX):
        """Keep a histogram of the times of requests from now on, or with no types none.

        types: names of TYPE_NAMES; the rest as Histogram takes it.  What there is goes on when
        nothing changes; else all counts are 0 at first.  ValueError names what cannot be.
        """
        cdef uint32_t mask = 0
        cdef Channel channel
        cdef Histogram empty = Histogram(granularity, least, most) if types else None
        for name in types:
            mask |= 1 << <uint32_t>TYPE_NAMES.index(name)
        async with self.histogram_lock:
            if (mask and self.histogram_gone is not None and mask == self.histogram_types
                    and empty.is_like(self.histogram_gone)):
                return
            # Channels that are opened from here on keep one by themselves.
            self.histogram_gone, self.histogram_types = empty, mask
            try:
                for channel in tuple(self.channels):
                    await self.switch_histogram(channel)
            except BaseException:
                self.histogram_types = 0        # what some have is not what was asked for
                raise

    async def switch_histogram(self, Channel channel not None):
        """Have the reactor of a channel count in a new histogram, or in none."""
        cdef Keep keep = Keep.__new__(Keep)
        keep.c.channel = channel.c
        keep.c.types = self.histogram_types
        if self.histogram_gone is not None:
            keep.histogram = self.histogram_gone.alike()
            keep.c.histogram = keep.histogram.h
        await call_on(channel.c.lcore, histogram_call, &keep.c, (channel, keep))
        channel.histogram = keep.histogram
        if channel not in self.channels:        # it has been closed meanwhile
            self.retire_histogram(keep.histogram)

    def histogram(self):
        """Return a Histogram of the times so far, or None when none is kept."""
        cdef Histogram found
        cdef Channel channel
        if self.histogram_gone is None:
            return None
        found = self.histogram_gone.alike()
        found.add(self.histogram_gone)
        for channel in self.channels:
            if channel.histogram is not None and found.is_like(channel.histogram):
                found.add(channel.histogram)
        return found

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


cdef class Keep:
    """The C side of a histogram_call, and what it points to; alive until its answer."""
    cdef keep_t c
    cdef Histogram histogram


cdef class Channel:
    """A way to one bdev for one reactor.  Made by Bdev.open_channel, ended by close_channel."""

    def __cinit__(self):
        self.c = <bdev_channel_t *>zalloc_lines(sizeof(bdev_channel_t))
        extremes_clear(&self.c.stats)
        self.thread_id = 0
        self.base = Totals()

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

    cdef Totals counted_so_far(self):
        cdef Totals totals = Totals()
        totals.add(&self.c.stats)
        return totals

    def stats(self) -> dict:
        """Return what was counted since the channel was opened; see Totals.describe."""
        return self.counted_so_far().describe()

    def since(self, str reset) -> dict:
        """Return what was counted since the last reset; see Bdev.iostat."""
        return self.counted_so_far().since(self.base, reset)
