"""vhostrt.virtio.driver.load: what a request costs vhostrt-perf itself.

The device answers in the same thread and is in the figure, so that it is an upper bound. Beside the
time on the clock stands the time of the CPU, which others on the machine disturb less.
"""
import statistics
import time

import pytest

from bench import cy_perf_loop

REQUESTS = 2_000_000
CASES = {
    "depth_1": {"depth": 1}, "depth_32": {"depth": 32}, "depth_128": {"depth": 128},
    "mix": {"depth": 32, "reads": 0.7, "sizes": [(512, 7), (4096, 3)]},
    "verify": {"depth": 32, "reads": 0.0, "unit": 4096},
}


@pytest.mark.parametrize("case", CASES)
def bench_perf_loop(per_op, note, case):
    cpu = []

    def loop(requests):
        begun = time.thread_time_ns()
        cy_perf_loop.run(requests=requests, **CASES[case])
        cpu.append((time.thread_time_ns() - begun) / requests)

    per_op(loop, REQUESTS // 20 if case == "verify" else REQUESTS)
    note("CPU ns a request", median=f"{statistics.median(cpu):.1f}", min=f"{min(cpu):.1f}")
