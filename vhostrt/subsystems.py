"""The subsystems of this program, in registration order.

Threads: the control thread.
"""
import asyncio
from typing import TYPE_CHECKING, Any

from vhostrt.options import Options
from vhostrt.subsystem import Subsystem

if TYPE_CHECKING:
    from vhostrt.event.watchdog import Watchdog


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
        return scheduling.config()


class BdevSubsystem(Subsystem):
    """The block devices: those that are left when the program stops are deleted."""

    name = "bdev"
    rpc = ("vhostrt.rpc.bdev",)

    async def fini(self) -> None:
        from vhostrt.bdev import registry
        await registry.delete_all()


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


def all_subsystems(options: Options) -> list[Subsystem]:
    """Make the subsystems of one run."""
    return [SchedulerSubsystem(), BdevSubsystem(), VhostBlkSubsystem(options.socket_dir)]
