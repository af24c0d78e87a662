"""The life of an application: environment, reactors, RPC, subsystems, run, and all of it back.

Each part is a step with a start and a stop. Whatever ends the run, a signal, an RPC or an error
half-way through the start, the steps that were begun are stopped in reverse. What the application
may still look at after its run, its memory, goes with fini().

The program vhostrt is an application with some more steps; vhostrt.app is for those of others.

Owner:   the App owns its steps and the subsystems; it lives on the control thread.
Threads: the control thread, in its asyncio loop.
Fails:   live() returns the exit status and has logged why it is not 0.
"""
import asyncio
import contextlib
import signal
from collections.abc import Callable, Iterable, Sequence
from inspect import isawaitable
from typing import Any

from vhostrt import log
from vhostrt.config import ConfigError
from vhostrt.config.json_config import Call
from vhostrt.options import Options, RuntimeOptions
from vhostrt.process import StartError
from vhostrt.stop_signals import StopSignals
from vhostrt.subsystem import Registry, Subsystem, SubsystemError
from vhostrt.values import shown

START_FAILED = 1
SUBSYSTEM_FAILED = -1                   # exit status 255, as the original's


class Step:
    """One part of the start, and its way back."""

    name = ""

    async def start(self, app: "App") -> None:
        """Start; raise StartError, ConfigError, SubsystemError or OSError when it cannot be."""

    async def stop(self, app: "App") -> None:
        """Undo start(), also one that failed or was cancelled half-way."""

    def fini(self, app: "App") -> None:
        """Undo what stop() has left, as it may be looked at until then."""


class App:
    """One run of an application.

    options      what was asked for; the configuration file's [Global] is merged into it
    subsystems   the Registry that framework_get_subsystems and save_config look at
    calls        of the configuration file, or of the state file
    calls_from   its path
    state        vhostrt.config.state.State, with --state; None otherwise
    rpc          the Dispatcher of the RPC methods; None before its step
    server       the RPC server; None before its step, and with --no-rpc-server
    environment  what the environment is asked to be; None before the configuration is read
    lcores       lcore -> its CPUs, ascending, of those with a reactor; empty until then
    core_locks   the claims on the cores; None before their step
    tracing      which trace points are on; None before its step
    idle         what reactors do without work: spin, yield, sleep or interrupt
    cpu_times    what the kernel had counted on each CPU when the reactors started
    monitor      of context switches; None before the reactors' step
    manager      the service manager that has to be told how it goes; None without one
    init_asked   set by framework_start_init; looked at only with --wait-for-rpc
    init_over    set when the subsystems run, or never will: init_error says which
    rc           status to end with: the first but 0 that stop() was given
    """

    def __init__(self, options: RuntimeOptions, steps: Sequence[Step],
                 started: Callable[["App"], Any] | None = None,
                 shutdown: Callable[["App"], Any] | None = None,
                 subsystems: Iterable[Subsystem] = ()) -> None:
        """started(app) is called once everything runs, the RPC server included, and awaited where
        it has to be. shutdown(app): called instead of stop() on the first signal, to call that.
        Fails: SubsystemError for two subsystems of one name.
        """
        self.options: Any = options
        self.steps = steps
        self.started = started
        self.shutdown = shutdown
        self.subsystems = Registry(subsystems)
        self.calls: list[Call] = []
        self.calls_from = ""
        self.state: Any = None
        self.rpc: Any = None
        self.server: Any = None
        self.environment: Any = None
        self.lcores: dict[int, tuple[int, ...]] = {}
        self.core_locks: Any = None
        self.tracing: Any = None
        self.idle = ""
        self.cpu_times: dict[int, tuple[int, int, int]] = {}
        self.monitor: Any = None
        self.manager: Any = None
        self.init_asked = asyncio.Event()
        self.init_over = asyncio.Event()
        self.init_error = ""
        self.rc = 0
        self.begun: list[Step] = []
        self.stopped: list[Step] = []           # that have yet to be finalised
        self.stop_asked = asyncio.Event()
        self.signalled = False
        self.up = False                         # everything runs, and the start callback was called
        self.shutting_down: asyncio.Future[None] | None = None
        self.loop: asyncio.AbstractEventLoop | None = None      # of live()

    async def start_init(self) -> None:
        """Let the subsystems start, and return when they run. Fails: SubsystemError."""
        self.init_asked.set()
        await self.init_over.wait()
        if self.init_error:
            raise SubsystemError(self.init_error)

    def stop(self, rc: int = 0) -> None:
        """Ask for the end of the run, with this exit status. The first status but 0 counts.

        Any thread, while live() runs. Fails: TypeError for a status that is no int.
        """
        check_status(rc)
        if self.loop is not None and running_loop() is not self.loop:
            with contextlib.suppress(RuntimeError):     # it has just been closed
                self.loop.call_soon_threadsafe(self.stop, rc)
            return
        if rc:
            log.warning("spdk_app_stop'd on non-zero")
        self.rc = self.rc or rc
        if self.stop_asked.is_set():
            log.notice("spdk_app_stop called twice")
        self.stop_asked.set()

    def stop_on_signal(self, number: int) -> None:
        """Stop in order on the first signal; say about any other that this is happening."""
        name = signal.Signals(number).name
        if self.signalled or self.stop_asked.is_set():
            log.notice(f"{name} is ignored, the program is stopping already")
            return
        self.signalled = True
        log.notice(f"{name}: stopping")
        if self.shutdown is not None and self.up:
            self.shutting_down = asyncio.ensure_future(self.shut_down(self.shutdown))
        else:
            self.stop()

    async def shut_down(self, shutdown: Callable[["App"], Any]) -> None:
        """Have the application stop itself; one that cannot is stopped."""
        try:
            await settled(shutdown(self))
        except Exception as error:
            log.error(f"the shutdown callback failed: {text_of(error)}")
            self.stop(START_FAILED)

    async def start(self) -> None:
        """Start the steps, in order."""
        for step in self.steps:
            self.begun.append(step)
            log.debug("app", f"step {step.name} starts")
            await step.start(self)
        self.up = True
        if self.started is not None:
            await settled(self.started(self))

    async def finish(self) -> None:
        """Stop the steps that were begun, last first; an error does not keep the rest.

        Nor does what ends the program, an interrupt or SystemExit: the step is stopped again, then
        the rest, and it is raised in the end.
        """
        raised: BaseException | None = None
        interrupted: Step | None = None
        if self.manager is not None:
            self.manager.stopping()
        while self.begun:
            step = self.begun[-1]
            log.debug("app", f"step {step.name} stops")
            try:
                await step.stop(self)
            except Exception as error:
                log.error(f"{step.name} did not stop in order: {str(error) or repr(error)}")
                self.rc = self.rc or START_FAILED
            except BaseException as error:      # noqa: BLE001 - it is raised below
                raised = raised or error
                if step is not interrupted:
                    interrupted = step
                    continue
            self.stopped.append(self.begun.pop())
        if raised is not None:
            raise raised

    async def start_unless_stopped(self) -> None:
        """Start, and give up where it stands when the program is asked to stop."""
        starting = asyncio.create_task(self.start())
        stopping = asyncio.create_task(self.stop_asked.wait())
        try:
            await asyncio.wait((starting, stopping), return_when=asyncio.FIRST_COMPLETED)
        finally:
            stopping.cancel()
            if not starting.done():
                starting.cancel()
                await asyncio.wait((starting,))
            if not starting.cancelled():
                starting.exception()    # also where the next line is not come to: it is known
        try:
            await starting
        except asyncio.CancelledError:
            if not self.stop_asked.is_set():
                raise                   # of the start itself
            log.notice("stopped before the start was complete")

    async def live(self) -> int:
        """Start, run until stop(), stop; return the status. fini() follows."""
        self.loop = asyncio.get_running_loop()
        try:
            await self.start_unless_stopped()
            await self.stop_asked.wait()
        except (ConfigError, SubsystemError, StartError, OSError, MemoryError) as error:
            if self.up:
                raise                   # what the start callback raises is for who has given it
            self.tell(error)
        finally:
            self.stop_asked.set()       # a signal from here on is told that this is the end
            await self.finish()
        return self.rc

    def tell(self, error: Exception) -> None:
        """Log why the start has failed, and have that in the status."""
        for line in error.lines if isinstance(error, ConfigError) else [text_of(error)]:
            log.error(line)
        failed = isinstance(error, SubsystemError)
        self.rc = self.rc or (SUBSYSTEM_FAILED if failed else START_FAILED)

    def fini(self) -> None:
        """Give back what live() has left. Fails: OSError for what is in use yet; the rest follows
        when fini() is called again."""
        while self.stopped:
            self.stopped[0].fini(self)
            del self.stopped[0]


