"""How the registers of a device are reached: its BARs, mapped, and its configuration space.

Owner:    the device, between map_device and unmap_device.
Threads:  the control thread.
Fails:    OSError with a sentence, and then nothing is left open.
"""
from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from vhostrt.env import vtophys
from vhostrt.env.mmio import Bar
from vhostrt.env.pci import config

if TYPE_CHECKING:
    from vhostrt.env.pci.device import Device, Resource
    from vhostrt.env.pci.vfio import Container

PAGE = os.sysconf("SC_PAGE_SIZE")


class Access:
    """What is open of one device: its BARs by number (None: not memory), and the rest."""

    def __init__(self, bars: list[Bar | None], config_fd: int, config_at: int, rest: ExitStack):
        self.bars = tuple(bars)
        self.config = (config_fd, config_at)    # descriptor, and where in it that space begins
        self.rest = rest

    def release(self) -> None:
        """Unmap the BARs and close what is open."""
        for bar in self.bars:
            if bar is not None:
                bar.release()
        self.rest.close()


@contextmanager
def naming(device: Device, what: str) -> Iterator[None]:
    """Say of an OSError which device it is about, and what was tried."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, f"PCI device {device.address}: {what}: "
                                   f"{error.strerror or error}") from error


def map_device(device: Device, container: Container | None) -> None:
    """Map the BARs of a device by way of the kernel driver that it is bound to.

    container: where a device of vfio-pci goes.  The device may use memory from now on.
    OSError: ENOTSUP, it is bound to no driver that leaves it to us; else what went wrong.
    """
    if device.access is not None:
        return
    if device.way == "uio":
        access = open_uio(device)
    elif device.way == "vfio" and container is not None:
        access = container.open(device)
    else:
        raise OSError(errno.ENOTSUP, f"PCI device {device.address} is bound to "
                      f"{device.kernel_driver or 'no driver'}, and not to vfio-pci or "
                      "uio_pci_generic")
    device.access = access
    try:
        with naming(device, "bus master"):
            config.set_master(device, True)
    except OSError:
        unmap_device(device)
        raise


def unmap_device(device: Device) -> None:
    """Keep a device from memory, and give back what map_device has mapped.  Again: nothing."""
    if device.access is None:
        return
    try:
        config.set_master(device, False)
    except OSError:
        pass                            # a device that was pulled out reaches no memory either
    access, device.access = device.access, None
    access.release()


def open_uio(device: Device) -> Access:
    """Map the files of sysfs that are the BARs, and hold the device's uio file open.

    When that is closed, be it because the process has died, the kernel ends the device's access
    to memory.
    """
    if vtophys.mode() == "va":
        raise OSError(errno.ENOTSUP, f"PCI device {device.address}: it is bound to "
                      f"{device.kernel_driver}, without an IOMMU, and the environment gives "
                      "devices virtual addresses: bind it to vfio-pci, or say --iova-mode pa")
    with ExitStack() as stack:
        with naming(device, "its uio file"):
            open_file(stack, uio_file(device))
        with naming(device, "its configuration space"):
            config_fd = open_file(stack, os.path.join(device.path, "config"))
        bars: list[Bar | None] = []
        for number, resource in enumerate(device.resources):
            with naming(device, f"BAR {number}"):
                bars.append(resource and map_resource(device, number, resource))
            if bars[-1] is not None:
                stack.callback(bars[-1].release)
        return Access(bars, config_fd, 0, stack.pop_all())


def open_file(stack: ExitStack, path: str) -> int:
    """Open a file to read and write; it is closed with the stack."""
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    stack.callback(os.close, fd)
    return fd


def uio_file(device: Device) -> str:
    """Return the path of the uio file of a device."""
    names = os.listdir(os.path.join(device.path, "uio"))
    if len(names) != 1:
        raise OSError(errno.ENODEV, "there is none")
    return device.roots.in_dev(names[0])


def map_resource(device: Device, number: int, resource: Resource) -> Bar:
    """Map the file of sysfs that is one BAR; the kernel maps whole pages, from their begin on."""
    fd = os.open(os.path.join(device.path, f"resource{number}"), os.O_RDWR | os.O_CLOEXEC)
    try:
        return Bar.map(fd, resource.size, physical=resource.start,
                       skip=resource.start % PAGE)
    finally:
        os.close(fd)
