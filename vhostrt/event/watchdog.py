"""Keeps a client from holding a reactor in a system call.

A reactor writes to eventfds that clients gave. The write cannot block, unless a hostile client
fills the counter and then clears O_NONBLOCK. So the control thread looks ten times a second
whether every reactor has moved, and interrupts one that has not; the queue that
it was held by is then broken.

Threads: the control thread.
"""
from vhostrt.event import reactor
from vhostrt.pollers import Poller

PERIOD_US = 100_000


class Watchdog:
    """Runs from start() to stop(), in the running loop."""

    def __init__(self) -> None:
        self.seen: dict[int, int] = {}          # lcore -> iterations at the last look
        self.poller: Poller | None = None

    def start(self) -> None:
        """Begin to look."""
        self.poller = Poller(self.look, PERIOD_US, "reactor_watchdog")

    def stop(self) -> None:
        """Look no more."""
        if self.poller is not None:
            self.poller.unregister()

    def look(self) -> bool:
        """Interrupt every reactor that stands where it stood at the last look."""
        stood = False
        for lcore in reactor.lcores():
            iterations = reactor.iterations(lcore)
            if self.seen.get(lcore) == iterations:
                reactor.interrupt(lcore)
                stood = True
            self.seen[lcore] = iterations
        return stood
