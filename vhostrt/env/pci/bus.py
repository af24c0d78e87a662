"""The PCI bus: what is on it, the drivers that take its devices, and how those are found.

Owner:    who made the Bus; close lets go of every device.
Threads:  the control thread.
Fails:    OSError with a sentence; ValueError for options that make no sense.
"""
from __future__ import annotations

import errno
import os
from bisect import insort
from typing import TYPE_CHECKING

from vhostrt import log
from vhostrt.env.options import EnvOptions
from vhostrt.env.pci.address import Address
from vhostrt.env.pci.access import map_device, unmap_device
from vhostrt.env.pci.device import Device, list_addresses, read_device, read_number
from vhostrt.env.pci.driver import Driver

if TYPE_CHECKING:
    from vhostrt.env.pci.vfio import Container

FLAG = "env"                            # of the log lines that are INFO
VIRTUAL_BITS = 47                       # of an address of ours


def read_policy(option: str, entries: tuple[str, ...]) -> dict[Address, str]:
    """Return address -> arguments of an allow or block list; ValueError names option and value."""
    policy = {}
    for entry in entries:
        text, _, arguments = entry.partition(",")
        try:
            policy[Address.parse(text)] = arguments
        except ValueError as error:
            raise ValueError(f"option {option}: {error}") from None
    return policy


