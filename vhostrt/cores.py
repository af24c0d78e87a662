"""Which cores to run on, and what they do without work, where the user left it open.

Threads: the control thread, before lcores exist.
"""
import os

from vhostrt.options import RuntimeOptions
from vhostrt.values import read_list

CPUS = "/sys/devices/system/cpu"


def listed(name: str) -> frozenset[int]:
    """Return the CPUs of a list the kernel shows, such as "isolated"; none when it has none."""
    try:
        with open(f"{CPUS}/{name}", encoding="ascii") as file:
            return frozenset(read_list(file.read().strip()))
    except (OSError, ValueError):
        return frozenset()


def choose_lcores(options: RuntimeOptions) -> dict[int, tuple[int, ...]]:
    """Return the lcores and the CPUs of each, ascending.

    Without -m, --lcores or ReactorMask: the first CPU the process may run on.
    Whether this machine has them is looked at when they are started.
    """
    if options.lcore_map is not None:
        return dict(options.lcore_map)
    return {n: (n,) for n in options.cores or (min(os.sched_getaffinity(0)),)}


def choose_idle(options: RuntimeOptions, lcores: dict[int, tuple[int, ...]], asked: bool) -> str:
    """Return the idle policy: as asked; else spin on isolated cores that were asked for, or yield.
    """
    if options.idle is not None:
        return options.idle
    cpus = {n for cpus in lcores.values() for n in cpus}
    return "spin" if asked and cpus <= listed("isolated") else "yield"
