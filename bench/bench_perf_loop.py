"""vhostrt.virtio.driver.load: what a request costs vhostrt-perf itself.

The device answers in the same thread and is in the figure, so that it is an upper bound.
"""
import functools

import pytest

from bench import cy_perf_loop

REQUESTS = 2_000_000


@pytest.mark.parametrize("depth", [1, 32, 128])
def bench_perf_loop(per_op, depth):
    per_op(functools.partial(cy_perf_loop.run, depth), REQUESTS)


def bench_perf_loop_of_a_mix(per_op):
    per_op(lambda n: cy_perf_loop.run(32, n, reads=0.7, sizes=[(512, 7), (4096, 3)]), REQUESTS)


def bench_perf_loop_that_verifies(per_op):
    per_op(lambda n: cy_perf_loop.run(32, n, reads=0.0, unit=4096), REQUESTS // 10)