class Bus:
    """The devices of the bus, in order of address, and the registered drivers, the first first."""

    def __init__(self, options: EnvOptions | None = None):
        self.options = options or EnvOptions()
        self.allowed = read_policy("-A", self.options.pci_allowed)
        self.blocked = read_policy("-B", self.options.pci_blocked)
        if self.allowed and self.blocked:
            raise ValueError("options -A and -B exclude each other")
        self.devices: list[Device] = []
        self.drivers: list[Driver] = []
        self.container: Container | None = None     # of vfio-pci; made with its first device

    # What there is.

    def scan(self) -> None:
        """Look at the bus: add what is new, refresh what is there, drop what is gone.

        A device that a driver has taken stays until detach.  One that cannot be read is left out,
        and said; with no_pci there are none.  OSError when the bus cannot be looked at.
        """
        if self.options.no_pci:
            return
        roots = self.options.roots
        try:
            addresses = list_addresses(roots)
        except OSError as error:
            raise OSError(error.errno, f"the PCI bus cannot be scanned: {error.filename}: "
                                       f"{error.strerror}") from error
        known = {device.address: device for device in self.devices}
        found = [self.look_at(address, known.pop(address, None)) for address in addresses]
        gone = [device for device in known.values() if device.driver is not None]
        for device in gone:
            log.warning(f"PCI device {device.address} is gone, and driver {name_of(device)} still "
                        "has it")
        self.devices = sorted([device for device in found if device is not None] + gone,
                              key=lambda device: device.address)

    def look_at(self, address: Address, known: Device | None) -> Device | None:
        """Return a device, new or refreshed; None, and it is said, when it cannot be read."""
        try:
            if known is None:
                return self.with_policy(read_device(self.options.roots, address))
            known.refresh()
        except (OSError, ValueError) as error:
            log.warning(f"PCI device {address} cannot be read: {text_of(error)}")
            return known if known is not None and known.driver is not None else None
        return known

    def with_policy(self, device: Device) -> Device:
        """Return a new device with what the allow list says of it."""
        device.arguments = self.allowed.get(device.address, "")
        return device

    def find(self, address: Address | str) -> Device:
        """Return the device at an address, any form of it; OSError ENODEV, or ValueError."""
        wanted = Address.parse(address) if isinstance(address, str) else address
        for device in self.devices:
            if device.address == wanted:
                return device
        raise OSError(errno.ENODEV, f"there is no PCI device {wanted}")

    # Addresses for devices.

    def iova_class(self) -> str | None:
        """Return which addresses the devices ask for: "va", "pa", or None, they do not care.

        They do not when no user driver is bound to any.  Virtual ones they can have when at least
        one is bound to vfio-pci and none to a uio driver, each has an IOMMU that is wide enough,
        and every driver of ours that fits takes them.
        """
        ours = [device for device in self.devices if device.way is not None]
        if not ours:
            return None
        return "va" if all(self.can_be_virtual(device) for device in ours) else "pa"

    def can_be_virtual(self, device: Device) -> bool:
        """Return whether a device of a user driver can be given virtual addresses."""
        drivers = [driver for driver in self.drivers if driver.fits(device)]
        if device.way != "vfio" or not all(driver.takes_virtual for driver in drivers):
            return False
        from vhostrt.env.pci.vfio import group_of
        try:
            bare = group_of(device)[1]
            capabilities = read_number(device.path, "iommu/intel-iommu/cap", default=-1, base=16)
        except (OSError, ValueError):
            return False
        # The field MGAW of Intel's register: bits of the addresses that it translates.
        return not bare and (capabilities < 0
                             or (capabilities >> 16 & 0x3f) + 1 >= VIRTUAL_BITS)

    def iova_mode(self) -> tuple[str, str]:
        """Choose the mode of vtophys.init; return it, and a sentence about VFIO to be said.

        What the options say comes first, then that zones have physical addresses already, then
        what the devices ask for; else virtual ones where there is an IOMMU, as they need no right.
        With ordinary pages alone they are virtual: such a page may move, which a device would not
        know.  ValueError: virtual ones are asked for, and VFIO has no IOMMU.
        """
        from vhostrt.env import memory
        from vhostrt.env.pci import vfio
        support = vfio.probe(self.options.roots)
        asked = self.options.iova_mode
        if self.options.no_huge:
            return "va", support.sentence
        if asked == "va" and not support.iommu:
            raise ValueError(f"option --iova-mode va: it needs an IOMMU. {support.sentence}")
        learnt = memory.ready() and any(segment["iova"] is not None
                                        for segment in memory.segments())
        chosen = "pa" if learnt or not support.iommu else self.iova_class() or "va"
        return asked or chosen, support.sentence

    # Drivers.

    def register(self, driver: Driver) -> None:
        """Add a driver behind the others; OSError EEXIST: it is there."""
        if driver in self.drivers:
            raise OSError(errno.EEXIST, f"PCI driver {driver.name} is registered already")
        self.drivers.append(driver)

    def unregister(self, driver: Driver) -> None:
        """Take a driver away; OSError: ENOENT, it is not there, EBUSY, it has devices."""
        if driver not in self.drivers:
            raise OSError(errno.ENOENT, f"PCI driver {driver.name} is not registered")
        has = [str(device.address) for device in self.devices if device.driver is driver]
        if has:
            raise OSError(errno.EBUSY, f"PCI driver {driver.name} still has {', '.join(has)}: "
                                       "detach them first")
        self.drivers.remove(driver)

    def probe(self) -> list[Device]:
        """Offer each device that nobody has to the drivers; return those that were taken.

        Only allowed ones where there is an allow list.  One that fails is said and left.
        OSError ENODEV: there were some, and all failed.
        """
        return self.offer(self.drivers)

    def enumerate(self, driver: Driver) -> list[Device]:
        """Offer each device that nobody has to one driver, registered when it is not yet.

        As probe otherwise.
        """
        if driver not in self.drivers:
            self.register(driver)
        return self.offer([driver])

    def offer(self, drivers: list[Driver]) -> list[Device]:
        """Do probe with these drivers."""
        free = [device for device in self.devices if device.driver is None
                and (not self.allowed or device.address in self.allowed)]
        taken, failed = [], 0
        for device in free:
            try:
                if self.offer_device(device, drivers):
                    taken.append(device)
            except Exception as error:          # a driver's mistake is its device's trouble only
                log.error(f"Requested device {device.address} cannot be used: {text_of(error)}")
                failed += 1
        if failed and failed == len(free):
            raise OSError(errno.ENODEV, f"none of the {failed} PCI devices could be used")
        return taken

    def offer_device(self, device: Device, drivers: list[Driver]) -> bool:
        """Offer a device to the drivers that fit, up to one that takes it; False: none does.

        OSError: it failed.
        """
        return any(self.try_driver(device, driver) for driver in drivers if driver.fits(device))

    def try_driver(self, device: Device, driver: Driver) -> bool:
        """Have a driver that fits probe a device; return whether it has taken it.  OSError."""
        log.info(FLAG, f"PCI device {device.address} on NUMA socket {device.numa_node}")
        if device.address in self.blocked:
            log.info(FLAG, "  Device is blocked, not initializing")
            return False
        if device.numa_node < 0:
            if self.has_nodes():
                log.warning(f"PCI device {device.address}: Invalid NUMA socket, default to 0")
            device.numa_node = 0
        log.info(FLAG, f"  probe driver: {device.vendor:x}:{device.device:x} {driver.name}")
        if driver.needs_mapping:
            if device.way is None:
                log.info(FLAG, f"  bound to {device.kernel_driver or 'no driver'}, not to "
                               "vfio-pci or uio_pci_generic, skipped")
                return False
            map_device(device, self.vfio_container(device))
        said = -1
        try:
            said = driver.probe(device) or 0
        finally:
            if said != 0:
                unmap_device(device)
                device.unclaim()
        if said == 0:
            device.driver = driver
            return True
        if said < 0:
            raise OSError(-said, f"driver {driver.name}: {os.strerror(-said)}")
        return False

    def has_nodes(self) -> bool:
        """Return whether the machine has several NUMA nodes; with one, a device is on it."""
        return os.path.isdir(self.options.roots.in_sys("devices/system/node/node1"))

    def vfio_container(self, device: Device) -> Container | None:
        """Return the container of the devices of vfio-pci; None for another device."""
        if device.way == "vfio" and self.container is None:
            from vhostrt.env.pci.vfio import Container
            self.container = Container(self.options.roots, self.options.vfio_vf_token)
        return self.container if device.way == "vfio" else None

    # One device.

    def attach(self, address: Address | str) -> Device:
        """Look at a device again, or for the first time, and offer it to the drivers.

        OSError: ENODEV, there is none, or no driver takes it; EBUSY, a driver has it; else it
        failed.  ValueError: that is no address.
        """
        wanted = Address.parse(address) if isinstance(address, str) else address
        device = self.update(wanted)
        if device.driver is not None:
            raise OSError(errno.EBUSY, f"PCI device {wanted}: driver {name_of(device)} has it")
        if not self.offer_device(device, self.drivers):
            raise OSError(errno.ENODEV, f"PCI device {wanted}: no driver takes it")
        return device

    def update(self, address: Address) -> Device:
        """Return a device as it is now, put in its place when it is new; OSError."""
        known = [device for device in self.devices if device.address == address]
        try:
            if known:
                known[0].refresh()
                return known[0]
            device = self.with_policy(read_device(self.options.roots, address))
        except FileNotFoundError:
            raise OSError(errno.ENODEV, f"there is no PCI device {address}") from None
        except (OSError, ValueError) as error:
            raise OSError(errno.EIO, f"PCI device {address} cannot be read: {text_of(error)}"
                          ) from error
        insort(self.devices, device, key=lambda device: device.address)
        return device

    def detach(self, address: Address | str) -> None:
        """Have the driver of a device let go of it, and drop it from the bus.

        OSError ENODEV: there is none; ENOENT: no driver has it.  ValueError: that is no address.
        """
        device = self.find(address)
        if device.driver is None:
            raise OSError(errno.ENOENT, f"PCI device {device.address}: no driver has it")
        self.let_go(device)
        self.devices.remove(device)

    def let_go(self, device: Device) -> None:
        """Have the driver of a device let go of it; what the driver raises comes afterwards."""
        driver, device.driver = device.driver, None
        try:
            if driver is not None:
                driver.remove(device)
        finally:
            unmap_device(device)
            device.unclaim()

    def close(self) -> None:
        """Let go of all devices, and forget drivers and devices.  Again: nothing.

        What a driver raises while it lets go is said, and the others go on.
        """
        for device in self.devices:
            if device.driver is None:
                continue
            name = name_of(device)
            try:
                self.let_go(device)
            except Exception as error:
                log.error(f"PCI device {device.address}: driver {name}: {text_of(error)}")
        self.devices, self.drivers, self.container = [], [], None


