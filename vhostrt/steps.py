"""The steps of the start, in order; the compiled parts are imported here, when they are needed.

Threads: the control thread.
Fails:   StartError, ConfigError, SubsystemError, OSError or MemoryError, each with a sentence.
"""
import asyncio
import os
from collections.abc import Callable
from typing import Any

from vhostrt import log, pollers
from vhostrt.config.json_config import RUNTIME, STARTUP, Replay
from vhostrt.config.load import load
from vhostrt.cores import choose_idle
from vhostrt.disks import BLOCK_SIZE, Disk, qemu_words
from vhostrt.env.options import EnvOptions
from vhostrt.environment import cores_asked, options_of, without_effect
from vhostrt.life import App, Step, text_of
from vhostrt.options import SLEEP_US
from vhostrt.process import StartError
from vhostrt.start_lines import print_start_lines
from vhostrt.stdio import say


class Configuration(Step):
    """Read the configuration file, and settle what depends on it."""

    name = "configuration"

    def __init__(self, announce: bool = False) -> None:
        """announce: print the two lines that scripts look for."""
        self.announce = announce

    async def start(self, app: App) -> None:
        app.calls, app.calls_from = load(app.options), app.options.config or ""
        if app.options.state is not None:
            self.open_state(app, app.options.state)
        try:
            app.environment = options_of(app.options)
        except ValueError as error:
            raise StartError(str(error)) from error
        app.lcores = {lcore: cpus for lcore, cpus in app.environment.lcores.items()
                      if lcore not in app.environment.service_lcores}
        app.idle = choose_idle(app.options, app.environment.lcores, cores_asked(app.options))
        for sentence in without_effect(app.options, app.environment):
            log.warning(sentence)
        if self.announce:
            print_start_lines(app.environment)

    def open_state(self, app: App, path: str) -> None:
        """Take the calls of the state file, where there is one, instead of those of -c."""
        from vhostrt.config.state import State
        app.state = State(path)
        kept = app.state.open()
        if kept is None:
            return
        if app.calls:
            log.notice(f"{app.calls_from} is not followed: {app.state.path} has the configuration; "
                       "remove that to begin anew")
        app.calls, app.calls_from = kept, app.state.path

    async def stop(self, app: App) -> None:
        if app.state is not None:
            app.state.release()


class ServiceManager(Step):
    """Where a service manager started the program, it is told how the start goes."""

    name = "service manager"

    async def start(self, app: App) -> None:
        if "NOTIFY_SOCKET" in os.environ:
            from vhostrt import service_manager
            app.manager = service_manager.find()
        if app.manager is not None:
            app.manager.send(STATUS="starting")


class CoreClaims(Step):
    """The cores that were asked for are claimed against other programs; the default core is not,
    so that instances that nobody has given cores run side by side."""

    name = "core locks"

    async def start(self, app: App) -> None:
        from vhostrt.core_locks import Claimed, CoreLocks
        options = app.options
        lcores = app.environment.lcores
        app.core_locks = CoreLocks(frozenset(n for cpus in lcores.values() for n in cpus))
        if not options.core_locks:
            log.notice("CPU core locks deactivated.")
        elif cores_asked(options):
            try:
                if refusal := app.core_locks.claim():
                    log.warning(refusal)
            except Claimed as error:
                raise StartError(str(error)) from None

    async def stop(self, app: App) -> None:
        if app.core_locks is not None:
            app.core_locks.release()


class Environment(Step):
    """Lcores and memory; the control thread leaves the CPUs of the lcores to them."""

    name = "environment"

    async def start(self, app: App) -> None:
        from vhostrt import env
        from vhostrt.env import lcore
        try:
            environment = env.init(app.environment)
            lcore.control_affinity([*environment.lcores, *environment.service_lcores])
            log.notice(environment.memory)
            if about_devices(environment.options):
                look_at_devices(environment)
        except ValueError as error:
            raise StartError(str(error)) from error
        log.notice(f"Total cores available: {len(app.lcores)}")

    def fini(self, app: App) -> None:
        from vhostrt import env
        env.fini()


