"""The processors of the machine, as sysfs shows them or a recorded tree of it.

Threads: any.
"""
import os
import re
from typing import NamedTuple

from vhostrt.env.roots import SYSTEM, Roots

CPU_MAX = 1024              # CPUs from this number on are not seen; lcore.pxd has the same limit


class Cpu(NamedTuple):
    """A processor that is online: its number, its core's id within the socket, its NUMA node."""

    id: int
    core: int
    node: int


def ids_in(directory: str, pattern: str) -> list[int]:
    """Return the sorted numbers of a directory's entries that match a pattern with one group."""
    try:
        found = (re.fullmatch(pattern, name) for name in os.listdir(directory))
    except OSError:
        return []
    return sorted(int(match[1]) for match in found if match)


def core_of(path: str) -> int | None:
    """Return the core id in a CPU's directory: None when it is absent, 0 when it is unreadable."""
    try:
        with open(f"{path}/topology/core_id") as file:
            return int(file.read())
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        return 0


def nodes_of(roots: Roots = SYSTEM) -> dict[int, int]:
    """Return CPU -> NUMA node, the lowest that lists it; offline ones and empty nodes too."""
    top = roots.in_sys("devices", "system", "node")
    found: dict[int, int] = {}
    for node in ids_in(top, r"node(\d+)"):
        for cpu in ids_in(f"{top}/node{node}", r"cpu(\d+)"):
            found.setdefault(cpu, node)
    return found


def detect(*, within_affinity: bool = False, roots: Roots = SYSTEM) -> list[Cpu]:
    """Return the CPUs that are online, in ascending order; one of no node is on node 0.

    within_affinity leaves out those that the calling thread may not use.  Without a tree of CPUs
    the calling thread's own are all there are, each its own core on node 0.
    """
    allowed = os.sched_getaffinity(0)
    top = roots.in_sys("devices", "system", "cpu")
    nodes = nodes_of(roots)
    cpus = []
    for cpu in ids_in(top, r"cpu(\d+)"):
        core = core_of(f"{top}/cpu{cpu}")
        if core is not None and cpu < CPU_MAX:
            cpus.append(Cpu(cpu, core, nodes.get(cpu, 0)))
    if not cpus:
        cpus = [Cpu(cpu, cpu, 0) for cpu in sorted(allowed)]
    return [cpu for cpu in cpus if not within_affinity or cpu.id in allowed]


def cpu_list(cpus) -> str:
    """Return CPU numbers as the kernel writes them: 0-3,8."""
    runs: dict[int, int] = {}                                   # first -> last
    first = last = None
    for cpu in sorted(cpus):
        first = first if last == cpu - 1 else cpu
        runs[first] = last = cpu
    return ",".join(f"{a}" if a == b else f"{a}-{b}" for a, b in runs.items())
