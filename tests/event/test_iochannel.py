"""vhostrt.event.iochannel: I/O devices and channels, from the viewpoint of a module and its users.
"""
import asyncio
import errno
import inspect

import pytest

from tests.lib.cy_channels import (Device, Place, bad_registers, register_nameless,
                                   unregister_nameless)
from tests.lib.light_threads import until
from tests.lib.reactors import reactors
from vhostrt.event import iochannel, thread

EBUSY, EEXIST, EINVAL, EIO, ENODEV = (errno.EBUSY, errno.EEXIST, errno.EINVAL, errno.EIO,
                                      errno.ENODEV)


async def places(device, count=3, cores=2):
    """Return a Place for each of `count` threads on the cores, and one for app_thread first."""
    made = [Place(device, thread.app())]
    for i in range(count):
        light = thread.Thread(f"t{i}")
        await light.attach(i % cores)
        made.append(Place(device, light))
    return made


async def end(places):
    for place in places[1:]:
        await place.thread.exit()


def run(test):
    """Make an ordinary test of a coroutine function; it is given a device and threads."""
    def wrapped(**arguments):
        async def main():
            async with reactors(2):
                device = Device()
                made = await places(device)
                await asyncio.wait_for(test(device, *made, **arguments), 120)
                await end(made)
                assert device.sound and iochannel.devices() == []
        asyncio.run(main())
    wrapped.__name__, wrapped.__doc__ = test.__name__, test.__doc__
    names = list(inspect.signature(test).parameters)[5:]
    wrapped.__signature__ = inspect.Signature(
        [inspect.Parameter(n, inspect.Parameter.POSITIONAL_OR_KEYWORD) for n in names])
    wrapped.pytestmark = getattr(test, "pytestmark", [])
    return wrapped


@run
async def test_a_channel_is_of_one_thread_and_counted(device, app, a, b, c):
    assert await a.do("get") == -ENODEV, "it is not registered"
    assert await a.do("register") == 0
    for place in (app, a, b):
        assert [await place.do("get"), await place.do("look")] == [0, 0]
    assert len({app.channel, a.channel, b.channel}) == 3
    assert await a.do("get") == 0, "the same one"
    assert device.counts == (3, 0, 0)
    assert [iochannel.channels(p.thread) for p in (app, a, b, c)] == [
        [("device", 1)], [("device", 2)], [("device", 1)], []]
    assert iochannel.devices() == [{"name": "device", "key": device.key, "channels": 3,
                                    "for_each": 0, "ctx_size": Device.ctx_size}]
    assert await a.do("put") == 0
    assert device.counts == (3, 0, 0)
    for place in (app, a, b):
        assert await place.do("put") == 0
    await until(lambda: device.counts == (3, 3, 0))
    assert await c.do("unregister") == 0
    await until(lambda: device.counts == (3, 3, 1))


@run
async def test_a_get_before_the_end_of_the_last_one_makes_another(device, app, a, b, c):
    """The end comes by message."""
    await a.do("register")
    await a.do("get")
    assert await a.do("put and get") == 1
    await until(lambda: device.counts == (2, 1, 0))
    assert iochannel.channels(a.thread) == [("device", 1)]
    await a.do("put")
    await a.do("unregister")
    await until(lambda: device.counts == (2, 2, 1))


@pytest.mark.parametrize("answer", [-1, -EIO, -2**31])
@run
async def test_a_create_function_that_fails(device, app, a, b, c, answer):
    await a.do("register")
    device.answer(answer)
    assert await a.do("get") == -ENODEV
    assert device.counts == (1, 0, 0) and iochannel.channels(a.thread) == []
    device.answer(0)
    assert await a.do("get") == 0
    await a.do("put")
    await a.do("unregister")
    await until(lambda: device.counts == (2, 1, 1))


@run
async def test_unregister_waits_for_the_last_channel_of_any_thread(device, app, a, b, c):
    await a.do("register")
    await b.do("get")
    await c.do("get")
    assert await a.do("unregister") == 0
    assert iochannel.devices() == [], "it leaves the list at once"
    assert [await a.do("get"), await b.do("get")] == [-ENODEV, -ENODEV]
    await b.do("put")
    await asyncio.sleep(0.01)
    assert device.counts == (2, 1, 0)
    await c.do("put")
    await until(lambda: device.counts == (2, 2, 1))
    assert device.about["gone_on"] == a.number, "on the thread that unregistered"
    assert device.about["destroyed_then"] == 2


@run
async def test_a_key_can_be_registered_anew_while_old_channels_live(device, app, a, b, c):
    await a.do("register")
    await b.do("get")
    assert await a.do("unregister quietly") == 0
    assert await a.do("register") == 0
    old = b.channel
    assert await b.do("get") == 1, "not the one of the device before"
    b.forget()
    assert await b.do("get") == 0 and b.channel != old
    assert sorted(iochannel.channels(b.thread)) == [("device", 1), ("device", 2)]
    for _ in range(2):
        await b.do("put")
    b.take(old)
    await b.do("put")
    await a.do("unregister")
    await until(lambda: device.counts == (2, 2, 1))


REFUSED = {
    "no such device": ("unregister", -ENODEV), "walk over no device": ("walk", -ENODEV),
}


