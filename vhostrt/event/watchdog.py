"""Keeps a client from holding a reactor in a system call.

A reactor writes to eventfds that clients gave. The write cannot block, unless a hostile client
fills the counter and then clears O_NONBLOCK. So the control thread looks ten times a second
whether every reactor has moved, and interrupts one that has not; the queue that
it was held by is then broken.

Threads: the control thread.
"""
import asyncio

from vhostrt.event import reactor

PERIOD_S = 0.1


class Watchdog:
    """Runs from start() to stop(), in the running loop."""

    def __init__(self) -> None:
        self.seen: dict[int, int] = {}          # lcore -> iterations at the last look
        self.handle: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Begin to look."""
        self.look()

    def stop(self) -> None:
        """Look no more."""
        if self.handle is not None:
            self.handle.cancel()
            self.handle = None

    def look(self) -> None:
        """Interrupt every reactor that stands where it stood at the last look."""
        for lcore in reactor.lcores():
            iterations = reactor.iterations(lcore)
            if self.seen.get(lcore) == iterations:
                reactor.interrupt(lcore)
            self.seen[lcore] = iterations
        self.handle = asyncio.get_running_loop().call_later(PERIOD_S, self.look)
