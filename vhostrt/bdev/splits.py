"""Bdevs cut into parts: NAMEp0, NAMEp1 ... as long as the bdev NAME is there.

Owner:    this module keeps the base of a split open, and claimed, until the split is deleted or the
          base is.
Threads:  the control thread.
Fails:    OSError with errno EEXIST (a split of this base, or a name, is there), ENOENT (no split),
          EPERM and EBUSY (the base is claimed, or written by others); ValueError.
Source:   bdev_split_create, bdev_split_delete.
"""
import asyncio
import errno
from collections.abc import Awaitable
from typing import Any

from vhostrt import log
from vhostrt.bdev import registry
from vhostrt.bdev.core import Bdev

MIB = 1 << 20
PARTS_MAX = 4096                        # of one base


class Split:
    """One base that is cut, or will be when it comes.

    size  MiB of each part, 0 for equal parts of all.  parts: their names, when the base is there.
    """

    def __init__(self, base: str, count: int, size: int) -> None:
        self.base, self.count, self.size = base, count, size
        self.descriptor: registry.Descriptor | None = None
        self.parts: list[str] = []


splits: dict[str, Split] = {}           # by the name of the base, in the order of creation


async def create(base: str, count: int, size: int = 0) -> list[str]:
    """Cut a bdev into parts and return their names; [] when it is not there yet.

    count: of the parts; fewer, if so many do not fit.  size: MiB of each, 0 for equal ones.
    """
    if not 1 <= count <= PARTS_MAX:
        raise ValueError(f"split_count {count} is not between 1 and {PARTS_MAX}")
    if base in splits:
        raise OSError(errno.EEXIST, f"bdev {base} is split already")
    split = splits[base] = Split(base, count, size)
    try:
        if base in registry.entries:
            await cut(split)
    except BaseException:
        del splits[base]
        raise
    return split.parts


async def examine(bdev: Bdev) -> None:
    """Cut a bdev that has just come, if a split waits for it; one that cannot be is forgotten."""
    split = splits.get(bdev.name)
    if split is None or split.descriptor is not None:
        return
    try:
        await cut(split)
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        log.error(f"bdev {bdev.name} cannot be split: {why}")
        del splits[bdev.name]


async def cut(split: Split) -> None:
    """Open and claim the base of a split, and make its parts; all of them or none."""
    read_only = registry.get(split.base).read_only
    descriptor = registry.open(split.base, not read_only, lambda _: forget(split))
    try:
        registry.claim(descriptor, "split")
        for part in parts_of(split, descriptor.bdev):
            registry.register(part)
            split.parts.append(part.name)
    except BaseException:
        await delete_parts(split)
        descriptor.close()
        raise
    split.descriptor = descriptor
    for name in list(split.parts):
        await examine(registry.get(name))


def parts_of(split: Split, base: Bdev) -> list[Bdev]:
    """Make the parts, not yet registered."""
    from vhostrt.bdev.split import PartBdev
    size = split.size * MIB // base.block_size or base.num_blocks // split.count
    count = min(split.count, base.num_blocks // size if size else 0)
    if count == 0:
        raise ValueError(f"bdev {base.name} of {base.num_blocks} blocks of {base.block_size} bytes "
                         f"is too small for {split.count} parts"
                         + (f" of {split.size} MiB" if split.size else ""))
    if count < split.count:
        log.warning(f"bdev {base.name} has room for {count} parts of {split.size} MiB, not "
                    f"{split.count}")
    return [PartBdev(f"{base.name}p{i}", base, i * size, size) for i in range(count)]


async def delete(base: str) -> None:
    """Delete a split, its parts included, when their users have let go of them."""
    if base not in splits:
        raise OSError(errno.ENOENT, f"there is no split of bdev {base}")
    await forget(splits[base])


async def forget(split: Split) -> None:
    """Delete the parts, and let go of the base. OSError: a part is still in use."""
    await delete_parts(split)
    if split.descriptor is not None:
        split.descriptor.close()
        split.descriptor = None
    if splits.get(split.base) is split:
        del splits[split.base]


async def delete_parts(split: Split) -> None:
    """Delete all parts at once; one that is gone is none. OSError, when the others are gone."""
    names, failed = split.parts, []
    for name, error in zip(names, await asyncio.gather(
            *map(delete_part, names), return_exceptions=True), strict=True):
        if isinstance(error, OSError) and error.errno != errno.ENODEV:
            failed.append(name)
            log.error(f"part {name}: {error.strerror}")
        elif isinstance(error, BaseException) and not isinstance(error, OSError):
            raise error
    split.parts = failed
    if failed:
        raise OSError(errno.EBUSY, f"parts of bdev {split.base} are in use: {', '.join(failed)}")


def delete_part(name: str) -> Awaitable[None]:
    return registry.delete(name, "Split Disk")


def clear() -> None:
    """Forget the splits whose base has not come; the others go with theirs."""
    for base in [base for base, split in splits.items() if split.descriptor is None]:
        del splits[base]


def config() -> list[dict[str, Any]]:
    """Return the calls that make the present splits again."""
    return [{"method": "bdev_split_create", "params": {
        "base_bdev": split.base, "split_count": split.count, "split_size_mb": split.size}}
        for split in splits.values()]
