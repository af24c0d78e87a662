"""RPC methods of notifications: which there are, those of the past, and waiting for the next."""
import asyncio
from typing import Any

from vhostrt.notify import notifications
from vhostrt.rpc.method import ANY_STATE, Count, Dispatcher, Parameters, method, refuse, shown

WAIT_MS = 30_000                        # when the client does not say how long


class Get(Parameters):
    """id: of the first one; 0, or the oldest that is kept, without it.  max: how many at most."""

    id: Count = 0
    max: Count | None = None


class Wait(Parameters):
    """id: of the first one; without it the next that comes.  max: how many at most.

    timeout: milliseconds to wait for one.  types: only of these; of all without it.
    """

    id: Count | None = None
    max: Count | None = None
    timeout: Count = WAIT_MS
    types: list[str] | None = None


@method("notify_get_types", states=ANY_STATE, aliases=("get_notification_types",))
async def notify_get_types(rpc: Dispatcher) -> list[str]:
    """Return the types of notifications that there are."""
    return list(notifications.types)


@method("notify_get_notifications", states=ANY_STATE, aliases=("get_notifications",))
async def notify_get_notifications(rpc: Dispatcher, params: Get) -> list[dict]:
    """Return notifications of the past, as many as are kept.

    A first one with a greater id than was asked for tells that those between are lost.
    """
    return notifications.since(params.id)[:params.max]


@method("notify_wait_notifications", states=ANY_STATE, waits=True)
async def notify_wait_notifications(rpc: Dispatcher, params: Wait) -> dict[str, Any]:
    """Return notifications as soon as there are any, or none after the timeout.

    next_id: to ask for with the next call.  lost: how many from `id` on are kept no more.
    """
    wanted = set(notifications.types if params.types is None else params.types)
    if unknown := sorted(wanted - notifications.types.keys()):
        raise refuse(f"'types' must be among {', '.join(notifications.types)}, not "
                     f"{shown(unknown[0])}")
    first = notifications.next_id if params.id is None else params.id
    if first > notifications.next_id:
        raise refuse(f"'id' must be at most {notifications.next_id}, which is the next one, not "
                     f"{first}; the program has been started anew since")
    found: list[dict] = []
    at, lost = first, 0
    try:
        async with asyncio.timeout(params.timeout / 1000):
            while not found:
                await notifications.wait(at)
                lost += max(notifications.oldest_id - at, 0)
                found = [event for event in notifications.since(at) if event["type"] in wanted]
                at = notifications.next_id
    except TimeoutError:
        pass
    if params.max is not None and len(found) > params.max:
        at = found[params.max]["id"]
        del found[params.max:]
    return {"notifications": found, "next_id": at, "lost": lost}
