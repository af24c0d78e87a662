"""vhostrt.vhost.queue_stats: what a queue counts of requests that are known, and of their times."""
import asyncio
import errno
import os
import time

import pytest

from tests.lib.cy_rig import FLUSH, GET_ID, IN, OUT, HeldBdev, until
from tests.vhost.test_queue import rig, run, some
from vhostrt.base import ticks
from vhostrt.bdev.malloc import MallocBdev
from vhostrt.bdev.null import NullBdev
from vhostrt.vhost.queue_stats import QueueStats, eventfd_count, sum_of

DISCARD, WRITE_ZEROES = 11, 13
NO_DATA = {"read": 0, "write": 0}

# (request, kind, bytes of its data, cause of its error or None); 2048 blocks of 512 bytes.
REQUESTS = {
    "read": ((IN, 0, (512, 1024)), "read", 1536, None),
    "write": ((OUT, 8, (4096,)), "write", 4096, None),
    "flush": ((FLUSH, 0, ()), "flush", 0, None),
    "get id": ((GET_ID, 0, (64,)), "get_id", 20, None),
    "no data": ((IN, 0, ()), "read", 0, "misaligned"),
    "half a block": ((OUT, 0, (256,)), "write", 256, "misaligned"),
    "behind the end": ((OUT, 2048, (512,)), "write", 512, "out_of_range"),
    "a sector that wraps": ((IN, 2**55, (512,)), "read", 512, "out_of_range"),
    "discard": ((DISCARD, 0, (16,)), "discard", 0, "unsupported"),
    "write zeroes": ((WRITE_ZEROES, 0, (16,)), "write_zeroes", 0, "unsupported"),
    "unknown": ((77, 0, (16,)), "other", 0, "unsupported"),
}


@pytest.mark.parametrize(("request_", "kind", "size", "cause"), REQUESTS.values(), ids=REQUESTS)
@run
async def test_a_request_is_counted_once(request_, kind, size, cause):
    async with rig(MallocBdev("m", 2048, 512)) as r:
        for count in (1, 2):
            r.client.send(*request_)
            await r.client.answers(1)
            stats = r.queue.stats()
            assert some(stats.requests()) == {kind: count}
            assert some(stats.data()) == ({kind: count * size} if size else {})
            assert some(stats.errors()) == ({cause: count} if cause else {})
            lane = kind if kind in ("read", "write", "flush") else "other"
            assert {name: each["count"] for name, each in stats.latencies().items()} == {
                lane: count}
            assert some(stats.ticks()).keys() == {lane}


@run
async def test_writes_of_a_disk_that_is_read_only_are_counted_apart():
    async with rig(MallocBdev("m", 2048, 512), start=False) as r:
        await r.bdev.close_channel(r.channel)
        r.channel = await r.bdev.open_channel(0, False)
        await r.start()
        for request in ((OUT, 0, (512,)), (IN, 0, (512,)), (OUT, 9999, (512,))):
            r.client.send(*request)
            await r.client.answers(1)
        assert some(r.queue.stats().errors()) == {"read_only": 2}
        assert r.channel.stats()["write"]["ops"] == 0


@run
async def test_requests_without_a_bdev_are_counted_apart():
    async with rig(MallocBdev("m", 2048, 512)) as r:
        await r.queue.set_channel(None)
        for kind in (IN, OUT, FLUSH):
            r.client.send(kind, 0, () if kind == FLUSH else (512,))
        await r.client.answers(3)
        await r.queue.set_channel(r.channel)
        r.bdev.mark_removed()
        r.client.send(IN)
        await r.client.answers(1)
        assert some(r.queue.stats().errors()) == {"no_device": 4}


@pytest.mark.parametrize("what", ["loop", "memory", "index"])
@run
async def test_what_breaks_a_ring_is_counted(what):
    async with rig(MallocBdev("m", 2048, 512)) as r:
        r.client.send(IN)
        await r.client.answers(1)
        r.client.spoil(what)
        await until(lambda: r.broken)
        assert some(r.queue.stats().errors()) == {"malformed": 1}
        assert some(r.queue.stats().requests()) == {"read": 1}


@pytest.mark.parametrize("rc", [-errno.EIO, -errno.EINVAL, -errno.ENOSPC, -errno.ENOMEM])
@run
async def test_errors_of_the_bdev_are_its_own(rc):
    async with rig() as r:
        r.client.send(IN)
        await until(lambda: r.bdev.held == 1)
        await r.bdev.let_go(1, rc=rc)
        await r.client.answers(1)
        assert some(r.queue.stats().errors()) == {"io_error": 1}
        cause = "nomem" if rc == -errno.ENOMEM else "failed"
        assert some(r.channel.stats()["errors"]) == {cause: 1}
        assert r.channel.stats()["read"]["ops"] == 0


# Times

class Watch:
    """Ticks that have gone by, as bounds for what a queue has measured in between."""

    def __init__(self):
        self.start = ticks.now()

    def gone_us(self):
        return (ticks.now() - self.start) * 1e6 / ticks.hz()


async def watch(r):
    """Return a Watch from before the reactor looked at the clock: a poll may begin there."""
    made = Watch()
    for _ in range(8):                  # turns of its loop; it looks in every sixth at least
        await r.queue.set_channel(r.channel)
    return made


