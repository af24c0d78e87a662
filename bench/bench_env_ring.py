"""vhostrt.env.ring: enqueue and dequeue of a burst on one core; an object from core to core.

DPDK 22.11 on a machine like the first one measured, cycles a pair on one core: SP/SC 25.6 (single),
53.9 (8), 120.0 (32); MP/MC 34.6, 50.6, 106.7.  Two cores, a bulk of 8 / 32, per element: SP/SC
17.9 / 11.8, MP/MC 50.2 / 12.4.
"""
import os

import pytest
from vhostrt.env import lcore, memory
from vhostrt.env.ring import Ring

from bench import cy_env_ring

SLOTS = 4096


@pytest.fixture(autouse=True)
def heap():
    memory.init()
    yield
    lcore.fini()
    memory.fini()


@pytest.mark.parametrize("burst", [1, 8, 32])
@pytest.mark.parametrize("kind", ["sp_sc", "mp_mc"])
def bench_ring_pair(per_op, kind, burst):
    ring = Ring(SLOTS, kind)
    per_op(lambda n: cy_env_ring.pairs(ring, kind, burst, n), 1_000_000)


@pytest.mark.parametrize("burst", [8, 32])
@pytest.mark.parametrize("kind", ["sp_sc", "mp_mc"])
def bench_ring_two_cores(per_op, kind, burst):
    there = max(os.sched_getaffinity(0))
    lcore.init([there])
    lcore.control_affinity([there])
    ring = Ring(SLOTS, kind)
    per_op(lambda n: cy_env_ring.across(ring, there, burst, n), 1_000_000)
