"""RPC methods of block devices: making, deleting and listing them."""
import asyncio
import errno
from typing import Annotated

import msgspec
from msgspec import Meta

from vhostrt.bdev import factory, registry, saved, splits
from vhostrt.rpc.method import (
    ANY_STATE,
    INVALID_PARAMS,
    Count,
    Dispatcher,
    Name,
    Parameters,
    Path,
    Positive,
    RpcError,
    method,
    refusing,
)

LOOK_S = 0.01                           # between two looks for a bdev that is waited for

Size32 = Annotated[int, Meta(ge=0, le=2**32 - 1, description="an integer from 0 to 2^32 - 1")]
BlockSize = Annotated[int, Meta(ge=1, le=2**31, description="a positive number of bytes")]
Node = Annotated[int, Meta(ge=-1, le=1023, description="a NUMA node, or -1 for any")]


class MallocCreate(Parameters):
    """num_blocks: blocks of the disk.  block_size: bytes of a block.

    physical_block_size: bytes; block_size without it.  name: of the bdev; MallocN without it.
    uuid: of the bdev; a random one without it.  optimal_io_boundary: blocks; a hint.
    md_size: bytes of metadata of a block, which must be 0.  md_interleave: has no effect.
    dif_type: of the protection information, which must be 0.  dif_is_head_of_md: has no effect.
    dif_pi_format: has no effect.  numa_id: node whose memory it is.
    """

    num_blocks: Positive
    block_size: BlockSize
    physical_block_size: Size32 | None = None
    name: Name | None = None
    uuid: str | None = None
    optimal_io_boundary: Size32 | None = None
    md_size: Size32 | None = None
    md_interleave: bool | None = None
    dif_type: Size32 | None = None
    dif_is_head_of_md: bool | None = None
    dif_pi_format: Size32 | None = None
    numa_id: Node | None = None


class NullCreate(Parameters):
    """name: of the bdev.  num_blocks: blocks of the disk.  block_size: bytes of a block.

    physical_block_size: bytes; block_size without it.  uuid: of the bdev; a random one without it.
    md_size: bytes of metadata of a block, which must be 0.  dif_type: of the protection
    information, which must be 0.  dif_is_head_of_md, dif_pi_format: has no effect.
    preferred_write_alignment, preferred_write_granularity, optimal_write_size: blocks; a hint.
    preferred_unmap_alignment, preferred_unmap_granularity: blocks; a hint.
    """

    name: Name
    num_blocks: Positive
    block_size: BlockSize
    physical_block_size: Size32 | None = None
    uuid: str | None = None
    md_size: Size32 | None = None
    dif_type: Size32 | None = None
    dif_is_head_of_md: bool | None = None
    dif_pi_format: Size32 | None = None
    preferred_write_alignment: Size32 | None = None
    preferred_write_granularity: Size32 | None = None
    optimal_write_size: Size32 | None = None
    preferred_unmap_alignment: Size32 | None = None
    preferred_unmap_granularity: Size32 | None = None


class AioCreate(Parameters):
    """name: of the bdev.  filename: of a regular file or block device.

    block_size: bytes of a block; the device's own, or 512, without it.  readonly: open it for
    reading.  fallocate: has no effect: unmap is offered where the file can do it.  uuid: of the
    bdev; a random one without it.  nowait: must be false.
    """

    name: Name
    filename: Path
    block_size: BlockSize | None = None
    readonly: bool = False
    fallocate: bool = False
    uuid: str | None = None
    nowait: bool = False


class UringCreate(Parameters):
    """name: of the bdev.  filename: of a regular file or block device.

    block_size: bytes of a block; the device's own, or 512, without it.  uuid: of the bdev; a random
    one without it.  readonly: open it for reading.
    """

    name: Name
    filename: Path
    block_size: BlockSize | None = None
    uuid: str | None = None
    readonly: bool = False


class NullResize(Parameters):
    """name: of the bdev, or its uuid.  new_size: MiB."""

    name: Name
    new_size: Annotated[int, Meta(ge=1, le=2**42, description="a positive number of MiB")]


class Named(Parameters):
    """name: of the bdev, or its uuid."""

    name: Name


class GetBdevs(Parameters):
    """name: of the one bdev to describe, or its uuid.  timeout: milliseconds to wait for it."""

    name: Name | None = None
    timeout: Count = 0


class SplitCreate(Parameters):
    """base_bdev: to cut; it may come later.  split_count: of the parts, fewer where not all fit.

    split_size_mb: MiB of each part, 0 for equal parts of all.
    """

    base_bdev: Name
    split_count: Annotated[int, Meta(ge=1, le=splits.PARTS_MAX, description="an integer from 1 to "
                                     f"{splits.PARTS_MAX}")]
    split_size_mb: Annotated[int, Meta(ge=0, le=2**40, description="a number of MiB, 0 for equal "
                                       "parts")] = 0


class SplitDelete(Parameters):
    """base_bdev: that was cut."""

    base_bdev: Name


class SetOptions(Parameters):
    """Sizes of SPDK's pools and caches; not given: as it is.

    bdev_io_pool_size, bdev_io_cache_size: requests.  iobuf_small_cache_size,
    iobuf_large_cache_size: buffers.  bdev_auto_examine: whether new bdevs are looked into.
    """

    bdev_io_pool_size: Size32 | None = None
    bdev_io_cache_size: Size32 | None = None
    bdev_auto_examine: bool | None = None
    iobuf_small_cache_size: Size32 | None = None
    iobuf_large_cache_size: Size32 | None = None