@run
async def test_percentiles_are_those_of_the_delays():
    """Ten requests wait for 5, five for 50 and one for 200 milliseconds."""
    async with rig() as r:
        bounds = []
        for count, delay in ((10, 0.005), (5, 0.05), (1, 0.2)):
            outer = await watch(r)
            for _ in range(count):
                r.client.send(IN)
            await until(lambda count=count: r.bdev.held == count)
            inner = Watch()
            await asyncio.sleep(delay)
            least = inner.gone_us()
            await r.bdev.let_go(count)
            await r.client.answers(count)
            bounds.append((least, outer.gone_us()))
        told = r.queue.stats().latencies()["read"]
        assert told["count"] == 16
        for name, (least, most) in zip(("p50", "p90", "max"), bounds, strict=True):
            assert least * 31 / 32 <= told[name] <= most * 33 / 32, (name, told, bounds)
        whole = sum(n * least for n, (least, _) in zip((10, 5, 1), bounds, strict=True))
        most = sum(n * most for n, (_, most) in zip((10, 5, 1), bounds, strict=True))
        assert whole <= told["mean"] * 16 <= most + 1
        stats = r.channel.stats()["read"]
        assert stats["ops"] == 16
        us = 1e6 / ticks.hz()
        assert bounds[0][0] <= stats["ticks_min"] * us <= bounds[0][1]
        assert bounds[2][0] <= stats["ticks_max"] * us <= bounds[2][1]
        assert whole <= stats["ticks"] * us <= most


@run
async def test_what_is_done_at_once_shares_the_time_of_its_poll():
    async with rig(NullBdev("n", 2048, 512)) as r:
        outer = await watch(r)
        for _ in range(20):
            r.client.send(IN, publish=False)
        r.client.publish()
        await r.client.answers(20)
        most = outer.gone_us() * ticks.hz() / 1e6
        counted, stats = r.queue.stats(), r.channel.stats()["read"]
        assert stats["ops"] == 20
        # One poll has answered all: for the driver each took all of it, for the bdev its share.
        assert 0 < 20 * stats["ticks_min"] <= stats["ticks"] <= counted.ticks()["read"] / 20 <= most
        assert stats["ticks_min"] == stats["ticks_max"]
        assert counted.latencies()["read"]["p50"] == counted.latencies()["read"]["max"]


@run
async def test_the_age_of_the_oldest_request():
    async with rig() as r:
        assert r.queue.oldest_us == 0
        first = await watch(r)
        r.client.send(IN)
        await until(lambda: r.bdev.held == 1)
        second = Watch()
        time.sleep(0.02)
        later = await watch(r)
        r.client.send(OUT)
        await until(lambda: r.bdev.held == 2)
        third = Watch()
        least = int(second.gone_us())
        assert least <= r.queue.oldest_us <= first.gone_us()
        await r.bdev.let_go(1)
        await r.client.answers(1)
        least = int(third.gone_us())
        assert least <= r.queue.oldest_us <= later.gone_us()
        await r.bdev.let_go(1)
        await r.client.answers(1)
        assert r.queue.oldest_us == 0


# Kicks and calls

@run
async def test_kicks_are_counted_and_not_read():
    async with rig(start=False) as r:
        os.eventfd_write(r.fds["kick"], 7)          # before it was ours
        await r.start()
        assert r.queue.stats().kicks == 0
        for _ in range(3):
            os.eventfd_write(r.fds["kick"], 1)
        assert r.queue.stats().kicks == r.queue.stats().kicks == 3
        other = os.eventfd(2, os.EFD_NONBLOCK)
        os.eventfd_write(r.fds["kick"], 1)
        assert await r.queue.set_fd("kick", other) == r.fds["kick"]
        os.eventfd_write(r.fds["kick"], 1)
        os.eventfd_write(other, 5)
        assert r.queue.stats().kicks == 9
        assert os.eventfd_read(other) == 7          # a client that does this loses what it hides
        assert r.queue.stats().kicks == 9
        os.eventfd_write(other, 1)
        assert r.queue.stats().kicks == 10
        assert await r.queue.set_fd("kick", r.fds["kick"]) == other
        os.close(other)
        os.eventfd_write(r.fds["kick"], 2)
        await r.queue.stop()
        assert r.queue.counters.kicks == 12


def test_descriptors_without_a_count():
    with open(os.devnull, "rb") as file:
        assert eventfd_count(file.fileno()) == eventfd_count(-1) == eventfd_count(10**6) == 0


# Sums

@run
async def test_sums_of_queues():
    parts = []
    for bdev in (NullBdev("n", 2048, 512), HeldBdev()):
        async with rig(bdev) as r:
            r.client.send(IN)
            r.client.send(FLUSH, 0, ())
            if isinstance(bdev, HeldBdev):
                await until(lambda bdev=bdev: bdev.held == 2)
                await bdev.let_go(2, rc=-errno.EIO)
            await r.client.answers(2)
            parts.append(r.queue.stats())
    total = sum_of(parts)
    assert some(total.requests()) == {"read": 2, "flush": 2}
    assert some(total.errors()) == {"io_error": 2} and total.calls == sum(p.calls for p in parts)
    assert total.ticks()["flush"] == sum(p.ticks()["flush"] for p in parts)
    assert [h.total() for h in total.histograms] == [2, 0, 2, 0]
    assert sum_of([]).describe() == QueueStats().describe()
