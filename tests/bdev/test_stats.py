"""vhostrt.bdev.core: what channels and bdevs count of requests that are known."""
import asyncio
import errno

import pytest

from tests.bdev.test_modules import KINDS, channel
from tests.lib.cy_bdev import run
from tests.lib.cy_rig import HeldBdev, until
from tests.lib.reactors import reactors
from vhostrt.base import ticks
from vhostrt.bdev.core import TYPE_NAMES

SEQUENCE = [("write", 0, 4, 2), ("read", 4, 1, 3), ("write_zeroes", 8, 16, 1), ("flush", 0, 0, 1)]


def counted(stats):
    """Return {type: (ops, blocks)} of what is not 0."""
    return {name: (stats[name]["ops"], stats[name]["blocks"]) for name in TYPE_NAMES
            if stats[name]["ops"]}


def requests(types):
    return [(kind, first, blocks, [bytearray(512 * blocks)] if kind in ("read", "write") else [])
            for kind, first, blocks, times in SEQUENCE for _ in range(times) if kind in types]


@pytest.mark.parametrize("kind", KINDS)
def test_a_known_sequence(kind, tmp_path):
    async def main():
        async with channel(kind, tmp_path / "disk") as c:
            types = c.bdev.io_types
            start = ticks.now()
            await run(c, requests(types))
            most = ticks.now() - start
            stats = c.stats()
            assert counted(stats) == {name: (times, times * blocks)
                                      for name, _, blocks, times in SEQUENCE if name in types}
            assert stats["errors"] == {"nomem": 0, "aborted": 0, "failed": 0}
            for name, (ops, _) in counted(stats).items():
                each = stats[name]
                assert 0 < each["ticks_min"] <= each["ticks_max"] <= most
                assert ops * each["ticks_min"] <= each["ticks"] <= ops * each["ticks_max"]
            assert c.bdev.totals() == stats

    asyncio.run(main())


@pytest.mark.parametrize("kind", KINDS)
def test_what_never_reached_the_bdev_is_not_its(kind, tmp_path):
    async def main():
        async with channel(kind, tmp_path / "disk") as c:
            assert await run(c, [("read", 1 << 40, 1, [bytearray(512)])]) == [-errno.EINVAL]
            c.bdev.mark_removed()
            assert await run(c, [("read", 0, 1, [bytearray(512)])]) == [-errno.ENODEV]
            assert counted(c.stats()) == {} and not any(c.stats()["errors"].values())

    asyncio.run(main())


def test_errors_by_cause():
    async def main():
        async with reactors(1):
            bdev = HeldBdev()
            c = await bdev.open_channel(0)
            for rc in (-errno.ENOMEM, -errno.ECANCELED, -errno.EIO, -errno.ENOSPC):
                bdev.answer_at_once(rc)
                assert await run(c, [("read", 0, 1, [bytearray(512)])]) == [rc]
            assert c.stats()["errors"] == {"nomem": 1, "aborted": 1, "failed": 2}
            await bdev.close_channel(c)
            assert bdev.totals()["errors"] == {"nomem": 1, "aborted": 1, "failed": 2}

    asyncio.run(main())


def test_channels_that_come_and_go_add_up_and_resets_do_not_touch_the_sum():
    async def main():
        async with reactors(2):
            bdev = HeldBdev()
            bdev.answer_at_once(1)
            sums = []
            for turn in range(1, 4):
                c = await bdev.open_channel(turn % 2)
                await run(c, [("write", 0, 2, [bytearray(1024)])] * turn)
                sums.append(counted(bdev.totals()))
                if turn == 2:
                    told = await bdev.iostat("all")
                    assert counted(told) == {"write": (3, 6)}
                await bdev.close_channel(c)
            assert sums == [{"write": (n, 2 * n)} for n in (1, 3, 6)]
            assert counted(bdev.totals()) == {"write": (6, 12)}
            assert counted(await bdev.iostat()) == {"write": (3, 6)}
            with pytest.raises(ValueError, match="not one of bdev held that is open"):
                await bdev.close_channel(c)

    asyncio.run(main())


@pytest.mark.parametrize("kind", KINDS)
def test_a_histogram_has_what_the_counters_have(kind, tmp_path):
    async def main():
        async with channel(kind, tmp_path / "disk") as c:
            bdev = c.bdev
            assert bdev.histogram() is None
            await bdev.keep_histogram(("write", "read"), 6, 0, 1 << 50)
            await run(c, [("write", 0, 1, [bytearray(512)])] * 9)
            histogram, stats = bdev.histogram(), bdev.totals()["write"]
            assert histogram.total() == 9
            assert abs(histogram.sum() - stats["ticks"]) <= stats["ticks"] / 64 + 9
            await bdev.keep_histogram(("read", "write"), 6, 0, 1 << 50)
            assert bdev.histogram().total() == 9, "nothing was changed"
            # A channel that is opened now counts as well, and what it has counted stays.
            other = await bdev.open_channel(0)
            await run(other, [("write", 0, 1, [bytearray(512)])])
            await bdev.close_channel(other)
            assert bdev.histogram().total() == 10
            await bdev.keep_histogram(("read",), 6, 0, 1 << 50)
            await run(c, [("write", 0, 1, [bytearray(512)])])
            assert bdev.histogram().total() == 0
            await bdev.keep_histogram(())
            assert bdev.histogram() is None
            await run(c, [("read", 0, 1, [bytearray(512)])])

    asyncio.run(main())


def test_histograms_that_are_turned_on_and_off_under_load():
    async def main():
        async with reactors(2):
            bdev = HeldBdev()
            bdev.answer_at_once(1)
            channels = [await bdev.open_channel(n) for n in (0, 1)]
            load = [asyncio.ensure_future(busy(c)) for c in channels]
            for turn in range(30):
                await asyncio.gather(*(bdev.keep_histogram(types, 4 + turn % 3) for types in
                                       (("read",), (), ("read", "write"))))
            await asyncio.gather(*load)
            before = bdev.histogram().total()
            await run(channels[0], [("read", 0, 1, [bytearray(512)])] * 5)
            assert bdev.histogram().total() == before + 5
            for c in channels:
                await bdev.close_channel(c)
            assert bdev.histogram().total() == before + 5

    async def busy(c):
        for _ in range(100):
            await run(c, [("read", 0, 1, [bytearray(512)])] * 3)

    asyncio.run(main())


def test_what_is_done_later_and_what_at_once_are_each_counted_once():
    async def main():
        async with reactors(1):
            bdev = HeldBdev()
            c = await bdev.open_channel(0)
            await bdev.keep_histogram(("read",), 7, 0, 1 << 50)
            held = asyncio.ensure_future(run(c, [("read", 0, 1, [bytearray(512)])] * 3))
            await until(lambda: bdev.held == 3)
            assert bdev.inflight() == 3 and counted(bdev.totals()) == {}
            await bdev.let_go(3)
            assert await held == [0] * 3
            later = bdev.totals()["read"]
            bdev.answer_at_once(1)
            start = ticks.now()
            assert await run(c, [("read", 0, 1, [bytearray(512)])] * 2) == [1, 1]
            most = ticks.now() - start
            stats = bdev.totals()["read"]
            assert (stats["ops"], bdev.inflight(), bdev.histogram().total()) == (5, 0, 5)
            assert later["ticks"] < stats["ticks"] <= later["ticks"] + most

    asyncio.run(main())
