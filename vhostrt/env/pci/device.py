"""PCI devices as sysfs shows them.

Fails:    OSError or ValueError, with the file that could not be read or makes no sense.
"""
from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from vhostrt.env.pci.address import Address
from vhostrt.env.roots import Roots

if TYPE_CHECKING:
    from vhostrt.env.pci.access import Access
    from vhostrt.env.pci.claim import Claim
    from vhostrt.env.pci.driver import Driver

BARS = 6
MEMORY = 0x200                          # of a resource's flags: IORESOURCE_MEM
BRIDGE = 0x06                           # base class
# Kernel drivers that leave a device to us, and how its registers are reached then.
USER_DRIVERS = {"vfio-pci": "vfio", "uio_pci_generic": "uio", "igb_uio": "uio"}


class Resource(NamedTuple):
    """The memory behind a base address register: physical address, bytes, flags of the kernel."""

    start: int
    size: int
    flags: int


@dataclass(slots=True, eq=False)
class Device:
    """One device (a function) of the bus.

    Owner:    the bus; a driver keeps it between probe and remove.
    Threads:  the control thread changes it.
    """

    address: Address
    roots: Roots
    vendor: int = 0
    device: int = 0
    subsystem_vendor: int = 0
    subsystem_device: int = 0
    class_code: int = 0                 # 24 bits: base class, subclass, interface
    numa_node: int = -1                 # -1: none is known
    max_vfs: int = 0                    # virtual functions that there may be
    resources: tuple[Resource | None, ...] = (None,) * BARS
    kernel_driver: str | None = None    # bound to it
    arguments: str = ""                 # said behind the address with -A, for its driver
    driver: Driver | None = None        # who has taken it
    access: Access | None = field(default=None, repr=False)     # while it is mapped
    claimed: Claim | None = field(default=None, repr=False)     # by this process

    @property
    def path(self) -> str:
        """Its directory in sysfs."""
        return device_path(self.roots, self.address)

    @property
    def way(self) -> str | None:
        """How its registers are reached, "uio" or "vfio"; None: no user driver is bound to it."""
        return USER_DRIVERS.get(self.kernel_driver or "")

    @property
    def bars(self) -> tuple:
        """Its Bars (vhostrt.env.mmio), by number; None for those that are not memory.

        Nothing but None unless it is mapped.
        """
        return self.access.bars if self.access is not None else (None,) * BARS

    def claim(self) -> None:
        """Claim it for this process; OSError EACCES names the process that has it.

        For its driver, in probe; the bus gives the claim up when the driver does not have it.
        """
        from vhostrt.env.pci.claim import claim
        if self.claimed is None:
            self.claimed = claim(self.address)

    def unclaim(self) -> None:
        """Give the claim up; without one, nothing."""
        claimed, self.claimed = self.claimed, None
        if claimed is not None:
            claimed.release()

    def refresh(self) -> None:
        """Read everything again that sysfs shows; OSError or ValueError, and nothing changes."""
        path = self.path
        ids = {name: read_number(path, file) & 0xffff for name, file in ID_FILES.items()}
        class_code = read_number(path, "class") & 0xffffff
        numa_node = read_number(path, "numa_node", default=0)
        max_vfs = read_number(path, "max_vfs", default=read_number(path, "sriov_numvfs", default=0))
        resources = read_resources(path)
        kernel_driver = read_driver(path)
        for name, value in ids.items():
            setattr(self, name, value)
        self.class_code, self.max_vfs, self.resources = class_code, max_vfs, resources
        self.kernel_driver = kernel_driver
        # A node of a device in use stays what its driver was told.
        if self.driver is None:
            self.numa_node = numa_node


ID_FILES = {"vendor": "vendor", "device": "device", "subsystem_vendor": "subsystem_vendor",
            "subsystem_device": "subsystem_device"}


def device_path(roots: Roots, address: Address) -> str:
    """Return the directory of a device."""
    return roots.in_sys("bus/pci/devices", str(address))


def read_text(folder: str, name: str) -> str:
    """Return the text of a file without the line's end; OSError names it."""
    with open(os.path.join(folder, name), encoding="ascii", errors="replace") as file:
        return file.read().strip()


def read_number(folder: str, name: str, default: int | None = None, base: int = 0) -> int:
    """Return the number in a file, decimal or 0x; `default` where the file is not there."""
    try:
        text = read_text(folder, name)
    except FileNotFoundError:
        if default is None:
            raise
        return default
    try:
        return int(text, base)
    except ValueError:
        raise ValueError(f"{folder}/{name}: {text[:40]!r} is not a number") from None


def read_resources(folder: str) -> tuple[Resource | None, ...]:
    """Return the six resources of a device; None for what is not memory."""
    found: list[Resource | None] = []
    for line in read_text(folder, "resource").split("\n")[:BARS]:
        try:
            start, end, flags = (int(word, 16) for word in line.split())
        except ValueError:
            raise ValueError(f"{folder}/resource: {line[:60]!r} is not start, end and flags"
                             ) from None
        memory = flags & MEMORY and end > start
        found.append(Resource(start, end - start + 1, flags) if memory else None)
    return (*found, *[None] * (BARS - len(found)))


def read_driver(folder: str) -> str | None:
    """Return the name of the kernel driver bound to a device."""
    try:
        return os.path.basename(os.readlink(os.path.join(folder, "driver")))
    except FileNotFoundError:
        return None


def read_device(roots: Roots, address: Address) -> Device:
    """Return a device as sysfs shows it; OSError or ValueError."""
    device = Device(address, roots)
    device.refresh()
    return device


def list_addresses(roots: Roots) -> list[Address]:
    """Return the addresses of all devices, in order; OSError when there is no PCI bus."""
    found = []
    for name in os.listdir(roots.in_sys("bus/pci/devices")):
        try:
            address = Address.parse(name)
        except ValueError:
            continue
        # Only the form of sysfs itself: another name stands for no device.
        if str(address) == name:
            found.append(address)
    return sorted(found)
