"""Configuration space: numbers of 8, 16 and 32 bits, little-endian, at a byte offset.

Fails:    OSError with a sentence: outside of what the system lets us see, or refused by it.
"""
from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vhostrt.env.pci.device import Device

COMMAND = 0x04                          # register of 16 bits
COMMAND_MEMORY = 0x2                    # the device answers at its BARs
COMMAND_MASTER = 0x4                    # the device may read and write memory
SIZE = 4096                             # bytes of the largest configuration space


def check(device: Device, offset: int, width: int) -> None:
    """Refuse a place that no register has."""
    if width not in (1, 2, 4) or not 0 <= offset <= SIZE - width or offset % width:
        raise OSError(errno.EINVAL, f"PCI device {device.address}: there is no register of "
                                    f"{width * 8} bits at {offset:#x} of the configuration space")


@contextmanager
def opened(device: Device, flags: int) -> Iterator[tuple[int, int]]:
    """Give a descriptor, and where in it the configuration space begins."""
    if device.access is not None:
        yield device.access.config
        return
    fd = os.open(os.path.join(device.path, "config"), flags | os.O_CLOEXEC)
    try:
        yield fd, 0
    finally:
        os.close(fd)


def read(device: Device, offset: int, width: int) -> int:
    """Return the register of `width` bytes (1, 2 or 4) at a byte offset."""
    check(device, offset, width)
    with opened(device, os.O_RDONLY) as (fd, start):
        data = os.pread(fd, width, start + offset)
    if len(data) != width:
        raise OSError(errno.EACCES, f"PCI device {device.address}: the configuration space at "
                                    f"{offset:#x} can be read by root only, or is not there")
    return int.from_bytes(data, "little")


def write(device: Device, offset: int, width: int, value: int) -> None:
    """Write the register of `width` bytes (1, 2 or 4) at a byte offset."""
    check(device, offset, width)
    if not 0 <= value < 1 << 8 * width:
        raise OSError(errno.EINVAL, f"PCI device {device.address}: {value} does not fit in a "
                                    f"register of {8 * width} bits")
    with opened(device, os.O_RDWR) as (fd, start):
        done = os.pwrite(fd, value.to_bytes(width, "little"), start + offset)
    if done != width:
        raise OSError(errno.EIO, f"PCI device {device.address}: the configuration space at "
                                 f"{offset:#x} was not written")


def set_master(device: Device, on: bool) -> None:
    """Let a device read and write memory, and answer at its BARs, or take the former back."""
    command = read(device, COMMAND, 2)
    wanted = command | COMMAND_MASTER | COMMAND_MEMORY if on else command & ~COMMAND_MASTER
    if wanted != command:
        write(device, COMMAND, 2, wanted)
