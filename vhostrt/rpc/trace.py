"""RPC methods of tracing: which points are on, and where the entries are."""
from vhostrt.event.trace import Group
from vhostrt.rpc.method import (
    ANY_STATE,
    Dispatcher,
    Name,
    Parameters,
    method,
    refuse,
    shown,
)
from vhostrt.tracing import ALL, known_groups


class GroupName(Parameters):
    """name: of a group, or "all"."""

    name: Name


class Points(Parameters):
    """name: of a group, or "all".  tpoint_mask: its points, a bit each."""

    name: Name
    tpoint_mask: int


def chosen(name: str, mask: int = ALL) -> dict[str, int]:
    """Return what turn_on and turn_off take.  RpcError."""
    groups = known_groups()
    if name != "all" and name not in groups:
        raise refuse(f"'name' must be one of {', '.join(groups)}, all, not {shown(name)}")
    if not 0 < mask <= ALL:
        raise refuse(f"'tpoint_mask' must be a mask of points, 1 to 2^64 - 1, not {mask}")
    return dict.fromkeys(groups if name == "all" else (name,), mask)


@method("trace_enable_tpoint_group", states=ANY_STATE, aliases=("enable_tpoint_group",))
async def trace_enable_tpoint_group(rpc: Dispatcher, params: GroupName) -> bool:
    """Turn all points of a group on."""
    rpc.target.tracing.turn_on(chosen(params.name))
    return True


@method("trace_disable_tpoint_group", states=ANY_STATE, aliases=("disable_tpoint_group",))
async def trace_disable_tpoint_group(rpc: Dispatcher, params: GroupName) -> bool:
    """Turn all points of a group off."""
    rpc.target.tracing.turn_off(chosen(params.name))
    return True


@method("trace_set_tpoint_mask", states=ANY_STATE)
async def trace_set_tpoint_mask(rpc: Dispatcher, params: Points) -> bool:
    """Turn points of a group on; the others stay as they are."""
    rpc.target.tracing.turn_on(chosen(params.name, params.tpoint_mask))
    return True


@method("trace_clear_tpoint_mask", states=ANY_STATE)
async def trace_clear_tpoint_mask(rpc: Dispatcher, params: Points) -> bool:
    """Turn points of a group off; the others stay as they are."""
    rpc.target.tracing.turn_off(chosen(params.name, params.tpoint_mask))
    return True


@method("trace_clear", states=ANY_STATE)
async def trace_clear(rpc: Dispatcher) -> bool:
    """Have readers forget what was traced so far."""
    rpc.target.tracing.clear()
    return True


@method("trace_get_tpoint_group_mask", states=ANY_STATE, aliases=("get_tpoint_group_mask",))
async def trace_get_tpoint_group_mask(rpc: Dispatcher) -> dict:
    """Return for each group, and for each of its points, whether it is on."""
    masks = rpc.target.tracing.masks()
    return {"tpoint_group_mask": group_mask(masks),
            **{name: describe_group(group, masks[name]) for name, group in known_groups().items()}}


@method("trace_get_info", states=ANY_STATE)
async def trace_get_info(rpc: Dispatcher) -> dict:
    """Return the file of the trace, and for each group which points are on.

    The file is made when a first point is turned on.
    """
    tracing = rpc.target.tracing
    masks = tracing.masks()
    return {"tpoint_shm_path": tracing.path, "tpoint_group_mask": group_mask(masks),
            **{name: {"mask": f"{1 << group.number:#x}", "tpoint_mask": f"{masks[name]:#x}"}
               for name, group in known_groups().items()}}


def group_mask(masks: dict[str, int]) -> str:
    """Return a mask of the groups with points that are on."""
    return f"{sum(1 << known_groups()[name].number for name, mask in masks.items() if mask):#x}"


def describe_group(group: Group, mask: int) -> dict:
    return {"enabled": mask != 0, "mask": f"{1 << group.number:#x}", "tpoint_mask": f"{mask:#x}",
            "tpoints": [{"name": point.name, "tpoint_id": point.number,
                         "enabled": bool(mask >> point.number & 1)} for point in group.points]}
