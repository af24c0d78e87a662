"""vhostrt.event.reactor, as the control thread sees them."""
import os

import pytest

from tests.event.conftest import CPUS, running
from vhostrt.env import lcore, memory
from vhostrt.event import reactor


def test_start_and_stop_can_be_repeated():
    before = sorted(os.listdir("/proc/self/fd"))
    for _ in range(3):
        with running(2):
            assert reactor.lcores() == [0, 1]
            assert all(reactor.nop(n) == 0 for n in (0, 1))
        assert reactor.lcores() == []
    assert sorted(os.listdir("/proc/self/fd")) == before


def test_stats(two):
    for _ in range(10):
        assert reactor.nop(1) == 0
    stats = reactor.stats(1)
    assert stats["lcore"] == 1 and stats["threads"] == 0 and stats["events_refused"] == 0
    assert stats["tid"] == lcore.thread_id(1)
    with open(f"/proc/self/task/{stats['tid']}/comm") as file:
        assert file.read() == "reactor_1\n"
    with pytest.raises(KeyError):
        reactor.stats(2)
    assert reactor.iterations(2) == 0
    reactor.interrupt(2)                # nobody is there


@pytest.fixture
def environment():
    """Lcore 0 and memory, no reactor."""
    lcore.init({0: (CPUS[0],)})
    memory.init()
    yield
    reactor.fini()
    lcore.fini()
    memory.fini()


def test_init_twice(environment):
    reactor.init([0])
    with pytest.raises(RuntimeError, match="already initialised"):
        reactor.init([0])
    assert reactor.lcores() == [0]


def test_unknown_idle_policy(environment):
    with pytest.raises(ValueError, match="'doze' must be one of spin, yield, sleep"):
        reactor.init([0], "doze")
    assert reactor.lcores() == []


@pytest.mark.parametrize("wrong", [-1, 1024, 2**32, 0], ids=["-1", "1024", "2**32", "twice"])
def test_core_that_cannot_be(environment, wrong):
    with pytest.raises(ValueError, match=f"core {wrong}"):
        reactor.init([0, wrong])
    assert reactor.lcores() == []
    reactor.init([0])                   # nothing is left of it


def test_a_core_that_is_not_enabled_fails_the_start(environment):
    """What runs already can be stopped, and all be freed."""
    reactor.init([0, 5])
    with pytest.raises(OSError, match="core 5"):
        reactor.start()
    reactor.stop()
    assert reactor.fini() == 0
    reactor.init([0])
    reactor.start()
    assert reactor.nop(0) == 0
    reactor.stop()


def test_no_memory_for_a_reactor():
    """The descriptors it had taken are given back."""
    lcore.init({0: (CPUS[0],)})
    before = sorted(os.listdir("/proc/self/fd"))
    try:
        with pytest.raises(MemoryError):
            reactor.init([0])           # there is no heap
        assert sorted(os.listdir("/proc/self/fd")) == before
    finally:
        lcore.fini()
