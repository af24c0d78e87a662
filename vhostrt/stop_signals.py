"""SIGINT, SIGTERM and SIGHUP, from the first line of the program to its last.

The handlers stay for the whole life of the process, so that no moment is left in which a signal
would end it with its pid file and its sockets still there. What they do is note the first signal
and wake the loop; the stopping is done there, in order.

Threads: installed on the main thread, where Python runs handlers; lcores have them blocked.
"""
import signal
from collections.abc import Callable
from types import FrameType
from typing import Any, Protocol

STOPPING = (signal.SIGINT, signal.SIGTERM)
HANGUP = signal.SIGHUP                  # stops too, as a closed terminal does; not under nohup


class Loop(Protocol):
    """What is needed of an asyncio loop."""

    def call_soon_threadsafe(self, callback: Callable[[int], None], number: int, /) -> object: ...


class StopSignals:
    """The stopping signals of this process; a signal before attach() is delivered by attach()."""

    def __init__(self) -> None:
        self.early: int | None = None
        self.before: dict[int, Any] = {}        # signal -> the handler that it had
        self.loop: Loop | None = None
        self.callback: Callable[[int], None] | None = None

    def install(self) -> None:
        """Take the signals over, and unblock them, whatever the parent process did to them."""
        for number in STOPPING:
            self.before[number] = signal.signal(number, self.handle)
        if signal.getsignal(HANGUP) is not signal.SIG_IGN:
            self.before[HANGUP] = signal.signal(HANGUP, self.handle)
        self.before[signal.SIGPIPE] = signal.signal(signal.SIGPIPE, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)

    def handle(self, number: int, frame: FrameType | None) -> None:
        if self.loop is not None and self.callback is not None:
            self.loop.call_soon_threadsafe(self.callback, number)
        elif self.early is None:
            self.early = number

    def attach(self, loop: Loop, callback: Callable[[int], None]) -> None:
        """Call callback(signal number) in the loop for each signal from now on."""
        self.loop, self.callback = loop, callback
        if self.early is not None:
            loop.call_soon_threadsafe(callback, self.early)

    def detach(self) -> None:
        """Let later signals pass without effect; the loop is about to close."""
        self.loop = self.callback = None

    def restore(self) -> None:
        """Give the signals back to who had them, where the process goes on."""
        while self.before:
            number, handler = self.before.popitem()
            # None: it was not Python's, which cannot bring it back.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def ignore(self) -> None:
        """Ignore them from here on, at the very end of the program.

        Handlers would not do: ending, Python makes each signal that has one deadly again.
        """
        for number in (*STOPPING, HANGUP):
            signal.signal(number, signal.SIG_IGN)
