"""Reactors for a test, in this process, in the order that the program starts them."""
import asyncio
import contextlib
import os

CPUS = sorted(os.sched_getaffinity(0))


@contextlib.asynccontextmanager
async def reactors(count: int = 1, idle: str = "yield"):
    """Run `count` reactors on lcores 0, 1, ... while the block runs; the lcores (list of int).

    They share CPUs where there are fewer; the thread's own affinity is put back afterwards.
    """
    from vhostrt.env import lcore, memory
    from vhostrt.event import control, reactor
    affinity = os.sched_getaffinity(0)
    lcores = list(range(count))
    lcore.init({n: (CPUS[n % len(CPUS)],) for n in lcores})
    try:
        memory.init()
        reactor.init(lcores, idle)
        control.start()
        reactor.start()
        try:
            yield lcores
        finally:
            await asyncio.to_thread(reactor.stop)
            control.stop()
            assert reactor.fini() == 0
    finally:
        lcore.fini()
        memory.fini()
        os.sched_setaffinity(0, affinity)
