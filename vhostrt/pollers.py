"""Pollers and timers in Python: functions that the control thread's loop calls again and again.

They are for what an application does beside its data path: look at counters, print, reconnect.
thread_get_pollers lists them as those of app_thread.

Owner:   a Poller belongs to who registered it, and to the loop until it is unregistered; those that
         are left when the application ends are unregistered then.
Threads: the control thread.
"""
import asyncio
import itertools
from collections.abc import Awaitable, Callable, Generator
from inspect import isawaitable
from typing import Any

from vhostrt.base import ticks

IDLE_S = 0.001                          # between two looks of a poller without period and work

ids = itertools.count(1)
registered: "dict[int, Poller]" = {}


class Steps:
    """An awaitable, and how long its steps have kept the loop so far.  ticks: int."""

    def __init__(self, awaitable: Awaitable[Any]) -> None:
        self.awaitable = awaitable
        self.ticks = 0

    def __await__(self) -> Generator[Any, Any, Any]:
        steps: Any = self.awaitable.__await__()
        step, value = steps.send, None
        while True:
            began = ticks.now()
            try:
                wanted = step(value)
            except StopIteration as end:
                return end.value
            finally:
                self.ticks += ticks.now() - began
            try:
                step, value = steps.send, (yield wanted)
            except BaseException as error:      # noqa: BLE001 - a cancellation, for one
                step, value = steps.throw, error


class Poller:
    """A function that is called every period_us microseconds, or, with 0, whenever the loop turns
    as long as it finds work, else every millisecond.

    What it returns, or what its coroutine does, is > 0, or True, when it did work. The next call is
    one period after the beginning of this one, and never before this one has ended. When it raises,
    the loop's exception handler is told, and the poller is unregistered.

    name        for people
    runs, busy  how often it was called, and how often it did work
    state       "waiting", "running", "paused", or "off" when it is unregistered
    """

    def __init__(self, function: Callable[[], Any], period_us: int, name: str,
                 once: bool = False) -> None:
        """Fails: TypeError, ValueError for what cannot be."""
        if not callable(function):
            raise TypeError(f"{function!r} is no function that could be called")
        if not isinstance(name, str):
            raise TypeError(f"the name {name!r} of a poller must be a str")
        self.loop = asyncio.get_running_loop()
        self.function = function
        self.period_us = checked(period_us)
        self.name = name or getattr(function, "__name__", type(function).__name__)
        self.once = once
        self.id = next(ids)
        self.runs = self.busy = 0
        self.state = "waiting"
        self.paused = False             # asked for; the state follows when it does not run
        self.handle: asyncio.Handle | None = None
        self.task: asyncio.Future[Any] | None = None
        registered[self.id] = self
        self.wait(self.loop.time())

    @property
    def period_ticks(self) -> int:
        return self.period_us * ticks.hz() // 1_000_000

    def unregister(self) -> None:
        """Never call it again; also from inside it. Again is nothing."""
        registered.pop(self.id, None)
        self.cancel()
        if self.state != "running":
            self.state = "off"

    def pause(self) -> None:
        """Do not call it until resume(); also from inside it."""
        self.paused = True
        if self.state == "waiting":
            self.cancel()
            self.state = "paused"

    def resume(self) -> None:
        """End a pause: the next call is one period from now."""
        self.paused = False
        if self.state == "paused":
            self.wait(self.loop.time())

    def set_period(self, period_us: int) -> None:
        """Change the period, microseconds: the next call is one of the new ones from now."""
        self.period_us = checked(period_us)
        if self.state == "waiting":
            self.cancel()
            self.wait(self.loop.time())

    # The loop

    def cancel(self) -> None:
        if self.handle is not None:
            self.handle.cancel()
            self.handle = None

    def wait(self, since: float, busy: bool = True) -> None:
        """Have it called one period after `since`, a time of the loop."""
        self.state = "waiting"
        period = self.period_us / 1_000_000 or (0 if busy else IDLE_S)
        if period:
            self.handle = self.loop.call_at(since + period, self.run)
        else:
            self.handle = self.loop.call_soon(self.run)

    def run(self) -> None:
        """Call it once."""
        began, began_ticks = self.loop.time(), ticks.now()
        self.handle = None
        self.state = "running"
        if self.once:
            registered.pop(self.id, None)
        try:
            result = self.function()
        except Exception as error:      # noqa: BLE001 - whatever it is, the loop goes on
            self.fail(error)
            return
        spent = ticks.now() - began_ticks
        if isawaitable(result):
            steps = Steps(result)
            self.task = asyncio.ensure_future(steps, loop=self.loop)
            self.task.add_done_callback(
                lambda task: self.end_later(task, began, spent + steps.ticks))
        else:
            self.end(result, began, spent)

    def end_later(self, task: "asyncio.Future[Any]", began: float, spent: int) -> None:
        self.task = None
        error = asyncio.CancelledError() if task.cancelled() else task.exception()
        if error is None:
            self.end(task.result(), began, spent)
        elif isinstance(error, Exception):
            self.fail(error)
        else:
            registered.pop(self.id, None)
            self.state = "off"

    def end(self, result: Any, began: float, spent: int) -> None:
        """After a call: wait for the next one, unless it was paused or unregistered meanwhile.

        spent: ticks that it has kept the loop.
        """
        busy = result is True or isinstance(result, int | float) and result > 0
        self.runs += 1
        self.busy += busy
        if busy:
            from vhostrt.event import control
            control.account(spent)
        if self.id not in registered:
            self.state = "off"
        elif self.paused:
            self.state = "paused"
        else:
            self.wait(began, busy)

    def fail(self, error: Exception) -> None:
        self.runs += 1
        registered.pop(self.id, None)
        self.state = "off"
        self.loop.call_exception_handler({
            "message": f"poller {self.name} failed and is unregistered", "exception": error})


def checked(period_us: Any) -> int:
    """Return a period in whole microseconds. Fails: ValueError."""
    if isinstance(period_us, bool) or not isinstance(period_us, int) \
            or not 0 <= period_us <= 2**53:
        raise ValueError(f"a period of {period_us!r} must be a whole number of microseconds")
    return period_us


async def end_all() -> None:
    """Unregister all, and wait for those that run; at the end of the application."""
    tasks = []
    for poller in list(registered.values()):
        poller.unregister()
        if poller.task is not None:
            poller.task.cancel()
            tasks.append(poller.task)
    await asyncio.gather(*tasks, return_exceptions=True)
