"""Whether a device is in use: what would break if its kernel driver were taken away.

Threads:  any.
"""
from __future__ import annotations

import errno
import os
import re
import stat

from vhostrt.env.pci.claim import owner_of
from vhostrt.env.pci.device import BRIDGE, Device, read_number, read_text
from vhostrt.env.roots import Roots

INTERFACE_UP = 0x1                      # IFF_UP


def below(device: Device, kind: str) -> list[str]:
    """Return the names of a class (net, block) that belong to a device."""
    folder = device.roots.in_sys("class", kind)
    home = os.path.realpath(device.path) + "/"
    try:
        names = sorted(os.listdir(folder))
    except OSError:
        return []
    return [name for name in names
            if os.path.realpath(os.path.join(folder, name)).startswith(home)]


def interfaces(device: Device) -> list[str]:
    """Return the network interfaces of a device."""
    return below(device, "net")


def blocks(device: Device) -> list[str]:
    """Return the block devices of a device, disks and partitions.

    A disk of NVMe that may have several paths is listed by the name it is used by: nvme0n1 for
    the path nvme0c1n1, which is what belongs to the controller.
    """
    names = below(device, "block")
    try:
        every = sorted(os.listdir(device.roots.in_sys("class/block")))
    except OSError:
        every = []
    heads = [re.sub(r"c\d+", "", name) for name in names if re.fullmatch(r"nvme\d+c\d+n\d+", name)]
    shared = [name for name in every for head in heads
              if name == head or re.fullmatch(rf"{head}p\d+", name)]
    return sorted({name for name in names if not re.search(r"^nvme\d+c", name)} | set(shared))


def mounts(roots: Roots) -> dict[str, str]:
    """Return what is mounted: number "major:minor", and name of the device -> mount point."""
    found: dict[str, str] = {}
    try:
        lines = read_text(roots.in_proc("self"), "mountinfo").split("\n")
    except OSError:
        return {}
    for line in lines:
        fields, _, rest = line.partition(" - ")
        words, source = fields.split(" "), rest.split(" ")
        if len(words) > 4 and len(source) > 1:
            found.setdefault(words[2], words[4])
            if source[1].startswith("/dev/"):
                found.setdefault(os.path.basename(os.path.realpath(source[1])), words[4])
    return found


def swaps(roots: Roots) -> set[str]:
    """Return the names of the block devices that are swapped to."""
    try:
        lines = read_text(roots.proc, "swaps").split("\n")[1:]
    except OSError:
        return set()
    return {os.path.basename(line.split()[0]) for line in lines if line.strip()}


def block_use(roots: Roots, name: str, mounted: dict[str, str], swapped: set[str]) -> str:
    """Return how a block device is used, as an end of a sentence; "" when it is not."""
    folder = roots.in_sys("class/block", name)
    try:
        number = read_text(folder, "dev")
    except OSError:
        number = ""
    place = mounted.get(number) or mounted.get(name)
    if place:
        return f"is mounted at {place}"
    if name in swapped:
        return "is swapped to"
    try:
        holders = sorted(os.listdir(os.path.join(folder, "holders")))
    except OSError:
        holders = []
    if holders:
        return f"is used by {', '.join(holders)}"
    return "is open for one user alone" if is_taken(roots.in_dev(name)) else ""


def is_taken(path: str) -> bool:
    """Return whether somebody, a file system say, has a block device for itself."""
    try:
        if not stat.S_ISBLK(os.stat(path).st_mode):
            return False
        os.close(os.open(path, os.O_RDONLY | os.O_EXCL | os.O_NONBLOCK | os.O_CLOEXEC))
    except OSError as error:
        return error.errno == errno.EBUSY
    return False


def uses(device: Device) -> list[str]:
    """Return why a device is in use, one part of a sentence each; none when it is not."""
    roots = device.roots
    found = []
    for name in interfaces(device):
        flags = read_number(roots.in_sys("class/net", name), "flags", default=0)
        if flags & INTERFACE_UP:
            found.append(f"network interface {name} is up")
    disks = blocks(device)
    if disks:
        mounted, swapped = mounts(roots), swaps(roots)
        for name in disks:
            use = block_use(roots, name, mounted, swapped)
            if use:
                found.append(f"{name} {use}")
    owner = owner_of(device.address)
    if owner is not None:
        found.append(f"process {owner} has claimed it")
    return found


def is_bridge(device: Device) -> bool:
    """Return whether a device is what other devices are reached through."""
    return device.class_code >> 16 == BRIDGE
