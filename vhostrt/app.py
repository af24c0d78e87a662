"""Applications on reactors: their start, their stop, and what Python asks of a reactor.

    from vhostrt import app

    def begin(running):
        print("reactors on the cores", *running.lcores)
        app.stop()

    status = app.start(app.AppOpts(name="hello", cores="[0-1]"), begin)
    app.fini()

start() makes an environment, a reactor on each core, the RPC server where one is asked for and the
subsystems, calls the start callback when everything runs, and returns when somebody has called
stop(), with everything stopped again. What is in the environment's memory stays until fini(); then
an application can be started again. docs/application.md has one in C and Python.

Owner:   the process; there is one application at a time, from start() to fini().
Threads: start() makes its thread the control thread; all else belongs to that one, in its asyncio
         loop, except stop() and call_soon(), which any thread may call.
Fails:   ValueError, TypeError, OSError or RuntimeError with one sentence.
"""
import asyncio
import os
import sys
import threading
from collections.abc import Callable
from inspect import iscoroutinefunction
from typing import Any

from vhostrt import log
from vhostrt.app_opts import AppOpts
from vhostrt.life import App, check_status, running_loop
from vhostrt.pollers import Poller
from vhostrt.stop_signals import StopSignals
from vhostrt.subsystem import Subsystem

__all__ = ["App", "AppOpts", "Poller", "Subsystem", "call", "call_soon", "current", "fini",
           "register_poller", "register_timer", "run", "send", "start", "stop"]


class Process:
    """What there is once: the application of this process and its loop."""

    def __init__(self) -> None:
        self.app: App | None = None
        self.loop: asyncio.AbstractEventLoop | None = None      # while it runs
        self.pid = 0


process = Process()


