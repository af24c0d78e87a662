"""vhostrt.env.mempool: what DPDK's mempool_perf_autotest measures, on one core.

An operation is the get and the put of one object, in bulks of 1, 8 and 32, with an lcore's cache
and without.
"""
import os

import pytest
from vhostrt.env import lcore, memory
from vhostrt.env.mempool import Mempool

from bench import cy_env_mempool

COUNT = 8192
CACHE = 512
OBJECTS = 4_000_000


@pytest.fixture
def pool():
    # The lcore only lends its cache: its thread waits, and the loop runs here.
    memory.init()
    lcore.init([min(os.sched_getaffinity(0))])
    pool = Mempool(COUNT, 2048, cache=CACHE)
    yield pool
    lcore.fini()
    pool.free()
    memory.fini()


@pytest.mark.parametrize(("keep", "bulk", "constant"), [
    (32, 1, False), (32, 1, True), (32, 32, False), (32, 32, True), (128, 1, False),
    (128, 8, False), (128, 32, False), (512, 1, False), (512, 32, False),
])
@pytest.mark.parametrize("cached", [True, False], ids=["cached", "ring"])
def bench_mempool(per_op, pool, cached, keep, bulk, constant):
    who = lcore.main() if cached else None
    per_op(lambda n: cy_env_mempool.loop(pool, who, keep, bulk, constant, n // keep), OBJECTS)
