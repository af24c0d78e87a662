"""vhostrt.event.scheduler at work: threads of this process, on two reactors, with a short period.
"""
import pytest

from tests.lib.cy_threads import Poller, Seen
from tests.lib.light_threads import attached, end, run, until, warnings
from vhostrt.event import reactor, scheduler, thread
from vhostrt.event.load import running
from vhostrt.event.scheduler import Dynamic, Scheduler, register, scheduling, set_cpumask

PERIOD_US = 20_000


def scheduled(name, options=None):
    """As light_threads.run(2), with a scheduler while the test runs."""
    def make(test):
        async def with_scheduler():
            scheduling.start()
            scheduling.set(name, PERIOD_US if name != "static" else 0, options)
            try:
                await test()
            finally:
                await scheduling.stop()
                assert scheduling.describe()["scheduler_name"] == "static"
                await settles("yield")
        with_scheduler.__name__ = test.__name__
        return run(2)(with_scheduler)
    return make


async def settles(policy):
    await until(lambda: [reactor.idle_of(n) for n in (0, 1)] == [policy, policy])


def places(*threads):
    return [light.lcore for light in threads]


async def busy(light):
    """Keep a thread busy by a poller that always finds work."""
    poller = Poller(light, "nothing")
    await poller.begin()
    return poller


def sleeping(lcore):
    return reactor.idle_of(lcore) == "interrupt"


@scheduled("dynamic")
async def test_idle_threads_share_the_main_core_and_the_other_sleeps():
    made = await attached(0, 1, 1)
    await until(lambda: places(*made) == [0, 0, 0])
    await until(lambda: sleeping(1) and reactor.stats(1)["in_interrupt"])
    assert not sleeping(0)
    # Messages find them.
    seen = [Seen() for _ in made]
    assert [await s.call(t) for s, t in zip(seen, made, strict=True)] == [42] * 3
    await end(*made)
    await until(lambda: sleeping(0))


@scheduled("dynamic")
async def test_busy_threads_spread_and_come_back():
    made = await attached(0, 0)
    await until(lambda: sleeping(1))
    pollers = [await busy(light) for light in made]
    await until(lambda: sorted(places(*made)) == [0, 1])
    await until(lambda: not sleeping(1))
    await until(lambda: all(p.cores[t.lcore] for p, t in zip(pollers, made, strict=True)))
    for poller in pollers:
        await poller.finish()
    await until(lambda: places(*made) == [0, 0])
    await until(lambda: sleeping(1))
    assert all(poller.sound for poller in pollers)
    await end(*made)


@scheduled("dynamic")
async def test_back_to_static_puts_every_thread_where_it_came_first():
    made = await attached(1, 1, 0)
    await until(lambda: places(*made) == [0, 0, 0] and sleeping(1))
    scheduling.set("static")
    await until(lambda: places(*made) == [1, 1, 0])
    await settles("yield")
    assert scheduling.describe() == {"scheduler_name": "static", "scheduler_period": 0,
                                     "isolated_core_mask": "0", "scheduling_core": 0}
    await end(*made)


@scheduled("dynamic", {"load_limit": 0, "core_limit": 100, "core_busy": 100})
async def test_with_limits_that_nothing_reaches_busy_ones_come_together():
    """No thread is idle below 0 percent, and a core is full at 100."""
    made = await attached(0, 1)
    await until(lambda: places(*made) == [0, 0])
    await end(*made)


@scheduled("static")
async def test_mappings_of_names_and_ids():
    made = await attached(0, 0, 1)
    scheduling.set("static", options={"mappings": f"t1:1,{made[2].id}:0,later:1"})
    await until(lambda: places(*made) == [0, 1, 0])
    assert scheduling.config() == [{"method": "framework_set_scheduler", "params": {
        "name": "static", "mappings": f"t1:1,{made[2].name}:0,later:1"}}]
    assert scheduling.place([0, 1], "later") == 1
    assert scheduling.place([0], "later") == 0, "where it may not run it does not"
    await end(*made)


MAPPINGS = {"1": "'1' is not thread:core", "a:": "'a:' is not", ":": "':' is not",
            "a:x": "'a:x' is not", "a:7": "core 7 of 'a:7' has no reactor",
            "987654:1": "there is no thread 987654"}


@pytest.mark.parametrize(("text", "why"), MAPPINGS.items(), ids=MAPPINGS)
@run(2)
async def test_mappings_refused(text, why):
    with pytest.raises(ValueError, match=why):
        scheduling.set("static", options={"mappings": text})
    with pytest.raises(ValueError, match="'core_limit' is no option of the scheduler static"):
        scheduling.set("static", options={"core_limit": 5})
    with pytest.raises(ValueError, match="'period' must be at least 1000 microseconds, not 999"):
        scheduling.set("dynamic", 999)
    assert scheduling.config() == []


