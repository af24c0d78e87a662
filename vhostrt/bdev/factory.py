"""How bdevs come into being: the parameters of the bdev_*_create methods, checked, to a bdev.

Threads:  the control thread.
Fails:    ValueError names a parameter that cannot be had; OSError carries the errno (EEXIST: name
          or uuid taken, ENOENT, EACCES, EBUSY ...: see the file-backed modules); MemoryError.
"""
import itertools
import os
import uuid as uuid_module

from vhostrt.bdev import registry, splits
from vhostrt.bdev.core import Bdev
from vhostrt.bdev.malloc import MallocBdev
from vhostrt.bdev.null import NullBdev

PRODUCTS = {"malloc": "Malloc disk", "null": "Null disk", "aio": "AIO disk", "uring": "URING bdev"}


def free_name(pattern: str) -> str:
    """Return the first of Malloc0, Malloc1, ... that no bdev has."""
    taken = {bdev.name for bdev in registry.bdevs()}
    return next(name for name in map(pattern.format, itertools.count()) if name not in taken)


def check_identity(name: str, uuid: str | None) -> None:
    """Refuse a taken name or uuid before anything is opened or allocated for it."""
    if uuid is not None:
        try:
            uuid = str(uuid_module.UUID(uuid))
        except ValueError:
            raise ValueError(f"uuid {uuid!r} is not a UUID") from None
    registry.check_free(name, uuid)


def check_size(num_blocks: int, block_size: int) -> None:
    """Refuse what no bdev can have before it meets a C integer; the bdev looks closer."""
    if not 0 < num_blocks < 1 << 62:
        raise ValueError(f"num_blocks {num_blocks} must be from 1 to 2**62")
    check_block_size(block_size)


def check_block_size(block_size: int) -> None:
    if not 512 <= block_size <= 65536:
        raise ValueError(f"block size {block_size} must be a power of two from 512 to 65536")


def check_physical(physical_block_size: int | None, block_size: int) -> int:
    size = physical_block_size or block_size
    if size < block_size or size % block_size or size & (size - 1):
        raise ValueError(f"physical block size {size} must be a power of two and not below the "
                         f"block size {block_size}")
    return size


def check_node(numa_id: int | None) -> int:
    node = -1 if numa_id is None else numa_id
    if node != -1 and not os.path.isdir(f"/sys/devices/system/node/node{node}"):
        raise ValueError(f"numa_id {node} is not a NUMA node of this machine")
    return node


def check_file(name: str, block_size: int | None, uuid: str | None) -> None:
    """block_size 0 or None: the device's own."""
    if block_size:
        check_block_size(block_size)
    check_identity(name, uuid)


def refuse_metadata(md_size: int | None, dif_type: int | None) -> None:
    if md_size:
        raise ValueError(f"md_size {md_size} is refused: blocks with metadata are not supported")
    if dif_type:
        raise ValueError(f"dif_type {dif_type} is refused: there is no protection information")


async def add(bdev: Bdev) -> str:
    """Register a bdev that has just been made; close it again when that fails."""
    try:
        registry.register(bdev)
    except BaseException:
        await bdev.close()
        raise
    await splits.examine(bdev)
    return bdev.name


async def create_malloc(num_blocks: int, block_size: int = 512, name: str | None = None,
                        uuid: str | None = None, physical_block_size: int | None = None,
                        optimal_io_boundary: int | None = None, md_size: int | None = None,
                        md_interleave: bool | None = None, dif_type: int | None = None,
                        dif_is_head_of_md: bool | None = None, dif_pi_format: int | None = None,
                        numa_id: int | None = None) -> str:
    """Make a RAM disk and return its name; the parameters are those of bdev_malloc_create.

    optimal_io_boundary is kept as a hint: nothing has to be split for memory.
    """
    refuse_metadata(md_size, dif_type)
    check_size(num_blocks, block_size)
    physical = check_physical(physical_block_size, block_size)
    name = name or free_name("Malloc{}")
    check_identity(name, uuid)
    numa_id = check_node(numa_id)
    bdev = MallocBdev(name, num_blocks, block_size, uuid, numa_id)
    bdev.hints.update({"physical_block_size": physical,
                       "optimal_io_boundary": optimal_io_boundary or 0, "numa_id": numa_id})
    return await add(bdev)


