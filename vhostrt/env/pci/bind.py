"""Which kernel driver has a device: changed by explicit call only.

Threads:  any; root.
Fails:    OSError with a sentence; the device then has its old driver again, where the kernel lets
          it.
"""
from __future__ import annotations

import errno
import os
import time
from fnmatch import fnmatchcase

from vhostrt.env.pci.device import USER_DRIVERS, Device, read_driver, read_text
from vhostrt.env.pci.usage import is_bridge, uses
from vhostrt.env.roots import Roots

PATIENCE_S = 2                          # some drivers are bound after the kernel has said yes


def check(device: Device, force: bool) -> None:
    """Refuse to touch a device that is in use, unless forced, and a bridge in any case."""
    if is_bridge(device):
        raise OSError(errno.EPERM, f"PCI device {device.address} is a bridge: other devices are "
                                   "reached through it")
    reasons = [] if force else uses(device)
    if reasons:
        raise OSError(errno.EBUSY, f"PCI device {device.address} is in use: {'; '.join(reasons)}; "
                                   "end that first, or say --force")
    # The kernel's own answer would come half-way.
    if not os.access(device.roots.in_sys("bus/pci/drivers_probe"), os.W_OK):
        raise OSError(errno.EPERM, "the drivers of PCI devices are changed by root only")


def write(path: str, text: str, what: str) -> None:
    """Write to a file of sysfs; OSError says what that was for."""
    try:
        with open(path, "w", encoding="ascii") as file:
            file.write(text)
    except OSError as error:
        raise OSError(error.errno, f"{what}: {path}: {error.strerror}") from error


def unbind(device: Device, force: bool = False) -> None:
    """Take the kernel driver of a device away; a device without one stays so."""
    check(device, force)
    driver = read_driver(device.path)
    if driver is not None:
        take_away(device, driver)
    device.refresh()


def becomes(device: Device, driver: str | None) -> bool:
    """Wait until a device has a driver, or none; False: it does not come to that."""
    end = time.monotonic() + PATIENCE_S
    while read_driver(device.path) != driver:
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


def take_away(device: Device, driver: str) -> None:
    """Have the kernel unbind a device, and see that it did."""
    what = f"PCI device {device.address} cannot be unbound from {driver}"
    write(os.path.join(device.path, "driver", "unbind"), str(device.address), what)
    if not becomes(device, None):
        raise OSError(errno.EBUSY, f"{what}: the kernel has kept it")


def bind(device: Device, driver: str, force: bool = False) -> None:
    """Bind a device to a kernel driver, which may be any that there is."""
    if not is_loaded(device.roots, driver):
        raise OSError(errno.ENOENT, f"there is no kernel driver {driver}: load it first (modprobe "
                                    f"{driver.replace('-', '_')})")
    old = read_driver(device.path)
    if old == driver:
        device.refresh()
        return
    check(device, force)
    if old is not None:
        take_away(device, old)
    try:
        offer(device, driver)
    except OSError:
        if old is not None:
            give_back(device, old)
        device.refresh()
        raise
    device.refresh()


def offer(device: Device, driver: str) -> None:
    """Have the kernel bind a device without a driver to this one, and see that it did."""
    what = f"PCI device {device.address} cannot be bound to {driver}"
    override = os.path.join(device.path, "driver_override")
    write(override, driver, what)
    try:
        write(device.roots.in_sys("bus/pci/drivers_probe"), str(device.address), what)
        bound = becomes(device, driver)
    finally:
        # Empty: the kernel chooses again when it is asked to.
        write(override, "\n", what)
    if not bound:
        hint = " (is there an IOMMU, and is it on?)" if driver == "vfio-pci" else ""
        raise OSError(errno.ENODEV, f"{what}: the kernel did not do it{hint}; its log tells more "
                                    "(dmesg)")


def give_back(device: Device, driver: str) -> None:
    """Bind a device to the driver it had; that it cannot be is not the news."""
    try:
        offer(device, driver)
    except OSError:
        pass


# What could be bound.

def modules_folder() -> str:
    """Return where the modules of the running kernel are."""
    return os.path.join("/lib/modules", os.uname().release)


def read_aliases(folder: str) -> list[tuple[str, str]]:
    """Return (pattern, module) of the modules for PCI devices in a folder of modules."""
    try:
        text = read_text(folder, "modules.alias")
    except OSError:
        return []
    lines = (line.split() for line in text.split("\n") if line.startswith("alias pci:"))
    return [(words[1], words[2]) for words in lines if len(words) == 3]


def candidates(device: Device, aliases: list[tuple[str, str]]) -> list[str]:
    """Return the kernel drivers that a device could have instead of its own, user drivers last."""
    try:
        text = read_text(device.path, "modalias")
    except OSError:
        text = ""
    vendor = text[:len("pci:v00000000")]
    fitting = {module for pattern, module in aliases
               if pattern.startswith((vendor, "pci:v*")) and fnmatchcase(text, pattern)}
    loaded = [name for name in USER_DRIVERS if is_loaded(device.roots, name)]
    now = plain(device.kernel_driver or "")
    return [name for name in (*sorted(fitting), *loaded) if plain(name) != now]


def is_loaded(roots: Roots, driver: str) -> bool:
    """Return whether a kernel driver for PCI devices is there."""
    return (driver not in ("", ".", "..") and "/" not in driver
            and os.path.isdir(roots.in_sys("bus/pci/drivers", driver)))


def plain(name: str) -> str:
    """Return a driver's or module's name as both are compared."""
    return name.replace("-", "_")
