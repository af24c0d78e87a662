"""A recorded system for a test: /sys, /proc and /dev in a folder, and the Roots that lead there."""
from pathlib import Path

from vhostrt.env.roots import Roots

KIB, MIB, GIB = 2**10, 2**20, 2**30
COUNTS = ("nr_hugepages", "free_hugepages")


class System:
    """A machine on paper. Every method adds to it; `roots` is how the environment sees it."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.roots = Roots(*(str(folder / name) for name in ("sys", "proc", "dev")))
        self.write("proc/mounts", "proc /proc proc rw 0 0\n")
        self.write("proc/meminfo", "MemTotal: 8 kB\nHugepagesize:       2048 kB\n")

    def write(self, path: str, text: str) -> Path:
        """Write a file, its folders included."""
        file = self.folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        return file

    def cpu(self, number: int, node: int = 0, core: int | None = None) -> None:
        """Add a CPU that is online."""
        top = f"sys/devices/system/cpu/cpu{number}"
        self.write(f"{top}/topology/core_id", f"{number if core is None else core}\n")
        (self.folder / top / f"node{node}").mkdir()
        (self.folder / f"sys/devices/system/node/node{node}/cpu{number}").mkdir(parents=True)

    def huge(self, size: int, total: int = 0, free: int = 0, reserved: int = 0,
             surplus: int = 0) -> None:
        """Add a size of huge pages."""
        top = f"sys/kernel/mm/hugepages/hugepages-{size // KIB}kB"
        for name, count in zip((*COUNTS, "resv_hugepages", "surplus_hugepages"),
                               (total, free, reserved, surplus), strict=True):
            self.write(f"{top}/{name}", f"{count}\n")

    def huge_on_node(self, node: int, size: int, total: int = 0, free: int = 0) -> None:
        """Add what one NUMA node has of a size."""
        top = f"sys/devices/system/node/node{node}/hugepages/hugepages-{size // KIB}kB"
        for name, count in zip(COUNTS, (total, free), strict=True):
            self.write(f"{top}/{name}", f"{count}\n")

    def mount(self, path: str, options: str = "rw,relatime", kind: str = "hugetlbfs") -> None:
        """Add a mount; path is as the kernel writes it, with blanks in octal."""
        with open(self.folder / "proc/mounts", "a") as file:
            file.write(f"none {path} {kind} {options} 0 0\n")

    def count(self, size: int, node: int | None = None) -> str:
        """Return the text of nr_hugepages, of a node or of all."""
        where = "kernel/mm" if node is None else f"devices/system/node/node{node}"
        return (self.folder / "sys" / where / f"hugepages/hugepages-{size // KIB}kB/nr_hugepages"
                ).read_text()