def start(opts: AppOpts | None = None, start_fn: Any = None, arg: Any = None) -> int:
    """Run an application until stop(); return its exit status, 0 to 255. fini() follows.

    start_fn: called with the running App when everything runs; may be a coroutine function. A C
    function (as for call()) runs with arg on the main core's reactor; a result other than 0 is the
    status to stop with.
    Fails: what start_fn raises, when everything has been stopped. RuntimeError when there is an
    application, or a running loop: await run() there.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(run(opts, start_fn, arg))
    raise RuntimeError("a loop runs on this thread: await vhostrt.app.run() instead of start()")


async def run(opts: AppOpts | None = None, start_fn: Any = None, arg: Any = None) -> int:
    """As start(), in the running loop of the calling thread."""
    from vhostrt.steps import all_steps
    from vhostrt.subsystems import SchedulerSubsystem
    opts = AppOpts() if opts is None else opts
    if not isinstance(opts, AppOpts):
        raise TypeError(f"an application is started with AppOpts, not with {opts!r}")
    if process.app is not None and process.pid != os.getpid():
        raise RuntimeError("this process was forked from one with an application, and cannot have "
                           "one: start a program of its own instead")
    if (before := current()) is not None:
        raise RuntimeError(f"the application {before.options.name} has not ended: "
                           "vhostrt.app.fini() comes first")
    app = App(opts, all_steps(), starter(start_fn, arg), opts.shutdown_cb,
              [SchedulerSubsystem(), *opts.subsystems])
    signals = handled_signals(opts)
    log.set_up(opts.print_level, opts.log_flags)
    log.set_form(opts.log_format)
    log.open_system(opts.name)
    process.app, process.loop, process.pid = app, asyncio.get_running_loop(), os.getpid()
    try:
        signals.attach(process.loop, app.stop_on_signal)
        return await app.live() & 0xff
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        process.loop = None
        log.close_system()
        signals.detach()
        signals.restore()


def handled_signals(opts: AppOpts) -> StopSignals:
    """Take the stopping signals over, where that is asked for."""
    signals = StopSignals()
    if opts.signal_handlers:
        if threading.current_thread() is not threading.main_thread():
            raise RuntimeError("signals are handled by the main thread alone: start the "
                               "application there, or with signal_handlers=False")
        signals.install()
    return signals


def starter(start_fn: Any, arg: Any) -> Callable[[App], Any]:
    """Return the start callback of an App that answers clients from then on."""
    from vhostrt.steps import open_to_clients

    in_python = callable(start_fn) and not is_c(start_fn)
    if not in_python:
        from vhostrt.event import call as calls
        calls.check(start_fn)

    def started(running: App) -> Any:
        open_to_clients(running)
        if in_python:
            return start_fn(running)
        return None if start_fn is None else start_c(running, start_fn, arg)
    return started


def is_c(function: Any) -> bool:
    """Return whether a callable is a ctypes function."""
    ctypes = sys.modules.get("ctypes")
    return ctypes is not None and isinstance(function, ctypes._CFuncPtr)


async def start_c(running: App, start_fn: Any, arg: Any) -> None:
    from vhostrt.env import lcore
    if rc := await call(lcore.main(), start_fn, arg):       # type: ignore[arg-type]
        running.stop(rc)


def stop(rc: int = 0) -> None:
    """Ask for the end of the application, with this status; the first but 0 counts. Any thread.

    Nothing happens when none runs. C code has vhostrt.event.app.app_stop.
    Fails: TypeError for a status that is no int.
    """
    check_status(rc)
    app, loop = process.app, process.loop
    if app is None or loop is None:
        return
    try:
        loop.call_soon_threadsafe(app.stop, rc)
    except RuntimeError:
        pass                            # the loop has just been closed


def fini() -> None:
    """Give back what start() has left, memory and lcores; nothing when that is done.

    Fails: OSError that names what is in use; RuntimeError while the application runs.
    """
    app = current()
    if app is None:
        return
    if process.loop is not None:
        raise RuntimeError(f"the application {app.options.name} runs: vhostrt.app.stop() first")
    app.fini()
    process.app = None


def current() -> App | None:
    """Return the application there is, from start() to fini(); None in a forked child."""
    return process.app if process.pid == os.getpid() else None


# What Python asks of a reactor

def call(core: int, fn: Any = None, arg: Any = None) -> "asyncio.Future[int | None]":
    """Run a C function on the reactor of a core; await the result.

    fn   int (*)(void *) or with void or another integer for a result: the capsule in which Cython
         exports it, a ctypes function, or an address (int: the function returns int). It must not
         use Python. None: nothing, to wait until what was sent to that reactor before has run.
    arg  None, a number or address, a capsule, a ctypes pointer, or an object that has memory
         (bytearray, ctypes structure, array) which is kept until the result is there.
    Fails: TypeError for a Python function, ValueError for a core without a reactor.
    """
    from vhostrt.event import call as calls
    require_loop("call")
    return calls.on_reactor(core, fn, arg)


def send(thread: Any, fn: Any = None, arg: Any = None) -> "asyncio.Future[int | None]":
    """Run a C function on a light thread (vhostrt.event.thread.Thread), on whatever reactor it is
    then, in the order of sending; await the result. The rest as call()."""
    from vhostrt.event import call as calls
    require_loop("send")
    return calls.on_thread(thread, fn, arg)


# What Python does itself, on the control thread

def call_soon(function: Callable[..., Any], *arguments: Any) -> None:
    """Have a Python function called on the control thread, soon; from any thread.

    A coroutine function is run as a task. Fails: RuntimeError when no application runs; TypeError
    for what cannot be called.
    """
    if not callable(function):
        raise TypeError(f"{function!r} is no function that could be called")
    loop = process.loop
    if loop is None or current() is None:
        raise RuntimeError(f"no application runs that could call {function!r}")
    if iscoroutinefunction(function):
        loop.call_soon_threadsafe(lambda: keep(loop.create_task(function(*arguments))))
    else:
        loop.call_soon_threadsafe(function, *arguments)


tasks: set[asyncio.Task[Any]] = set()   # of call_soon: a loop alone does not keep its tasks


def keep(task: asyncio.Task[Any]) -> None:
    tasks.add(task)
    task.add_done_callback(tasks.discard)


def register_poller(function: Callable[[], Any], period_us: int = 0, name: str = "") -> Poller:
    """Have a Python function called every period_us microseconds on the control thread.

    0: whenever its loop turns, or every millisecond while it returns 0. See Poller.
    """
    require_loop("register_poller")
    return Poller(function, period_us, name)


def register_timer(function: Callable[[], Any], delay_us: int, name: str = "") -> Poller:
    """Have a Python function called once, delay_us microseconds from now."""
    require_loop("register_timer")
    return Poller(function, delay_us, name, once=True)


def require_loop(what: str) -> None:
    """Refuse what belongs to the control thread, elsewhere or when no application runs."""
    if process.loop is None or running_loop() is not process.loop:
        raise RuntimeError(f"vhostrt.app.{what}() belongs to the control thread of a running "
                           "application; from another thread, hand it a function with call_soon()")
