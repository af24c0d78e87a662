"""vhostrt.base: what a reading of the clock and the atomic operations cost."""
import pytest

from bench import cy_base_ticks


@pytest.mark.parametrize("loop", [cy_base_ticks.read_clock, cy_base_ticks.load_and_store,
                                  cy_base_ticks.fetch_and_add], ids=lambda f: f.__name__)
def bench_base(per_op, loop):
    per_op(loop, 1_000_000)
