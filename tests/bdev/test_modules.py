"""Every module that keeps data, driven by the same requests on real reactors."""
import asyncio
import contextlib
import errno
import fcntl
import os
import random
import select
import struct

import pytest

from tests.lib.cy_bdev import Batch, Poller, run
from tests.lib.reactors import reactors
from vhostrt.bdev.aio import AioBdev
from vhostrt.bdev.malloc import MallocBdev
from vhostrt.bdev.null import NullBdev
from vhostrt.bdev.uring import UringBdev, uring_available
from vhostrt.event import reactor

FILES = {"aio": AioBdev, "uring": UringBdev}
KINDS = ("malloc", "aio", "uring")
SIZE = 4 << 20
FS_IOC_FIEMAP = 0xC020660B
FIEMAP_EXTENT_DELALLOC = 4


def test_uring_is_there():
    """Where it is refused the rest of this file would test less than it says."""
    assert uring_available() == (True, "")


@contextlib.asynccontextmanager
async def disk(kind, path, size=SIZE, block_size=512, **more):
    """A bdev of `size` bytes, of zeroes when the file is new."""
    if kind == "malloc":
        bdev = MallocBdev("disk", size // block_size, block_size)
    else:
        if not path.exists():
            path.touch()
            os.truncate(path, size)
        bdev = await FILES[kind].create("disk", str(path), block_size, *more.values())
    try:
        yield bdev
    finally:
        await bdev.close()


@contextlib.asynccontextmanager
async def channel_of(bdev, lcore=0, writable=True):
    channel = await bdev.open_channel(lcore, writable)
    try:
        yield channel
    finally:
        await bdev.close_channel(channel)


@contextlib.asynccontextmanager
async def channel(kind, path, count=1, **more):
    async with reactors(count), disk(kind, path, **more) as bdev, channel_of(bdev) as opened:
        yield opened


def ended(results) -> set:
    """The results of requests that may be done at once or later."""
    return {min(rc, 0) for rc in results}


def cut(rng, data):
    """Split a buffer into writable pieces of odd lengths; they alias nothing."""
    pieces = []
    while data:
        n = rng.choice((1, 3, 511, 512, 4096, rng.randrange(1, 20000), len(data)))
        pieces.append(bytearray(data[:n]))
        data = data[n:]
    return pieces


def extents(rng, blocks, longest=64):
    """Disjoint random extents (first block, number of blocks) over a disk."""
    at = rng.randrange(longest)
    while at < blocks:
        n = min(rng.randrange(1, longest), blocks - at)
        yield at, n
        at += n + rng.randrange(longest)


def task_names() -> set:
    """The names of this process's threads."""
    names = set()
    for task in os.listdir("/proc/self/task"):
        with contextlib.suppress(OSError), open(f"/proc/self/task/{task}/comm") as comm:
            names.add(comm.read().strip())
    return names


def helper_wakeups() -> dict:
    """How often each helper thread of AIO disks has gone to sleep, by thread id."""
    found = {}
    for task in os.listdir("/proc/self/task"):
        with open(f"/proc/self/task/{task}/status") as status:
            about = dict(line.split(":\t", 1) for line in status)
        if about["Name"].strip() == "bdev_aio":
            found[task] = int(about["voluntary_ctxt_switches"])
    return found


def dirty(path) -> bool:
    """True when the file system says that data is only in memory (FIEMAP, delayed allocation)."""
    answer = bytearray(struct.pack("=QQIIII", 0, 2**64 - 1, 0, 0, 64, 0) + bytes(64 * 56))
    with open(path, "rb") as f:
        try:
            fcntl.ioctl(f, FS_IOC_FIEMAP, answer)
        except OSError:
            return False                # a tmpfs has nowhere else to put it
    count = struct.unpack_from("=I", answer, 20)[0]
    flags = [struct.unpack_from("=I", answer, 32 + 56 * i + 40)[0] for i in range(count)]
    return any(f & FIEMAP_EXTENT_DELALLOC for f in flags)


def joined(buffers) -> bytes:
    return b"".join(buffers)


@pytest.mark.parametrize("block_size", [512, 4096])
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_written_is_read(kind, block_size, tmp_path):
    rng = random.Random(block_size)
    model = bytearray(SIZE)
    blocks = SIZE // block_size

    async def main():
        async with channel(kind, tmp_path / "disk", block_size=block_size) as c:
            for turn in range(6):
                batch = []
                for first, n in extents(rng, blocks, 64 if turn % 2 else 512):
                    at, size = first * block_size, n * block_size
                    if rng.random() < 0.2:
                        model[at:at + size] = bytes(size)
                        batch.append(("write_zeroes", first, n, []))
                        continue
                    model[at:at + size] = data = rng.randbytes(size)
                    batch.append(("write", first, n, cut(rng, data)))
                rng.shuffle(batch)
                assert ended(await run(c, batch)) == {0}
                assert ended(await run(c, [("flush", 0, 0, [])])) == {0}
                reads = [("read", first, n, cut(rng, bytes(n * block_size)))
                         for first, n in extents(rng, blocks, 512)]
                assert ended(await run(c, reads)) == {0}
                for _, first, n, buffers in reads:
                    at = first * block_size
                    assert joined(buffers) == model[at:at + n * block_size]

    asyncio.run(main())
    if kind != "malloc":
        assert (tmp_path / "disk").read_bytes() == model


@pytest.mark.parametrize("kind", KINDS)
def test_unmapped_blocks_read_as_zeroes_here(kind, tmp_path):
    async def main():
        async with channel(kind, tmp_path / "disk") as c:
            assert "unmap" in c.bdev.io_types
            data = bytearray(random.Random(5).randbytes(SIZE))
            assert ended(await run(c, [("write", 0, SIZE // 512, [data])])) == {0}
            assert ended(await run(c, [("unmap", 8, 4096, [])])) == {0}
            seen = bytearray(SIZE)
            assert ended(await run(c, [("read", 0, SIZE // 512, [seen])])) == {0}
            assert seen[:4096] == data[:4096]
            assert seen[4096:4104 * 512] == bytes(4096 * 512)
            assert seen[4104 * 512:] == data[4104 * 512:]
        if kind != "malloc":
            assert (tmp_path / "disk").stat().st_blocks * 512 < SIZE

    asyncio.run(main())


@pytest.mark.parametrize("kind", FILES)
def test_zeroes_are_written_where_the_file_system_cannot(kind):
    """A tmpfs has no FALLOC_FL_ZERO_RANGE: the kernel's refusal turns into writes, in pieces."""
    fd = os.memfd_create("disk")
    os.write(fd, b"x" * SIZE)

    async def main():
        path = type("", (), {"exists": lambda self: True, "__str__": lambda self: name})()
        async with channel(kind, path) as c:
            zeroes = [("write_zeroes", 1, 6001, []), ("write_zeroes", 7000, 1, [])]
            assert ended(await run(c, zeroes)) == {0}
            assert ended(await run(c, zeroes[1:])) == {0}

    name = f"/proc/self/fd/{fd}"
    asyncio.run(main())
    want = bytearray(b"x" * SIZE)
    for first, n in ((1, 6001), (7000, 1)):
        want[first * 512:(first + n) * 512] = bytes(n * 512)
    assert os.pread(fd, SIZE, 0) == want
    os.close(fd)


@pytest.mark.parametrize("kind", KINDS)
def test_blocks_outside_are_refused(kind, tmp_path):
    blocks = SIZE // 512

    async def main():
        async with channel(kind, tmp_path / "disk") as c:
            buffer = bytearray(1024)
            for first, n in ((blocks, 1), (blocks - 1, 2), (2**64 - 1, 2), (0, 2**64 - 1)):
                for what in ("read", "write"):
                    assert await run(c, [(what, first, n, [buffer])]) == [-errno.EINVAL]
                assert await run(c, [("write_zeroes", first, n, [])]) == [-errno.EINVAL]
            assert ended(await run(c, [("read", blocks - 2, 2, [buffer])])) == {0}
            assert await run(c, [("read", blocks, 0, [])]) == [1]

    asyncio.run(main())


@pytest.mark.parametrize("kind", KINDS)
def test_channel_for_reading_refuses_changes(kind, tmp_path):
    async def main():
        async with reactors(), disk(kind, tmp_path / "disk") as bdev, \
                channel_of(bdev, writable=False) as c:
            buffer = bytearray(512)
            assert await run(c, [("write", 0, 1, [buffer]), ("write_zeroes", 0, 1, []),
                                 ("unmap", 0, 1, [])]) == [-errno.EROFS] * 3
            assert ended(await run(c, [("read", 0, 1, [buffer]), ("flush", 0, 0, [])])) == {0}

    asyncio.run(main())


@pytest.mark.parametrize("kind", FILES)
def test_read_only_file(kind, tmp_path):
    path = tmp_path / "disk"
    path.write_bytes(b"r" * 8192)

    async def main():
        async with channel(kind, path, readonly=True) as c:
            assert c.bdev.read_only and not c.bdev.write_cache
            buffer = bytearray(512)
            assert await run(c, [("write", 0, 1, [buffer])]) == [-errno.EROFS]
            assert await run(c, [("flush", 0, 0, [])]) == [1]
            assert ended(await run(c, [("read", 15, 1, [buffer])])) == {0}
            assert buffer == b"r" * 512

    asyncio.run(main())
    assert path.read_bytes() == b"r" * 8192


@pytest.mark.parametrize("kind", KINDS)
def test_deleted_bdev_takes_nothing(kind, tmp_path):
    async def main():
        async with channel(kind, tmp_path / "disk") as c:
            c.bdev.mark_removed()
            assert await run(c, [("read", 0, 1, [bytearray(512)])]) == [-errno.ENODEV]

    asyncio.run(main())


@pytest.mark.parametrize("kind", FILES)
def test_types_that_a_file_has_not(kind, tmp_path):
    async def main():
        async with channel(kind, tmp_path / "disk") as c:
            assert await run(c, [("reset", 0, 0, [])]) == [-errno.EOPNOTSUPP]
            assert c.stats()["errors"]["failed"] == 0

    asyncio.run(main())


@pytest.mark.parametrize("kind", FILES)
def test_file_that_became_shorter_is_an_error_and_not_a_hang(kind, tmp_path):
    path = tmp_path / "disk"

    async def main():
        async with channel(kind, path) as c:
            assert ended(await run(c, [("write", 0, 16, [bytearray(b"a" * 8192)])])) == {0}
            os.truncate(path, 4608)
            buffer = bytearray(8192)
            assert await run(c, [("read", 0, 16, [buffer])]) == [0 - errno.EIO]
            assert await run(c, [("read", 64, 16, [buffer])]) == [0 - errno.EIO]
            assert ended(await run(c, [("read", 0, 9, [buffer[:4608]])])) == {0}
            assert c.stats()["errors"] == {"nomem": 0, "aborted": 0, "failed": 2}
            assert c.inflight == 0

    asyncio.run(main())


LIMITED = """
import asyncio, pathlib, resource, sys
from tests.bdev.test_modules import channel, run
async def main(kind, path):
    async with channel(kind, path) as c:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, resource.RLIM_INFINITY))
        data = bytearray(b"w" * 8192)
        for first in (4096, 2040, 2032):
            print(await run(c, [("write", first, 16, [data])]))
asyncio.run(main(sys.argv[1], pathlib.Path(sys.argv[2])))
"""


@pytest.mark.parametrize("kind", FILES)
def test_write_that_the_system_refuses_is_its_error(kind, tmp_path, python):
    """A limit on the size of files: behind it, and across it, where the first part is written."""
    path = tmp_path / "disk"
    out = python(LIMITED, kind, path)
    assert out.split() == [f"[{-errno.EFBIG}]", f"[{-errno.EFBIG}]", "[0]"]
    assert path.read_bytes()[2032 * 512:2049 * 512] == b"w" * 16 * 512 + bytes(512)


@pytest.mark.parametrize("kind", FILES)
def test_more_requests_than_the_ring_has_entries(kind, tmp_path):
    count = 6000

    async def main():
        async with channel(kind, tmp_path / "disk") as c:
            buffers = [bytearray(i.to_bytes(4, "little") * 128) for i in range(count)]
            results = await run(c, [("write", i, 1, [b]) for i, b in enumerate(buffers)])
            assert results == [0] * count
            seen = [bytearray(512) for _ in range(count)]
            results = await run(c, [("read", i, 1, [b]) for i, b in enumerate(seen)])
            assert results == [0] * count
            assert seen == buffers
            stats = c.stats()["write"]
            assert stats["ops"] == stats["blocks"] == count
            assert 0 < stats["ticks_min"] <= stats["ticks_max"] <= stats["ticks"]

    asyncio.run(main())


@pytest.mark.parametrize("kind", KINDS)
def test_channels_of_two_reactors_and_two_on_one(kind, tmp_path):
    rng = random.Random(2)
    parts = [rng.randbytes(SIZE // 4) for _ in range(4)]
    blocks = SIZE // 4 // 512

    async def main():
        async with reactors(2) as lcores, disk(kind, tmp_path / "disk") as bdev:
            channels = [await bdev.open_channel(lcores[i % 2]) for i in range(4)]
            for turn in range(4):
                batches = [Batch([("write", (i + turn) % 4 * blocks + b, 8,
                                   cut(rng, parts[i][b * 512:(b + 8) * 512]))
                                  for b in range(0, blocks, 8)])
                           for i in range(4)]
                await asyncio.gather(*(b.start(c) for b, c in zip(batches, channels, strict=True)))
                assert {rc for b in batches for rc in ended(b.answers())} == {0}
                seen = bytearray(SIZE)
                assert ended(await run(channels[turn], [("read", 0, SIZE // 512, [seen])])) == {0}
                order = [parts[(i - turn) % 4] for i in range(4)]
                assert seen == joined(order)
            for c in channels:
                await bdev.close_channel(c)

    asyncio.run(main())


@pytest.mark.parametrize("kind", FILES)
def test_channels_come_and_go(kind, tmp_path):
    """Opened and closed at once by many, some cancelled; then reactors end and come again."""
    async def use(bdev, lcore, i):
        async with channel_of(bdev, lcore) as c:
            assert ended(await run(c, [("write", i, 1, [bytearray(bytes([i]) * 512)])])) == {0}

    async def main():
        async with reactors(2), disk(kind, tmp_path / "disk") as bdev:
            for _ in range(5):
                tasks = [asyncio.create_task(use(bdev, i % 2, i)) for i in range(20)]
                opening = [asyncio.create_task(bdev.open_channel(i % 2)) for i in range(6)]
                await asyncio.sleep(0)
                for task in opening:
                    task.cancel()
                await asyncio.gather(*tasks)
                await asyncio.gather(*opening, return_exceptions=True)
            assert [reactor.stats(n)["threads"] for n in range(2)] == [0, 0]
        assert "bdev_aio" not in task_names()

    for _ in range(2):
        asyncio.run(main())
    data = (tmp_path / "disk").read_bytes()
    assert data[:20 * 512] == joined(bytes([i]) * 512 for i in range(20))


@pytest.mark.parametrize("kind", FILES)
def test_flushed_data_is_on_the_store(kind, tmp_path):
    path = tmp_path / "disk"

    async def main():
        async with channel(kind, path) as c:
            for i in range(8):
                data = bytearray(os.urandom(1 << 18))
                assert ended(await run(c, [("write", i * 1024, 512, [data])])) == {0}
                assert ended(await run(c, [("flush", 0, 0, [])])) == {0}
                assert not dirty(path)

    asyncio.run(main())


def test_helpers_share_what_comes_together(tmp_path):
    """The reactor wakes one helper; that one wakes the next while there is more to do."""
    async def main():
        async with channel("aio", tmp_path / "disk") as c:
            await run(c, [("flush", 0, 0, [])])
            before = helper_wakeups()
            data = [bytearray(512) for _ in range(3000)]
            assert ended(await run(c, [("write", i, 1, [b]) for i, b in enumerate(data)])) == {0}
            after = helper_wakeups()
            assert len(after) == 8
            assert sum(after[task] > before[task] for task in after) > 1

    asyncio.run(main())


@pytest.mark.parametrize("kind", FILES)
def test_poller_can_be_slept_on(kind, tmp_path):
    """Armed without work, its descriptor wakes a sleeper; armed with work, it says so."""
    async def main():
        async with channel(kind, tmp_path / "disk") as c:
            poller = Poller(c)
            await poller.pause()
            assert await poller.arm() == 0
            assert select.select([poller.fd()], [], [], 0)[0] == []
            batch = Batch([("write", i, 1, [bytearray(512)]) for i in range(10)])
            answer = batch.start(c)
            assert await asyncio.to_thread(select.select, [poller.fd()], [], [], 60) != ([], [], [])
            assert await poller.arm() > 0
            await poller.disarm()
            assert not answer.done()
            with pytest.raises(RuntimeError, match="10 requests are in flight"):
                await c.bdev.close_channel(c)
            await poller.resume()
            await answer
            assert batch.answers() == [0] * 10
            assert await poller.arm() == 0
            assert select.select([poller.fd()], [], [], 0)[0] == []
            await poller.disarm()

    asyncio.run(main())


@pytest.mark.parametrize("kind", KINDS + ("null",))
def test_channel_of_another_bdev_is_not_closed(kind, tmp_path):
    async def main():
        async with reactors(), disk("malloc", tmp_path) as other, \
                channel_of(other) as strange:
            if kind == "null":
                with pytest.raises(ValueError, match="not one of bdev n"):
                    await NullBdev("n", 8).close_channel(strange)
                return
            async with disk(kind, tmp_path / "disk") as bdev:
                with pytest.raises(ValueError, match="not one of bdev disk"):
                    await bdev.close_channel(strange)

    asyncio.run(main())


@pytest.mark.parametrize("kind", FILES)
def test_no_reactor_there(kind, tmp_path):
    async def main():
        async with reactors(), disk(kind, tmp_path / "disk") as bdev:
            with pytest.raises(OSError, match="core 9"):
                await bdev.open_channel(9)
            async with channel_of(bdev) as c:
                assert ended(await run(c, [("read", 0, 1, [bytearray(512)])])) == {0}

    asyncio.run(main())


def test_null_leaves_buffers_and_forgets():
    async def main():
        bdev = NullBdev("n", 64, 4096)
        async with reactors(), channel_of(bdev) as c:
            buffer = bytearray(b"k" * 4096)
            assert await run(c, [(what, 0, 1, [buffer]) for what in ("write", "read")]
                             + [("write_zeroes", 0, 64, []), ("reset", 0, 0, [])]) == [1] * 4
            assert buffer == b"k" * 4096
            refused = await run(c, [("flush", 0, 0, []), ("unmap", 0, 1, [])])
            assert refused == [-errno.EOPNOTSUPP] * 2

    asyncio.run(main())


@pytest.mark.parametrize("kind", FILES)
def test_stress_requests_of_two_reactors(kind, tmp_path):
    """Small batches of four channels, always some in flight, each on blocks of its own."""
    rounds = 40 * int(os.environ.get("VHOSTRT_STRESS", "1"))
    blocks = SIZE // 512 // 4

    async def worker(bdev, i):
        rng = random.Random(i)
        async with channel_of(bdev, i % 2) as c:
            for turn in range(rounds):
                first = i * blocks + rng.randrange(blocks - 128)
                data = [rng.randbytes(512) for _ in range(rng.randrange(1, 128))]
                writes = [("write", first + n, 1, [bytearray(d)]) for n, d in enumerate(data)]
                assert await run(c, writes) == [0] * len(data)
                reads = [("read", first + n, 1, [bytearray(512)]) for n in range(len(data))]
                flush = [("flush", 0, 0, [])] if turn % 8 == 0 else []
                assert ended(await run(c, reads + flush)) == {0}
                assert [read[3][0] for read in reads] == data

    async def main():
        async with reactors(2), disk(kind, tmp_path / "disk") as bdev:
            await asyncio.gather(*(worker(bdev, i) for i in range(4)))

    asyncio.run(main())
