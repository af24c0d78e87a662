"""vhostrt.vhost.queue and blk: the life of a queue with requests in flight, and hostile drivers."""
import asyncio
import contextlib
import errno
import inspect
import os

import pytest

from tests.lib.cy_rig import (DATA_AT, DATA_BYTES, FLUSH, GET_ID, IN, IOERR, OK, OUT, RING_AT,
                              RING_BYTES, UNSUPP, USER, Client, HeldBdev, Memory, until, view_of)
from tests.lib.reactors import reactors
from vhostrt.base import sigbus
from vhostrt.bdev.malloc import MallocBdev
from vhostrt.bdev.null import NullBdev
from vhostrt.event import reactor
from vhostrt.event.thread import Thread
from vhostrt.vhost.blk import BlkQueue
from vhostrt.vhost.view import Poison


class Rig:
    """A queue on lcore 0, its client, and what the queue was told to tell."""

    def __init__(self, client, bdev, queue, channel, fds):
        self.client, self.bdev, self.queue = client, bdev, queue
        self.channel, self.fds = channel, fds
        self.broken: list[int] = []

    def called(self, kind="call"):
        """Return how often a descriptor was signalled since the last time."""
        try:
            return os.eventfd_read(self.fds[kind])
        except BlockingIOError:
            return 0

    async def start(self, view=None, next_avail=0, lcore=0, event_idx=False):
        await self.queue.start(lcore, view or self.client.view(), self.client.addresses, next_avail,
                               self.fds, event_idx, True, self.channel)


def some(counters):
    """Return the counters that are not 0."""
    return {name: count for name, count in counters.items() if count}


def eventfds():
    return {kind: os.eventfd(0, os.EFD_NONBLOCK) for kind in ("kick", "call", "err")}


@contextlib.asynccontextmanager
async def rig(bdev=None, size=128, start=True, lcores=1, **options):
    """Reactors and a queue; at the end whatever is held is let go and all of it stopped."""
    sigbus.install()
    async with reactors(lcores):
        bdev = bdev or HeldBdev()
        made = Rig(Client(size, options.get("event_idx", False)), bdev, None,
                   await bdev.open_channel(0), eventfds())
        made.queue = BlkQueue(3, size, Thread("vq3"), lambda _, number: made.broken.append(number),
                              b"serial")
        if start:
            await made.start(**options)
        try:
            yield made
        finally:
            if made.queue.lcore >= 0:
                stopping = asyncio.create_task(made.queue.stop())
                while not stopping.done():
                    if isinstance(bdev, HeldBdev):
                        await bdev.let_go(1000, rc=-errno.EIO,
                                          lcore=max(made.queue.lcore, 0))
                    await asyncio.sleep(0.001)
                await stopping
            await bdev.close_channel(made.channel)
            for fd in made.fds.values():
                os.close(fd)
            await bdev.close()


def run(test):
    """Make an ordinary test of a coroutine function."""
    def wrapped(**arguments):
        asyncio.run(asyncio.wait_for(test(**arguments), 200))
    wrapped.__name__, wrapped.__doc__ = test.__name__, test.__doc__
    wrapped.__signature__ = inspect.signature(test)
    wrapped.pytestmark = getattr(test, "pytestmark", [])
    return wrapped


# Requests

@run
async def test_what_is_written_is_read_again():
    async with rig(MallocBdev("m", 2048, 512)) as r:
        r.client.data.write(0, bytes(range(256)) * 4)
        head = r.client.send(OUT, 5, (512, 100, 412))
        assert await r.client.answers(1) == [(head, OK, 1)]
        head = r.client.send(IN, 6, (512,), at=8192)
        assert await r.client.answers(1) == [(head, OK, 513)]
        assert r.client.data.read(8192, 512) == bytes(range(256)) * 2
        head = r.client.send(IN, 5, (1, 1023), at=4096)
        assert await r.client.answers(1) == [(head, OK, 1025)]
        assert r.client.data.read(4096, 1024) == bytes(range(256)) * 4


