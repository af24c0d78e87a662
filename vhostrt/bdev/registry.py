"""The bdevs there are, by name and by uuid, and who has them open.

Owner:    the registry keeps a bdev from register() to delete(); who opens one closes it.
Threads:  the control thread.
Fails:    OSError with errno EEXIST (name or uuid taken), ENODEV (no such bdev), EROFS (opened for
          writing, but read-only), EBUSY (being deleted), ETIMEDOUT (its users did not let go).
"""
import asyncio
import errno
from collections.abc import Awaitable, Callable

from vhostrt import log
from vhostrt.bdev.core import Bdev
from vhostrt.notify import notifications

REMOVE_S = 30.0                         # how long the users of a bdev may take to close it

# The names of bdev_get_bdevs, in its order. The layer has no request for most of them.
IO_TYPES = (
    "read", "write", "unmap", "flush", "reset", "nvme_admin", "nvme_io", "nvme_io_md",
    "write_zeroes", "zcopy", "get_zone_info", "zone_management", "zone_append", "compare",
    "compare_and_write", "abort", "seek_hole", "seek_data", "copy", "nvme_iov_md", "nvme_nssr",
    "write_uncorrectable",
)
# Sizes in blocks; 0 where the bdev does not say.
HINTS = ("preferred_write_alignment", "preferred_write_granularity", "optimal_write_size",
         "preferred_unmap_alignment", "preferred_unmap_granularity")
RATE_LIMITS = ("rw_ios_per_sec", "rw_mbytes_per_sec", "r_mbytes_per_sec", "w_mbytes_per_sec")

notifications.register("bdev_register", "a bdev has been made; ctx: its name")
notifications.register("bdev_unregister", "a bdev has been deleted; ctx: its name")
notifications.register("bdev_resize", "a bdev has another size; ctx: its name")


class Descriptor:
    """One use of a bdev: what open() returned, until close().

    bdev      the Bdev; alive until close()
    writable  whether channels for writing may be opened
    on_resize None, or what to call, with the descriptor, when the bdev has another size
    """

    __slots__ = ("bdev", "writable", "on_remove", "on_resize", "entry")

    def __init__(self, entry: "Entry", writable: bool, on_remove: "OnRemove") -> None:
        self.bdev = entry.bdev
        self.writable = writable
        self.on_remove = on_remove
        self.on_resize: Callable[[Descriptor], None] | None = None
        self.entry: Entry | None = entry

    def close(self) -> None:
        """Let go of the bdev; its channels have been closed before. Again: nothing."""
        if self.entry is None:
            return
        entry, self.entry = self.entry, None
        entry.descriptors.remove(self)
        if entry.claimer is self:
            entry.claimer, entry.claim = None, ""
        if not entry.descriptors:
            entry.unused.set()


OnRemove = Callable[[Descriptor], Awaitable[None]]


class Entry:
    """What the registry knows of one bdev.

    claim  name of the module that alone may write, "" for none; claimer is its descriptor
    """

    __slots__ = ("bdev", "descriptors", "unused", "deleting", "letting_go", "claim", "claimer")

    def __init__(self, bdev: Bdev) -> None:
        self.bdev = bdev
        self.descriptors: set[Descriptor] = set()
        self.unused = asyncio.Event()   # looked at only while deleting
        self.deleting = False
        self.letting_go: asyncio.Task | None = None     # from the first delete on
        self.claim = ""
        self.claimer: Descriptor | None = None


entries: dict[str, Entry] = {}          # by name, in creation order
by_uuid: dict[str, Entry] = {}


def find(name: str) -> Entry:
    entry = entries.get(name) or by_uuid.get(name.lower())
    if entry is None:
        raise OSError(errno.ENODEV, f"bdev {name} does not exist")
    return entry


def check_free(name: str, uuid: str | None = None) -> None:
    """Raise OSError(EEXIST) when a bdev has this name or uuid."""
    if name in entries or name.lower() in by_uuid:
        raise OSError(errno.EEXIST, f"bdev {name} already exists")
    if uuid is not None and (uuid in by_uuid or uuid in entries):
        raise OSError(errno.EEXIST, f"a bdev with uuid {uuid} already exists")


def register(bdev: Bdev) -> None:
    """Add a bdev. OSError(EEXIST) when its name or uuid is another's name or uuid."""
    check_free(bdev.name, bdev.uuid)
    entries[bdev.name] = by_uuid[bdev.uuid] = Entry(bdev)
    notifications.send("bdev_register", bdev.name)


def get(name: str) -> Bdev:
    """Return the bdev with this name or uuid, or raise OSError(ENODEV)."""
    return find(name).bdev


def bdevs() -> list[Bdev]:
    """Return all bdevs in the order of creation."""
    return [entry.bdev for entry in entries.values()]


def open(name: str, writable: bool, on_remove: OnRemove) -> Descriptor:
    """Open a bdev by name or uuid.

    on_remove(descriptor) is awaited when the bdev is to be deleted; it stops its requests, closes
    its channels and the descriptor. OSError: ENODEV, EBUSY (being deleted), EROFS, EPERM (claimed).
    """
    entry = find(name)
    if entry.bdev.removed:
        raise OSError(errno.EBUSY, f"bdev {name} is being deleted")
    if writable and entry.bdev.read_only:
        raise OSError(errno.EROFS, f"bdev {name} is read-only and cannot be opened for writing")
    if writable and entry.claim:
        raise OSError(errno.EPERM, f"bdev {name} is claimed by {entry.claim} and cannot be opened "
                      "for writing")
    descriptor = Descriptor(entry, writable, on_remove)
    entry.descriptors.add(descriptor)
    return descriptor


