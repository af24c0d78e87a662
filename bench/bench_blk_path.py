"""vhostrt.vhost.blk: the whole way of a request, client and target on one reactor.

The queue counts its requests and their times, as it always does; SPDK's histogram of the bdev's
times is kept where a row says so.  A client in C reads 4 KiB with three descriptors, in batches,
from a null disk over a split ring.  Both sides are in the figure.  With
`idle` spin there is no yield in it.
"""
import asyncio
import functools

import pytest
from tests.lib.reactors import reactors

from bench.cy_blk_path import GUEST, USER, Client
from vhostrt.bdev.null import NullBdev
from vhostrt.event.thread import Thread
from vhostrt.vhost import view
from vhostrt.vhost.blk import BlkQueue

RING, BLOCK, SECTORS = 256, 4096, 1 << 21
REQUESTS = 500_000
NO_FDS = {"kick": -1, "call": -1, "err": -1}


def broken(queue, number: int) -> None:
    raise AssertionError(f"the ring is broken: errno {number}")


@pytest.fixture(params=[False, True], ids=["counted", "and a histogram of the bdev"])
def path(request):
    """A function: have so many requests done, in batches of so many."""
    async def begin():
        await running.__aenter__()
        bdev = NullBdev("null", SECTORS)
        if request.param:
            await bdev.keep_histogram(("read",))
        client = Client(RING, BLOCK, SECTORS)
        mapping = view.Mapping.create(client.fd, GUEST, client.bytes, USER, 0, view.Poison(),
                                      view.Allowance())
        queue = BlkQueue(0, RING, Thread("null.vq0"), broken, b"null")
        await queue.start(0, view.View([mapping]), client.addresses, 0, dict(NO_FDS), False, False,
                          await bdev.open_channel(0))
        return client, queue

    async def end(client, queue):
        await client.detach(0)
        await queue.stop()
        await running.__aexit__(None, None, None)

    running = reactors(1, "spin")
    with asyncio.Runner() as runner:
        client, queue = runner.run(begin())
        try:
            yield lambda batch, requests: runner.run(client.run(0, requests, batch))
        finally:
            runner.run(end(client, queue))
            view.fini()


@pytest.mark.parametrize("batch", [1, 8, 32])
def bench_blk_path(per_op, path, batch):
    per_op(functools.partial(path, batch), REQUESTS)