REQUESTS = {
    "a block": ((IN, 0, (512,)), OK, 513),
    "the last block": ((IN, 2047, (512,)), OK, 513),
    "all of it": ((IN, 0, (2048 * 512,)), OK, 2048 * 512 + 1),
    "past the end": ((IN, 2047, (1024,)), IOERR, 1),
    "behind the end": ((IN, 2048, (512,)), IOERR, 1),
    "a sector that wraps": ((IN, 2**55, (512,)), IOERR, 1),
    "the last sector there can be": ((OUT, 2**64 - 1, (512,)), IOERR, 1),
    "nothing to read": ((IN, 0, ()), IOERR, 1),
    "nothing to write": ((OUT, 0, ()), IOERR, 1),
    "half a block": ((IN, 0, (256,)), IOERR, 1),
    "a block and a byte": ((OUT, 0, (512, 1)), IOERR, 1),
    "flush": ((FLUSH, 0, ()), OK, 1),
    "flush of a sector": ((FLUSH, 7, ()), OK, 1),
    "get id": ((GET_ID, 0, (20,)), OK, 21),
    "get id, little room": ((GET_ID, 0, (3,)), OK, 4),
    "get id, much room": ((GET_ID, 0, (9, 9, 512)), OK, 21),
    "get id, none": ((GET_ID, 0, ()), OK, 1),
    "unknown type": ((77, 0, (512,)), UNSUPP, 1),
    "scsi command": ((2, 0, (512,)), UNSUPP, 1),
}


@pytest.mark.parametrize(("request_", "status", "written"), REQUESTS.values(), ids=REQUESTS)
@run
async def test_request(request_, status, written):
    async with rig(NullBdev("n", 2048, 512)) as r:
        head = r.client.send(*request_)
        assert await r.client.answers(1) == [(head, status, written)]
        assert sum(r.queue.stats().errors().values()) == (status != OK)
        if request_[0] == GET_ID:
            n = written - 1
            assert r.client.data.read(0, n) == b"serial".ljust(20, b"\0")[:n]


@pytest.mark.parametrize(("sector", "length", "status"), [
    (0, 4096, OK), (8, 8192, OK), (4, 4096, IOERR), (0, 512, IOERR), (248 * 8, 32768, OK),
    (249 * 8, 32768, IOERR)])
@run
async def test_requests_of_a_disk_with_big_blocks(sector, length, status):
    async with rig(NullBdev("n", 256, 4096)) as r:
        r.client.send(IN, sector, (length,))
        ((_, found, _),) = await r.client.answers(1)
        assert found == status


@run
async def test_requests_wait_for_the_bdev_and_their_errors_are_told():
    async with rig() as r:
        heads = [r.client.send(kind, 0, lengths) for kind, lengths in
                 ((IN, (512,)), (OUT, (512,)), (FLUSH, ()), (IN, (512,)))]
        await until(lambda: r.bdev.held == 4)
        assert r.client.done() == 0 and r.queue.inflight == 4
        assert await r.bdev.let_go(3) == 3
        assert await r.client.answers(3) == [(heads[0], OK, 513), (heads[1], OK, 1),
                                             (heads[2], OK, 1)]
        await r.bdev.let_go(1, rc=-errno.EIO)
        assert await r.client.answers(1) == [(heads[3], IOERR, 1)]
        for answer, status, written in ((1, OK, 513), (-errno.ENOSPC, IOERR, 1),
                                        (-errno.EOPNOTSUPP, UNSUPP, 1)):
            r.bdev.answer_at_once(answer)
            head = r.client.send(IN)
            assert await r.client.answers(1) == [(head, status, written)]
        stats = r.queue.stats()
        assert some(stats.requests()) == {"read": 5, "write": 1, "flush": 1}
        assert some(stats.data()) == {"read": 5 * 512, "write": 512}
        assert some(stats.errors()) == {"io_error": 2, "unsupported": 1}


