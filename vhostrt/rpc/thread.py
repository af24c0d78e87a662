"""RPC methods of light threads: what they have done, their pollers and their I/O channels."""
from typing import Any

from vhostrt import pollers
from vhostrt.base import ticks
from vhostrt.event import iochannel, reactor, snapshot
from vhostrt.event.thread import Thread, app, threads
from vhostrt.rpc.method import Dispatcher, method


@method("thread_get_stats")
async def thread_get_stats(rpc: Dispatcher) -> dict:
    """Return how busy each light thread is, in ticks, and how many pollers it has."""
    return {"tick_rate": ticks.hz(), "threads": [
        {"name": light.name, "id": light.id, "cpumask": mask_of(light), "busy": light.busy,
         "idle": light.idle, **counts_of(light)} for light in threads()]}


@method("thread_get_pollers")
async def thread_get_pollers(rpc: Dispatcher) -> dict:
    """Return the pollers of each light thread. left_out: how many it has beyond those told of."""
    return {"tick_rate": ticks.hz(), "threads": [
        {"name": light.name, "id": light.id, **await pollers_of(light)}
        for light in threads()]}


@method("thread_get_io_channels")
async def thread_get_io_channels(rpc: Dispatcher) -> dict:
    """Return the I/O channels of each light thread, with the references to each."""
    return {"tick_rate": ticks.hz(), "threads": [
        {"name": light.name, "io_channels": [{"name": name, "ref": ref}
                                             for name, ref in iochannel.channels(light)]}
        for light in threads()]}


async def pollers_of(light: Thread) -> dict[str, Any]:
    """Return lists of a thread's pollers; those of app_thread are Python's."""
    return python_pollers() if light is app() else await snapshot.pollers(light)


def counts_of(light: Thread) -> dict[str, int]:
    """Return how many pollers of each kind a thread has."""
    if light is app():
        return {f"{kind}_count": len(each) for kind, each in python_pollers().items()}
    return snapshot.counts(light)


def mask_of(light: Thread) -> str:
    """Return the cores that a light thread may run on, in hexadecimal digits."""
    cores = set(reactor.lcores())
    if light.cpumask is not None:
        cores &= light.cpumask
    return f"{sum(1 << core for core in cores):x}"


def python_pollers() -> dict[str, list[dict[str, Any]]]:
    """Return the pollers that run on the control thread, as those of a light thread are told."""
    lists: dict[str, list[dict[str, Any]]] = {
        "active_pollers": [], "timed_pollers": [], "paused_pollers": []}
    for poller in pollers.registered.values():
        kind = "paused" if poller.paused else "timed" if poller.period_us else "active"
        lists[f"{kind}_pollers"].append(describe(poller))
    return lists


def describe(poller: pollers.Poller) -> dict[str, Any]:
    about = {"name": poller.name, "id": poller.id, "state": poller.state,
             "run_count": poller.runs, "busy_count": poller.busy}
    if poller.period_us:
        about["period_ticks"] = poller.period_ticks
    return about
