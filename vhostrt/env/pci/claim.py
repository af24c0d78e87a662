"""Claims: one process at a time uses a PCI device.

The file of a device and its lock are SPDK's, so that its programs and ours see each other.

Threads:  the control thread.
Fails:    OSError with a sentence.
"""
from __future__ import annotations

import errno
import fcntl
import os
import struct

from vhostrt.env.pci.address import Address

DIRECTORY = "/var/tmp"
PID = struct.Struct("i")
# struct flock: type, whence, start, length, pid
FLOCK = struct.Struct("hhqqi4x")

# A lock of this kind ends when the process closes any descriptor of the file, so that there is
# exactly one, and it is never opened a second time.
held: dict[str, Claim] = {}


class Claim:
    """A device that is ours until release.  It ends with the process too."""

    def __init__(self, path: str, fd: int):
        self.path = path
        self.fd = fd
        self.pid = os.getpid()

    def release(self) -> None:
        """Give the device up; its file goes.  Again, or in a forked child: nothing."""
        if held.get(self.path) is self and self.pid == os.getpid():
            del held[self.path]
            # While it is locked, so that it is not another's by then.
            if same_file(self.path, self.fd):
                os.unlink(self.path)
            os.close(self.fd)


def claim(address: Address, directory: str = DIRECTORY) -> Claim:
    """Claim a device.

    OSError EACCES: another process has it, or this one, and the sentence names it; else the file
    cannot be made.
    """
    path = path_of(address, directory)
    if is_ours(path):
        raise refused(address, os.getpid())
    while True:
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise OSError(error.errno, f"PCI device {address} cannot be claimed: {path}: "
                                       f"{error.strerror}") from error
        try:
            lock(fd, address)
            # Its owner may have removed it between our two steps; then the lock is of no file.
            if same_file(path, fd):
                os.ftruncate(fd, PID.size)
                os.pwrite(fd, PID.pack(os.getpid()), 0)
                held[path] = Claim(path, fd)
                return held[path]
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)


def is_ours(path: str) -> bool:
    """Return whether this process has the lock of a file; a forked child has not its parent's."""
    return path in held and held[path].pid == os.getpid()


def path_of(address: Address, directory: str = DIRECTORY) -> str:
    """Return the file of a device."""
    return os.path.join(directory, f"spdk_pci_lock_{address}")


def owner_of(address: Address, directory: str = DIRECTORY) -> int | None:
    """Return the process that has claimed a device, also this one; None: nobody has."""
    path = path_of(address, directory)
    if is_ours(path):
        return os.getpid()
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        return locked_by(fd)
    finally:
        os.close(fd)


def locked_by(fd: int) -> int | None:
    """Return the process that has an open file locked; None: there is none."""
    asked = FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
    kind, _, _, _, owner = FLOCK.unpack(fcntl.fcntl(fd, fcntl.F_GETLK, asked))
    if kind == fcntl.F_UNLCK:
        return None
    # What the file says counts when the system does not know: in another namespace it is 0.
    written = os.pread(fd, PID.size, 0)
    return PID.unpack(written)[0] if owner <= 0 and len(written) == PID.size else owner


def lock(fd: int, address: Address) -> None:
    """Lock the open file of a device; OSError EACCES names the process that has it."""
    try:
        fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        raise refused(address, locked_by(fd) or 0) from None


def refused(address: Address, owner: int) -> OSError:
    """Return the error of a device that has an owner."""
    return OSError(errno.EACCES, f"PCI device {address}: probably process {owner} has claimed it; "
                                 "end that one first, or use another device")


def same_file(path: str, fd: int) -> bool:
    """Return whether a path still leads to an open file."""
    try:
        return os.path.samestat(os.stat(path, follow_symlinks=False), os.fstat(fd))
    except FileNotFoundError:
        return False