def about_devices(options: EnvOptions) -> bool:
    """Tell whether anything was said that only matters to PCI devices."""
    return bool(options.pci_allowed or options.pci_blocked or options.vfio_vf_token
                or options.iova_mode and not options.no_huge)


def look_at_devices(environment: Any) -> None:
    """Scan the PCI bus now rather than when a device is first wanted, and say what came of it.

    Fails: ValueError, OSError.
    """
    bus = environment.pci
    for sentence in environment.dma:
        log.notice(sentence)
    there = {device.address for device in bus.devices}
    for name, listed in (("-A", bus.allowed), ("-B", bus.blocked)):
        for address in listed:
            if address not in there:
                log.warning(f"option {name}: there is no PCI device {address}")
    ours = [device for device in bus.devices if device.address not in bus.blocked
            and (not bus.allowed or device.address in bus.allowed)]
    log.notice(f"PCI bus: {len(ours)} of {len(bus.devices)} devices may be used")


class TraceFile(Step):
    """The trace points that -e turns on, before there is anything that passes them."""

    name = "tracing"

    async def start(self, app: App) -> None:
        from vhostrt.tracing import Tracing, read_choice
        options = app.options
        app.tracing = Tracing(list(app.lcores), options.trace_entries,
                              None if options.private else options.shm_id)
        if options.tpoint_groups is None:
            return
        try:
            app.tracing.turn_on(read_choice(options.tpoint_groups))
        except ValueError as error:
            raise StartError(f"option -e: {error}") from None
        log.notice(f"Tracepoint Group Mask {options.tpoint_groups} specified.")
        log.notice(f"Use 'vhostrt-trace {app.tracing.reader_words}' to capture a snapshot of "
                   "events at runtime.")

    async def stop(self, app: App) -> None:
        if app.tracing is not None and not app.tracing.close():
            log.warning(f"entries of the trace are lost: {app.tracing.path} was shortened, or its "
                        "file system is full")


class Reactors(Step):
    """A reactor on each lcore, and the way between them and this thread."""

    name = "reactors"

    async def start(self, app: App) -> None:
        from vhostrt.event import app as compiled
        from vhostrt.event import control, cpus, reactor, thread
        from vhostrt.event.monitor import ContextSwitchMonitor
        log.notice(f"Idle policy: {app.idle}")
        thread.warn = log.warning
        reactor.init(app.lcores, app.idle, app.options.max_delay_us or SLEEP_US)
        app.cpu_times = cpus.read_times()
        app.monitor = ContextSwitchMonitor()
        control.start()
        compiled.open_to(app.stop)
        reactor.start()
        for lcore in app.lcores:
            log.notice(f"Reactor started on core {lcore}")

    async def stop(self, app: App) -> None:
        from vhostrt.event import app as compiled
        from vhostrt.event import control, reactor, thread
        await pollers.end_all()         # they may use reactors
        await without_blocking(reactor.stop)
        for name in thread.left_behind():
            log.error(f"spdk_thread_exit() was not called on thread '{name}'")
        control.stop()
        compiled.close()
        lost = reactor.fini()
        if lost:
            log.error(f"{lost} events and messages were never run")


async def without_blocking(join: Callable[[], None]) -> None:
    """Join on a thread of its own, as a reactor may want an answer of this one; where there can be
    none, on this one."""
    try:
        await asyncio.to_thread(join)
    except RuntimeError as error:
        log.warning(f"reactors are joined by the control thread: {error}")
        join()


class RpcService(Step):
    """The RPC server; it answers once everything runs, or at once with --wait-for-rpc."""

    name = "RPC server"

    async def start(self, app: App) -> None:
        from vhostrt.rpc.common import table_of
        from vhostrt.rpc.method import Dispatcher
        from vhostrt.rpc.server import Server
        table = table_of(app.subsystems.registered.values())
        try:
            app.rpc = Dispatcher(app, table=table, allowed=app.options.rpcs_allowed)
        except ValueError as error:
            raise StartError(f"option --rpcs-allowed: {error}") from None
        if app.state is not None:
            app.rpc.keep = app.state.keep
        options = app.options
        if options.rpc_server and options.rpc_addr:
            app.server = Server(app.rpc, paused=not options.wait_for_rpc)
            for address in options.rpc_addr:
                await app.server.listen(address, options.rpc_socket_mode, options.rpc_socket_owner)

    async def stop(self, app: App) -> None:
        if app.server is not None:
            await app.server.close()


