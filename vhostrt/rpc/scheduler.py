"""RPC methods of schedulers: which one is at work, and where a light thread may run."""
import errno

from vhostrt.event import thread
from vhostrt.event.scheduler import scheduling, set_cpumask
from vhostrt.rpc.method import (
    ANY_STATE,
    Count,
    Dispatcher,
    Name,
    Parameters,
    RpcError,
    State,
    method,
    refusing,
)
from vhostrt.values import read_cpus


class SetScheduler(Parameters):
    """name: of the scheduler.  period: microseconds between two times that it looks; 0 for 1 s.

    load_limit: percent; a thread below it is idle.  core_limit: percent; a core takes threads up to
    it.  core_busy: percent; threads leave a core above it; these three are for `dynamic`.
    mappings: "thread:core,...", for `static`.
    """

    name: Name
    period: Count = 0
    load_limit: Count | None = None
    core_limit: Count | None = None
    core_busy: Count | None = None
    mappings: str | None = None


class SetOptions(Parameters):
    """isolated_core_mask: cores that schedulers leave alone, as for -m; "0" for none.

    scheduling_core: where idle threads go.
    """

    isolated_core_mask: str | None = None
    scheduling_core: Count | None = None


class SetCpumask(Parameters):
    """id: of the thread.  cpumask: cores it may run on, as for -m."""

    id: Count
    cpumask: str


@method("framework_set_scheduler", states=ANY_STATE)
async def framework_set_scheduler(rpc: Dispatcher, params: SetScheduler) -> bool:
    """Use another scheduler, or the same with other options."""
    given = {"load_limit": params.load_limit, "core_limit": params.core_limit,
             "core_busy": params.core_busy, "mappings": params.mappings}
    with refusing():
        scheduling.set(params.name, params.period,
                       {name: value for name, value in given.items() if value is not None})
    return True


@method("framework_get_scheduler")
async def framework_get_scheduler(rpc: Dispatcher) -> dict:
    """Return which scheduler is at work, and its settings."""
    return scheduling.describe()


@method("scheduler_set_options", states=State.STARTUP)
async def scheduler_set_options(rpc: Dispatcher, params: SetOptions) -> bool:
    """Have schedulers leave cores alone, and choose the one for idle threads."""
    mask = params.isolated_core_mask
    with refusing():
        isolated = None if mask is None else read_cpus(mask) if mask.strip("0x") else ()
        scheduling.set_options(isolated, params.scheduling_core)
    return True


@method("framework_get_governor")
async def framework_get_governor(rpc: Dispatcher) -> dict:
    """Return the frequency governor in use: there is none, frequencies are left to the kernel."""
    return {}


@method("thread_set_cpumask")
async def thread_set_cpumask(rpc: Dispatcher, params: SetCpumask) -> bool:
    """Say where a thread may run; it moves when the present core is not among that."""
    with refusing():
        lcores = read_cpus(params.cpumask)
    try:
        light = thread.get(params.id)
    except KeyError:
        raise RpcError(-errno.ENOENT, f"there is no thread with the id {params.id}") from None
    with refusing():
        await set_cpumask(light, lcores)
    return True
