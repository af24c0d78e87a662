"""Parts of bdevs: their blocks are those of the base, and the base is theirs alone."""
import asyncio
import contextlib
import errno
import os
import random

import pytest

from tests.lib.cy_bdev import Poller, run
from tests.lib.reactors import reactors
from vhostrt.bdev import factory, registry, splits

SIZE = 4 << 20
BLOCKS = SIZE // 512
KINDS = ("malloc", "aio", "uring")


@pytest.fixture(autouse=True)
def empty():
    yield
    splits.clear()
    asyncio.run(registry.delete_all())
    assert registry.bdevs() == [] and splits.splits == {}


async def base(kind, path, **more):
    """Make a bdev `b`."""
    if kind == "malloc":
        return await factory.create_malloc(BLOCKS, 512, "b")
    path.touch()
    os.truncate(path, SIZE)
    create = factory.create_aio if kind == "aio" else factory.create_uring
    return await create("b", str(path), 512, **more)


@contextlib.asynccontextmanager
async def channels(*names, writable=True):
    """Channels to bdevs on reactor 0."""
    opened = [await registry.get(name).open_channel(0, writable) for name in names]
    try:
        yield opened
    finally:
        for channel in opened:
            await channel.bdev.close_channel(channel)


def ended(results):
    return {min(rc, 0) for rc in results}


@pytest.mark.parametrize("kind", KINDS)
def test_each_part_has_its_blocks_and_no_others(kind, tmp_path):
    rng = random.Random(7)
    model = bytearray(rng.randbytes(SIZE))

    async def main():
        async with reactors():
            await base(kind, tmp_path / "disk")
            names = await splits.create("b", 3)
            assert names == ["bp0", "bp1", "bp2"]
            size = BLOCKS // 3
            assert [registry.get(name).num_blocks for name in names] == [size] * 3
            async with channels("b", *names) as (whole, *parts):
                # The test itself writes to the base, before there is anything in the parts.
                assert ended(await run(whole, [("write", 0, BLOCKS, [model])])) == {0}
                for n, part in enumerate(parts):
                    batch = []
                    for first in range(0, size, 40):
                        blocks = min(rng.randrange(1, 40), size - first)
                        data = bytearray(rng.randbytes(blocks * 512))
                        at = (n * size + first) * 512
                        model[at:at + len(data)] = data
                        batch.append(("write", first, blocks, [data[:700], data[700:]]
                                      if blocks > 1 else [data]))
                    rng.shuffle(batch)
                    assert ended(await run(part, batch)) == {0}
                    assert ended(await run(part, [("write_zeroes", 3, 5, []),
                                                  ("unmap", 10, 2, [])])) == {0}
                    for at, blocks in ((3, 5), (10, 2)):
                        at = (n * size + at) * 512
                        model[at:at + blocks * 512] = bytes(blocks * 512)
                    assert ended(await run(part, [("flush", 0, 0, [])])) == {0}
                    seen = bytearray(size * 512)
                    assert ended(await run(part, [("read", 0, size, [seen])])) == {0}
                    assert seen == model[n * size * 512:(n + 1) * size * 512]
                seen = bytearray(SIZE)
                assert ended(await run(whole, [("read", 0, BLOCKS, [seen])])) == {0}
                assert seen == model
            await registry.delete_all()

    asyncio.run(main())


@pytest.mark.parametrize("kind", KINDS)
def test_blocks_outside_a_part_are_refused(kind, tmp_path):
    async def main():
        async with reactors():
            await base(kind, tmp_path / "disk")
            await splits.create("b", 2)
            async with channels("bp0") as (part,):
                size = BLOCKS // 2
                for first, n in ((size, 1), (size - 1, 2), (2**64 - 1, 2), (0, size + 1)):
                    assert await run(part, [("read", first, n, [bytearray(512 * 2)])]) == [
                        -errno.EINVAL]
            await registry.delete_all()

    asyncio.run(main())


@pytest.mark.parametrize("kind", ["aio", "uring"])
def test_more_requests_at_once_than_a_part_hands_on(kind, tmp_path):
    """Those beyond wait, none is lost, and each is answered once."""
    async def main():
        async with reactors():
            await base(kind, tmp_path / "disk")
            await splits.create("b", 2)
            async with channels("bp1") as (part,):
                for _ in range(5):
                    data = [bytearray(random.Random(i).randbytes(512)) for i in range(1000)]
                    assert ended(await run(part, [("write", i, 1, [each])
                                                  for i, each in enumerate(data)])) == {0}
                    seen = [bytearray(512) for _ in data]
                    assert ended(await run(part, [("read", i, 1, [each])
                                                  for i, each in enumerate(seen)])) == {0}
                    assert seen == data and part.inflight == 0
            await registry.delete_all()

    asyncio.run(main())


