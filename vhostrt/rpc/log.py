"""RPC methods of the log: which lines are printed."""
from typing import Literal

from vhostrt import log
from vhostrt.rpc.method import ANY_STATE, Dispatcher, Parameters, method, refuse, shown


class Flag(Parameters):
    """flag: a component's name, or "all"."""

    flag: str


class Level(Parameters):
    """level: lines above it are left out."""

    level: Literal["ERROR", "WARNING", "NOTICE", "INFO", "DEBUG"]


class Timestamps(Parameters):
    """enabled: begin lines with the time."""

    enabled: bool


@method("log_get_flags", states=ANY_STATE, aliases=("get_log_flags",))
async def log_get_flags(rpc: Dispatcher) -> dict[str, bool]:
    """Return for each component whether its lines are on."""
    return {flag: log.enabled(flag) for flag in sorted(log.single_flags())}


@method("log_set_flag", states=ANY_STATE, aliases=("set_log_flag",))
async def log_set_flag(rpc: Dispatcher, params: Flag) -> bool:
    """Turn the lines of a component on."""
    log.settings.flags |= chosen(params.flag)
    return True


@method("log_clear_flag", states=ANY_STATE, aliases=("clear_log_flag",))
async def log_clear_flag(rpc: Dispatcher, params: Flag) -> bool:
    """Turn the lines of a component off."""
    off = chosen(params.flag)
    log.settings.flags = log.single_flags(log.settings.flags) - off
    return True


def chosen(flag: str) -> set[str]:
    if flag not in log.FLAGS:
        raise refuse(f"'flag' must be one of {', '.join(sorted(log.FLAGS))}, not {shown(flag)}")
    return log.single_flags({flag})


@method("log_get_print_level", states=ANY_STATE, aliases=("get_log_print_level",))
async def log_get_print_level(rpc: Dispatcher) -> str:
    """Return the level down to which lines are printed."""
    return log.NAMES[log.settings.print_level]


@method("log_set_print_level", states=ANY_STATE, aliases=("set_log_print_level",))
async def log_set_print_level(rpc: Dispatcher, params: Level) -> bool:
    """Set the level down to which lines are printed."""
    log.settings.print_level = log.NAMES.index(params.level)
    return True


@method("log_get_level", states=ANY_STATE, aliases=("get_log_level",))
async def log_get_level(rpc: Dispatcher) -> str:
    """Return the level down to which lines go to the system's log, where there is one."""
    return log.NAMES[log.settings.level]


@method("log_set_level", states=ANY_STATE, aliases=("set_log_level",))
async def log_set_level(rpc: Dispatcher, params: Level) -> bool:
    """Set the level down to which lines go to the system's log."""
    log.settings.level = log.NAMES.index(params.level)
    return True


@method("log_enable_timestamps", states=ANY_STATE)
async def log_enable_timestamps(rpc: Dispatcher, params: Timestamps) -> bool:
    """Begin lines with the time, or not."""
    log.settings.timestamps = params.enabled
    return True
