"""Two controllers on one reactor: a small load keeps its share beside one that never ends."""
import asyncio
import contextlib

from tests.lib.cy_load import Load
from tests.lib.reactors import reactors
from vhostrt.bdev.null import NullBdev
from vhostrt.event.thread import Thread
from vhostrt.vhost.blk import BlkQueue

BUDGET = 32                             # requests of a queue that are served in one poll
REQUESTS = 5000
ENDLESS = 1 << 40


@contextlib.asynccontextmanager
async def served(name, load, size):
    """A queue on reactor 0 that serves a load from a disk that answers at once."""
    bdev = NullBdev(name, 2048)
    channel = await bdev.open_channel(0)
    queue = BlkQueue(0, size, Thread(name), print, b"")
    await queue.start(0, load.view(), load.addresses, 0, {"kick": -1, "call": -1, "err": -1},
                      False, True, channel)
    yield queue
    await queue.stop()
    await bdev.close_channel(channel)
    await bdev.close()


async def beside(heavy_depth, heavies=1):
    """Run a load of one request at a time beside others; return its figures.

    (us a request, most answers in between, all of them): of the first of the heavy ones.
    """
    async with reactors(1), contextlib.AsyncExitStack() as stack:
        loads = [Load(1024, heavy_depth) for _ in range(heavies)]
        small = Load(128, 1, loads[0] if loads else None)
        for i, load in enumerate(loads):
            await stack.enter_async_context(served(f"heavy{i}", load, 1024))
        await stack.enter_async_context(served("small", small, 128))
        running = [asyncio.create_task(load.run(0, ENDLESS)) for load in loads]
        while loads and any(load.taken < 10 * heavy_depth for load in loads):
            await asyncio.sleep(0.001)
        us = await small.run(0, REQUESTS)
        for load in loads:
            await load.stop(0)
        await asyncio.gather(*running)
        return us, *small.between


def test_one_request_at_a_time_beside_a_ring_that_is_always_full():
    """Between a request and its answer the other queue has had one turn, or what was left of the
    turn in which the request was sent: never more than two budgets."""
    us, most, all_ = asyncio.run(beside(heavy_depth=300))
    print(f"{us:.2f} us a request; answers to the other queue in between: {all_ / REQUESTS:.1f}")
    assert most <= 2 * BUDGET
    assert all_ >= REQUESTS * BUDGET // 2, "the other queue was not full"


def test_beside_several_of_them():
    _, most, _ = asyncio.run(beside(heavy_depth=300, heavies=4))
    assert most <= 2 * BUDGET


def test_two_full_queues_have_equal_shares():
    """Each has its budget in each turn."""
    async def main():
        async with reactors(1), contextlib.AsyncExitStack() as stack:
            one = Load(1024, 300)
            other = Load(1024, 300, one)
            await stack.enter_async_context(served("one", one, 1024))
            await stack.enter_async_context(served("other", other, 1024))
            running = asyncio.create_task(one.run(0, ENDLESS))
            while one.taken < 3000:
                await asyncio.sleep(0.001)
            await other.run(0, 100 * REQUESTS)
            _, all_ = other.between
            await one.stop(0)
            await running
            return all_
    # The count goes on from send to answer only; there is one of each in every turn.
    share = asyncio.run(main()) / (100 * REQUESTS)
    assert 0.5 <= share <= 2
