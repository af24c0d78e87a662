"""vhostrt.event.trace: what a trace point costs that is off, and one that is on.

To be compared with the row of the loop alone.
"""
import pytest
from vhostrt.event import trace

from bench import cy_event_trace


@pytest.fixture
def points(tmp_path):
    """A function: turn all points of the loops on or off."""
    with open(tmp_path / "trace", "w+b") as file:
        trace.create(file.fileno(), [], trace.ENTRIES)
        try:
            yield lambda on: trace.set_mask("bench", 3 if on else 0)
        finally:
            trace.close()


@pytest.mark.parametrize("loop", [cy_event_trace.nothing, cy_event_trace.bare,
                                  cy_event_trace.full], ids=lambda f: f.__name__)
def bench_trace_off(per_op, loop):
    per_op(loop, 10_000_000)


@pytest.mark.parametrize("loop", [cy_event_trace.bare, cy_event_trace.full],
                         ids=lambda f: f.__name__)
def bench_trace_on(per_op, points, loop):
    points(True)
    per_op(loop, 1_000_000)
