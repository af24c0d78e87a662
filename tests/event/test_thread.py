"""vhostrt.event.thread and app_thread: their life, messages, calls and walks."""
import asyncio
import errno

import pytest

from tests.event.conftest import running
from tests.lib.cy_threads import Poller, Seen, capsule, current, walk
from tests.lib.light_threads import attached, end, run, until
from tests.lib.reactors import reactors
from vhostrt.event import iochannel, reactor, thread
from vhostrt.event.call import on_thread
from vhostrt.event.thread import Thread
from vhostrt.event.walk import for_each

EBUSY, EINVAL, EIO = errno.EBUSY, errno.EINVAL, errno.EIO


# Life

@run()
async def test_names_ids_and_places():
    one, two = Thread("one"), Thread("two", [1])
    assert two.id > one.id > 1
    assert (one.lcore, one.cpumask, two.cpumask) == (-1, None, frozenset([1]))
    assert (one.lcores(), two.lcores()) == (frozenset([0, 1]), frozenset([1]))
    assert [t.name for t in thread.threads() if t in (one, two) or t.id == 1] == [
        "app_thread", "one", "two"]
    assert thread.get(two.id) is two
    with pytest.raises(KeyError):
        thread.get(10**9)
    assert not one.running
    await one.attach(1)
    assert one.running and one.lcore == 1 == one.first_lcore and reactor.stats(1)["threads"] == 1
    with pytest.raises(RuntimeError, match="has been attached before"):
        await one.attach(0)
    assert one.busy == 0 and one.elapsed >= one.lived > 0
    for core, why in ((7, "may not run on core 7"), (0, "may not run on core 0")):
        with pytest.raises(OSError, match=why):
            await two.attach(core)
    with pytest.raises(OSError, match="core 7"):
        await Thread("three").attach(7)
    assert two.lcore == -1
    await one.exit()
    assert one.lcore == -1 and not one.running and reactor.stats(1)["threads"] == 0
    gone = one.id
    del one
    assert gone not in [t.id for t in thread.threads()]


@run()
async def test_who_runs_is_kept_though_nobody_holds_it():
    number = (await attached(0))[0].id
    assert thread.get(number).running and thread.left_behind() == ["t0"]
    seen = Seen()
    assert await seen.call(thread.get(number)) == 42
    await thread.get(number).exit()
    assert thread.left_behind() == []


@run()
async def test_create_takes_the_core_with_the_fewest_threads():
    made = [await thread.create(f"t{i}") for i in range(4)]
    assert sorted(t.lcore for t in made) == [0, 0, 1, 1]
    made.append(await thread.create("only there", [1]))
    assert made[-1].lcore == 1
    with pytest.raises(ValueError, match="no core that the thread elsewhere may run on"):
        await thread.create("elsewhere", [5])
    await end(*made)


# Messages and the end

@run()
async def test_messages_that_were_taken_run_before_the_end_and_others_are_refused():
    (light,) = await attached(1)
    (other,) = await attached(0)
    seen = Seen().to(light)
    for _ in range(1000):
        assert seen.send(light) == 0
    await light.exit()
    assert len(seen) == 1000
    assert seen.send(light) == -EIO == seen.send_critical(light)
    assert await seen.call(other, "send") == -EIO
    with pytest.raises(OSError, match="message to the thread t0"):
        seen.call(light)
    with pytest.raises(OSError, match="message to the thread t0"):
        on_thread(light)
    assert len(seen) == 1000
    await light.exit()                  # again is nothing
    await other.exit()


@run()
async def test_a_thread_that_ends_may_send_to_itself():
    """What has to be undone may need messages."""
    (light,) = await attached(0)
    poller = Poller(light, "send to self")
    await poller.begin()
    leaving = asyncio.create_task(light.exit(timeout=60))
    await asyncio.sleep(0.05)
    assert not leaving.done()
    poller.let_go()
    await leaving
    assert poller.to_self == (0, 1)


@run()
async def test_the_end_of_one_that_was_never_attached():
    light = Thread("nowhere")
    await light.exit()
    with pytest.raises(RuntimeError, match="has been attached before"):
        await light.attach(0)
    seen, light = Seen(), Thread("nowhere", [1])
    for _ in range(20):
        assert seen.send(light) == 0
    await light.exit()
    assert seen.cores == [1] * 20, "its messages are run all the same"


@run()
async def test_the_end_waits_for_pollers_and_uses_force_in_the_end(monkeypatch):
    (light,) = await attached(1)
    poller = Poller(light, "nothing")
    await poller.begin()
    first = asyncio.create_task(light.exit(timeout=0.2))
    await asyncio.sleep(0.05)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    assert light.lcore == 1, "the wait has ended, not the end"
    seen = []
    monkeypatch.setattr(thread, "warn", seen.append)
    await light.exit()
    assert light.lcore == -1 and reactor.stats(1)["threads"] == 0
    assert seen == ["the thread t0 was ended by force; it still has pollers"]
    runs = poller.runs
    await asyncio.sleep(0.02)
    assert poller.runs == runs


@pytest.mark.parametrize("kind", ["active", "timed", "odd timed", "paused"])
@run()
async def test_every_kind_of_poller_keeps_a_thread(kind):
    (light,) = await attached(1)
    poller = Poller(light, "nothing")
    await poller.begin(period_us={"timed": 1000, "odd timed": 1000}.get(kind, 0),
                       pause=kind == "paused", fillers=4 if kind == "odd timed" else 0)
    leaving = asyncio.create_task(light.exit(timeout=60))
    await asyncio.sleep(0.05)
    assert not leaving.done() and light.lcore == 1
    await poller.finish()
    await leaving


