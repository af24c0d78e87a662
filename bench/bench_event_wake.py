"""What sleep costs and saves: the time from a kick to the poll that sees it, and CPU without work.

A kick is the write to an eventfd by another thread, as a guest's is. The reactor sleeps in the
kernel when it comes; beside that, one that never sleeps. CPU time is what the kernel has counted
for the threads of an idle program, in 10 seconds.
"""
import os
import time
from pathlib import Path

import numpy as np
import pytest
from tests.lib.target import Target
from vhostrt.env import lcore, memory
from vhostrt.event import reactor

from bench import cy_event_wake

KICKS = 5000
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
    figures = dict(zip(map(str, PERCENTILES), np.percentile(found, PERCENTILES), strict=True))
    benchmark.extra_info["us"] = figures
    note("us from kick to poll", **{f"p{p}": f"{us:.1f}" for p, us in figures.items()})


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
