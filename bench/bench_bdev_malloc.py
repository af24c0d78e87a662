"""vhostrt.bdev.malloc: reads of 4 KiB, from a cache's worth of memory and from more."""
import asyncio
import functools

import pytest

from bench.cy_bdev_channel import reads
from vhostrt.bdev.malloc import MallocBdev


@pytest.mark.parametrize("span", [64 << 10, 256 << 20], ids=["cached", "streamed"])
def bench_bdev_malloc(per_op, span):
    bdev = MallocBdev("malloc", (256 << 20) // 512)
    channel = asyncio.run(bdev.open_channel(0))
    per_op(functools.partial(reads, channel, span), 200_000)
    asyncio.run(bdev.close())
