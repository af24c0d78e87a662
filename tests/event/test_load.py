"""vhostrt.event.load: the load of cores and threads, from counters that are given."""
import pytest

from vhostrt.event import load, reactor
from vhostrt.event.load import NEW_LOAD, Look, Meter


class Light:
    """What is looked at of a thread."""

    def __init__(self, number, lcore):
        self.id, self.lcore = number, lcore


class World:
    """Reactors 0 to 2 and threads, whose counters a test sets."""

    def __init__(self):
        self.at, self.reactors, self.threads, self.busy = 0, dict.fromkeys(range(3), 0), [], {}

    def look(self):
        return Look(self.at, dict(self.reactors), {t.id: self.busy.get(t.id, 0)
                                                   for t in self.threads},
                    {t.id: t.lcore for t in self.threads})

    def add(self, number, lcore):
        self.threads.append(Light(number, lcore))
        return self.threads[-1]

    def work(self, ticks, **busy):
        """Let time go by in which threads did work: t3=40."""
        self.at += ticks
        for name, much in busy.items():
            number = int(name[1:])
            light = next(t for t in self.threads if t.id == number)
            self.busy[number] = self.busy.get(number, 0) + much
            self.reactors[light.lcore] += much


@pytest.fixture
def world(monkeypatch):
    made = World()
    monkeypatch.setattr(load, "look", made.look)
    monkeypatch.setattr(load, "running", lambda: made.threads)
    monkeypatch.setattr(reactor, "lcores", lambda: sorted(made.reactors))
    return made


@pytest.fixture
def meter(world):
    """Two looks with threads 1 and 2 (40 and 10 percent) on core 0 and 3 (90) on core 1."""
    for number, lcore in ((1, 0), (2, 0), (3, 1)):
        world.add(number, lcore)
    made = Meter()
    made.look()
    world.work(1000, t1=400, t2=100, t3=900)
    made.look()
    return made


def loads(meter):
    """Return ({core: load}, {thread: load}), rounded."""
    cores = meter.cores()
    return ({n: round(c.load) for n, c in cores.items()},
            {t.id: round(x) for c in cores.values() for t, x in c.threads.items()})


def test_of_the_last_period(world, meter):
    assert loads(meter) == ({0: 50, 1: 90, 2: 0}, {1: 40, 2: 10, 3: 90})
    world.work(100, t3=10)
    assert loads(meter)[0] == {0: 50, 1: 90, 2: 0}, "until the next look"
    meter.look()
    assert loads(meter) == ({0: 0, 1: 10, 2: 0}, {1: 0, 2: 0, 3: 10})
    meter.look()
    assert loads(meter)[0] == {0: 0, 1: 0, 2: 0}, "no time has gone by"


def test_before_the_first_looks(world):
    meter = Meter()
    assert loads(meter) == ({0: 0, 1: 0, 2: 0}, {})
    world.add(1, 2)
    assert loads(meter) == ({0: 0, 1: 0, 2: NEW_LOAD}, {1: NEW_LOAD})
    meter.look()
    assert loads(meter) == ({0: 0, 1: 0, 2: NEW_LOAD}, {1: NEW_LOAD})
    world.work(100, t1=1)
    meter.look()
    assert loads(meter) == ({0: 0, 1: 0, 2: 1}, {1: 1})


def test_threads_that_moved_came_and_went(world, meter):
    world.threads[0].lcore = 2
    assert loads(meter)[0] == {0: 10, 1: 90, 2: 40}
    world.threads[0].lcore = 1
    assert loads(meter)[0] == {0: 10, 1: 100, 2: 0}, "no core has more than all"
    del world.threads[0]
    assert loads(meter)[0] == {0: 10, 1: 90, 2: 0}
    world.add(4, 2)
    assert loads(meter) == ({0: 10, 1: 90, 2: NEW_LOAD}, {2: 10, 3: 90, 4: NEW_LOAD})


def test_work_of_events_is_the_core_s_alone(world, meter):
    world.work(100)
    world.reactors[2] += 70
    meter.look()
    assert loads(meter) == ({0: 0, 1: 0, 2: 70}, {1: 0, 2: 0, 3: 0})


def test_the_least_loaded_core(world, meter):
    assert meter.least([0, 1, 2]) == 2
    assert meter.least([0, 1]) == 0
    assert meter.least(iter([1])) == 1
    for number, lcore in ((11, 2), (12, 2)):
        assert meter.least([0, 1, 2]) == lcore
        world.add(number, lcore)
    assert meter.least([0, 1, 2]) == 2
    world.add(13, 2)
    assert meter.least([0, 1, 2]) == 0


def test_among_equally_loaded_cores_the_one_with_fewer_threads(world):
    meter = Meter()
    placed = []
    for number in range(6):
        placed.append(meter.least([0, 1, 2]))
        world.add(number, placed[-1])
    assert placed == [0, 1, 2, 0, 1, 2]
    meter.look()
    world.work(1000, t0=20, t1=90, t2=30)
    meter.look()
    del world.threads[4]
    assert meter.least([0, 1, 2]) == 1, "less than ten percent are no difference"