@run
async def test_one_interrupt_for_what_is_done_together():
    async with rig() as r:
        assert r.called() == 1, "who starts is called once"
        for _ in range(10):
            r.client.send(IN)
        await until(lambda: r.bdev.held == 10)
        assert r.called() == 0
        await r.bdev.let_go(10)
        await r.client.answers(10)
        assert r.called() == 1
        r.client.no_interrupt()
        r.client.send(IN)
        await until(lambda: r.bdev.held == 1)
        await r.bdev.let_go(1)
        await r.client.answers(1)
        assert r.called() == 0
        assert r.queue.stats().calls == 2


# The life of a queue

@run
async def test_start_and_stop():
    async with rig(start=False) as r:
        assert (r.queue.lcore, r.queue.size, r.queue.broken, r.queue.view) == (-1, 128, 0, None)
        await r.start()
        assert r.queue.lcore == 0 and r.queue.channel is r.channel
        assert reactor.stats(0)["threads"] == 1
        for _ in range(5):
            r.client.send(IN)
        await until(lambda: r.bdev.held == 5)
        await r.bdev.let_go(5)
        assert await r.queue.stop() == (5, r.fds)
        assert (r.queue.lcore, r.queue.view, r.queue.channel) == (-1, None, None)
        assert reactor.stats(0)["threads"] == 0
        await until(lambda: r.client.ring.mapped() == 0 == r.client.data.mapped())


@run
async def test_a_ring_goes_on_where_it_was_left():
    """At an index that wraps soon; the used ring as well as the available one."""
    async with rig(NullBdev("n", 2048, 512), start=False) as r:
        r.client.begin_at(65530)
        await r.start(next_avail=65530)
        for i in range(20):
            r.client.send(IN)
            assert len(await r.client.answers(1)) == 1, i
        assert (await r.queue.stop())[0] == (65530 + 20) % 65536


@run
async def test_on_another_reactor():
    async with rig(NullBdev("n", 2048, 512), start=False, lcores=2) as r:
        r.channel = await r.bdev.open_channel(1)
        await r.start(lcore=1)
        assert [reactor.stats(n)["threads"] for n in (0, 1)] == [0, 1]
        r.client.send(IN)
        await r.client.answers(1)


@run
async def test_in_the_wrong_order():
    async with rig(start=False) as r:
        for early in (r.queue.stop(), r.queue.set_view(r.client.view(), r.client.addresses),
                      r.queue.set_fd("call", -1), r.queue.set_channel(None)):
            with pytest.raises(RuntimeError, match="queue 3 is not started"):
                await early
        await r.start()
        with pytest.raises(RuntimeError, match="queue 3 is already started"):
            await r.start()
        await r.queue.stop()
        with pytest.raises(RuntimeError, match="queue 3 is not started"):
            await r.queue.stop()
        await until(lambda: r.client.ring.mapped() == 0)


@run
async def test_a_start_that_fails_leaves_nothing():
    async with rig(NullBdev("n", 2048, 512), start=False) as r:
        with pytest.raises(OSError, match="core 5"):
            await r.start(lcore=5)
        assert r.queue.lcore == -1 and r.client.ring.mapped() == 0
        await r.start()
        r.client.send(IN)
        await r.client.answers(1)


@pytest.mark.parametrize("size", [0, 3, 129, 32769, 65536, 2**31])
def test_size_refused(size):
    with pytest.raises(ValueError, match=f"ring size {size} must be a power of two up to 32768"):
        BlkQueue(0, size, Thread("x"), print, b"")


# (part, how far it is moved, why not); the parts of the client's ring are at 0, 2048 and 2312.
OUTSIDE = {
    "descriptors elsewhere": (0, -0x200000, "descriptor table of queue 3"),
    "descriptors not aligned": (0, 8, "descriptor table"),
    "available ring not aligned": (1, 1, "available ring of queue 3"),
    "available ring at the end": (1, RING_BYTES - 2048 - 260, "available ring"),
    "used ring not aligned": (2, 2, "used ring of queue 3"),
    "used ring at the end": (2, RING_BYTES - 2312 - 1028, "used ring"),
}


