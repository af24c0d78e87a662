"""vhostrt.event.scheduler.Dynamic: what moves where, on cores and threads that are only figures."""
import pytest

from vhostrt.event.load import Core
from vhostrt.event.scheduler import Dynamic, Scheduler, Scheduling, register


class Light:
    """What a scheduler looks at of a thread."""

    def __init__(self, number, bound=False, lcores=None):
        self.id, self.bound, self.allowed = number, bound, lcores

    def lcores(self):
        return frozenset(range(4)) if self.allowed is None else frozenset(self.allowed)


class Plan(Scheduling):
    """Settings without reactors; the main core is 0."""

    scheduling_core = 0

    def __init__(self, isolated=(), main=0):
        self.isolated, self.scheduling_core = frozenset(isolated), main


def balance(threads, limits=(20, 80, 95), isolated=(), main=0, bound=(), masks=None):
    """Return {thread: core} after one look. threads: {core: {id: load}} of cores 0 to 3."""
    masks = masks or {}
    cores = {n: Core(n) for n in range(4)}
    for lcore, loads in threads.items():
        for number, load in loads.items():
            light = Light(number, number in bound, masks.get(number))
            cores[lcore].threads[light] = load
            cores[lcore].load += load
    places = {light.id: n for n, core in cores.items() for light in core.threads}
    dynamic = Dynamic(dict(zip(("load_limit", "core_limit", "core_busy"), limits, strict=True)))
    for light, lcore in dynamic.balance(Plan(isolated, main), cores):
        places[light.id] = lcore
    return places


# (threads by core, settings, where each is afterwards)
CASES = {
    "nothing": ({}, {}, {}),
    "idle ones to the main core": (
        {1: {1: 0}, 2: {2: 19.9}, 3: {3: 5}}, {}, {1: 0, 2: 0, 3: 0}),
    "to another main core": ({0: {1: 0}, 3: {2: 3}}, {"main": 2}, {1: 2, 2: 2}),
    "an idle one that may not go there": ({2: {1: 0}, 3: {2: 0}}, {"masks": {1: [2, 3], 2: [2, 3]}},
                                          {1: 2, 2: 2}),
    "a busy one joins the main core where there is room": (
        {0: {1: 30}, 1: {2: 50}}, {}, {1: 0, 2: 0}),
    "and not where there is none": ({0: {1: 31}, 1: {2: 50}}, {}, {1: 0, 2: 1}),
    "at the load limit it is busy": ({0: {1: 70}, 1: {2: 20}}, {}, {1: 0, 2: 1}),
    "busy ones go to lower cores": ({0: {1: 90}, 2: {2: 40}, 3: {3: 30}}, {}, {1: 0, 2: 1, 3: 1}),
    "one alone on a full core stays": ({0: {1: 5}, 1: {2: 100}}, {}, {1: 0, 2: 1}),
    "off a full core": ({0: {1: 50, 2: 50}}, {}, {1: 1, 2: 0}),
    "off a full core, one after the other": (
        {0: {1: 40, 2: 30, 3: 30}}, {}, {1: 1, 2: 0, 3: 0}),
    "a core below its busy limit keeps them": ({0: {1: 47, 2: 47}}, {}, {1: 0, 2: 0}),
    "off a full core to the least loaded where none has room": (
        {0: {1: 50, 2: 52}, 1: {3: 70}, 2: {4: 31}, 3: {5: 75}}, {},
        {1: 2, 2: 0, 3: 1, 4: 2, 5: 3}),
    "or not at all where that is hardly better": (
        {n: {10 + n: 50 - n, 20 + n: 49} for n in range(4)}, {},
        {10: 0, 20: 0, 11: 1, 21: 1, 12: 2, 22: 2, 13: 3, 23: 3}),
    "what is bound stays": ({2: {1: 0, 2: 60}}, {"bound": (1, 2)}, {1: 2, 2: 2}),
    "and to leave it alone is no relief": ({1: {1: 60, 2: 40}, 0: {3: 5}}, {"bound": (1,)},
                                           {1: 1, 2: 0, 3: 0}),
    "one with a bound one on a full core stays": (
        {0: {3: 70}, 1: {1: 60, 2: 40}}, {"bound": (1,)}, {1: 1, 2: 1, 3: 0}),
    "isolated cores are left alone": (
        {0: {1: 50, 2: 50}, 1: {3: 0}}, {"isolated": (1,)}, {1: 2, 2: 0, 3: 1}),
    "a mask is kept": ({0: {1: 50, 2: 50}}, {"masks": {1: [0, 3]}}, {1: 3, 2: 0}),
    "other limits": ({0: {1: 60}, 1: {2: 34}}, {"limits": (35, 90, 95)}, {1: 0, 2: 0}),
    "idle ones beside a busy one": ({0: {1: 15}, 1: {2: 75}}, {"main": 1}, {1: 1, 2: 1}),
    "a busy one gives way to idle ones": ({0: {1: 15}, 1: {2: 80}}, {"main": 1}, {1: 1, 2: 0}),
}


@pytest.mark.parametrize(("threads", "settings", "after"), CASES.values(), ids=CASES)
def test_where_threads_go(threads, settings, after):
    assert balance(threads, **settings) == after


@pytest.mark.parametrize("threads", [case[0] for case in CASES.values()], ids=CASES)
def test_what_has_settled_stays(threads):
    """With loads that do not change, a few looks end in a place for each thread."""
    loads = {number: load for each in threads.values() for number, load in each.items()}
    for _ in range(4):
        places = balance(threads)
        threads = {n: {t: loads[t] for t, at in places.items() if at == n} for n in range(4)}
    assert balance(threads) == places


REFUSED = {
    "percent": ({"load_limit": 101}, "'load_limit' must be a percentage from 0 to 100, not 101"),
    "core_busy": ({"core_busy": -1}, "'core_busy' must be a percentage"),
    "of another": ({"mappings": "1:0"}, "'mappings' is no option of the scheduler dynamic"),
}


@pytest.mark.parametrize(("options", "why"), REFUSED.values(), ids=REFUSED)
def test_options_refused(options, why):
    with pytest.raises(ValueError, match=why):
        Dynamic(options)


def test_a_scheduler_of_ones_own():
    from vhostrt.event import scheduler

    class Mine(Scheduler):
        name = "mine"

    register(Mine)
    try:
        scheduling = Scheduling()
        scheduling.set("mine", 5000)
        assert (scheduling.scheduler.name, scheduling.period_us) == ("mine", 5000)
        with pytest.raises(ValueError, match="there is no scheduler 'yours': it is one of dynamic, "
                                             "mine, static"):
            scheduling.set("yours")
    finally:
        del scheduler.SCHEDULERS["mine"]
