"""Drivers of PCI devices, and the ids of what they drive."""
from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from vhostrt.env.pci.device import Device

ANY = -1                                # an id that fits whatever the device has


class Id(NamedTuple):
    """What a driver can drive: each number is the device's, or ANY."""

    vendor: int = ANY
    device: int = ANY
    subsystem_vendor: int = ANY
    subsystem_device: int = ANY
    class_code: int = ANY               # base class, subclass, interface: 0x010802 is NVMe

    def fits(self, device: Device) -> bool:
        """Return whether a device has these ids."""
        has = (device.vendor, device.device, device.subsystem_vendor, device.subsystem_device,
               device.class_code)
        return all(want in (ANY, got) for want, got in zip(self, has, strict=True))


class Driver:
    """What a driver is derived from, and registered on a bus as one object.

    Owner:    who made it; the bus keeps it while it is registered.
    Threads:  the control thread calls probe and remove.
    """

    name = "driver"
    ids: tuple[Id, ...] = ()
    needs_mapping = True                # the BARs are mapped before probe is called
    takes_virtual = True                # its devices can be given virtual addresses (IOVA = VA)

    def fits(self, device: Device) -> bool:
        """Return whether the table of ids has one for this device."""
        return any(entry.fits(device) for entry in self.ids)

    def probe(self, device: Device) -> int | None:
        """Take a device.

        None or 0: it is ours until remove.  Greater: it is not, and the next driver is asked.
        Less, or an exception: nobody shall have it.
        """
        return 1

    def remove(self, device: Device) -> None:
        """Let go of a device that probe has taken.

        Afterwards its BARs are unmapped and its claim is given up.
        """