@pytest.mark.parametrize(("part", "shift", "why"), OUTSIDE.values(), ids=OUTSIDE)
@run
async def test_a_ring_that_is_not_in_memory(part, shift, why):
    async with rig(start=False) as r:
        good = r.client.addresses
        addresses = list(good)
        addresses[part] += shift
        with pytest.raises(ValueError, match=why):
            await r.queue.start(0, r.client.view(), tuple(addresses), 0, r.fds, False, False,
                                r.channel)
        assert r.client.ring.mapped() == 0
        # Up to the very end of its region it may lie.
        addresses = list(good)
        addresses[2] = USER + RING_AT + RING_BYTES - (6 + 8 * 128) & ~3
        await r.queue.start(0, r.client.view(), tuple(addresses), 0, r.fds, False, False, r.channel)


@run
async def test_stop_waits_for_what_is_in_flight():
    async with rig() as r:
        heads = [r.client.send(IN) for _ in range(5)]
        await until(lambda: r.bdev.held == 5)
        stopping = asyncio.create_task(r.queue.stop())
        await until(lambda: reactor.stats(0)["events"] > 1)
        r.client.send(IN)               # nobody takes it any more
        await r.bdev.let_go(4)
        assert await r.client.answers(4) == [(h, OK, 513) for h in heads[:4]]
        await asyncio.sleep(0.02)
        assert not stopping.done() and r.queue.inflight == 1 and r.bdev.held == 1
        await r.bdev.let_go(1)
        assert await stopping == (5, r.fds)
        assert r.client.take() == [(heads[4], OK, 513)]


@run
async def test_a_stop_that_was_cancelled_goes_on():
    async with rig() as r:
        r.client.send(IN)
        await until(lambda: r.bdev.held == 1)
        first = asyncio.create_task(r.queue.stop())
        await asyncio.sleep(0.01)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        with pytest.raises(RuntimeError, match="is being stopped"):
            await r.queue.set_fd("call", -1)
        both = asyncio.gather(r.queue.stop(), r.queue.stop())
        await r.bdev.let_go(1)
        assert await both == [(1, r.fds), (1, r.fds)]


@run
async def test_descriptors_are_exchanged():
    async with rig() as r:
        old, r.fds = dict(r.fds), eventfds()
        for kind in ("call", "kick", "err"):
            assert await r.queue.set_fd(kind, r.fds[kind]) == old[kind]
        assert r.called() == 1, "what was missed meanwhile is never told"
        for fd in old.values():
            os.close(fd)
        r.client.send(IN)
        await until(lambda: r.bdev.held == 1)
        await r.bdev.let_go(1)
        await r.client.answers(1)
        assert r.called() == 1 and r.called("kick") == 0
        r.client.spoil()
        await until(lambda: r.broken)
        assert r.called("err") == 1
        assert await r.queue.set_fd("call", -1) == r.fds["call"]
        (_, fds) = await r.queue.stop()
        assert fds == {**r.fds, "call": -1}


@run
async def test_without_a_channel_every_request_fails():
    async with rig() as r:
        heads = [r.client.send(IN)]
        await until(lambda: r.bdev.held == 1)
        assert await r.queue.set_channel(None) is r.channel
        for kind, status in ((IN, IOERR), (OUT, IOERR), (FLUSH, IOERR), (GET_ID, OK)):
            r.client.send(kind, 0, (512,) if kind != FLUSH else ())
            ((_, found, _),) = await r.client.answers(1)
            assert found == status
        # The one in flight ends on the channel it was submitted to.
        assert r.channel.inflight == 1
        await r.bdev.let_go(1)
        assert await r.client.answers(1) == [(heads[0], OK, 513)]
        assert r.channel.inflight == 0


