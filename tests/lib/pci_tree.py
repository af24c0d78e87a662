"""A recorded PCI bus for a test: /sys, /proc and /dev in a folder, as Linux lays them out.

PaperKernel stands for what the kernel does when the files that bind and unbind are written.
"""
import os
import select
import threading
from pathlib import Path

from vhostrt.env.roots import Roots

MEMORY, IO = 0x40200, 0x40101           # flags of a BAR's resource
HEADER = 64                             # bytes of the configuration space that are written here


class PciTree:
    """A bus on paper. Every method adds to it; `roots` is how the environment sees it."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.roots = Roots(*(str(folder / name) for name in ("sys", "proc", "dev")))
        for name in ("sys/bus/pci/devices", "sys/bus/pci/drivers", "proc/self", "dev/vfio"):
            (folder / name).mkdir(parents=True)
        self.write("sys/bus/pci/drivers_probe", "")
        self.write("proc/self/mountinfo", "")
        self.write("proc/swaps", "Filename\tType\tSize\tUsed\tPriority\n")

    def write(self, path: str, text: str) -> Path:
        """Write a file, its folders included."""
        file = self.folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        return file

    def link(self, path: str, target: Path) -> None:
        """Make a relative link, as those of sysfs are."""
        place = self.folder / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(os.path.relpath(target, place.parent))

    def home(self, address: str, below: str = "") -> Path:
        """Return the folder of a device; below: the address of the bridge in front of it."""
        top = self.folder / f"sys/devices/pci{address.rpartition(':')[0]}"
        return (self.folder / "sys/bus/pci/devices" / below).resolve() / address if below else \
            top / address

    def device(self, address: str, *, vendor: int = 0x8086, device: int = 0x0a54,
               subsystem: tuple[int, int] = (0x8086, 0x4702), class_code: int = 0x010802,
               numa_node: int | None = 0, bars: dict[int, tuple[int, int]] | None = None,
               driver: str | None = None, vfs: int | None = None, below: str = "",
               **more: str) -> Path:
        """Add a device; return its folder.

        bars: number -> (physical address, bytes), each a memory BAR with a file of that size.
        vfs: sriov_numvfs. more: further files, or others in the place of the usual ones.
        """
        home = self.home(address, below)
        home.mkdir(parents=True)
        files = {
            "vendor": f"{vendor:#06x}", "device": f"{device:#06x}", "class": f"{class_code:#08x}",
            "subsystem_vendor": f"{subsystem[0]:#06x}", "subsystem_device": f"{subsystem[1]:#06x}",
            "resource": "\n".join(self.resource_lines(home, bars or {})),
            "driver_override": "(null)",
            "modalias": f"pci:v{vendor:08X}d{device:08X}sv{subsystem[0]:08X}sd{subsystem[1]:08X}"
                        f"bc{class_code >> 16:02X}sc{class_code >> 8 & 0xff:02X}"
                        f"i{class_code & 0xff:02X}",
        }
        files |= {"numa_node": str(numa_node)} if numa_node is not None else {}
        files |= {"sriov_numvfs": str(vfs)} if vfs is not None else {}
        for name, text in (files | more).items():
            (home / name).write_text(text + "\n")
        config = vendor.to_bytes(2, "little") + device.to_bytes(2, "little")
        (home / "config").write_bytes(config.ljust(HEADER, b"\0"))
        self.link(f"sys/bus/pci/devices/{address}", home)
        if driver is not None:
            self.bind(address, driver)
        return home

    def resource_lines(self, home: Path, bars: dict[int, tuple[int, int]]) -> list[str]:
        lines = []
        for number in range(13):
            start, size = bars.get(number, (0, 0))
            lines.append(f"{start:#018x} {start + max(size - 1, 0):#018x} "
                         f"{MEMORY if size else 0:#018x}")
            if size:
                with open(home / f"resource{number}", "wb") as file:
                    file.truncate((start % 4096 + size + 4095) // 4096 * 4096)
        return lines

    def driver(self, name: str) -> Path:
        """Add a kernel driver, unless it is there; return its folder."""
        folder = self.folder / "sys/bus/pci/drivers" / name
        if not folder.exists():
            self.write(f"sys/bus/pci/drivers/{name}/unbind", "")
        return folder

    def bind(self, address: str, driver: str) -> None:
        """Bind a device to a driver; a uio driver gives it a uio file, uio0 and so on."""
        home = (self.folder / "sys/bus/pci/devices" / address).resolve()
        self.driver(driver)
        (home / "driver").symlink_to(f"../../../bus/pci/drivers/{driver}")
        if "uio" in driver:
            number = len(list((self.folder / "dev").glob("uio*")))
            (home / f"uio/uio{number}").mkdir(parents=True)
            self.write(f"dev/uio{number}", "")

    def iommu(self, address: str, group: int, *, bits: int | None = None,
              bare: bool = False) -> None:
        """Put a device in a group; bits: of an Intel IOMMU; bare: no IOMMU, that of no-IOMMU."""
        home = (self.folder / "sys/bus/pci/devices" / address).resolve()
        folder = self.folder / f"sys/kernel/iommu_groups/{group}"
        folder.mkdir(parents=True, exist_ok=True)
        (home / "iommu_group").symlink_to(os.path.relpath(folder, home))
        self.write(f"dev/vfio/{'noiommu-' if bare else ''}{group}", "")
        if bare:
            (folder / "name").write_text("vfio-noiommu\n")
        if bits is not None:
            self.write(str(home / "iommu/intel-iommu/cap"), f"{bits - 1 << 16 | 0xff:x}\n")

    def net(self, address: str, name: str, up: bool = False) -> None:
        """Give a device a network interface."""
        home = (self.folder / "sys/bus/pci/devices" / address).resolve() / "net" / name
        self.write(str(home / "flags"), "0x1003\n" if up else "0x1002\n")
        self.link(f"sys/class/net/{name}", home)

    def block(self, address: str, name: str, number: str, holders: tuple[str, ...] = (),
              above: str = "") -> None:
        """Give a device a disk, or a partition `above` a disk of it; number: major:minor."""
        home = (self.folder / "sys/bus/pci/devices" / address).resolve() / "block" / above / name
        self.write(str(home / "dev"), number + "\n")
        for holder in holders:
            (home / "holders" / holder).mkdir(parents=True)
        self.link(f"sys/class/block/{name}", home)

    def mount(self, number: str, place: str, source: str = "none") -> None:
        """Have something mounted."""
        with open(self.folder / "proc/self/mountinfo", "a") as file:
            file.write(f"22 1 {number} / {place} rw,relatime shared:1 - ext4 {source} rw\n")


class PaperKernel:
    """Binds and unbinds the devices of a tree as it is told, within the block of `with`.

    refuses: drivers that it does not bind anything to. Its `said` are the lines it was told, with
    the driver_override that was there then.
    """

    def __init__(self, tree: PciTree, refuses: tuple[str, ...] = ()):
        self.tree = tree
        self.refuses = refuses
        self.said: list[str] = []
        self.bus = tree.folder / "sys/bus/pci"
        self.files: dict[int, Path] = {}

    def __enter__(self):
        for path in (self.bus / "drivers_probe", *self.bus.glob("drivers/*/unbind")):
            path.unlink()
            os.mkfifo(path)
            self.files[os.open(path, os.O_RDWR | os.O_NONBLOCK)] = path
        self.wake = os.eventfd(0)
        self.thread = threading.Thread(target=self.run)
        self.thread.start()
        return self

    def __exit__(self, *_):
        os.eventfd_write(self.wake, 1)
        self.thread.join()
        for fd in (*self.files, self.wake):
            os.close(fd)

    def run(self):
        while True:
            ready = select.select([*self.files, self.wake], [], [])[0]
            for fd in ready:
                if fd == self.wake:
                    return
                for address in os.read(fd, 4096).decode().split():
                    self.act(self.files[fd], address)

    def act(self, path: Path, address: str) -> None:
        home = (self.bus / "devices" / address).resolve()
        if path.name == "unbind":
            self.said.append(f"unbind {path.parent.name} {address}")
            if path.parent.name not in self.refuses:
                (home / "driver").unlink()
            return
        override = (home / "driver_override").read_text().strip()
        self.said.append(f"probe {address} for {override}")
        if override not in self.refuses and (self.bus / "drivers" / override).is_dir():
            self.tree.bind(address, override)
