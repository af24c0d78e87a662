"""Applications in this process: their options, and a coroutine to run in one."""
import os

from vhostrt import app

CPUS = sorted(os.sched_getaffinity(0))


def opts(count: int = 1, **fields) -> app.AppOpts:
    """Ask for reactors on lcores 0 to count - 1, on the CPUs there are."""
    lcores = {n: CPUS[n % len(CPUS)] for n in range(count)}
    return app.AppOpts(lcore_map=lcores, core_locks=False, **fields)


def in_app(function, count: int = 1, **fields):
    """Run a coroutine function, of the App, in an application; return its result."""
    found = []

    async def begin(running):
        found.append(await function(running))
        app.stop()
    try:
        assert app.start(opts(count, **fields), begin) == 0
    finally:
        app.fini()
    return found[0]
