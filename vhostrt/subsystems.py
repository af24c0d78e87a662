"""The subsystems of this program, in registration order.

Threads: the control thread.
"""
from vhostrt.options import Options
from vhostrt.subsystem import Subsystem


class BdevSubsystem(Subsystem):
    """The block devices: those that are left when the program stops are deleted."""

    name = "bdev"

    async def fini(self) -> None:
        from vhostrt.bdev import registry
        await registry.delete_all()


class VhostBlkSubsystem(Subsystem):
    """The vhost-user-blk controllers, with their sockets in the directory of -S."""

    name = "vhost_blk"
    depends_on = ("bdev",)

    def __init__(self, socket_dir: str) -> None:
        self.socket_dir = socket_dir

    async def init(self) -> None:
        from vhostrt.vhost import controller
        controller.set_socket_directory(self.socket_dir)

    async def fini(self) -> None:
        from vhostrt.vhost import controller
        await controller.delete_all()


def all_subsystems(options: Options) -> list[Subsystem]:
    """Make the subsystems of one run."""
    return [BdevSubsystem(), VhostBlkSubsystem(options.socket_dir)]