@run(2)
async def test_what_is_bound_or_isolated_stays():
    scheduling.set_options([1], 0)
    scheduling.set("dynamic", PERIOD_US)
    scheduling.start()
    try:
        bound = thread.Thread("bound", [0], bound=True)
        await bound.attach(0)
        made = await attached(1, 0)
        looked = scheduling.meter.last
        for _ in range(3):
            await until(lambda: scheduling.meter.last is not looked)    # noqa: B023 - at once
            looked = scheduling.meter.last
        assert places(bound, *made) == [0, 1, 0] and not sleeping(1)
        assert scheduling.describe()["isolated_core_mask"] == "2"
        assert scheduling.place([0, 1]) == 0 and scheduling.place([1]) == 1
        await end(bound, *made)
    finally:
        await scheduling.stop()


OPTIONS = {
    "no reactor": (([2], None), r"'isolated_core_mask' has cores without a reactor: \[2\]"),
    "the main core": (([0], None), "'isolated_core_mask' must not have the scheduling core, 0"),
    "both": (([1], 1), "'isolated_core_mask' must not have the scheduling core, 1"),
    "nowhere": ((None, 9), "'scheduling_core' must be a core with a reactor"),
}


@pytest.mark.parametrize(("options", "why"), OPTIONS.values(), ids=OPTIONS)
@run(2)
async def test_options_refused(options, why):
    with pytest.raises(ValueError, match=why):
        scheduling.set_options(*options)
    assert scheduling.config() == []


@run(2)
async def test_options_are_saved():
    scheduling.set_options([0], 1)
    scheduling.set("dynamic")
    assert scheduling.config() == [
        {"method": "scheduler_set_options",
         "params": {"isolated_core_mask": "0x1", "scheduling_core": 1}},
        {"method": "framework_set_scheduler",
         "params": {"name": "dynamic", "load_limit": 20, "core_limit": 80, "core_busy": 95,
                    "period": 1_000_000}}]
    await scheduling.stop()
    assert scheduling.config() == []


@run(2)
async def test_the_period_stays_when_nobody_says_another():
    scheduling.set("dynamic", 5000)
    scheduling.set("dynamic", options={"load_limit": 30})
    assert scheduling.describe() == {
        "scheduler_name": "dynamic", "scheduler_period": 5000, "isolated_core_mask": "0",
        "scheduling_core": 0, "load_limit": 30, "core_limit": 80, "core_busy": 95}
    await scheduling.stop()


@scheduled("dynamic")
async def test_new_threads_go_where_there_is_least_to_do():
    """Also onto a core that sleeps, which is roused for them."""
    (light,) = await attached(0)
    poller = await busy(light)
    await until(lambda: sleeping(1) and scheduling.meter.load_of(light) > 50)
    new = await thread.create("new")
    assert new.lcore == 1
    await settles("yield")
    await poller.finish()
    await end(light, new)


@run(2)
async def test_set_cpumask():
    (light,) = await attached(0)
    await set_cpumask(light, [0, 1, 5])
    assert (light.lcore, light.cpumask) == (0, frozenset([0, 1]))
    await set_cpumask(light, [1])
    assert (light.lcore, light.cpumask) == (1, frozenset([1]))
    with pytest.raises(ValueError, match=r"cpumask \[5\] has no core with a reactor"):
        await set_cpumask(light, [5])

    async def refuse(lcore):
        raise OSError(16, "not now")

    light.mover = refuse
    with pytest.raises(OSError, match="not now"):
        await set_cpumask(light, [0])
    assert (light.lcore, light.cpumask) == (1, frozenset([1]))
    await light.exit()
    with pytest.raises(OSError, match="does not run"):
        await set_cpumask(light, [0])


@run(2)
async def test_a_thread_that_cannot_move_keeps_nobody():
    stuck, light = await attached(1, 1)
    asked = []

    async def refuse(lcore):
        asked.append(lcore)
        raise OSError(16, "not now")

    stuck.mover = refuse
    scheduling.set("dynamic", PERIOD_US)
    scheduling.start()
    await until(lambda: light.lcore == 0 and len(asked) > 2)
    assert stuck.lcore == 1 and not sleeping(1)
    await scheduling.stop()
    await end(stuck, light)


@run(2)
async def test_a_plug_in_and_its_defect():
    """What goes wrong in one is logged; another can be chosen afterwards."""
    moves = []

    @register
    class Wild(Scheduler):
        name = "wild"

        def balance(self, scheduling, cores):
            moves.append({n: sorted(t.name for t in core.threads) for n, core in cores.items()})
            if len(moves) == 4:
                raise ArithmeticError("oh")
            return [(light, 1 - light.lcore) for light in running()]

    try:
        made = await attached(0, 1)
        scheduling.set("wild", PERIOD_US)
        with warnings() as seen:
            scheduling.start()
            await until(lambda: len(moves) == 4)
            await until(lambda: seen)
        assert moves == [{0: ["t0"], 1: ["t1"]}, {0: ["t1"], 1: ["t0"]}] * 2
        assert seen == ["the scheduler wild ended by an internal error: ArithmeticError('oh')"]
        scheduling.set("static")
        await until(lambda: places(*made) == [0, 1])
        await scheduling.stop()
        await end(*made)
    finally:
        del scheduler.SCHEDULERS["wild"]
    assert isinstance(scheduler.SCHEDULERS["dynamic"]({}), Dynamic)
