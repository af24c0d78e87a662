"""The memory messages: how a client's view of shared memory follows from the one before.

A region that is in both keeps its mapping, so that a change costs what it changes.

Threads: map_table and map_region run on the helper thread of view, as mmap may take long.
Fails:   ProtocolError says what is wrong with a message; the view is the old one then.
"""
from vhostrt.vhost.messages import FDS_MAX, MEM_REG, REGION, TABLE, ProtocolError
from vhostrt.vhost.transport import Message
from vhostrt.vhost.view import Allowance, Mapping, Poison, View

SLOTS_MAX = 509                         # regions of one client: what KVM has for a guest


def table_rows(message: Message) -> list[tuple[int, int, int, int]]:
    """Return (guest address, size, user address, offset) of each region of SET_MEM_TABLE."""
    if len(message.payload) < TABLE.size:
        raise ProtocolError("SET_MEM_TABLE is too short")
    count, _ = TABLE.unpack_from(message.payload)
    if not 0 < count <= FDS_MAX or len(message.fds) != count:
        raise ProtocolError(f"SET_MEM_TABLE lists {count} regions with {len(message.fds)} "
                            f"descriptors; it takes 1 to {FDS_MAX} with one each")
    if len(message.payload) < TABLE.size + count * REGION.size:
        raise ProtocolError(f"SET_MEM_TABLE has no room for its {count} regions")
    return [REGION.unpack_from(message.payload, TABLE.size + i * REGION.size)
            for i in range(count)]


def kept(rows, fds: list[int], old: View | None) -> list[Mapping | None]:
    """Return for each region the mapping that the old view has of it.

    None for all when memory of the old view was missing: whoever tells a new table starts anew.
    """
    if old is None or old.poison:
        return [None] * len(rows)
    found = [old.find(guest, size, user) for guest, size, user, _ in rows]
    return [mapping if mapping is not None and mapping.shows(fd, *row) else None
            for mapping, fd, row in zip(found, fds, rows, strict=True)]


def map_table(message: Message, old: View | None, allowance: Allowance) -> View:
    """Return the view that SET_MEM_TABLE asks for."""
    rows = table_rows(message)
    try:
        mappings = kept(rows, message.fds, old)
        # One poison for all; not the old one without need: old requests may still set it.
        poison = old.poison if any(mappings) else Poison()
        for i, (fd, row) in enumerate(zip(message.fds, rows, strict=True)):
            if mappings[i] is None:
                mappings[i] = Mapping.create(fd, *row, poison, allowance)
        return View(mappings)
    except (ValueError, OSError) as error:
        raise ProtocolError(f"SET_MEM_TABLE: {error}") from None


def map_region(message: Message, old: View | None, allowance: Allowance) -> View:
    """Return the view that ADD_MEM_REG asks for."""
    _, *row = MEM_REG.unpack(message.payload)
    if len(message.fds) != 1:
        raise ProtocolError(f"ADD_MEM_REG came with {len(message.fds)} descriptors; it takes one")
    if old is not None and len(old) >= SLOTS_MAX:
        raise ProtocolError(f"ADD_MEM_REG: there are {len(old)} regions, and may be {SLOTS_MAX}")
    try:
        poison = old.poison if old else Poison()
        mapping = Mapping.create(message.fds[0], *row, poison, allowance)
        return old.plus(mapping) if old else View([mapping])
    except (ValueError, OSError) as error:
        raise ProtocolError(f"ADD_MEM_REG: {error}") from None


def find_region(message: Message, view: View | None) -> Mapping:
    """Return the region that REM_MEM_REG names; its offset, and a descriptor, mean nothing."""
    _, guest, size, user, _ = MEM_REG.unpack(message.payload)
    mapping = view.find(guest, size, user) if view is not None else None
    if mapping is None:
        raise ProtocolError(f"REM_MEM_REG: there is no region of {size:#x} bytes at guest address "
                            f"{guest:#x} and user address {user:#x}")
    return mapping
