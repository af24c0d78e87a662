"""vhostrt.env.mempool: get and put of 1, 8 and 32 objects, with an lcore's cache and without."""
import os

import pytest
from vhostrt.env import lcore, memory
from vhostrt.env.mempool import Mempool

from bench import cy_env_mempool

COUNT = 8192
CACHE = 256


@pytest.fixture
def pool():
    # The lcore only lends its cache: its thread waits, and the loop runs here.
    memory.init()
    lcore.init([min(os.sched_getaffinity(0))])
    pool = Mempool(COUNT, 64, cache=CACHE)
    yield pool
    lcore.fini()
    pool.free()
    memory.fini()


@pytest.mark.parametrize("burst", [1, 8, 32])
@pytest.mark.parametrize("cached", [True, False], ids=["cached", "ring"])
def bench_mempool_pair(per_op, pool, cached, burst):
    who = lcore.main() if cached else None
    per_op(lambda n: cy_env_mempool.pairs(pool, who, burst, n), 1_000_000)