def running_loop() -> asyncio.AbstractEventLoop | None:
    """Return the loop that runs on the calling thread, if any."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def check_status(rc: Any) -> None:
    """Refuse what cannot be an exit status. Fails: TypeError."""
    if not isinstance(rc, int):
        raise TypeError(f"the exit status {shown(repr(rc))} must be a whole number")


async def settled(value: Any) -> Any:
    """Return a value, or what it is when it has been awaited."""
    return await value if isawaitable(value) else value


def text_of(error: BaseException) -> str:
    """Return the sentence of an error, without an errno in front of it."""
    if isinstance(error, OSError) and error.strerror:
        named = f": {error.filename!a}" if error.filename is not None else ""
        return error.strerror + named
    return str(error) or type(error).__name__


async def live(options: Options, steps: Sequence[Step], signals: StopSignals,
               started: Callable[[App], None] | None = None,
               subsystems: Iterable[Subsystem] = ()) -> int:
    """Make an App in the running loop, give it the signals, and let it live and end."""
    app = App(options, steps, started, subsystems=subsystems)
    signals.attach(asyncio.get_running_loop(), app.stop_on_signal)
    try:
        await app.live()
    finally:
        try:
            app.fini()
        except OSError as error:
            log.error(f"the environment did not end in order: {text_of(error)}")
            app.rc = app.rc or START_FAILED
        signals.detach()
    return app.rc


def run(options: Options, signals: StopSignals) -> int:
    """Run the program to its end; return the exit status, 0 to 255 or negative."""
    from vhostrt.steps import open_to_clients, program_steps
    from vhostrt.subsystems import all_subsystems
    return asyncio.run(live(options, program_steps(), signals, open_to_clients,
                            all_subsystems(options)))
