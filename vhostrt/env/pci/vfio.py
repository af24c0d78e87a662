"""Devices of vfio-pci: the container that they share, their groups, their regions.

Owner:    the bus has the container, from its first device to its last.
Threads:  the control thread.
Fails:    OSError with a sentence, and then nothing is left open.
"""
from __future__ import annotations

import errno
import fcntl
import os
import struct
from contextlib import ExitStack
from typing import TYPE_CHECKING, NamedTuple

from vhostrt.env import vtophys
from vhostrt.env.mmio import Bar
from vhostrt.env.pci.access import Access, naming, open_file
from vhostrt.env.pci.device import read_text
from vhostrt.env.roots import Roots

if TYPE_CHECKING:
    from vhostrt.env.pci.device import Device

# <linux/vfio.h>: _IO(';', 100 + n)
GET_API_VERSION, CHECK_EXTENSION, SET_IOMMU, GROUP_GET_STATUS = range(0x3b64, 0x3b68)
GROUP_SET_CONTAINER, GROUP_GET_DEVICE_FD, DEVICE_GET_REGION_INFO = 0x3b68, 0x3b6a, 0x3b6c
TYPE1, TYPE1_V2, NOIOMMU = 1, 3, 8                          # kinds of IOMMU
GROUP_VIABLE = 1
REGION_MMAP, REGION_CAPS = 4, 8
SPARSE_MMAP = 1                                             # id of a region's capability
REGION = struct.Struct("IIIIQQ")                            # struct vfio_region_info
CONFIG_REGION = 7                                           # BARs are 0 to 5, and 6 the ROM


class Support(NamedTuple):
    """What VFIO of this system can do for us, and one sentence about it."""

    iommu: bool                         # there is one, so that devices can take virtual addresses
    bare: bool                          # devices without one can be had: no-IOMMU mode
    sentence: str


def probe(roots: Roots) -> Support:
    """Look for VFIO and try it; nothing stays open."""
    if not os.path.isdir(roots.in_sys("module/vfio_pci")):
        return Support(False, False, "VFIO is not there: the module vfio-pci is not loaded")
    path = roots.in_dev("vfio/vfio")
    try:
        with ExitStack() as stack:
            fd = open_file(stack, path)
            version = fcntl.ioctl(fd, GET_API_VERSION)
            kinds = [kind for kind in (TYPE1_V2, TYPE1, NOIOMMU)
                     if fcntl.ioctl(fd, CHECK_EXTENSION, kind)]
    except OSError as error:
        return Support(False, False, f"VFIO cannot be used: {path}: {error.strerror}")
    if version != 0:
        return Support(False, False, f"VFIO cannot be used: its API has version {version}, not 0")
    # The kinds are those of loaded modules; whether there is an IOMMU, its groups tell.
    iommu = bool({TYPE1, TYPE1_V2}.intersection(kinds)) and has_groups(roots)
    if not iommu and NOIOMMU not in kinds:
        return Support(False, False, "VFIO cannot be used: there is no IOMMU (is it on in the "
                       "firmware, and with intel_iommu=on on the kernel's command line?)")
    return Support(iommu, NOIOMMU in kinds,
                   "VFIO support initialized" + ("" if iommu else " (no-IOMMU mode)"))


def has_groups(roots: Roots) -> bool:
    """Return whether an IOMMU of this system has devices."""
    folder = roots.in_sys("kernel/iommu_groups")
    try:
        names = os.listdir(folder)
    except OSError:
        return False
    return any(read_name(os.path.join(folder, name)) != "vfio-noiommu" for name in names)


def read_name(folder: str) -> str:
    """Return the name that the kernel gave to a group; mostly it gives none."""
    try:
        return read_text(folder, "name")
    except OSError:
        return ""


def group_of(device: Device) -> tuple[str, bool]:
    """Return the file of a device's group, and whether it is one without an IOMMU; OSError."""
    with naming(device, "its IOMMU group"):
        number = os.path.basename(os.readlink(os.path.join(device.path, "iommu_group")))
    bare = device.roots.in_dev("vfio", f"noiommu-{number}")
    return (bare, True) if os.path.exists(bare) else (device.roots.in_dev("vfio", number), False)


class Region(NamedTuple):
    """A part of a device's descriptor: its registers behind one BAR, say."""

    flags: int
    size: int
    offset: int
    whole: bool                         # it can be mapped as a whole

    def map(self, fd: int, physical: int) -> Bar:
        """Map it; OSError."""
        if not self.flags & REGION_MMAP or not self.whole:
            raise OSError(errno.ENOTSUP, "vfio-pci does not let it be mapped, or in parts only")
        return Bar.map(fd, self.size, self.offset, physical)


def region_of(fd: int, number: int) -> Region:
    """Ask for a region of a device."""
    data = bytearray(REGION.pack(REGION.size, 0, number, 0, 0, 0))
    fcntl.ioctl(fd, DEVICE_GET_REGION_INFO, data)
    wanted, flags, _, _, size, offset = REGION.unpack(data)
    whole = True
    if flags & REGION_CAPS and wanted > REGION.size:
        data = bytearray(REGION.pack(wanted, 0, number, 0, 0, 0)) + bytes(wanted - REGION.size)
        fcntl.ioctl(fd, DEVICE_GET_REGION_INFO, data)
        whole = SPARSE_MMAP not in capabilities(data, REGION.unpack_from(data)[3])
    return Region(flags, size, offset, whole)