def claim(descriptor: Descriptor, module: str) -> None:
    """Let this descriptor alone write, until it is closed. module: its name, for messages.

    OSError: EPERM (claimed already), EBUSY (others have it open for writing).
    """
    entry = descriptor.entry
    assert entry is not None
    if entry.claim:
        raise OSError(errno.EPERM, f"bdev {entry.bdev.name} is claimed by {entry.claim}")
    if any(other.writable for other in entry.descriptors if other is not descriptor):
        raise OSError(errno.EBUSY, f"bdev {entry.bdev.name} is in use, and cannot be claimed by "
                      f"{module}")
    entry.claim, entry.claimer = module, descriptor


def check_product(bdev: Bdev, product: str | None) -> None:
    """Raise OSError(ENODEV) when a bdev is of another product; None is any."""
    if product is not None and bdev.product_name != product:
        raise OSError(errno.ENODEV, f"bdev {bdev.name} is a {bdev.product_name}, not a {product}")


def resize(bdev: Bdev, num_blocks: int) -> None:
    """Give a bdev another number of blocks, and tell who has it open.

    OSError: EBUSY (being deleted, or made smaller while it is open); ValueError: no bdev has so
    many blocks.
    """
    entry = find(bdev.name)
    if bdev.removed:
        raise OSError(errno.EBUSY, f"bdev {bdev.name} is being deleted")
    if num_blocks == bdev.num_blocks:
        return
    if num_blocks < bdev.num_blocks and entry.descriptors:
        raise OSError(errno.EBUSY, f"bdev {bdev.name} is open and has {bdev.num_blocks} blocks: it "
                      f"cannot be made smaller, {num_blocks}")
    bdev.set_num_blocks(num_blocks)
    notifications.send("bdev_resize", bdev.name, num_blocks=num_blocks)
    for descriptor in tuple(entry.descriptors):
        if descriptor.on_resize is not None:
            descriptor.on_resize(descriptor)


async def tell(descriptor: Descriptor) -> None:
    try:
        await descriptor.on_remove(descriptor)
    except Exception as error:          # the other users must still be told
        log.error(f"bdev {descriptor.bdev.name}: a user failed to let go of it: {error!r}")


async def let_go(entry: Entry) -> None:
    """Tell every user that the bdev goes, and return when the last has closed it."""
    entry.unused.clear()
    await asyncio.gather(*map(tell, tuple(entry.descriptors)))
    if entry.descriptors:
        await entry.unused.wait()


async def delete(name: str, product: str | None = None, timeout: float = REMOVE_S) -> None:
    """Delete a bdev: no new request is taken, its users are told and waited for, then it is closed.

    product: the product_name it must have, e.g. "Null disk"; None for any.  timeout: seconds.
    OSError: ENODEV (none of that name, or of another product), EBUSY (being deleted already),
    ETIMEDOUT (users still had it open; it takes no requests any more, and delete may be repeated).
    """
    entry = find(name)
    bdev = entry.bdev
    check_product(bdev, product)
    if entry.deleting:
        raise OSError(errno.EBUSY, f"bdev {name} is being deleted already")
    entry.deleting = True
    bdev.mark_removed()
    if entry.letting_go is None:
        entry.letting_go = asyncio.create_task(let_go(entry))
    try:
        # Its end, in time or later, is not to be cancelled: users are half-way through it.
        await asyncio.wait((entry.letting_go,), timeout=timeout)
    finally:
        entry.deleting = False
    if not entry.letting_go.done():
        raise OSError(errno.ETIMEDOUT, f"bdev {name} is still open {len(entry.descriptors)} times "
                      f"after {timeout:g} s")
    del entries[bdev.name], by_uuid[bdev.uuid]
    notifications.send("bdev_unregister", bdev.name)
    await bdev.close()


async def delete_all() -> None:
    """Delete every bdev, the newest first; one that its users hold on to is logged and left."""
    for bdev in reversed(bdevs()):
        try:
            await delete(bdev.name)
        except OSError as error:
            log.error(str(error.strerror))


def describe(bdev: Bdev) -> dict:
    """Return what bdev_get_bdevs says of one bdev."""
    about = {"name": bdev.name, "aliases": [bdev.uuid], "product_name": bdev.product_name,
             "block_size": bdev.block_size, "num_blocks": bdev.num_blocks}
    about |= {hint: bdev.hints.get(hint, 0) for hint in HINTS}
    about["uuid"] = bdev.uuid
    if "numa_id" in bdev.hints:
        about["numa_id"] = bdev.hints["numa_id"]
    types = bdev.io_types
    if bdev.read_only:
        types -= {"write", "unmap", "write_zeroes"}
    claimed = bdev.name in entries and entries[bdev.name].claim != ""
    return about | {
        "assigned_rate_limits": dict.fromkeys(RATE_LIMITS, 0),
        "claimed": claimed,
        **({"claim_type": "exclusive_write"} if claimed else {}),
        "zoned": False,
        "supported_io_types": {name: name in types for name in IO_TYPES},
        "driver_specific": bdev.driver_specific,
    }
