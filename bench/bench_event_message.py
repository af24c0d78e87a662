"""vhostrt.event.message: the cost of a message that a light thread sends itself, on one core."""
import os

import pytest
from vhostrt.env import lcore, memory
from vhostrt.event import reactor

from bench import cy_event_message

MESSAGES = 3_000_000


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


@pytest.mark.parametrize("kind", ["pool", "own"])
@pytest.mark.parametrize("depth", [1, 32])
def bench_messages(per_op, kind, depth):
    per_op(lambda n: cy_event_message.messages(kind, depth, n), MESSAGES)