@run
async def test_another_channel_brings_its_block_size():
    async with rig() as r:
        other = NullBdev("n", 256, 4096)
        channel = await other.open_channel(0)
        assert await r.queue.set_channel(channel) is r.channel
        assert r.queue.channel is channel
        for length, status in ((512, IOERR), (4096, OK)):
            r.client.send(IN, 0, (length,))
            ((_, found, _),) = await r.client.answers(1)
            assert found == status


# Long chains

@run
async def test_long_chains_wait_for_each_other():
    """Sixty-four can be in flight; the next waits, and nothing overtakes it."""
    async with rig(size=1024) as r:
        long = [r.client.send(IN, 0, (51,) * 9 + (53,), publish=False) for _ in range(70)]
        short = r.client.send(OUT)
        await until(lambda: r.bdev.held == 64)
        await asyncio.sleep(0.02)
        assert r.bdev.held == 64 == r.queue.inflight
        for held in (64, 64, 64, 64, 64, 65):           # the short one comes with the last
            assert await r.bdev.let_go(1) == 1
            await until(lambda held=held: r.bdev.held == held)
        await r.bdev.let_go(100)
        answers = await r.client.answers(71)
        assert answers == [(head, OK, 513) for head in long] + [(short, OK, 1)]
        assert r.client.data.read(0, 512) == b"\x5a" * 512


@run
async def test_the_longest_chain():
    async with rig(MallocBdev("m", 2048, 512), size=1024) as r:
        lengths = (1024,) * 513         # with header and status 515
        r.client.data.write(0, b"abcdefgh" * 64 * 1026)
        r.client.send(OUT, 0, lengths)
        assert [a[1:] for a in await r.client.answers(1)] == [(OK, 1)]
        r.client.data.write(0, bytes(513 * 1024))
        r.client.send(IN, 0, lengths)
        assert [a[1:] for a in await r.client.answers(1)] == [(OK, 513 * 1024 + 1)]
        assert r.client.data.read(0, 513 * 1024) == b"abcdefgh" * 64 * 1026


# Hostile drivers

@pytest.mark.parametrize(("how", "number"), [("loop", errno.EPROTO), ("index", errno.EPROTO),
                                             ("memory", errno.EFAULT), ("header", errno.EPROTO)])
@run
async def test_a_spoilt_ring_is_told_once(how, number):
    async with rig() as r:
        held = r.client.send(IN)
        await until(lambda: r.bdev.held == 1)
        r.client.spoil(how)
        await until(lambda: r.broken)
        assert r.called("err") == 1
        r.client.spoil(how)
        r.client.send(IN)
        await asyncio.sleep(0.02)
        assert r.broken == [number] and r.queue.broken == number and r.called("err") == 0
        # What was in flight ends, and is not shown: the driver's ring is not to be trusted.
        await r.bdev.let_go(1)
        assert r.queue.inflight == 0 and r.bdev.held == 0
        assert r.client.done() == 0
        assert await r.queue.stop() == (1, r.fds)
        assert r.client.status(held) == OK


@run
async def test_what_came_before_the_bad_chain_is_answered():
    async with rig(NullBdev("n", 2048, 512)) as r:
        heads = [r.client.send(IN, publish=False) for _ in range(3)]
        r.client.spoil()
        await until(lambda: r.broken)
        assert await r.client.answers(3) == [(h, OK, 513) for h in heads]


@run
async def test_a_broken_ring_can_be_served_anew():
    async with rig(NullBdev("n", 2048, 512)) as r:
        r.client.spoil()
        await until(lambda: r.broken)
        await r.queue.stop()
        r.client = Client()
        r.queue = BlkQueue(3, 128, Thread("again"), print, b"serial")
        await r.start()
        r.client.send(IN)
        await r.client.answers(1)