async def create_null(name: str, num_blocks: int, block_size: int = 512, uuid: str | None = None,
                      physical_block_size: int | None = None, md_size: int | None = None,
                      dif_type: int | None = None, dif_is_head_of_md: bool | None = None,
                      dif_pi_format: int | None = None,
                      preferred_write_alignment: int | None = None,
                      preferred_write_granularity: int | None = None,
                      optimal_write_size: int | None = None,
                      preferred_unmap_alignment: int | None = None,
                      preferred_unmap_granularity: int | None = None) -> str:
    """Make a disk that forgets and return its name; the parameters are those of bdev_null_create.

    The preferred_ and optimal_ sizes are in blocks and only reported.
    """
    refuse_metadata(md_size, dif_type)
    check_size(num_blocks, block_size)
    physical = check_physical(physical_block_size, block_size)
    check_identity(name, uuid)
    bdev = NullBdev(name, num_blocks, block_size, uuid)
    bdev.hints.update({"physical_block_size": physical,
                       "preferred_write_alignment": preferred_write_alignment or 0,
                       "preferred_write_granularity": preferred_write_granularity or 0,
                       "optimal_write_size": optimal_write_size or 0,
                       "preferred_unmap_alignment": preferred_unmap_alignment or 0,
                       "preferred_unmap_granularity": preferred_unmap_granularity or 0})
    return await add(bdev)


async def create_aio(name: str, filename: str, block_size: int | None = None,
                     readonly: bool = False, fallocate: bool = False, uuid: str | None = None,
                     nowait: bool = False) -> str:
    """Serve a file or block device through helper threads; return the bdev's name.

    fallocate is accepted and always on: unmap is offered where the file system can do it.
    nowait is refused: a helper thread may wait.
    """
    from vhostrt.bdev.aio import AioBdev
    if nowait:
        raise ValueError("nowait is refused: the helper threads of an AIO disk may wait")
    check_file(name, block_size, uuid)
    return await add(await AioBdev.create(name, filename, block_size or 0, readonly, uuid))


async def create_uring(name: str, filename: str, block_size: int | None = None,
                       uuid: str | None = None, readonly: bool = False) -> str:
    """Serve a file or block device through io_uring; return the bdev's name.

    OSError(ENOTSUP) tells why when io_uring cannot be had.
    """
    from vhostrt.bdev.file import uring_class
    check_file(name, block_size, uuid)
    return await add(await uring_class().create(name, filename, block_size or 0, readonly, uuid))


async def create_file(name: str, filename: str, block_size: int | None = None,
                      readonly: bool = False, uuid: str | None = None) -> str:
    """Serve a file or block device in the best way there is; return the bdev's name."""
    from vhostrt.bdev.file import create_file_bdev
    check_file(name, block_size, uuid)
    return await add(await create_file_bdev(name, filename, block_size or 0, readonly, uuid))


async def delete(name: str, kind: str | None = None) -> None:
    """Delete a bdev. kind: "malloc", "null", "aio" or "uring", which it must be; None for any."""
    await registry.delete(name, PRODUCTS[kind] if kind else None)


async def resize_null(name: str, num_bytes: int) -> None:
    """Give a null disk another size, in bytes. Fails: as registry.resize; OSError ENODEV."""
    bdev = registry.get(name)
    registry.check_product(bdev, PRODUCTS["null"])
    num_blocks, rest = divmod(num_bytes, bdev.block_size)
    if rest:
        raise ValueError(f"{num_bytes} bytes are not a whole number of {bdev.block_size}-byte "
                         "blocks")
    check_size(num_blocks, bdev.block_size)
    registry.resize(bdev, num_blocks)


async def rescan(name: str, kind: str) -> None:
    """Have the size that the file of a bdev, "aio" or "uring", has now.

    Fails: as registry.resize; OSError ENODEV, or EINVAL for a size that no disk has.
    """
    bdev = registry.get(name)
    registry.check_product(bdev, PRODUCTS[kind])
    registry.resize(bdev, await bdev.measured())
