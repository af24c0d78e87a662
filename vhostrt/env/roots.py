"""Where the system is looked at: /sys, /proc and /dev, or recorded trees in their place."""
import os
from dataclasses import dataclass


@dataclass(slots=True, frozen=True)
class Roots:
    """The directories that stand for /sys, /proc and /dev.  Threads: any; it does not change."""

    sys: str = "/sys"
    proc: str = "/proc"
    dev: str = "/dev"

    def in_sys(self, *names: str) -> str:
        """Return a path below /sys."""
        return os.path.join(self.sys, *names)

    def in_proc(self, *names: str) -> str:
        """Return a path below /proc."""
        return os.path.join(self.proc, *names)

    def in_dev(self, *names: str) -> str:
        """Return a path below /dev."""
        return os.path.join(self.dev, *names)


SYSTEM = Roots()