@run
async def test_memory_that_vanishes_breaks_the_queue():
    async with rig(MallocBdev("m", 2048, 512)) as r:
        r.client.send(IN)
        await r.client.answers(1)
        r.client.data.truncate()
        r.client.send(OUT)
        await until(lambda: r.broken)
        assert r.broken == [errno.EFAULT] and r.called("err") == 1
        assert r.client.done() == 0, "a write of zeros that nobody wrote was acknowledged"


@run
async def test_the_ring_itself_vanishes():
    async with rig() as r:
        r.client.send(IN)
        await until(lambda: r.bdev.held == 1)
        r.client.ring.truncate()
        await r.bdev.let_go(1)
        await until(lambda: r.broken)
        assert r.broken == [errno.EFAULT]


# Views

@run
async def test_requests_in_flight_keep_the_old_memory():
    async with rig() as r:
        first = r.client.send(IN)
        await until(lambda: r.bdev.held == 1)
        new = Memory(DATA_AT, DATA_BYTES)
        await r.queue.set_view(view_of(r.client.ring, new), r.client.addresses)
        second = r.client.send(IN)
        await until(lambda: r.bdev.held == 2)
        assert r.client.data.mapped() == 1 == new.mapped()
        assert r.client.ring.mapped() == 2
        await r.bdev.let_go(1, fill=1)
        assert await r.client.answers(1) == [(first, OK, 513)]
        assert r.client.data.read(0, 512) == b"\1" * 512 and new.read(0, 512) == bytes(512)
        await until(lambda: r.client.data.mapped() == 0)
        assert r.client.ring.mapped() == 1
        await r.bdev.let_go(1, fill=2)
        assert await r.client.answers(1) == [(second, OK, 513)]
        assert r.client.data.read(0, 512) == b"\1" * 512 and new.read(0, 512) == b"\2" * 512


@run
async def test_a_view_without_requests_goes_at_once():
    async with rig() as r:
        for _ in range(20):
            await r.queue.set_view(r.client.view(), r.client.addresses)
        await until(lambda: r.client.ring.mapped() == 1 == r.client.data.mapped())


@run
async def test_a_ring_that_moves_with_its_view():
    """The same client address, other memory: what was done is in the old ring, the rest new."""
    async with rig(NullBdev("n", 2048, 512)) as r:
        r.client.send(IN)
        await r.client.answers(1)
        other = Client()
        other.begin_at(1)
        await r.queue.set_view(other.view(), other.addresses)
        head = other.send(IN)
        assert await other.answers(1) == [(head, OK, 513)]
        assert r.client.done() == 0


@pytest.mark.parametrize("between", [0, 1], ids=["in the last view", "in one before that"])
@run
async def test_a_view_without_the_ring_breaks_the_queue(between):
    """What is in flight is still given back to the ring, in memory that is kept for it."""
    async with rig() as r:
        head = r.client.send(IN)
        await until(lambda: r.bdev.held == 1)
        for _ in range(between):
            await r.queue.set_view(r.client.view(), r.client.addresses)
        await r.queue.set_view(view_of(r.client.data), r.client.addresses)
        await until(lambda: r.broken)
        assert r.broken == [errno.EFAULT] and r.called("err") == 1
        assert r.client.ring.mapped() == 1 + between
        await r.bdev.let_go(1)
        assert r.queue.inflight == 0 and r.client.status(head) == OK
        await r.queue.stop()
        await until(lambda: r.client.ring.mapped() == 0 == r.client.data.mapped())


@run
async def test_an_old_view_that_vanishes_breaks_the_queue_too():
    async with rig() as r:
        r.client.send(IN)
        await until(lambda: r.bdev.held == 1)
        new = Memory(DATA_AT, DATA_BYTES)
        poison = Poison()
        await r.queue.set_view(view_of(r.client.ring, new, poison=poison), r.client.addresses)
        r.client.data.truncate()
        await r.bdev.let_go(1)
        await until(lambda: r.broken)
        assert r.broken == [errno.EFAULT] and not poison
        assert r.client.done() == 0, "a read of memory that was gone was acknowledged"
