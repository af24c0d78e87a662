"""Tracing as the program offers it: which points are on, and the file that entries go to.

The file is made when the first point is turned on: /dev/shm/vhostrt_trace.pid<process>, or
.<shared memory id>. It is removed at the end of the program and stays after a crash; vhostrt-trace
reads it.

Threads: the control thread.
Fails:   OSError and ValueError with a sentence.
"""
import errno
import fcntl
import os
import stat
import struct

from vhostrt.event import trace
from vhostrt.values import read_hex, shown

FOLDER = "/dev/shm"
ALL = (1 << 64) - 1
FLOCK = struct.Struct("hhqqi4x")        # struct flock: type, whence, start, length, process
TRIES = 10                              # at a name that others make and remove


def known_groups() -> dict[str, trace.Group]:
    """Return the groups there are, by name, in the order of their numbers."""
    # Importing a module registers its points.
    from vhostrt.bdev import core  # noqa: F401
    from vhostrt.event import loop_trace, scheduler_trace  # noqa: F401
    from vhostrt.vhost import blk  # noqa: F401
    return {group.name: group for group in trace.groups()}


def named(group: trace.Group) -> str:
    return f"{group.name} ({1 << group.number:#x})"


def read_choice(text: str) -> dict[str, int]:
    """Read what -e says: a comma list of group, mask, group:mask or group:name+name.

    Return the points that are meant of each group, a bit each.  "all" stands for every group.
    Fails: ValueError, which names the groups, or the points of the group, that there are.
    """
    chosen: dict[str, int] = {}
    for part in text.split(","):
        word, colon, points = part.partition(":")
        groups = read_groups(word)
        if colon and len(groups) != 1:
            raise ValueError(f"{shown(part)} names points of no single group")
        for group in groups:
            mask = read_points(group, points) if colon else ALL
            chosen[group.name] = chosen.get(group.name, 0) | mask
    return chosen


def read_groups(word: str) -> list[trace.Group]:
    """Read the name of a group, "all", or a mask of groups.  ValueError."""
    groups = known_groups()
    if word == "all":
        return list(groups.values())
    if word in groups:
        return [groups[word]]
    there = f"there are {', '.join(map(named, groups.values()))}"
    try:
        mask = read_hex(word)
    except ValueError:
        raise ValueError(f"{shown(word)} is no trace group and no mask of them; {there}") from None
    meant = [group for group in groups.values() if mask >> group.number & 1]
    if mask and not meant:
        raise ValueError(f"the mask {shown(word)} names no trace group; {there}")
    return meant


def read_points(group: trace.Group, text: str) -> int:
    """Read names of a group's points, with + between them, or a mask of them.  ValueError."""
    numbers = {point.name: point.number for point in group.points}
    there = f"group {group.name} has {', '.join(numbers)}"
    mask = 0
    for word in text.split("+"):
        if word in numbers:
            mask |= 1 << numbers[word]
            continue
        try:
            mask |= read_hex(word)
        except ValueError:
            raise ValueError(f"{shown(word)} is no trace point and no mask of them; {there}"
                             ) from None
    if not 0 < mask <= ALL or not any(mask >> number & 1 for number in numbers.values()):
        raise ValueError(f"the mask {shown(text)} names no trace point; {there}")
    return mask


