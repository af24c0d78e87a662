"""The subsystems of this program, in registration order.

Threads: the control thread.
"""
import asyncio
from typing import TYPE_CHECKING, Any

from vhostrt import log
from vhostrt.options import Options, RuntimeOptions
from vhostrt.subsystem import Subsystem

if TYPE_CHECKING:
    from vhostrt.event.watchdog import Watchdog


def entry(method: str, **params: Any) -> dict[str, Any]:
    return {"method": method, "params": params}


class LogSubsystem(Subsystem):
    """Which lines are printed, as far as it is not what the command line says."""

    name = "log"

    def __init__(self, options: RuntimeOptions) -> None:
        self.options = options

    def config(self) -> list[dict[str, Any]]:
        now, before = log.settings, log.Settings()
        calls = []
        if now.print_level != self.options.print_level:
            calls.append(entry("log_set_print_level", level=log.NAMES[now.print_level]))
        if now.level != before.level:
            calls.append(entry("log_set_level", level=log.NAMES[now.level]))
        if now.timestamps != before.timestamps:
            calls.append(entry("log_enable_timestamps", enabled=now.timestamps))
        on, said = log.single_flags(now.flags), log.single_flags(self.options.log_flags)
        calls += [entry("log_set_flag", flag=flag) for flag in sorted(on - said)]
        calls += [entry("log_clear_flag", flag=flag) for flag in sorted(said - on)]
        return calls


class TraceSubsystem(Subsystem):
    """Which trace points are on, as far as it is not what the command line says."""

    name = "trace"

    def __init__(self, options: RuntimeOptions) -> None:
        self.options = options

    def config(self) -> list[dict[str, Any]]:
        from vhostrt.event import trace
        from vhostrt.tracing import ALL, known_groups, read_choice
        known_groups()
        groups = self.options.tpoint_groups
        said = {} if groups is None else read_choice(groups)
        calls = []
        for name, mask in trace.masks().items():
            before = said.get(name, 0)
            if mask == ALL and before != ALL:
                calls.append(entry("trace_enable_tpoint_group", name=name))
            elif mask & ~before:
                calls.append(entry("trace_set_tpoint_mask", name=name, tpoint_mask=mask & ~before))
            if before and not mask:
                calls.append(entry("trace_disable_tpoint_group", name=name))
            elif before & ~mask:
                calls.append(entry("trace_clear_tpoint_mask", name=name,
                                   tpoint_mask=before & ~mask))
        return calls


class SchedulerSubsystem(Subsystem):
    """Where light threads run; before its start the scheduler can be chosen already."""

    name = "scheduler"

    async def init(self) -> None:
        from vhostrt.event.scheduler import scheduling
        scheduling.start()

    async def fini(self) -> None:
        from vhostrt.event.scheduler import scheduling
        await scheduling.stop()

    def config(self) -> list[dict[str, Any]]:
        from vhostrt.event.scheduler import scheduling
        calls = scheduling.config()
        if all(call["method"] != "framework_set_scheduler" for call in calls):
            calls.append(entry("framework_set_scheduler", name="static"))   # as SPDK says it
        return calls


class BdevSubsystem(Subsystem):
    """The block devices: those that are left when the program stops are deleted."""

    name = "bdev"
    rpc = ("vhostrt.rpc.bdev", "vhostrt.rpc.bdev_stats")

    async def fini(self) -> None:
        from vhostrt.bdev import registry, saved, splits
        splits.clear()
        await registry.delete_all()
        saved.forget()

    def config(self) -> list[dict[str, Any]]:
        from vhostrt.bdev import saved
        return saved.config()


class VhostBlkSubsystem(Subsystem):
    """The vhost-user-blk controllers, with their sockets in the directory of -S."""

    name = "vhost_blk"
    depends_on = ("bdev",)
    rpc = ("vhostrt.rpc.vhost",)

    def __init__(self, socket_dir: str) -> None:
        self.socket_dir = socket_dir
        self.watchdog: Watchdog | None = None

    async def init(self) -> None:
        from vhostrt.base import sigbus
        from vhostrt.event.watchdog import Watchdog
        from vhostrt.vhost import controller, listener
        sigbus.install()
        controller.set_socket_directory(self.socket_dir)
        if self.socket_dir:
            listener.look_at(self.socket_dir)
        self.watchdog = Watchdog()
        self.watchdog.start()

    async def fini(self) -> None:
        from vhostrt.vhost import controller, view
        await controller.delete_all()
        await asyncio.to_thread(view.fini)
        if self.watchdog is not None:
            self.watchdog.stop()

    def config(self) -> list[dict[str, Any]]:
        from vhostrt.vhost import controller
        return controller.config()

    def kept(self) -> list[dict[str, Any]]:
        from vhostrt.vhost import controller
        return controller.config(whole=False)


def all_subsystems(options: Options) -> list[Subsystem]:
    """Make the subsystems of one run."""
    return [LogSubsystem(options), TraceSubsystem(options), SchedulerSubsystem(), BdevSubsystem(),
            VhostBlkSubsystem(options.socket_dir)]