def capabilities(data: bytes | bytearray, at: int) -> set[int]:
    """Return the ids of the chain of capabilities that begins at an offset; 0: there is none."""
    found = set()
    while 0 < at <= len(data) - 8:
        identity, _, behind = struct.unpack_from("HHI", data, at)
        found.add(identity)
        at = behind if behind > at else 0
    return found


class Group:
    """A group of devices that an IOMMU cannot tell apart, open; how many devices use it."""

    def __init__(self, fd: int):
        self.fd = fd
        self.users = 0


class Container:
    """One address space for all devices of vfio-pci.

    It is open while it has devices.  When its IOMMU is a real one, memory of the environment is
    mapped in it meanwhile (vtophys.start_dma).
    """

    def __init__(self, roots: Roots, vf_token: str | None = None):
        self.roots = roots
        self.vf_token = vf_token        # UUID that a physical function asks of its virtual ones
        self.fd = -1
        self.groups: dict[str, Group] = {}

    def open(self, device: Device) -> Access:
        """Open a device and map its BARs."""
        path, bare = group_of(device)
        if bare and vtophys.mode() == "va":
            raise OSError(errno.ENOTSUP, f"PCI device {device.address}: it has no IOMMU (no-IOMMU "
                          "mode), and the environment gives devices virtual addresses: say "
                          "--iova-mode pa")
        with ExitStack() as stack:
            group = self.join(device, path, bare)
            stack.callback(self.leave, path)
            with naming(device, f"VFIO group {path}"):
                fd = fcntl.ioctl(group.fd, GROUP_GET_DEVICE_FD, self.device_name(device))
            stack.callback(os.close, fd)
            bars: list[Bar | None] = []
            for number, resource in enumerate(device.resources):
                with naming(device, f"BAR {number}"):
                    bars.append(resource and region_of(fd, number).map(fd, resource.start))
                if bars[-1] is not None:
                    stack.callback(bars[-1].release)
            with naming(device, "its configuration space"):
                config_at = region_of(fd, CONFIG_REGION).offset
            return Access(bars, fd, config_at, stack.pop_all())

    def device_name(self, device: Device) -> bytearray:
        """Return how GROUP_GET_DEVICE_FD is told which device is wanted.

        Only when it can be written to is what ioctl returns the descriptor.
        """
        token = f" vf_token={self.vf_token}" if self.vf_token else ""
        return bytearray(f"{device.address}{token}\0".encode())

    def join(self, device: Device, path: str, bare: bool) -> Group:
        """Return the group of a device as a part of the container, opened when it is not yet."""
        group = self.groups.get(path)
        if group is None:
            with ExitStack() as undo:
                if not self.groups:
                    with naming(device, "VFIO"):
                        self.fd = os.open(self.roots.in_dev("vfio/vfio"), os.O_RDWR | os.O_CLOEXEC)
                    undo.callback(self.close)
                with naming(device, f"VFIO group {path}"):
                    fd = open_file(undo, path)
                self.add(device, path, fd, bare)
                undo.pop_all()
            group = self.groups[path] = Group(fd)
        group.users += 1
        return group

    def add(self, device: Device, path: str, fd: int, bare: bool) -> None:
        """Put an open group into the container; the first one brings its IOMMU."""
        with naming(device, f"VFIO group {path}"):
            status = bytearray(struct.pack("II", 8, 0))
            fcntl.ioctl(fd, GROUP_GET_STATUS, status)
        if not struct.unpack("II", status)[1] & GROUP_VIABLE:
            raise OSError(errno.EPERM, f"PCI device {device.address}: its VFIO group {path} cannot "
                          "be used: bind all its devices to vfio-pci, or to no driver")
        with naming(device, f"VFIO group {path}"):
            fcntl.ioctl(fd, GROUP_SET_CONTAINER, struct.pack("i", self.fd))
            if not self.groups:
                self.set_iommu(bare)
                if not bare:
                    vtophys.start_dma(self.fd)

    def set_iommu(self, bare: bool) -> None:
        """Choose the kind of IOMMU of the container."""
        for kind in (NOIOMMU,) if bare else (TYPE1_V2, TYPE1):
            if fcntl.ioctl(self.fd, CHECK_EXTENSION, kind):
                fcntl.ioctl(self.fd, SET_IOMMU, kind)
                return
        raise OSError(errno.ENOTSUP, "VFIO knows no kind of IOMMU that fits")

    def leave(self, path: str) -> None:
        """Give a device's share of its group back; the last one closes the container."""
        group = self.groups[path]
        group.users -= 1
        if group.users:
            return
        del self.groups[path]
        try:
            if not self.groups:
                vtophys.stop_dma()
        finally:
            # The kernel takes what mappings there may be left.
            os.close(group.fd)
            if not self.groups:
                self.close()

    def close(self) -> None:
        """Close the container's descriptor."""
        os.close(self.fd)
        self.fd = -1
