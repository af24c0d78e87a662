"""What sleep costs and saves: the time from a kick to its answer, and CPU without work.

bench_wake: from a kick, the write to an eventfd by another thread as a guest's is, to the poll that
sees it. bench_completion: from the kick of a client in Python to the completion of its read of
4 KiB, which it polls for; its own time is in the figure. The reactor sleeps in the kernel when the
kick comes; beside that, one that never sleeps. CPU time is what the kernel has counted for the
threads of an idle program, in 10 seconds.
"""
import os
import time
from pathlib import Path

import numpy as np
import pytest
from tests.lib.blk_client import Blk
from tests.lib.split_ring import WRITE
from tests.lib.target import Target
from vhostrt.env import lcore, memory
from vhostrt.event import reactor

from bench import cy_event_wake

KICKS = 5000
REQUESTS = 2000
PAUSE_S = 0.002                         # the reactor sleeps after 5 to 200 us without work
IDLE_S = 10
PERCENTILES = (50, 90, 99, 99.9, 100)
SLEEP_US = 600_000_000


@pytest.mark.parametrize("pause_us", [500, 5000])
@pytest.mark.parametrize("idle", ["interrupt", "spin"])
def bench_wake(benchmark, note, idle, pause_us):
    lcore.init({0: (max(os.sched_getaffinity(0)),)})
    try:
        lcore.control_affinity([0])
        memory.init()
        reactor.init([0], idle, SLEEP_US)
        reactor.start()
        found = benchmark.pedantic(cy_event_wake.latencies, rounds=1, args=(
            KICKS * 500 // pause_us, pause_us, idle == "interrupt"))
        reactor.stop()
        reactor.fini()
    finally:
        lcore.fini()
        memory.fini()
    tell(benchmark, note, "us from kick to poll", found)


def tell(benchmark, note, what, found):
    figures = dict(zip(map(str, PERCENTILES), np.percentile(found, PERCENTILES), strict=True))
    benchmark.extra_info["us"] = figures
    note(what, **{f"p{p}": f"{us:.1f}" for p, us in figures.items()})


def completions(blk: Blk, n: int) -> list[float]:
    """Return the microseconds from the kick of a read to its completion, each after a pause."""
    ring, memory, at = blk.rings[0], blk.memory, blk.scratch
    memory.view(at, 16)[:] = 0                  # a read of sector 0
    parts = [(at, 16, 0), (at + 16, 4096, WRITE), (at + 16 + 4096, 1, WRITE)]
    took = []
    for _ in range(n):
        time.sleep(PAUSE_S)
        head = ring.chain(parts)
        began = time.perf_counter_ns()
        ring.submit(head)
        while not ring.pending():
            pass
        took.append((time.perf_counter_ns() - began) / 1000)
        ring.collect()
    return took


@pytest.mark.parametrize("idle", ["interrupt", "sleep", "spin"])
def bench_completion(benchmark, note, idle):
    mask = hex(1 << max(os.sched_getaffinity(0)))
    with Target(mask=mask, idle=idle) as target, Blk(target.socket(0)) as blk:
        found = benchmark.pedantic(completions, args=(blk, REQUESTS), rounds=1)
        blk.stop()
    tell(benchmark, note, "us from kick to completion", found)


def cpu_seconds(pid: int) -> dict[str, float]:
    """Return the CPU time of a process's reactors, and of its other threads."""
    spent = {"reactors": 0.0, "others": 0.0}
    for task in Path(f"/proc/{pid}/task").iterdir():
        kind = "reactors" if (task / "comm").read_text().startswith("reactor_") else "others"
        spent[kind] += int((task / "schedstat").read_text().split()[0]) / 1e9
    return spent


def rest(pid: int) -> dict[str, float]:
    """Return the percent of a CPU that a process uses while nobody asks it for anything."""
    time.sleep(1)
    before, began = cpu_seconds(pid), time.monotonic()
    time.sleep(IDLE_S)
    after, took = cpu_seconds(pid), time.monotonic() - began
    return {kind: 100 * (after[kind] - before[kind]) / took for kind in after}


@pytest.mark.parametrize("idle", ["interrupt", "sleep", "yield", "spin"])
def bench_idle_cpu(benchmark, note, idle):
    with Target(idle=idle) as target:
        found = benchmark.pedantic(rest, args=(target.pid,), rounds=1)
    benchmark.extra_info["percent"] = found
    note("% of a CPU while idle", **{kind: f"{percent:.2f}" for kind, percent in found.items()})