@pytest.mark.parametrize("kind", ["aio", "uring"])
def test_what_waits_is_refused_when_the_base_goes(kind, tmp_path):
    async def main():
        async with reactors():
            await base(kind, tmp_path / "disk")
            await splits.create("b", 2)
            async with channels("b", "bp0") as (whole, part):
                poller = Poller(whole)
                await poller.pause()    # the base answers nothing
                requests = [("write", 0, 64, [bytearray(64 * 512)]) for _ in range(1000)]
                answers = asyncio.ensure_future(run(part, requests))
                while part.inflight < 1000:
                    await asyncio.sleep(0.001)
                registry.get("b").mark_removed()
                await poller.resume()
                results = await answers
                assert set(results) == {0, -errno.ENODEV} and results.count(0) == 128
                assert await run(part, requests[:1]) == [-errno.ENODEV]
            await registry.delete_all()

    asyncio.run(main())


@pytest.mark.parametrize("kind", ["aio", "uring"])
def test_parts_of_what_is_read_only(kind, tmp_path):
    async def main():
        async with reactors():
            await base(kind, tmp_path / "disk", readonly=True)
            await splits.create("b", 2)
            assert registry.get("bp1").read_only
            async with channels("bp1") as (part,):
                buffer = bytearray(512)
                assert await run(part, [("write", 0, 1, [buffer])]) == [-errno.EROFS]
                assert ended(await run(part, [("read", 0, 1, [buffer])])) == {0}
            await registry.delete_all()

    asyncio.run(main())


def test_parts_of_parts(tmp_path):
    async def main():
        async with reactors():
            await base("malloc", tmp_path)
            await splits.create("b", 2)
            await splits.create("bp1", 4, 0)
            async with channels("b", "bp1p3") as (whole, part):
                size = BLOCKS // 8
                assert ended(await run(part, [("write", size - 1, 1, [bytearray(b"x" * 512)])])) \
                    == {0}
                seen = bytearray(512)
                assert ended(await run(whole, [("read", BLOCKS - 1, 1, [seen])])) == {0}
                assert seen == b"x" * 512
            await registry.delete("b")
            assert registry.bdevs() == [] and splits.splits == {}

    asyncio.run(main())


# Who has what, without requests

def names():
    return [bdev.name for bdev in registry.bdevs()]


# What SPDK v26.05 gives the part.
UUID_OF_SECOND_HALF = "6c406959-908a-5bda-b9c6-d20bdaf38536"


def test_what_is_told_of_a_part():
    async def main():
        await factory.create_malloc(2048, 512, "b", "604c4e11-3f2b-4b0d-8e2d-84498ccb980d")
        assert await splits.create("b", 2) == ["bp0", "bp1"]
        about = registry.describe(registry.get("bp1"))
        assert about["product_name"] == "Split Disk" and about["num_blocks"] == 1024
        assert about["driver_specific"] == {"split": {"base_bdev": "b", "offset_blocks": 1024}}
        first = registry.describe(registry.get("b"))
        assert first["claimed"] and first["claim_type"] == "exclusive_write"
        assert not about["claimed"] and "claim_type" not in about
        # The uuid is SPDK's, and that of the next time, too.
        assert about["uuid"] == UUID_OF_SECOND_HALF
        await splits.delete("b")
        assert not registry.describe(registry.get("b"))["claimed"]
        await splits.create("b", 2)
        assert registry.get("bp1").uuid == about["uuid"]
    asyncio.run(main())


@pytest.mark.parametrize("blocks, count, size, parts", [
    (2048, 2, 0, [1024, 1024]), (2049, 2, 0, [1024, 1024]), (3, 3, 0, [1, 1, 1]),
    (8192, 2, 1, [2048, 2048]), (8192, 4, 1, [2048] * 4), (8192, 9, 1, [2048] * 4),
    (8193, 9, 2, [4096] * 2),
])
def test_sizes(blocks, count, size, parts):
    async def main():
        await factory.create_null("b", blocks, 512)
        made = await splits.create("b", count, size)
        assert [registry.get(name).num_blocks for name in made] == parts
        assert [registry.get(name).start for name in made] == [
            i * parts[0] for i in range(len(parts))]
    asyncio.run(main())


