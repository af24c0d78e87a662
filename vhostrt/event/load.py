"""How busy cores and light threads are: one measure for schedulers and for placing new threads.

The load of a thread is the part of the time between the last two looks, in percent, in which polls
of it did work; that of a core the part in which its reactor did any. Between two looks a thread
that has moved, come or gone since is moved in the figures as well: with its own load, or with
NEW_LOAD where it has not been measured yet.

Threads: the control thread; it reads the reactors' counters, which costs them nothing.
"""
from collections.abc import Iterable
from dataclasses import dataclass, field

from vhostrt.base import ticks
from vhostrt.event import reactor, thread
from vhostrt.event.thread import Thread

NEW_LOAD = 20.0                         # percent, of a thread that is new
STEP = 10                               # loads of cores that differ by less are the same


@dataclass(slots=True)
class Core:
    """load: percent. threads: that run there, with the load of each, by id."""

    lcore: int
    load: float = 0.0
    threads: dict[Thread, float] = field(default_factory=dict)


@dataclass(slots=True, frozen=True)
class Look:
    """What the counters said, in ticks: of reactors by lcore, of threads by id."""

    at: int
    reactors: dict[int, int]
    threads: dict[int, int]
    lcores: dict[int, int]              # where each thread ran


def running() -> list[Thread]:
    """Return the threads on reactors; app_thread is not, and those that end do not count."""
    return [light for light in thread.threads() if light.running and light.lcore >= 0]


class Meter:
    """Looks at the counters now and then, and says what the load is."""

    def __init__(self) -> None:
        self.last: Look | None = None
        self.reactors: dict[int, float] = {}    # loads between the last two looks
        self.threads: dict[int, float] = {}
        self.period_us = 0                      # between them

    def look(self) -> None:
        """End the period that began with the look before."""
        before, now = self.last, look()
        self.last = now
        if before is None:
            return
        ticks_gone = max(now.at - before.at, 1)
        self.period_us = ticks_gone * 1_000_000 // ticks.hz()

        def shares(after: dict[int, int], earlier: dict[int, int]) -> dict[int, float]:
            return {key: min(100 * (busy - earlier[key]) / ticks_gone, 100.0)
                    for key, busy in after.items() if key in earlier}

        self.reactors = shares(now.reactors, before.reactors)
        self.threads = shares(now.threads, before.threads)

    def load_of(self, light: Thread) -> float:
        """Return the load of a thread, in percent."""
        return self.threads.get(light.id, NEW_LOAD)

    def cores(self) -> dict[int, Core]:
        """Return the cores as they are now, by lcore."""
        cores = {n: Core(n, self.reactors.get(n, 0.0)) for n in reactor.lcores()}
        measured = {} if self.last is None else dict(self.last.lcores)
        for light in running():
            load = self.load_of(light)
            core = cores[light.lcore]
            core.threads[light] = load
            was = measured.pop(light.id, None) if light.id in self.threads else None
            if was != light.lcore:
                core.load += load
                if was is not None:
                    cores[was].load -= load
        for number, was in measured.items():        # gone
            if was in cores:
                cores[was].load -= self.threads.get(number, 0.0)
        for core in cores.values():
            core.load = min(max(core.load, 0.0), 100.0)
        return cores

    def least(self, lcores: Iterable[int]) -> int:
        """Return the one of these lcores with the least load, of equal ones that with the fewest
        threads."""
        cores = self.cores()
        return min(sorted(lcores),
                   key=lambda n: (cores[n].load // STEP, len(cores[n].threads)))


def look() -> Look:
    """Read the counters."""
    light = running()
    return Look(ticks.now(), {n: reactor.stats(n)["busy"] for n in reactor.lcores()},
                {t.id: t.busy for t in light}, {t.id: t.lcore for t in light})
