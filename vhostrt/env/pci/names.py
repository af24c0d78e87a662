"""What PCI devices are called: from the list pci.ids of the distribution, where there is one."""
from __future__ import annotations

from collections.abc import Iterable

from vhostrt.env.pci.device import Device

PLACES = ("/usr/share/misc/pci.ids", "/usr/share/hwdata/pci.ids", "/usr/share/pci.ids",
          "/var/lib/pciutils/pci.ids")
# By base class and subclass, for a device that the list does not have.
CLASSES = {
    0x0100: "SCSI controller", 0x0101: "IDE interface", 0x0104: "RAID controller",
    0x0106: "SATA controller", 0x0107: "SAS controller", 0x0108: "NVMe controller",
    0x0180: "Storage controller", 0x0200: "Ethernet controller", 0x0280: "Network controller",
    0x0300: "VGA controller", 0x0302: "3D controller", 0x0403: "Audio device",
    0x0500: "RAM memory", 0x0600: "Host bridge", 0x0601: "ISA bridge", 0x0604: "PCI bridge",
    0x0680: "Bridge", 0x0700: "Serial controller", 0x0780: "Communication controller",
    0x0880: "System peripheral", 0x0c03: "USB controller", 0x0c05: "SMBus",
    0x1080: "Encryption controller", 0x1180: "Signal processing controller",
    0x1200: "Processing accelerator",
}


def open_list(places: Iterable[str]):
    """Return the first list that can be opened, or None."""
    for place in places:
        try:
            return open(place, encoding="utf-8", errors="replace")
        except OSError:
            continue
    return None


def look_up(devices: Iterable[Device], places: Iterable[str] = PLACES) -> dict[tuple, str]:
    """Return (vendor, device) -> name for those of the devices that the list has."""
    wanted = {(device.vendor, device.device) for device in devices}
    found: dict[tuple, str] = {}
    file = open_list(places)
    if file is None:
        return found
    vendor = -1
    with file:
        for line in file:
            # Vendors begin in the first column, their devices after one tab; classes come last.
            if line.startswith("C "):
                break
            tabs = len(line) - len(line.lstrip("\t"))
            code, _, name = line.strip().partition("  ")
            if tabs > 1 or len(code) != 4 or line.startswith("#"):
                continue
            try:
                number = int(code, 16)
            except ValueError:
                continue
            if tabs == 0:
                vendor = number
            elif (vendor, number) in wanted:
                found[vendor, number] = name
    return found


def name_of(device: Device, listed: dict[tuple, str]) -> str:
    """Return the name of a device, with its number behind as dpdk-devbind shows it."""
    name = listed.get((device.vendor, device.device))
    if name is not None:
        return f"{name} {device.device:04x}"
    kind = CLASSES.get(device.class_code >> 8, "Device")
    return f"{kind} {device.vendor:04x}:{device.device:04x}"