def name_of(device: Device) -> str:
    """Return the name of the driver that has a device."""
    return device.driver.name if device.driver is not None else "none"


def text_of(error: Exception) -> str:
    """Return what an error says, without its number."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error) or type(error).__name__


# The whole: what devices need of the environment, between memory.init and memory.fini.

def start(options: EnvOptions | None = None) -> tuple[Bus, tuple[str, ...]]:
    """Scan the bus, and start the memory map and the addresses for devices.

    Return the bus, which stop ends, and sentences to be said.  With no_pci there are no devices
    and no addresses for them; a machine without the bus has no devices, and that is said.
    OSError or ValueError; then nothing is started.
    """
    bus = Bus(options)
    if bus.options.no_pci:
        return bus, ()
    from vhostrt.env import memmap, vtophys
    from vhostrt.env.pci import vfio
    if vtophys.mode() is not None:
        raise OSError(errno.EALREADY, "addresses for devices are already initialised")
    try:
        bus.scan()
    except OSError as error:
        log.warning(f"Scan for (pci) bus failed: {text_of(error)}")
    mode, sentence = bus.iova_mode()
    try:
        memmap.init()
        told = vtophys.init(mode, bus.options.roots)
        if mode == "va" and not vfio.probe(bus.options.roots).iommu:
            told = "no addresses for devices: ordinary pages may move, and there is no IOMMU"
        return bus, tuple(filter(None, (sentence, told)))
    except BaseException:
        stop(bus)
        raise


def stop(bus: Bus) -> None:
    """Let go of all devices, and end what start has started.  Again: nothing."""
    from vhostrt.env import memmap, vtophys
    bus.close()
    vtophys.fini()
    memmap.fini()
