"""vhostrt.bdev.null: a read of 4 KiB, which is what the layer itself costs."""
import asyncio
import functools

from bench.cy_bdev_channel import reads
from vhostrt.bdev.null import NullBdev


def bench_bdev_null(per_op):
    channel = asyncio.run(NullBdev("null", 1 << 20).open_channel(0))
    per_op(functools.partial(reads, channel, 1 << 20), 1_000_000)
