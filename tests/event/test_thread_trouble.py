"""vhostrt.event.thread: wrong arguments, full rings, waits that are cancelled at the worst time."""
import asyncio
import gc
import math
import threading

import pytest

from tests.lib import cy_app
from tests.lib.cy_threads import Gate, Poller, Seen
from tests.lib.light_threads import attached, run, until
from tests.lib.reactors import reactors
from vhostrt.event import reactor, thread
from vhostrt.event.call import on_reactor
from vhostrt.event.thread import Thread


@pytest.mark.parametrize("timeout, error", [
    (None, TypeError), ("5", TypeError), (True, TypeError), (-1, ValueError),
    (math.nan, ValueError),
])
@run()
async def test_a_timeout_that_is_none_changes_nothing(timeout, error):
    (light,) = await attached(1)
    with pytest.raises(error, match="a timeout of "):
        await light.exit(timeout)
    assert light.running and reactor.stats(1)["threads"] == 1
    await light.exit(math.inf)
    assert reactor.stats(1)["threads"] == 0


@run()
async def test_of_two_attaches_at_once_the_second_is_refused():
    light = Thread("one")
    first, second = await asyncio.gather(light.attach(0), light.attach(1), return_exceptions=True)
    assert first is None and str(second) == "the thread one has been attached before"
    assert [reactor.stats(core)["threads"] for core in (0, 1)] == [1, 0] and light.lcore == 0
    await light.exit()


@run()
async def test_an_attach_that_nobody_waits_for_any_more():
    cy_app.set_flag(0)
    held = on_reactor(1, cy_app.__pyx_capi__["wait_for_flag"])
    coming = asyncio.create_task(Thread("one").attach(1))
    await asyncio.sleep(0.01)
    coming.cancel()
    with pytest.raises(asyncio.CancelledError):
        await coming
    del coming
    gc.collect()
    cy_app.set_flag(1)
    await held
    await until(lambda: thread.left_behind() == ["one"])
    await thread.threads()[-1].exit()
    assert reactor.stats(1)["threads"] == 0


@run()
async def test_who_creates_a_thread_and_does_not_wait_for_it_has_none():
    for _ in range(20):
        creating = asyncio.create_task(thread.create("late", [1]))
        for _ in range(2):
            await asyncio.sleep(0)
        creating.cancel()
        with pytest.raises(asyncio.CancelledError):
            await creating
    gc.collect()
    await until(lambda: [light.name for light in thread.threads()] == ["app_thread"])
    assert reactor.stats(1)["threads"] == 0


@run()
async def test_a_thread_ends_though_the_ring_of_its_reactor_is_full():
    (light,) = await attached(1)
    seen, poller = Seen(), Poller(light, "nothing")
    await poller.begin()
    assert seen.send(light) == 0
    leaving = asyncio.create_task(light.exit(timeout=60))
    await until(lambda: not light.running)
    await asyncio.sleep(0.05)           # it looks now and then whether the poller is gone
    gate = Gate(1)
    await asyncio.sleep(0.1)
    assert not leaving.done()
    gate.let_go()
    await until(lambda: reactor.nop(1) == 0)
    await poller.finish()
    await leaving
    assert len(seen) == 1 and reactor.stats(1)["threads"] == 0


def test_a_thread_whose_reactor_has_ended_has_ended():
    async def main():
        async with reactors(1):
            (light,) = await attached(0)
            poller = Poller(light, "nothing")
            await poller.begin()
            ending = asyncio.create_task(light.exit(timeout=60))
            await until(lambda: not light.running)
        await ending
        assert light.lcore == -1
    asyncio.run(main())


@run()
async def test_messages_that_no_core_may_run(monkeypatch):
    seen, said = Seen(), []
    monkeypatch.setattr(thread, "warn", said.append)
    light = Thread("nowhere", [5])
    assert seen.send(light) == 0
    await light.exit()
    assert len(seen) == 0 and said == [
        "messages of the thread nowhere are lost: no core that it may run on has a reactor"]
    light = Thread("dropped")
    assert seen.send(light) == 0
    del light
    gc.collect()
    assert len(seen) == 0, "and the end of the reactors finds all messages at home"


@run()
async def test_another_loop_on_another_thread_is_refused():
    """The answer would come to a loop that nobody wakes."""
    light, said = Thread("one"), []
    other = threading.Thread(target=lambda: said.append(told(light)))
    other.start()
    await asyncio.to_thread(other.join)
    assert said == ["what asks a reactor belongs to the control thread: hand it over with "
                    "vhostrt.app.call_soon()"]
    await light.attach(0)
    await light.exit()


def told(light):
    """What is said to who attaches it elsewhere."""
    with pytest.raises(RuntimeError) as refused:
        asyncio.run(asyncio.wait_for(light.attach(0), 60))
    return str(refused.value)


def test_the_loop_is_torn_down_while_a_thread_ends():
    """The reactor has the thread then; it must not be freed under it."""
    async def main():
        async with reactors(1):
            (light,) = await attached(0)
            poller = Poller(light, "nothing")
            await poller.begin()
            ending = asyncio.create_task(light.exit(timeout=60))
            while light.running:
                await asyncio.sleep(0.001)
            for task in asyncio.all_tasks() - {asyncio.current_task()}:
                task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await ending
            del light, ending
            gc.collect()
            assert reactor.stats(0)["threads"] == 1 and poller.sound
            await poller.finish_on(0)
    asyncio.run(main())
    gc.collect()
