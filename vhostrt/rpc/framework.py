"""RPC methods of the program as a whole: methods, version, start, reactors, signals."""
import os
import re
import signal

from vhostrt import __version__
from vhostrt.base import ticks
from vhostrt.event import reactor, thread
from vhostrt.rpc.method import (
    ANY_STATE,
    INTERNAL_ERROR,
    Dispatcher,
    Parameters,
    RpcError,
    State,
    method,
    refuse,
    shown,
)
from vhostrt.subsystem import SubsystemError

# What spdk_kill_instance sends: the signals that mean something to a program that serves disks.
SIGNALS = {name: getattr(signal, name)
           for name in ("SIGINT", "SIGTERM", "SIGQUIT", "SIGHUP", "SIGKILL", "SIGUSR1")}


class GetMethods(Parameters):
    """current: only those that can be called in the present state.  include_aliases: old names."""

    current: bool = False
    include_aliases: bool = False


class KillInstance(Parameters):
    """sig_name: the name of a signal, with or without SIG, or its number."""

    sig_name: str | int


@method("rpc_get_methods", states=ANY_STATE, aliases=("get_rpc_methods",))
async def rpc_get_methods(rpc: Dispatcher, params: GetMethods) -> list[str]:
    """Return the names that a client may call."""
    return [name for name, known in rpc.table.items()
            if rpc.exposes(name)
            and (params.include_aliases or name == known.name)
            and (not params.current or known.states & rpc.state)]


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
    """Return what each reactor has done, in ticks, and the light threads on it."""
    cpus = cpu_times()
    return {"tick_rate": ticks.hz(), "pid": os.getpid(),
            "reactors": [describe_reactor(lcore, cpus) for lcore in reactor.lcores()]}


def describe_reactor(lcore: int, cpus: dict[int, dict]) -> dict:
    stats = reactor.stats(lcore)
    return {
        "lcore": lcore, "numa_id": numa_node(lcore), "tid": stats["tid"],
        "busy": stats["busy"], "idle": stats["idle"], "in_interrupt": stats["in_interrupt"],
        **cpus.get(lcore, {"irq": 0, "sys": 0, "usr": 0}),
        "lw_threads": [describe_thread(t) for t in thread.threads() if t.lcore == lcore],
    }


def describe_thread(light: thread.Thread) -> dict:
    lcores = reactor.lcores() if light.cpumask is None else light.cpumask
    return {"name": light.name, "id": light.id, "cpumask": f"{sum(1 << n for n in lcores):x}",
            "elapsed": light.elapsed}


def cpu_times() -> dict[int, dict[str, int]]:
    """Return what the kernel counted on each CPU, in its clock ticks since boot."""
    times = {}
    with open("/proc/stat", encoding="ascii") as lines:
        for line in lines:
            if found := re.match(r"cpu(\d+) (\d+) \d+ (\d+) \d+ \d+ (\d+)", line):
                cpu, usr, system, irq = map(int, found.groups())
                times[cpu] = {"irq": irq, "sys": system, "usr": usr}
    return times


def numa_node(cpu: int) -> int:
    """Return the memory node of a CPU; 0 where the kernel does not tell."""
    try:
        names = os.listdir(f"/sys/devices/system/cpu/cpu{cpu}")
    except OSError:
        return 0
    return next((int(n[4:]) for n in names if re.fullmatch(r"node\d+", n)), 0)
