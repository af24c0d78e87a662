"""RPC methods of what block devices have counted: requests, data, times and their histograms."""
import binascii
import errno
import struct
from typing import Annotated, Literal

from msgspec import Meta

from vhostrt.base import ticks
from vhostrt.bdev import registry
from vhostrt.bdev.core import TYPE_NAMES, Bdev
from vhostrt.rpc.method import Dispatcher, Name, Parameters, method, refuse, refusing

NS = 1_000_000_000
US = 1_000_000
BORDERS_MAX = 256
# SPDK's words for the types of requests, in its order, then ours: its layer counts no others.
WORDS = {"read": ("bytes_read", "num_read_ops"), "write": ("bytes_written", "num_write_ops"),
         "unmap": ("bytes_unmapped", "num_unmap_ops"), "copy": ("bytes_copied", "num_copy_ops")}
MORE_WORDS = {"flush": ("bytes_flushed", "num_flush_ops"),
              "write_zeroes": ("bytes_zeroed", "num_write_zeroes_ops"),
              "reset": ("bytes_reset", "num_reset_ops")}
NOTHING = dict.fromkeys(("ops", "blocks", "ticks", "ticks_min", "ticks_max"), 0)

ResetMode = Literal["none", "all", "maxmin", "error"]
Names = Annotated[list[Name], Meta(max_length=1024, description="an array of up to 1024 names")]
Borders = Annotated[list[Annotated[int, Meta(ge=1, le=2**40)]],
                    Meta(min_length=1, max_length=BORDERS_MAX,
                         description=f"an array of 1 to {BORDERS_MAX} numbers of microseconds")]
Granularity = Annotated[int, Meta(ge=1, le=10, description="an integer from 1 to 10")]
Nanoseconds = Annotated[int, Meta(ge=0, le=2**53, description="a number of nanoseconds")]


class GetIostat(Parameters):
    """name, names: of the bdevs to tell of; all without.  per_channel: of each channel of the one.

    reset_mode: what begins anew behind the answer: "all"; "maxmin", the extremes of times; "error".
    """

    name: Name | None = None
    names: Names | None = None
    per_channel: bool = False
    reset_mode: ResetMode = "none"


class ResetIostat(Parameters):
    """name: of the bdev; all without.  mode: what begins anew, as for bdev_get_iostat."""

    name: Name | None = None
    mode: ResetMode = "all"


class EnableHistogram(Parameters):
    """name: of the bdev.  enable: whether a histogram of its times is kept from now on.

    opc: the only type of request that is counted, a name of bdev_get_bdevs.  granularity: each
    power of two of times is divided into 2^granularity buckets.  min_nsec: shorter times are in one
    bucket.  max_nsec: longer times are in one bucket.
    """

    name: Name
    enable: bool
    opc: Name | None = None
    granularity: Granularity = 7
    min_nsec: Nanoseconds = 1000
    max_nsec: Nanoseconds = 120 * NS


class Named(Parameters):
    """name: of the bdev, or its uuid."""

    name: Name


class GetBorders(Parameters):
    """name: of the bdev.  borders: microseconds, ascending."""

    name: Name
    borders: Borders


@method("bdev_get_iostat", aliases=("get_bdevs_iostat",))
async def bdev_get_iostat(rpc: Dispatcher, params: GetIostat) -> dict:
    """Return what was counted since the last reset of all bdevs, of some, or of one's channels."""
    if params.name is not None and params.names is not None:
        raise refuse("'name' and 'names' exclude each other")
    names = params.names if params.name is None else [params.name]
    if params.per_channel and (names is None or len(names) != 1):
        raise refuse("'per_channel' needs the name of one bdev")
    bdevs = registry.bdevs() if names is None else [registry.get(name) for name in names]
    told = {"tick_rate": ticks.hz(), "ticks": ticks.now()}
    if params.per_channel:
        channels = await bdevs[0].iostat(params.reset_mode, True)
        channels.sort(key=lambda pair: pair[0].thread_id)
        return told | {"name": bdevs[0].name, "channels": [
            {"thread_id": channel.thread_id, "lcore": channel.lcore,
             **describe(counted, bdevs[0].block_size)} for channel, counted in channels]}
    return told | {"bdevs": [{"name": bdev.name, **describe(await bdev.iostat(params.reset_mode),
                                                            bdev.block_size)} for bdev in bdevs]}