async def create(make, params: Parameters) -> str:
    with refusing():
        return await make(**msgspec.structs.asdict(params))


@method("bdev_malloc_create", aliases=("construct_malloc_bdev",))
async def bdev_malloc_create(rpc: Dispatcher, params: MallocCreate) -> str:
    """Make a RAM disk and return its name."""
    return await create(factory.create_malloc, params)


@method("bdev_null_create", aliases=("construct_null_bdev",))
async def bdev_null_create(rpc: Dispatcher, params: NullCreate) -> str:
    """Make a disk that forgets what is written and return its name."""
    return await create(factory.create_null, params)


@method("bdev_aio_create", aliases=("construct_aio_bdev",))
async def bdev_aio_create(rpc: Dispatcher, params: AioCreate) -> str:
    """Serve a file or block device through helper threads and return the bdev's name."""
    return await create(factory.create_aio, params)


@method("bdev_uring_create")
async def bdev_uring_create(rpc: Dispatcher, params: UringCreate) -> str:
    """Serve a file or block device through io_uring and return the bdev's name."""
    return await create(factory.create_uring, params)


@method("bdev_malloc_delete", aliases=("delete_malloc_bdev",))
async def bdev_malloc_delete(rpc: Dispatcher, params: Named) -> bool:
    """Delete a RAM disk, when those who use it have let go of it."""
    await factory.delete(params.name, "malloc")
    return True


@method("bdev_null_delete", aliases=("delete_null_bdev",))
async def bdev_null_delete(rpc: Dispatcher, params: Named) -> bool:
    """Delete a null disk, when those who use it have let go of it."""
    await factory.delete(params.name, "null")
    return True


@method("bdev_aio_delete", aliases=("delete_aio_bdev",))
async def bdev_aio_delete(rpc: Dispatcher, params: Named) -> bool:
    """Stop serving a file through helper threads, when its users have let go of it."""
    await factory.delete(params.name, "aio")
    return True


@method("bdev_uring_delete")
async def bdev_uring_delete(rpc: Dispatcher, params: Named) -> bool:
    """Stop serving a file through io_uring, when its users have let go of it."""
    await factory.delete(params.name, "uring")
    return True


@method("bdev_split_create", aliases=("construct_split_vbdev",))
async def bdev_split_create(rpc: Dispatcher, params: SplitCreate) -> list[str]:
    """Cut a bdev into parts and return their names; [] when it is not there yet."""
    try:
        return await splits.create(params.base_bdev, params.split_count, params.split_size_mb)
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise RpcError(INVALID_PARAMS, f"Failed to create {params.split_count} split bdevs from "
                       f"'{params.base_bdev}': {why}") from None


@method("bdev_split_delete", aliases=("destruct_split_vbdev",))
async def bdev_split_delete(rpc: Dispatcher, params: SplitDelete) -> bool:
    """Delete the parts of a bdev, when those who use them have let go of them."""
    try:
        await splits.delete(params.base_bdev)
    except OSError as error:
        raise RpcError(INVALID_PARAMS, str(error.strerror)) from None
    return True


@method("bdev_null_resize")
async def bdev_null_resize(rpc: Dispatcher, params: NullResize) -> bool:
    """Give a null disk another size; a smaller one only while nobody uses it."""
    with refusing():
        await factory.resize_null(params.name, params.new_size << 20)
    return True


@method("bdev_aio_rescan")
async def bdev_aio_rescan(rpc: Dispatcher, params: Named) -> bool:
    """Have the size that the file has now; a smaller one only while nobody uses it."""
    await factory.rescan(params.name, "aio")
    return True


@method("bdev_uring_rescan")
async def bdev_uring_rescan(rpc: Dispatcher, params: Named) -> bool:
    """Have the size that the file has now; a smaller one only while nobody uses it."""
    await factory.rescan(params.name, "uring")
    return True


@method("bdev_examine")
async def bdev_examine(rpc: Dispatcher, params: Named) -> bool:
    """Look whether a bdev holds others: that was done when it came, so there is nothing to do."""
    return True


@method("bdev_get_bdevs", aliases=("get_bdevs",), waits=True)
async def bdev_get_bdevs(rpc: Dispatcher, params: GetBdevs) -> list[dict]:
    """Return what there is to say of all bdevs, or of one."""
    if params.name is None:
        return [registry.describe(bdev) for bdev in registry.bdevs()]
    clock = asyncio.get_running_loop().time
    end = clock() + params.timeout / 1000
    while True:
        try:
            return [registry.describe(registry.get(params.name))]
        except OSError as e:
            if e.errno != errno.ENODEV or clock() >= end:
                raise
        await asyncio.sleep(LOOK_S)


@method("bdev_set_options", states=ANY_STATE, aliases=("set_bdev_options",))
async def bdev_set_options(rpc: Dispatcher, params: SetOptions) -> bool:
    """Take the sizes of SPDK's pools, of which there are none here: they are saved again."""
    for name, value in msgspec.structs.asdict(params).items():
        if value is not None:
            setattr(saved.options, name, value)
    return True


@method("bdev_wait_for_examine", waits=True)
async def bdev_wait_for_examine(rpc: Dispatcher) -> bool:
    """Return when no bdev is looked into any more: at once, as that is over with its creation."""
    return True