class Tracing:
    """The trace of one run.

    entries: of the ring of each core, a power of two; 0: there is no tracing; None: 32768.
    shm_id: int or None, names the file.  lcores: those that run.
    """

    def __init__(self, lcores: list[int], entries: int | None = None, shm_id: int | None = None,
                 folder: str = FOLDER) -> None:
        self.lcores = lcores
        self.entries = trace.ENTRIES if entries is None else entries
        public = shm_id is not None and shm_id >= 0
        suffix = str(shm_id) if public else f"pid{os.getpid()}"
        self.reader_words = f"-i {shm_id}" if public else f"-p {os.getpid()}"
        self.path = os.path.join(folder, f"vhostrt_trace.{suffix}") if self.entries else ""
        self.fd = -1                    # of the file, from the first point that is on

    def masks(self) -> dict[str, int]:
        """Return for each group the points that are on, a bit each."""
        known_groups()
        return trace.masks()

    def turn_on(self, chosen: dict[str, int]) -> None:
        """Turn points on, a bit each for each group, and the rest stays as it is.

        Fails: KeyError for a group that is none; OSError when the file cannot be made.
        """
        if any(chosen.values()) and self.fd < 0:
            self.open()
        masks = self.masks()
        for group, mask in chosen.items():
            trace.set_mask(group, masks[group] | mask)

    def turn_off(self, chosen: dict[str, int]) -> None:
        """Turn points off, as turn_on turns them on."""
        masks = self.masks()
        for group, mask in chosen.items():
            trace.set_mask(group, masks[group] & ~mask)

    def clear(self) -> None:
        """Have readers forget what was written so far."""
        trace.clear()

    def open(self) -> None:
        """Make the file.  Fails: OSError."""
        from vhostrt.event import thread
        if not self.entries:
            raise OSError(errno.ENODEV, "there is no tracing, as the program was started with "
                          "--num-trace-entries 0")
        check_room(self.path, trace.file_bytes(len(self.lcores) + 1, self.entries), self.entries)
        fd = make_file(self.path)
        try:
            trace.create(fd, self.lcores, self.entries,
                         [(light.id, light.name) for light in thread.threads()])
        except BaseException as error:
            os.unlink(self.path)
            os.close(fd)
            if isinstance(error, OSError):
                raise OSError(error.errno, f"trace file {self.path} cannot be made: "
                              f"{error.strerror}") from None
            raise
        self.fd = fd

    def close(self) -> bool:
        """Trace no more and remove the file, when no core runs any more.

        Return whether the file was whole until now.  Fails: OSError.
        """
        if self.fd < 0:
            return True
        whole = not trace.cut()
        trace.close()
        if is_file(self.path, self.fd):
            os.unlink(self.path)
        os.close(self.fd)
        self.fd = -1
        return whole


# The file and its name.

def check_room(path: str, size: int, entries: int) -> None:
    """Refuse a trace that its file system has no room for.  Fails: OSError."""
    folder = os.path.dirname(path)
    try:
        about = os.statvfs(folder)
    except OSError as error:
        raise OSError(error.errno, f"no trace can be kept in {folder}: {error.strerror}") from None
    free = about.f_bavail * about.f_frsize
    if size > free:
        raise OSError(errno.ENOSPC, f"a trace of {entries} entries for each core may take "
                      f"{size >> 20} MiB and {folder} has {free >> 20} MiB free: give fewer with "
                      "--num-trace-entries")


def lock(fd: int) -> bool:
    """Take the lock that tells readers that the program runs; return whether it was free."""
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0))
    except (BlockingIOError, PermissionError):
        return False
    return True


def is_file(path: str, fd: int) -> bool:
    """Return whether this name is still that of the open file."""
    try:
        named, held = os.lstat(path), os.fstat(fd)
    except OSError:
        return False
    return (named.st_dev, named.st_ino) == (held.st_dev, held.st_ino)


def make_file(path: str) -> int:
    """Make an empty file with the lock taken, in the place of one that a dead process left.

    Fails: OSError.
    """
    flags = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
    for _ in range(TRIES):
        try:
            fd = os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o600)
            if lock(fd) and is_file(path, fd):
                return fd
            os.close(fd)                # another process came in between
        except FileExistsError:
            remove_stale(path, flags)
        except OSError as error:
            raise OSError(error.errno, f"trace file {path} cannot be made: {error.strerror}"
                          ) from None
    raise OSError(errno.EBUSY, f"trace file {path} is made and removed by others all the time")


def remove_stale(path: str, flags: int) -> None:
    """Remove the file of a process that has ended.  Fails: OSError for any other file."""
    try:
        fd = os.open(path, flags | os.O_NONBLOCK)
    except FileNotFoundError:
        return
    except OSError as error:
        raise OSError(error.errno, f"trace file {path} is there and cannot be opened: "
                      f"{error.strerror}; remove it") from None
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError(errno.EEXIST, f"{path} is no file; remove it")
        if not lock(fd):
            raise OSError(errno.EBUSY, f"trace file {path} is in use by another process: give this "
                          "one an id of its own with -i")
        if is_file(path, fd):
            os.unlink(path)
    finally:
        os.close(fd)
