"""Bdevs as RPC calls: what makes the present ones again.

Threads:  the control thread.
Source:   the bdev part of SPDK's save_config: its keys in its order; more keys only where the bdev
          needs them.
"""
import os
from typing import Any

from vhostrt.bdev import factory, registry, splits
from vhostrt.bdev.core import Bdev

Entry = dict[str, Any]                  # {"method":, "params":}

# What is always so here, and SPDK tells of a bdev.
NO_METADATA = {"md_size": 0, "dif_type": 0, "dif_is_head_of_md": False, "dif_pi_format": 0}


class Options:
    """What bdev_set_options was given. Requests have their memory with the rings, and no bdev is
    looked into: the values are kept for the file alone."""

    def __init__(self) -> None:
        self.bdev_io_pool_size = 65535
        self.bdev_io_cache_size = 256
        self.bdev_auto_examine = True
        self.iobuf_small_cache_size = 128
        self.iobuf_large_cache_size = 16


options = Options()


def forget() -> None:
    """Have the options of the start again."""
    options.__init__()                  # type: ignore[misc]


def malloc(bdev: Bdev) -> Entry:
    return {"name": bdev.name, "num_blocks": bdev.num_blocks, "block_size": bdev.block_size,
            "physical_block_size": bdev.hints["physical_block_size"], "uuid": bdev.uuid,
            "optimal_io_boundary": bdev.hints["optimal_io_boundary"], **NO_METADATA,
            "numa_id": bdev.hints["numa_id"]}


def null(bdev: Bdev) -> Entry:
    sizes = ("preferred_write_granularity", "preferred_write_alignment", "optimal_write_size",
             "preferred_unmap_granularity", "preferred_unmap_alignment")
    return {"name": bdev.name, "num_blocks": bdev.num_blocks, "block_size": bdev.block_size,
            "physical_block_size": bdev.hints["physical_block_size"], **NO_METADATA,
            "uuid": bdev.uuid, **{size: bdev.hints[size] for size in sizes}}


def aio(bdev: Any) -> Entry:
    about = bdev.driver_specific["aio"]
    own_size = {"block_size": bdev.block_size} if about["block_size_override"] else {}
    return {"name": bdev.name, **own_size, "filename": os.path.abspath(bdev.filename),
            "readonly": bdev.read_only, "fallocate": about["fallocate"], "uuid": bdev.uuid,
            "nowait": False}


def uring(bdev: Any) -> Entry:
    return {"name": bdev.name, "block_size": bdev.block_size,
            "filename": os.path.abspath(bdev.filename), "uuid": bdev.uuid,
            **({"readonly": True} if bdev.read_only else {})}


KINDS = {factory.PRODUCTS[kind]: (f"bdev_{kind}_create", params)
         for kind, params in (("malloc", malloc), ("null", null), ("aio", aio), ("uring", uring))}


def config() -> list[Entry]:
    """Return the calls that make the present bdevs again, as SPDK's bdev subsystem has them."""
    entries: list[Entry] = [{"method": "bdev_set_options", "params": dict(vars(options))}]
    for bdev in registry.bdevs():
        if bdev.product_name in KINDS and not bdev.removed:
            method, params = KINDS[bdev.product_name]
            entries.append({"method": method, "params": params(bdev)})
    return [*entries, *splits.config(), {"method": "bdev_wait_for_examine"}]