def test_messages_run_when_a_reactor_ends_before_its_threads():
    seen = Seen()

    async def main():
        async with reactors(2):
            (light,) = await attached(1)
            reactor.set_idle(1, "sleep")
            for _ in range(1000):
                assert seen.send(light) == 0
        assert thread.left_behind() == []
        assert light.lcore == -1
    asyncio.run(main())
    assert len(seen) == 1000


# app_thread

@run()
async def test_app_thread_runs_messages_on_the_control_thread():
    (light,) = await attached(1)
    app = thread.app()
    assert (app.id, app.name, app.lcore, app.running) == (1, "app_thread", -1, True)
    assert thread.app() is app is thread.threads()[0]
    seen = Seen().to(app)
    for _ in range(200):
        assert await seen.call(light, "send") == 0
    await until(lambda: len(seen) == 200)
    assert seen.ids[:64] == [1] * 64 and seen.cores[:64] == [99] * 64
    assert app.messages == 200 and 0 < app.busy < app.lived and app.idle > 0
    assert await seen.call(app) == 42
    for what in (app.exit(), app.move(0), app.attach(0)):
        with pytest.raises((OSError, RuntimeError)):
            await what
    with pytest.raises(OSError, match="app_thread is bound"):
        app.set_lcores([0])
    await light.exit()


@run()
async def test_app_thread_takes_a_critical_message():
    app = thread.app()
    seen = Seen()
    before = Seen.criticals()
    assert [seen.send_critical(app), seen.send_critical(app)] == [0, -EBUSY]
    await until(lambda: Seen.criticals() == before + 1)
    assert seen.send_critical(app) == 0
    await until(lambda: Seen.criticals() == before + 2)


def test_app_thread_lives_as_long_as_the_control_thread_listens():
    assert thread.app() is None and current() is None

    async def main():
        for _ in range(2):
            seen = Seen()
            async with reactors(1):
                app = thread.app()
                assert app.messages == 0
                assert [seen.send(app) for _ in range(500)] == [0] * 500
            assert len(seen) == 500, "what was sent is run at the latest now"
            assert thread.app() is None
    asyncio.run(main())


# Calls and walks

@run()
async def test_calls_of_capsules():
    (light,) = await attached(1)
    seen = Seen()
    for signature in (b"int (void *)", None):
        assert await on_thread(light, capsule(signature), seen.address) == 42
    with pytest.raises(TypeError, match="a reactor never takes the GIL"):
        on_thread(light, print)
    assert seen.cores == [1, 1]
    other, seen = (await attached(0))[0], Seen()
    assert await for_each(capsule(), seen.address) == [42, 42, 42]
    assert seen.ids == [1, light.id, other.id] and seen.cores == [99, 1, 0]
    await other.exit()
    seen = Seen()
    assert await seen.call(light) == 42 and seen.cores == [1]
    cancelled = seen.call(light)
    cancelled.cancel()
    await until(lambda: len(seen) == 2)
    await light.exit()


@run()
async def test_for_each_thread_goes_by_id_and_ends_with_the_caller():
    made = await attached(1, 0, 1)
    seen = Seen()
    assert await seen.call(made[1], "walk") == 0
    await until(lambda: seen.ended[0])
    assert seen.ids == [1, *(t.id for t in made)] and seen.cores == [99, 1, 0, 1]
    assert seen.ended == (1, made[1].id)
    seen = Seen()
    assert seen.walk_here() == 0
    await until(lambda: seen.ended[0])
    assert seen.ids == [1, *(t.id for t in made)] and seen.ended == (1, 1)
    seen = Seen()
    assert await seen.call(made[0], "walk quietly") == 0
    await until(lambda: len(seen) == 4)
    assert await seen.call_in_event(0) == -EINVAL, "an event is no light thread"
    # One that is ending is passed over, one that is not attached as well.
    poller = Poller(made[2], "nothing")
    await poller.begin()
    nowhere = Thread("nowhere")
    leaving = asyncio.create_task(made[2].exit(timeout=60))
    await until(lambda: not made[2].running)
    seen = Seen()
    await seen.call(made[0], "walk")
    await until(lambda: seen.ended[0])
    assert seen.ids == [1, made[0].id, made[1].id]
    await poller.finish()
    await leaving
    await end(nowhere, *made)


@run()
async def test_many_walks_at_once_while_threads_come_and_go():
    made = await attached(0, 1, 0, 1)
    walks = [Seen() for _ in range(20)]
    for i, seen in enumerate(walks):
        await seen.call(made[i % 4], "walk")
    await end(*(await attached(0, 1)))
    for light in made:
        await light.move(1 - light.lcore)
    await until(lambda: all(seen.ended[0] for seen in walks))
    for i, seen in enumerate(walks):
        assert {1, *(t.id for t in made)} <= set(seen.ids) and seen.ended[1] == made[i % 4].id
    await end(*made)


@run()
async def test_the_caller_of_a_walk_does_not_end_before_it():
    made = await attached(0, 1)
    seen = Seen()
    walking = seen.call(made[0], "walk")
    await made[0].exit()
    assert await walking == 0 and seen.ended == (1, made[0].id)
    await end(*made)


def test_a_walk_needs_the_control_thread():
    with running(1):
        assert walk() == -EINVAL


# What parts open for a thread

@run()
async def test_channels_that_were_opened_elsewhere():
    (light,) = await attached(0)
    light.hold("bdev_a")
    light.hold("bdev_b")
    light.hold("bdev_a")
    assert iochannel.channels(light) == [("bdev_a", 2), ("bdev_b", 1)]
    for name in ("bdev_a", "bdev_b", "bdev_a"):
        light.let_go(name)
    assert iochannel.channels(light) == []
    await light.exit()