@method("bdev_reset_iostat")
async def bdev_reset_iostat(rpc: Dispatcher, params: ResetIostat) -> bool:
    """Have the counters of bdev_get_iostat begin anew, of one bdev or of all."""
    for bdev in registry.bdevs() if params.name is None else [registry.get(params.name)]:
        await bdev.iostat(params.mode)
    return True


@method("bdev_enable_histogram", aliases=("enable_bdev_histogram",))
async def bdev_enable_histogram(rpc: Dispatcher, params: EnableHistogram) -> bool:
    """Keep a histogram of the times that requests of a bdev take, or keep it no more."""
    bdev = registry.get(params.name)
    types = TYPE_NAMES if params.opc is None else (params.opc,)
    if not set(types) <= set(TYPE_NAMES):
        raise refuse(f"'opc' must be one of {', '.join(TYPE_NAMES)}, not {params.opc}")
    if params.min_nsec >= params.max_nsec:
        raise refuse(f"'min_nsec', {params.min_nsec}, must be below 'max_nsec', {params.max_nsec}")
    with refusing():
        least, most = (ns * ticks.hz() // NS for ns in (params.min_nsec, params.max_nsec))
        await bdev.keep_histogram(types if params.enable else (), params.granularity, least,
                                  max(most, least + 1))
    return True


@method("bdev_get_histogram", aliases=("get_bdev_histogram",))
async def bdev_get_histogram(rpc: Dispatcher, params: Named) -> dict:
    """Return the histogram of a bdev's times.

    The counts of its buckets are 64-bit words of this machine, in base64, from the first bucket of
    range min_range to the last of max_range.
    """
    found = histogram_of(registry.get(params.name))
    counts = found.counts()
    words = struct.pack(f"={len(counts)}Q", *counts)
    return {"histogram": binascii.b2a_base64(words, newline=False).decode(),
            "granularity": found.granularity, "min_range": found.min_range,
            "max_range": found.max_range, "tsc_rate": ticks.hz()}


@method("bdev_get_histogram_borders")
async def bdev_get_histogram_borders(rpc: Dispatcher, params: GetBorders) -> dict:
    """Return how many requests of a bdev took less than each border, and how many there were."""
    if sorted(set(params.borders)) != params.borders:
        raise refuse("'borders' must be ascending")
    found = histogram_of(registry.get(params.name))
    edges = found.edges([border * ticks.hz() / US for border in params.borders])
    return {"borders_count": found.cumulative(edges)}


def histogram_of(bdev: Bdev):
    found = bdev.histogram()
    if found is None:
        raise OSError(errno.ENODATA, f"bdev {bdev.name} keeps no histogram: "
                                     "bdev_enable_histogram turns it on")
    return found


def describe(counted: dict, block_size: int) -> dict:
    """Return the counters of a bdev or channel in SPDK's words, and those that it has not."""
    told = {}
    for words in (WORDS, MORE_WORDS):
        for name, (data, ops) in words.items():
            each = counted.get(name, NOTHING)
            told |= {data: each["blocks"] * block_size, ops: each["ops"]}
        for name in words:
            each = counted.get(name, NOTHING)
            told |= {f"{name}_latency_ticks": each["ticks"],
                     f"max_{name}_latency_ticks": each["ticks_max"],
                     f"min_{name}_latency_ticks": each["ticks_min"]}
    told["io_error"] = {name: count for name, count in counted["errors"].items() if count}
    return told
