"""vhostrt.env.ring: what DPDK's ring_perf_autotest measures, on one core and between two.

On one core an operation is the enqueue and the dequeue of a burst; "empty" is a dequeue of 8 in
vain. Between two cores it is one object, both sides added up; the way of a cache line there and
back, before and after, tells where the host has put the two.
"""
import functools
import os

import pytest
from vhostrt.base.ticks import hz
from vhostrt.env import lcore, memory
from vhostrt.env.ring import Ring

from bench import cy_env_ring

SLOTS = 4096
BALLS = 20_000


@pytest.fixture(autouse=True)
def heap():
    memory.init()
    yield
    lcore.fini()
    memory.fini()


@pytest.mark.parametrize(("call", "burst"), [("single", 1), ("burst", 8), ("burst", 32),
                                             ("bulk", 8), ("bulk", 32), ("empty", 8)])
@pytest.mark.parametrize("kind", ["sp_sc", "mp_mc"])
def bench_ring_pair(per_op, kind, call, burst):
    ring = Ring(SLOTS, kind)
    per_op(functools.partial(cy_env_ring.pairs, ring, call, burst), 1_000_000)


@pytest.mark.parametrize("burst", [8, 32])
@pytest.mark.parametrize("kind", ["sp_sc", "mp_mc"])
def bench_ring_two_cores(benchmark, per_op, kind, burst):
    cpus = sorted(os.sched_getaffinity(0))
    one, two = cpus[0], cpus[-1]
    if one == two:
        pytest.fail("a ring between two cores needs two CPUs")
    lcore.init([one, two])
    ring = Ring(SLOTS, kind)
    ways = [cy_env_ring.round_trip(one, two, BALLS)]
    # Per object: the loop sends n // burst bursts.
    per_op(lambda n: cy_env_ring.across(ring, one, two, burst, n // burst), 800_000)
    ways.append(cy_env_ring.round_trip(one, two, BALLS))
    benchmark.extra_info["round_trip_ns"] = [way / hz() * 1e9 for way in ways]
    print(f"\n{kind} {burst}: a cache line there and back takes "
          f"{ways[0] / hz() * 1e9:.0f} ns before, {ways[1] / hz() * 1e9:.0f} ns after")
