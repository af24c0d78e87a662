"""vhostrt.event.thread: light threads go from one reactor to another with all they have."""
import asyncio
import errno

import pytest

from tests.lib.cy_threads import Gate, Poller, Seen
from tests.lib.light_threads import attached, end, run, until
from vhostrt.event import reactor
from vhostrt.event.thread import Thread

EBUSY = errno.EBUSY


@run()
async def test_a_thread_moves_with_its_pollers_and_messages():
    (light,) = await attached(0)
    pollers = [Poller(light, "nothing") for _ in range(3)]
    await pollers[0].begin()
    await pollers[1].begin(period_us=500)
    await pollers[2].begin(pause=True)
    await until(lambda: pollers[1].runs)
    seen = Seen()
    moved = [asyncio.create_task(light.move(1)), asyncio.create_task(light.move(1))]
    calls = [seen.call(light) for _ in range(50)]
    await asyncio.gather(*moved, *calls)
    assert light.lcore == 1 and light.first_lcore == 0
    assert [reactor.stats(n)["threads"] for n in (0, 1)] == [0, 1]
    await until(lambda: all(p.cores[1] for p in pollers[:2]))
    before = [p.cores[0] for p in pollers]
    await pollers[2].resume()
    await until(lambda: pollers[2].runs)
    assert [p.cores[0] for p in pollers] == before and pollers[2].cores[0] == 0
    assert len(seen) == 50 and all(p.sound for p in pollers)
    for poller in pollers:
        await poller.finish()
    assert light.elapsed >= light.lived > 0 and light.lived >= light.busy
    await light.exit()


@run()
async def test_moves_that_cannot_be():
    (light,) = await attached(0)
    for core in (2, -1, 1024):
        with pytest.raises(OSError, match="move of the thread t0"):
            await light.move(core)
    await light.move(0)                 # it is there
    bound = Thread("bound", [1], bound=True)
    await bound.attach(1)
    with pytest.raises(OSError, match="bound to where it runs"):
        await bound.move(0)
    assert bound.lcores() == {1}
    await end(light, bound)
    with pytest.raises(OSError, match="move of the thread t0"):
        await light.move(1)


@run()
async def test_the_mover_moves():
    (light,) = await attached(0)
    asked = []

    async def mover(core):
        asked.append(core)
        await asyncio.sleep(0.01)
        asked.append("done")
        if core == 0:
            raise OSError(EBUSY, "not now")

    light.mover = mover
    waiting = asyncio.create_task(light.move(1))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    waiting.cancel()
    await until(lambda: asked == [1, "done"])       # the wait was cancelled, not the move
    with pytest.raises(OSError, match="not now"):
        await light.move(0)
    await light.exit()


@run()
async def test_a_move_that_the_new_reactor_cannot_take():
    """Its ring is full: the thread stays."""
    (light,) = await attached(0)
    poller = Poller(light, "nothing")
    await poller.begin()
    gate = Gate(1)
    with pytest.raises(OSError, match="to core 1"):
        await light.move(1)
    assert light.lcore == 0 == light.first_lcore
    gate.let_go()
    await until(lambda: reactor.stats(1)["events"] > 60_000)
    runs = poller.runs
    await until(lambda: poller.runs > runs)
    await light.move(1)
    await poller.finish()
    await light.exit()


@run()
async def test_idle_time_in_the_kernel_is_nobodys_work():
    """A reactor that has slept does not count that for what wakes it."""
    reactor.set_idle(0, "interrupt")
    (light,) = await attached(0)
    seen = Seen()
    for _ in range(5):
        await asyncio.sleep(0.06)
        assert await seen.call(light) == 42
    assert reactor.stats(0)["sleeps"] > 0
    assert light.busy < light.lived // 2 < light.idle
    stats = reactor.stats(0)
    assert stats["busy"] < stats["idle"]
    await light.exit()
