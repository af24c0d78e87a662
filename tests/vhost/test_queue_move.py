"""vhostrt.vhost.queue: a queue goes from one reactor to another with requests in flight.

A driver's view: every request is answered once, in memory as it was asked for, with its interrupt.
"""
import asyncio
import errno
import os

import pytest

from tests.lib.cy_rig import IN, OK, OUT, until
from tests.vhost.test_queue import eventfds, rig, run
from vhostrt.bdev.malloc import MallocBdev
from vhostrt.bdev.null import NullBdev
from vhostrt.event import iochannel, reactor

MOVES = 300 * min(int(os.environ.get("VHOSTRT_STRESS", "1")), 5)


async def go(r, lcore, **options):
    """Move the queue, and close the channel that it had."""
    old = await r.queue.move(lcore, await r.bdev.open_channel(lcore), **options)
    assert old is r.channel and old.inflight == 0
    await r.bdev.close_channel(old)
    r.channel = r.queue.channel


async def begin(r):
    """Begin a move to lcore 1, and return its task once the queue pops nothing more."""
    events = reactor.stats(0)["events"]
    moving = asyncio.create_task(go(r, 1, timeout=60))
    await until(lambda: reactor.stats(0)["events"] > events)
    return moving


@run
async def test_it_goes_on_where_it_was():
    async with rig(MallocBdev("m", 2048, 512), lcores=2) as r:
        for turn in range(20):
            lcore = 1 - turn % 2
            r.client.data.write(0, bytes([turn]) * 512)
            head = r.client.send(OUT, turn)
            assert await r.client.answers(1) == [(head, OK, 1)]
            await go(r, lcore)
            assert (r.queue.lcore, r.channel.lcore) == (lcore, lcore)
            assert reactor.stats(lcore)["threads"] == 1
            assert reactor.stats(1 - lcore)["threads"] == 0
            assert iochannel.channels(r.queue.thread) == [("bdev_m", 1)]
            r.client.send(IN, turn, at=4096)
            await r.client.answers(1)
            assert r.client.data.read(4096, 512) == bytes([turn]) * 512
            # One interrupt a request, and one at the start.
            assert r.called() == (3 if turn == 0 else 2)
        assert sum(r.queue.stats().requests().values()) == 40
        assert sum(r.queue.stats().errors().values()) == 0
        assert (await r.queue.stop())[0] == 40


@run
async def test_requests_in_flight_end_first_and_new_ones_wait():
    async with rig(lcores=2) as r:
        old = r.channel
        first = [r.client.send(IN) for _ in range(5)]
        await until(lambda: r.bdev.held == 5)
        moving = await begin(r)
        later = [r.client.send(IN) for _ in range(3)]
        for count in (2, 2):
            await r.bdev.let_go(count, lcore=0)
            await r.client.answers(count)
        await asyncio.sleep(0.02)
        assert not moving.done() and (r.bdev.held, r.queue.inflight, old.inflight) == (1, 1, 1)
        assert r.queue.lcore == 0
        await r.bdev.let_go(1, lcore=0)
        await moving
        # Now the others are with the bdev, on the channel of the new reactor.
        await until(lambda: r.bdev.held == 3)
        assert (old.inflight, r.channel.inflight, r.channel.lcore) == (0, 3, 1)
        answered = await r.client.answers(1)
        await r.bdev.let_go(3, lcore=1)
        answered += await r.client.answers(3)
        assert [head for head, _, _ in answered] == first[4:] + later
        assert r.client.done() == 0


@run
async def test_a_move_that_takes_too_long_is_given_up():
    async with rig(lcores=2) as r:
        held = r.client.send(IN)
        await until(lambda: r.bdev.held == 1)
        channel = await r.bdev.open_channel(1)
        for _ in range(3):
            with pytest.raises(OSError, match="move of queue 3 to core 1") as told:
                await r.queue.move(1, channel, timeout=0.03)
            assert told.value.errno == errno.ETIMEDOUT
        await r.bdev.close_channel(channel)
        assert r.queue.lcore == 0 and r.queue.channel is r.channel and not r.queue.moving
        more = r.client.send(IN)
        await until(lambda: r.bdev.held == 2)           # it pops again
        await r.bdev.let_go(2, lcore=0)
        assert [head for head, _, _ in await r.client.answers(2)] == [held, more]
        await go(r, 1)
        r.client.send(IN)
        await until(lambda: r.bdev.held == 1)
        await r.bdev.let_go(1, lcore=1)


@run
async def test_to_where_nobody_is():
    async with rig(NullBdev("n", 2048, 512), lcores=2) as r:
        with pytest.raises(OSError, match="move of queue 3 to core 5") as told:
            await r.queue.move(5, r.channel)
        assert told.value.errno == errno.ENODEV
        assert r.queue.lcore == 0 and reactor.stats(0)["threads"] == 1
        r.client.send(IN)
        await r.client.answers(1)


