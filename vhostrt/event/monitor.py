"""Watches for reactors that lose their CPU: context switches, counted by the kernel.

The control thread reads them, once a second, and only while their lines are printed: a reactor is
not disturbed.

Threads: the control thread.
Source:  framework_monitor_context_switch; the poller of SPDK's reactors.
"""
import re

from vhostrt import log
from vhostrt.event import reactor
from vhostrt.pollers import Poller

PERIOD_US = 1_000_000
COUNTS = re.compile(r"^voluntary_ctxt_switches:\s*(\d+)\nnonvoluntary_ctxt_switches:\s*(\d+)", re.M)


class ContextSwitchMonitor:
    """Runs in the loop that it is made in, until the loop's pollers are ended.

    enabled   whether it looks at all
    """

    def __init__(self) -> None:
        self.enabled = True
        self.seen: dict[int, tuple[int, int]] = {}      # tid -> its counts at the last look
        Poller(self.look, PERIOD_US, "context_switch_monitor")

    def look(self) -> bool:
        """Tell of each reactor that was switched since the last look; return whether one was."""
        if not (self.enabled and log.settings.wants(log.INFO) and log.enabled("reactor")):
            self.seen.clear()           # the next look has a second behind it, and no more
            return False
        told = False
        for lcore in reactor.lcores():
            told |= self.look_at(lcore, reactor.stats(lcore)["tid"])
        return told

    def look_at(self, lcore: int, tid: int) -> bool:
        counts = read_counts(tid)
        before = self.seen.get(tid, counts)
        self.seen[tid] = counts
        if counts == before:
            return False
        log.info("reactor", f"Reactor {lcore}: {counts[0] - before[0]} voluntary context switches "
                 f"and {counts[1] - before[1]} involuntary context switches in the last second.")
        return True


def read_counts(tid: int) -> tuple[int, int]:
    """Return how often a thread gave its CPU up, and how often it was taken away; 0 unknown."""
    try:
        with open(f"/proc/self/task/{tid}/status", encoding="utf-8", errors="replace") as file:
            found = COUNTS.search(file.read())
    except OSError:
        found = None
    return (int(found[1]), int(found[2])) if found else (0, 0)
