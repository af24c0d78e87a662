"""RPC methods of the program as a whole: methods, version, start, reactors, signals."""
import os
import re
import signal
from typing import Any

from vhostrt import __version__
from vhostrt.base import ticks
from vhostrt.env import lcore
from vhostrt.event import cpus, reactor, thread
from vhostrt.rpc.method import (
    ANY_STATE,
    INTERNAL_ERROR,
    Dispatcher,
    Name,
    Parameters,
    RpcError,
    State,
    method,
    refuse,
    shown,
)
from vhostrt.rpc.thread import mask_of
from vhostrt.subsystem import SubsystemError

# What spdk_kill_instance sends: the signals that mean something to a program that serves disks.
SIGNALS = {name: getattr(signal, name)
           for name in ("SIGINT", "SIGTERM", "SIGQUIT", "SIGHUP", "SIGKILL", "SIGUSR1")}


class GetMethods(Parameters):
    """current: only those that can be called in the present state.  include_aliases: old names."""

    current: bool = False
    include_aliases: bool = False


class GetSchema(Parameters):
    """method: the only one to describe, by its name or an older one."""

    method: Name | None = None


class KillInstance(Parameters):
    """sig_name: the name of a signal, with or without SIG, or its number."""

    sig_name: str | int


class MonitorContextSwitch(Parameters):
    """enabled: whether to log them; not given: leave it as it is."""

    enabled: bool | None = None


@method("rpc_get_methods", states=ANY_STATE, aliases=("get_rpc_methods",))
async def rpc_get_methods(rpc: Dispatcher, params: GetMethods) -> list[str]:
    """Return the names that a client may call."""
    return [name for name, known in rpc.table.items()
            if rpc.exposes(name)
            and (params.include_aliases or name == known.name)
            and (not params.current or known.states & rpc.state)]


@method("rpc_get_schema", states=ANY_STATE)
async def rpc_get_schema(rpc: Dispatcher, params: GetSchema) -> dict[str, Any]:
    """Return what methods take and answer, params and result each as a JSON Schema.

    Of a parameter, `title` says its form and `description` what it means.
    """
    from vhostrt.rpc.schema import schema_of
    if params.method is not None and not rpc.exposes(params.method):
        raise refuse(f"'method' must be a method that rpc_get_methods lists, not "
                     f"{shown(params.method)}")
    names = [name for name in rpc.table if rpc.exposes(name)]
    if params.method is not None:
        names = [params.method]
    methods = {rpc.table[name].name: rpc.table[name] for name in names}
    return {"version": f"vhostrt v{__version__}", "methods": schema_of(methods)}


@method("spdk_get_version", states=ANY_STATE, aliases=("get_spdk_version",))
async def spdk_get_version(rpc: Dispatcher) -> dict:
    """Return the version as a text and in its parts."""
    major, minor, patch, suffix = re.fullmatch(r"(\d+)\.(\d+)(?:\.(\d+))?(.*)",
                                               __version__).groups()
    return {"version": f"vhostrt v{__version__}",
            "fields": {"major": int(major), "minor": int(minor), "patch": int(patch or 0),
                       "suffix": suffix}}


@method("framework_start_init", states=State.STARTUP, aliases=("start_subsystem_init",),
        waits=True)
async def framework_start_init(rpc: Dispatcher) -> bool:
    """Initialise the subsystems; True when that is done."""
    try:
        await rpc.target.start_init()
    except SubsystemError as e:
        raise RpcError(INTERNAL_ERROR, str(e)) from e
    return True


@method("framework_wait_init", states=ANY_STATE, aliases=("wait_subsystem_init",), waits=True)
async def framework_wait_init(rpc: Dispatcher) -> bool:
    """Return True when the subsystems are initialised."""
    await rpc.initialised.wait()
    return True


@method("framework_get_subsystems", states=ANY_STATE, aliases=("get_subsystems",))
async def framework_get_subsystems(rpc: Dispatcher) -> list[dict]:
    """Return the subsystems in the order of their initialisation."""
    return rpc.target.subsystems.describe()


@method("spdk_kill_instance", states=ANY_STATE, aliases=("kill_instance",))
async def spdk_kill_instance(rpc: Dispatcher, params: KillInstance) -> bool:
    """Send this process a signal."""
    wanted = str(params.sig_name).removeprefix("SIG")
    for name, number in SIGNALS.items():
        if wanted in (name.removeprefix("SIG"), str(int(number))):
            os.kill(os.getpid(), number)
            return True
    raise refuse(f"'sig_name' must be one of {', '.join(SIGNALS)}, not {shown(params.sig_name)}")


@method("framework_get_reactors")
async def framework_get_reactors(rpc: Dispatcher) -> dict:
    """Return what each reactor has done, in ticks, and the light threads on it.

    irq, sys, usr: time of its CPUs since the start, in clock ticks of the kernel.  core_freq: their
    highest present frequency in MHz, where the kernel tells it.
    """
    now = cpus.read_times()
    return {"tick_rate": ticks.hz(), "pid": os.getpid(),
            "reactors": [describe_reactor(lcore, rpc.target.cpu_times, now)
                         for lcore in reactor.lcores()]}


def describe_reactor(number: int, before: cpus.Times, now: cpus.Times) -> dict:
    stats = reactor.stats(number)
    own = tuple(lcore.cpus(number))
    freq = max((cpus.frequency(cpu) or 0 for cpu in own), default=0)
    return {
        "lcore": number, "numa_id": max(lcore.socket(number), 0), "tid": stats["tid"],
        "busy": stats["busy"], "idle": stats["idle"], "in_interrupt": stats["in_interrupt"],
        **cpus.times_since(before, own, now), **({"core_freq": freq} if freq else {}),
        "lw_threads": [describe_thread(t) for t in thread.threads() if t.lcore == number],
    }


def describe_thread(light: thread.Thread) -> dict:
    return {"name": light.name, "id": light.id, "cpumask": mask_of(light),
            "elapsed": light.elapsed}


@method("framework_monitor_context_switch", aliases=("context_switch_monitor",))
async def framework_monitor_context_switch(rpc: Dispatcher, params: MonitorContextSwitch) -> dict:
    """Have the context switches of reactors logged once a second, with the flag reactor; or not.

    Return whether they are.
    """
    if params.enabled is not None:
        rpc.target.monitor.enabled = params.enabled
    return {"enabled": rpc.target.monitor.enabled}