@run
async def test_in_the_wrong_order():
    async with rig(start=False, lcores=2) as r:
        with pytest.raises(RuntimeError, match="queue 3 is not started"):
            await r.queue.move(1, r.channel)
        await r.start()
        r.client.send(IN)
        await until(lambda: r.bdev.held == 1)
        moving = await begin(r)
        for early in (r.queue.set_view(r.client.view(), r.client.addresses),
                      r.queue.set_fd("call", -1), r.queue.set_channel(None), r.queue.stop(),
                      r.queue.move(1, r.channel)):
            with pytest.raises(RuntimeError, match="moved|on its way"):
                await early
        await r.bdev.let_go(1, lcore=0)
        await moving


@run
async def test_a_ring_that_is_spoilt_on_the_way():
    """The request in flight finds its memory gone: the ring is broken, told, and moves."""
    async with rig(lcores=2) as r:
        r.client.send(IN)
        await until(lambda: r.bdev.held == 1)
        moving = await begin(r)
        r.client.data.truncate()
        await r.bdev.let_go(1, lcore=0)
        await moving
        await until(lambda: r.broken)
        assert r.broken == [errno.EFAULT] and r.called("err") == 1 and r.client.done() == 0
        assert r.queue.lcore == 1
        await go(r, 0)                  # a broken one may move, too; nothing is told again
        r.client.send(IN)
        await asyncio.sleep(0.02)
        assert r.broken == [errno.EFAULT] and r.bdev.held == 0 and r.called("err") == 0


@run
async def test_descriptors_and_views_are_exchanged_between_moves():
    async with rig(NullBdev("n", 2048, 512), lcores=2) as r:
        for turn in range(6):
            await go(r, 1 - turn % 2)
            r.called()
            await r.queue.set_view(r.client.view(), r.client.addresses)
            fds = eventfds()
            for kind, fd in fds.items():
                os.close(await r.queue.set_fd(kind, fd))
            r.fds = fds
            assert r.called() == 1      # of a new call descriptor
            r.client.send(IN)
            await r.client.answers(1)
            assert r.called() == 1
        await until(lambda: r.client.ring.mapped() == 1 == r.client.data.mapped())


@pytest.mark.parametrize("spoilt", [False, True])
@run
async def test_without_a_bdev(spoilt):
    async with rig(NullBdev("n", 2048, 512), lcores=2) as r:
        assert await r.queue.set_channel(None) is r.channel
        assert await r.queue.move(1, None) is None
        assert r.queue.lcore == 1 and iochannel.channels(r.queue.thread) == []
        r.client.send(IN)
        ((_, status, _),) = await r.client.answers(1)
        assert status == 1
        if spoilt:
            r.client.spoil()
            await until(lambda: r.broken)
            await r.queue.move(0, None)
            assert r.broken == [errno.EPROTO]


@run
async def test_kicks_reach_it_where_it_sleeps():
    """The epoll watch moves along: the reactor that it left sleeps on."""
    async with rig(NullBdev("n", 2048, 512), lcores=2, event_idx=True) as r:
        for lcore in (0, 1):
            reactor.set_idle(lcore, "interrupt")
        for turn in range(10):
            lcore = 1 - turn % 2
            await go(r, lcore)
            await until(lambda lcore=lcore: reactor.stats(lcore)["in_interrupt"])
            await until(lambda lcore=lcore: reactor.stats(1 - lcore)["in_interrupt"])
            sleeps = [reactor.stats(n)["sleeps"] for n in (0, 1)]
            r.client.send(IN)
            os.eventfd_write(r.fds["kick"], 1)
            await r.client.answers(1)
            await until(lambda lcore=lcore, sleeps=sleeps: (
                reactor.stats(lcore)["sleeps"] > sleeps[lcore]))
            assert reactor.stats(1 - lcore)["sleeps"] == sleeps[1 - lcore]


@run
async def test_stress_hundreds_of_moves_under_load():
    """Requests come and are held all the time; each is answered once, in order."""
    async with rig(lcores=2) as r:
        sent, answered, moves, lcore = [], [], 0, 0
        while moves < MOVES:
            moving = asyncio.create_task(go(r, 1 - lcore, timeout=60))
            while not moving.done():
                if len(sent) - len(answered) < 32:
                    sent.append(r.client.send(IN))
                await r.bdev.let_go(1, lcore=lcore)
                await asyncio.sleep(0)
                answered += [head for head, _, _ in r.client.take()]
            await moving
            moves, lcore = moves + 1, 1 - lcore
        while len(answered) < len(sent):
            await r.bdev.let_go(100, lcore=lcore)
            await asyncio.sleep(0.001)
            answered += [head for head, _, _ in r.client.take()]
        assert answered == sent and len(sent) >= MOVES
        assert sum(r.queue.stats().requests().values()) == len(sent)
        # Every answer has a time, on whatever reactor it was given.
        assert sum(h.total() for h in r.queue.stats().histograms) == len(sent)
