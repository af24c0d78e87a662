"""vhostrt.event: the cost of an event and of a poll on one core.

The shapes are those of SPDK's event_perf, reactor_perf and poller_perf. SPDK v26.05 on a machine
like the first one measured, medians: event_perf 35 M events/s, reactor_perf -q 1/4/32 25, 38 and
45 M events/s, poller_perf -l 0 -b 100/1000 4.4 and 6.3 ns, -l 1 27.8 and 37.1 ns a poll.
"""
import os

import pytest
from vhostrt.env import lcore, memory
from vhostrt.event import reactor

from bench import cy_event

EVENTS = 3_000_000
RUNS = 5_000_000


@pytest.fixture(autouse=True)
def reactor_to_itself():
    there = max(os.sched_getaffinity(0))
    lcore.init({0: (there,)})
    lcore.control_affinity([0])
    memory.init()
    reactor.init([0], "spin")
    reactor.start()
    yield
    reactor.stop()
    reactor.fini()
    lcore.fini()
    memory.fini()


def bench_event_perf(per_op):
    per_op(lambda n: cy_event.events("event_perf", 4, n), EVENTS)


@pytest.mark.parametrize("depth", [1, 4, 32])
def bench_reactor_perf(per_op, depth):
    per_op(lambda n: cy_event.events("reactor_perf", depth, n), EVENTS)


@pytest.mark.parametrize("period_us", [0, 1])
@pytest.mark.parametrize("pollers", [100, 1000, 100_000])
def bench_poller_perf(per_op, pollers, period_us):
    per_op(lambda n: cy_event.pollers(pollers, period_us, n), RUNS)
