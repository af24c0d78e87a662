"""What the kernel says of the CPUs that reactors run on: time, speed and place.

Threads: the control thread.
Fails:   never; what the kernel does not tell is left out, or 0.
"""
import re

from vhostrt.env.roots import SYSTEM, Roots

LINE = re.compile(r"cpu(\d+) (\d+) \d+ (\d+) \d+ \d+ (\d+) (\d+)")
Times = dict[int, tuple[int, int, int]]         # CPU -> its irq, sys, usr, in ticks of the kernel


def read_times(roots: Roots = SYSTEM) -> Times:
    """Return how long each CPU has served interrupts, the kernel and programs, since boot."""
    times = {}
    try:
        with open(roots.in_proc("stat"), encoding="ascii", errors="replace") as lines:
            for line in lines:
                if found := LINE.match(line):
                    cpu, usr, system, irq, soft_irq = map(int, found.groups())
                    times[cpu] = (irq + soft_irq, system, usr)
    except OSError:
        pass
    return times


def times_since(before: Times, cpus: tuple[int, ...], now: Times) -> dict[str, int]:
    """Return irq, sys and usr of these CPUs together, since `before`."""
    spent = [0, 0, 0]
    for cpu in cpus:
        for i, (later, earlier) in enumerate(zip(now.get(cpu, (0, 0, 0)),
                                                 before.get(cpu, (0, 0, 0)), strict=True)):
            spent[i] += max(later - earlier, 0)
    return dict(zip(("irq", "sys", "usr"), spent, strict=True))


def frequency(cpu: int, roots: Roots = SYSTEM) -> int | None:
    """Return a CPU's present frequency in MHz; None where the kernel does not tell."""
    try:
        with open(roots.in_sys(f"devices/system/cpu/cpu{cpu}/cpufreq/scaling_cur_freq"),
                  encoding="ascii") as file:
            return int(file.read()) // 1000
    except (OSError, ValueError):
        return None