@pytest.mark.parametrize(("what", "rc"), REFUSED.values(), ids=REFUSED)
@run
async def test_refused(device, app, a, b, c, what, rc):
    assert await a.do(what) == rc


@run
async def test_registered_twice(device, app, a, b, c):
    await a.do("register")
    assert [await a.do("register"), await b.do("register")] == [-EEXIST, -EEXIST]
    await b.do("unregister quietly")


@run
async def test_only_a_light_thread_can_have_channels(device, app, a, b, c):
    assert await a.do_in_an_event("register") == -EINVAL
    await a.do("register")
    assert await b.do_in_an_event("get") == -ENODEV
    await a.do("get")
    for what in ("unregister", "walk", "put"):
        assert await a.do_in_an_event(what) == -EINVAL, what
    b.take(a.channel)
    assert await b.do("put") == -EINVAL, "not its own"
    assert iochannel.channels(a.thread) == [("device", 1)]
    await a.do("put")
    await a.do("unregister quietly")


def test_arguments_that_cannot_be():
    async def main():
        async with reactors(1):
            assert bad_registers() == [-EINVAL] * 3
            assert register_nameless() == 0
            assert iochannel.devices()[0]["name"] == ""
            assert unregister_nameless() == 0
    asyncio.run(main())
    assert register_nameless() == -EINVAL, "no loop"


# Walks

@run
async def test_for_each_goes_over_the_threads_that_have_a_channel(device, app, a, b, c):
    await a.do("register")
    for place in (c, app, b):
        await place.do("get")
    assert await b.do("walk") == 0
    await until(lambda: b.walk["ended"])
    assert b.walk == {"visited": [1, b.number, c.number], "ended": 1,
                      "status": 0, "on": b.number, "held": False, "inner": 0}
    b.stop_at(2)
    await b.do("walk")
    await until(lambda: b.walk["ended"])
    assert len(b.walk["visited"]) == 2 and b.walk["status"] == 77
    assert await a.do("walk quietly") == 0
    await until(lambda: len(a.walk["visited"]) == 3)
    for place in (app, b, c):
        await place.do("put")
    await until(lambda: iochannel.devices()[0]["for_each"] == 0)
    await a.do("unregister quietly")


@run
async def test_without_a_channel_a_walk_ends_at_once(device, app, a, b, c):
    await a.do("register")
    assert await a.do("walk") == 0
    assert a.walk["ended"] == 1 and a.walk["status"] == 0 and a.walk["visited"] == []
    assert await a.do("walk quietly") == 0
    await a.do("unregister quietly")


@run
async def test_unregister_is_refused_during_a_walk(device, app, a, b, c):
    await a.do("register")
    await b.do("get")
    await c.do("get")
    a.hold()
    await a.do("walk")
    await until(lambda: a.walk["held"])
    assert iochannel.devices()[0]["for_each"] == 1
    assert await a.do("unregister") == -EBUSY
    # A channel that goes meanwhile is not visited; the one that it is at may go, too.
    await c.do("put")
    await b.do("put")
    a.unregister_within()
    await a.do("continue")
    await until(lambda: a.walk["ended"])
    assert a.walk["visited"] == [b.number] and a.walk["inner"] == 0


@run
async def test_a_channel_that_is_put_before_the_message_comes_is_passed_over(device, app, a, b, c):
    await a.do("register")
    await b.do("get")
    walking = asyncio.gather(b.do("put"), a.do("walk"))     # both are sent, then both run
    await walking
    await until(lambda: a.walk["ended"])
    assert len(a.walk["visited"]) <= 1
    await a.do("unregister quietly")


# Threads that end

@run
async def test_a_thread_ends_when_its_channels_are_gone(device, app, a, b, c):
    await a.do("register")
    await b.do("get")
    light = b.thread
    leaving = asyncio.create_task(light.exit(timeout=60))
    await asyncio.sleep(0.05)
    assert not leaving.done() and not light.running
    with pytest.raises(OSError, match="message to the thread t1"):
        await b.do("put")
    # It is polled yet, and what comes from its own pollers and messages is taken.  A walk is the
    # way to reach it from outside.
    assert await a.do("walk and put") == 0
    await leaving
    assert light.lcore == -1 and device.counts == (1, 1, 0)
    await a.do("unregister quietly")


@run
async def test_a_thread_waits_for_the_answer_to_its_unregister(device, app, a, b, c):
    await a.do("register")
    await b.do("get")
    await a.do("unregister")
    light = a.thread
    leaving = asyncio.create_task(light.exit(timeout=60))
    await asyncio.sleep(0.05)
    assert not leaving.done()
    await b.do("put")
    await leaving
    assert device.counts == (1, 1, 1) and device.about["gone_on"] == light.id


@run
async def test_a_channel_moves_with_its_thread(device, app, a, b, c):
    await a.do("register")
    await b.do("get")
    light = b.thread
    before = light.lcore
    await light.move(1 - before)
    assert light.lcore == 1 - before
    assert [await b.do("look"), await b.do("get")] == [0, 0]
    assert device.counts == (1, 0, 0)
    for _ in range(2):
        await b.do("put")
    await a.do("unregister quietly")