@pytest.mark.parametrize("blocks, count, size, error, why", [
    (8, 9, 0, ValueError, "bdev b of 8 blocks of 512 bytes is too small for 9 parts$"),
    (8, 1, 1, ValueError, "is too small for 1 parts of 1 MiB$"),
    (8, 0, 0, ValueError, "split_count 0 is not between 1 and 4096"),
    (8, 4097, 0, ValueError, "split_count 4097"),
])
def test_sizes_that_cannot_be(blocks, count, size, error, why):
    async def main():
        await factory.create_null("b", blocks, 512)
        with pytest.raises(error, match=why):
            await splits.create("b", count, size)
        assert names() == ["b"] and splits.splits == {}
        assert not registry.describe(registry.get("b"))["claimed"]
    asyncio.run(main())


async def let_go(descriptor):
    descriptor.close()


def test_the_base_is_the_splits_alone():
    async def main():
        await factory.create_null("b", 64, 512)
        writer = registry.open("b", True, let_go)
        with pytest.raises(OSError, match="bdev b is in use, and cannot be claimed") as caught:
            await splits.create("b", 2)
        assert caught.value.errno == errno.EBUSY and names() == ["b"]
        writer.close()
        reader = registry.open("b", False, let_go)      # who only reads disturbs nobody
        await splits.create("b", 2)
        with pytest.raises(OSError, match="bdev b is claimed by split and cannot be opened for "
                           "writing") as caught:
            registry.open("b", True, let_go)
        assert caught.value.errno == errno.EPERM
        with pytest.raises(OSError, match="bdev b is split already") as caught:
            await splits.create("b", 2)
        assert caught.value.errno == errno.EEXIST
        reader.close()
        await splits.delete("b")
        registry.open("b", True, let_go).close()
    asyncio.run(main())


def test_a_name_that_is_taken_leaves_nothing_made():
    async def main():
        await factory.create_null("b", 64, 512)
        await factory.create_null("bp2", 64, 512)
        with pytest.raises(OSError, match="bdev bp2 already exists"):
            await splits.create("b", 4)
        assert names() == ["b", "bp2"] and splits.splits == {}
        assert not registry.describe(registry.get("b"))["claimed"]
    asyncio.run(main())


def test_a_base_that_comes_later():
    async def main():
        assert await splits.create("b", 2) == []
        assert splits.config() == [{"method": "bdev_split_create", "params": {
            "base_bdev": "b", "split_count": 2, "split_size_mb": 0}}]
        await factory.create_null("other", 64, 512)
        assert names() == ["other"]
        await splits.create("bp1", 2)
        await factory.create_null("b", 64, 512)
        assert names() == ["other", "b", "bp0", "bp1", "bp1p0", "bp1p1"]
        await splits.delete("b")
        assert names() == ["other", "b"]
        assert await splits.create("gone", 2) == []
        await splits.delete("gone")
        with pytest.raises(OSError, match="there is no split of bdev gone") as caught:
            await splits.delete("gone")
        assert caught.value.errno == errno.ENOENT
    asyncio.run(main())


def test_a_base_that_comes_and_cannot_be_cut_is_there_all_the_same(capsys):
    async def main():
        await splits.create("b", 9)
        await factory.create_null("b", 8, 512)
        assert names() == ["b"] and splits.config() == []
    asyncio.run(main())
    assert "bdev b cannot be split: bdev b of 8 blocks" in capsys.readouterr().err


def test_with_the_base_its_parts_go_when_their_users_have_let_go():
    async def main():
        await factory.create_null("b", 64, 512)
        await splits.create("b", 2)
        told = []

        async def closing(descriptor):
            told.append(descriptor.bdev.name)
            descriptor.close()
        registry.open("bp1", True, closing)
        await registry.delete("b")
        assert told == ["bp1"] and names() == [] and splits.splits == {}
    asyncio.run(main())


def test_one_part_may_be_deleted_alone():
    async def main():
        await factory.create_null("b", 64, 512)
        await splits.create("b", 2)
        await registry.delete("bp0")
        await splits.delete("b")
        assert names() == ["b"] and splits.splits == {}
    asyncio.run(main())


def test_a_part_that_its_user_keeps_is_told_and_the_split_stays(monkeypatch):
    async def main():
        await factory.create_null("b", 64, 512)
        await splits.create("b", 2)

        async def keep(descriptor):
            return
        user = registry.open("bp1", True, keep)
        monkeypatch.setattr(splits, "delete_part",
                            lambda name: registry.delete(name, "Split Disk", 0.05))
        with pytest.raises(OSError, match="parts of bdev b are in use: bp1") as caught:
            await splits.delete("b")
        assert caught.value.errno == errno.EBUSY and names() == ["b", "bp1"]
        assert registry.describe(registry.get("b"))["claimed"]
        user.close()
        await splits.delete("b")
        assert names() == ["b"]
    asyncio.run(main())
