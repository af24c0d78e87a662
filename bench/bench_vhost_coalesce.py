"""vhostrt.vhost.coalesce: what interrupts cost, and what it saves to put them off.

A driver that sleeps until it is called reads 4 KiB from a disk whose every read takes 80 us, with
so many reads in flight, on a CPU beside the reactor's; answers come 2 us apart at the least. All
three ways run in alternation.
"""
import asyncio
import os
import statistics

import pytest
from tests.lib.reactors import reactors

from bench.cy_coalesce import Driver, SteadyBdev
from vhostrt.event.thread import Thread
from vhostrt.vhost.blk import BlkQueue

LATENCY_US = 80
GAP_US = 2                              # between two answers: 500 000 reads a second at most
ROUNDS = 9
RUN_US = 20_000                         # of one run, roughly
MODES = {"off": ("off", 0, 60000), "rate": ("rate", 50, 10000), "auto": ("auto", 0, 60000)}


async def measure(depth):
    """Return way -> [(reads a second, sleeps a read, interrupts a read)]."""
    found = {mode: [] for mode in MODES}
    async with reactors(1, "spin"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
        bdev, driver = SteadyBdev(LATENCY_US, GAP_US), Driver()
        channel = await bdev.open_channel(0)
        queue = BlkQueue(0, 1024, Thread("steady.vq0"), print, b"")
        await queue.start(0, driver.view(), driver.addresses, 0,
                          {"kick": -1, "call": driver.call_fd, "err": -1}, False, True, channel)
        requests = max(RUN_US // LATENCY_US * depth, 100)
        for _ in range(ROUNDS):
            for mode, words in MODES.items():
                await queue.set_coalescing(*words)
                before = queue.stats()["calls"]
                us, sleeps = driver.run(depth, requests)
                calls = queue.stats()["calls"] - before
                found[mode].append((requests * 1e6 / us, sleeps / requests, calls / requests))
        await queue.stop()
        await bdev.end(0)
        await bdev.close_channel(channel)
        await bdev.close()
    return found


@pytest.mark.parametrize("depth", [1, 4, 32, 128])
def bench_coalescing(benchmark, note, depth):
    found = benchmark.pedantic(lambda: asyncio.run(measure(depth)), rounds=1)
    for mode, runs in found.items():
        rate, sleeps, calls = (statistics.median(column) for column in zip(*runs, strict=True))
        # In alternation: each run beside the one of "off" in its own round.
        beside = statistics.median(run[0] / other[0] for run, other in
                                   zip(runs, found["off"], strict=True))
        benchmark.extra_info[mode] = {"per_second": rate, "sleeps": sleeps, "calls": calls,
                                      "beside_off": beside}
        note(f"depth {depth}, {mode}", reads=f"{rate:.0f}/s", ratio=f"{beside:.3f}",
             interrupts=f"{calls:.3f} a read", sleeps=f"{sleeps:.3f} a read")
