"""What a change of a client's memory costs it, from the message to its answer, on a live device.

A region more and less beside few and many, and a table in which one of eight regions is new; with
one ring running and with all 256.
"""
import contextlib

import pytest

from tests.lib import vhost_client as vc
from tests.lib.blk_client import Blk
from tests.lib.guest_memory import Region
from tests.lib.target import Target

FAR, STEP, PAGE = 1 << 40, 1 << 30, 4096
OPERATIONS = 50


@pytest.fixture(scope="module", params=[1, 256], ids=lambda n: f"{n}-rings")
def blk(request):
    """A session with its rings running, that may add regions."""
    with Target(mask="0x1") as target, Blk(target.socket(), queues=request.param, size=16) as blk:
        blk.client.set_protocol_features(blk.protocol | vc.P_CONFIGURE_MEM_SLOTS)
        yield blk


@pytest.mark.parametrize("regions", [8, 508])
def bench_region_comes_and_goes(blk, per_op, regions):
    with contextlib.ExitStack() as stack:
        def add(at: int) -> Region:
            region = Region(FAR + at * STEP, PAGE)
            stack.callback(region.close)
            blk.client.add_mem_reg(region)
            stack.callback(blk.client.rem_mem_reg, region)
            return region
        for at in range(1, regions - 1):
            add(at)
        region = Region(FAR, PAGE)
        stack.callback(region.close)

        def change(operations: int) -> None:
            for _ in range(operations):
                blk.client.add_mem_reg(region)
                blk.client.rem_mem_reg(region)
        per_op(change, OPERATIONS)


def bench_table_with_one_new_region(blk, per_op):
    def change(operations: int) -> None:
        for _ in range(operations):
            region = Region(FAR, PAGE)
            blk.memory.regions.append(region)
            blk.client.set_mem_table(blk.memory)
            blk.memory.regions.remove(region)
            region.close()
    per_op(change, OPERATIONS)
    blk.client.set_mem_table(blk.memory)