class Subsystems(Step):
    """The subsystems, and the calls of the configuration file before and after their start."""

    name = "subsystems"

    async def start(self, app: App) -> None:
        try:
            await self.initialise(app)
        except BaseException as error:
            app.init_error = text_of(error)
            raise
        finally:
            app.init_over.set()

    async def initialise(self, app: App) -> None:
        replay = Replay(app.calls, app.calls_from, app.rpc.states_of, app.rpc.call,
                        app.options.ignore_init_errors)
        if app.options.wait_for_rpc:
            if app.manager is not None:
                app.manager.send(STATUS="waiting for the RPC framework_start_init")
            await app.init_asked.wait()
        await replay.run(STARTUP)
        await app.subsystems.start()
        app.rpc.enter_runtime()
        await replay.run(RUNTIME)
        app.calls = []
        if app.state is not None:
            await app.state.begin(app.subsystems.kept)

    async def stop(self, app: App) -> None:
        if app.server is not None:
            app.server.pause()          # what a client made from now on, nobody would remove
        if app.state is not None:
            await app.state.close()     # the end of the disks is no change to keep
        await app.subsystems.stop()


class Disks(Step):
    """What --disk asks for: a bdev and a controller each. The subsystems remove them."""

    name = "disks"

    async def start(self, app: App) -> None:
        sockets = [await serve(disk) for disk in app.options.disks]
        if sockets:
            say(f"To attach with QEMU: qemu-system-x86_64 {qemu_words(sockets)} ...")


class Metrics(Step):
    """What --metrics asks for: a server of figures, which answers once everything runs."""

    name = "metrics"

    def __init__(self) -> None:
        self.server: Any = None

    async def start(self, app: App) -> None:
        if app.options.metrics is None:
            return
        try:
            from vhostrt.metrics.text import CONTENT_TYPE, Page
        except ModuleNotFoundError as error:
            if error.name != "prometheus_client":
                raise
            raise StartError("option --metrics needs the Python package prometheus-client: install "
                             "it with pip install 'vhostrt[metrics]'") from None
        from vhostrt.metrics.server import Server
        self.server = Server(Page().get, CONTENT_TYPE)
        await self.server.listen(app.options.metrics)
        log.notice(f"Metrics at {app.options.metrics}")

    async def stop(self, app: App) -> None:
        if self.server is not None:
            await self.server.close()


async def serve(disk: Disk) -> str:
    """Make the bdev and the controller of one disk, and return the path of its socket.

    Fails: StartError, MemoryError.
    """
    from vhostrt.bdev import factory
    from vhostrt.vhost import access, controller
    try:
        if disk.kind == "malloc":
            await factory.create_malloc(disk.size // BLOCK_SIZE, BLOCK_SIZE, disk.name)
        else:
            await factory.create_file(disk.name, disk.path, readonly=disk.readonly)
        made = await controller.create_blk(
            os.path.basename(disk.socket), disk.name, readonly=disk.readonly,
            socket_path=disk.socket if "/" in disk.socket else None,
            who=access.make(**dict(disk.access)))
    except (OSError, ValueError) as error:
        raise StartError(f"disk {disk.name}: {text_of(error)}") from error
    return str(made.path)


def open_to_clients(app: App) -> None:
    """The start callback: clients of the RPC that came early get their answers from here on, and
    the service manager is told that everything is there."""
    if app.server is not None:
        app.server.resume()
    if app.manager is not None:
        app.manager.ready(f"serving on {len(app.lcores)} cores")


def all_steps(announce: bool = False) -> list[Step]:
    """Make the steps of one run of an application, in order."""
    return [Configuration(announce), CoreClaims(), Environment(), TraceFile(), Reactors(),
            RpcService(), Subsystems()]


def program_steps() -> list[Step]:
    """Make those of the program vhostrt."""
    return [ServiceManager(), *all_steps(announce=True), Disks(), Metrics()]
