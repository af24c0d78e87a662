"""Reactors without an asyncio loop, for cases that speak to them in C."""
import contextlib
import os

import pytest

from vhostrt.env import lcore, memory
from vhostrt.event import reactor

CPUS = sorted(os.sched_getaffinity(0))


@contextlib.contextmanager
def running(count, idle="yield", max_delay_us=1000):
    """Reactors on the lcores 0, 1, ...; at the end no event may be left."""
    lcore.init({n: (CPUS[n % len(CPUS)],) for n in range(count)})
    try:
        memory.init()
        reactor.init(range(count), idle, max_delay_us)
        reactor.start()
        try:
            yield
        finally:
            reactor.stop()
            assert reactor.fini() == 0
    finally:
        lcore.fini()
        memory.fini()


@pytest.fixture
def one():
    """A reactor on lcore 0."""
    with running(1):
        yield


@pytest.fixture
def two():
    """Reactors on lcores 0 and 1."""
    with running(2):
        yield


@pytest.fixture
def sleeper():
    """A reactor on lcore 0 that sleeps longer than any test waits, unless it is woken."""
    with running(1, "sleep", 600_000_000):
        yield
