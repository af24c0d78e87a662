"""Huge pages as the kernel shows them: sizes, counts, NUMA nodes, mounts, and the files in those.

Threads: any; nothing is kept between calls.
Fails:   OSError with a sentence that names the size, the node or the directory.
"""
import errno
import fcntl
import os
import stat
from typing import NamedTuple

from vhostrt.env.roots import SYSTEM, Roots

KIB, MIB, GIB = 2**10, 2**20, 2**30
SIZES = ("kernel", "mm", "hugepages")
NODES = ("devices", "system", "node")
UNITS = {"K": KIB, "M": MIB, "G": GIB, "T": 2**40}
# The kernel writes these characters of a mount point in octal.
OCTAL = {"\\040": " ", "\\011": "\t", "\\012": "\n", "\\043": "#", "\\134": "\\"}


class PageSize(NamedTuple):
    """One size of huge pages."""

    size: int                   # bytes
    total: int                  # pages, whoever uses them
    free: int                   # pages, the reserved ones among them
    reserved: int               # pages promised to a mapping that has not touched them yet
    surplus: int                # pages above what was asked for, which go when they are free
    mounts: tuple[str, ...]     # hugetlbfs mount points of this size, in the order of the mounts

    @property
    def available(self) -> int:
        """Pages that a new mapping can have."""
        return max(self.free - self.reserved, 0)


def size_text(size: int) -> str:
    """Write a page size as people say it: 2 MiB, 1 GiB."""
    for unit, name in ((GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")):
        if size % unit == 0:
            return f"{size // unit} {name}"
    return f"{size} bytes"


def failure(error: OSError, what: str) -> OSError:
    """Make the OSError of a failed call: what it was about, then what the system said."""
    return OSError(error.errno, f"{what}: {error.strerror}")


def read_count(path: str) -> int:
    """Return the number in a file; 0 when there is none."""
    try:
        with open(path, encoding="ascii") as file:
            return int(file.read())
    except (OSError, ValueError):
        return 0


def numbers_in(directory: str, before: str, behind: str = "") -> list[int]:
    """Return, ascending, the numbers between two texts in the names of a directory's entries."""
    try:
        names = os.listdir(directory)
    except OSError:
        return []
    middles = (name[len(before):len(name) - len(behind)] for name in names
               if name.startswith(before) and name.endswith(behind))
    return sorted(int(text) for text in middles if text.isascii() and text.isdigit())


def sizes(roots: Roots = SYSTEM) -> list[int]:
    """Return the sizes that the kernel knows, in bytes, largest first; none without huge pages."""
    found = numbers_in(roots.in_sys(*SIZES), "hugepages-", "kB")
    return [size * KIB for size in reversed(found)]


def default_size(roots: Roots = SYSTEM) -> int:
    """Return the default size in bytes, as /proc/meminfo has it.

    Fails: OSError when it cannot be read, or the kernel has no huge pages.
    """
    path = roots.in_proc("meminfo")
    try:
        with open(path, encoding="ascii") as file:
            for line in file:
                words = line.split()
                if words[:1] == ["Hugepagesize:"]:
                    return int(words[1]) * KIB
    except (OSError, ValueError, IndexError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise OSError(errno.ENOENT, f"the size of huge pages in {path}: {why}") from None
    raise OSError(errno.ENOENT, f"{path} has no Hugepagesize: the kernel has no huge pages")


def option_size(options: str, default: int) -> int:
    """Return the page size of a mount's options, in bytes; 0 for one that cannot be read."""
    for option in options.split(","):
        name, _, text = option.partition("=")
        if name == "pagesize":
            unit = UNITS.get(text[-1:].upper(), 0)
            digits = text[:-1] if unit else text
            return int(digits) * (unit or 1) if digits.isascii() and digits.isdigit() else 0
    return default


def mount_sizes(roots: Roots = SYSTEM) -> list[tuple[str, int]]:
    """Return (mount point, page size in bytes) of each hugetlbfs, in the order of the mounts."""
    try:
        default = default_size(roots)
        with open(roots.in_proc("mounts"), encoding="utf-8", errors="surrogateescape") as file:
            rows = [line.split(" ") for line in file]
    except OSError:
        return []
    return [(plain(row[1]), option_size(row[3], default)) for row in rows
            if len(row) > 3 and row[2] == "hugetlbfs"]


def plain(path: str) -> str:
    """Undo the octal that the kernel writes for blanks and the like in a path."""
    if "\\" not in path:
        return path
    first, *rest = path.split("\\")
    return first + "".join(OCTAL.get("\\" + part[:3], "\\" + part[:3]) + part[3:] for part in rest)


def scan(roots: Roots = SYSTEM) -> list[PageSize]:
    """Return every size of huge pages, largest first; an empty list without huge pages."""
    mounts = mount_sizes(roots)
    return [PageSize(size, *(read_count(counter(size, name, None, roots)) for name in
                             ("nr_hugepages", "free_hugepages", "resv_hugepages",
                              "surplus_hugepages")),
                     tuple(path for path, of in mounts if of == size))
            for size in sizes(roots)]


def counter(size: int, name: str, node: int | None, roots: Roots) -> str:
    """Return the path of a count of one size, on one node or of all."""
    folder = f"hugepages-{size // KIB}kB"
    if node is None:
        return roots.in_sys(*SIZES, folder, name)
    return roots.in_sys(*NODES, f"node{node}", "hugepages", folder, name)


def nodes(roots: Roots = SYSTEM) -> list[int]:
    """Return the NUMA nodes, ascending; only node 0 on a kernel without."""
    return numbers_in(roots.in_sys(*NODES), "node") or [0]


def node_counts(size: int, roots: Roots = SYSTEM) -> dict[int, tuple[int, int]]:
    """Return NUMA node -> (total, free) pages of one size; all on node 0 without NUMA."""
    if not numbers_in(roots.in_sys(*NODES), "node"):
        return {0: (read_count(counter(size, "nr_hugepages", None, roots)),
                    read_count(counter(size, "free_hugepages", None, roots)))}
    return {node: (read_count(counter(size, "nr_hugepages", node, roots)),
                   read_count(counter(size, "free_hugepages", node, roots)))
            for node in nodes(roots)}


def mount_of(size: int, directory: str | None = None, roots: Roots = SYSTEM) -> str | None:
    """Return the first mount of a page size, or `directory` when that is one; None without.

    A directory below a mount point is none: only the mount point itself counts.
    """
    wanted = None if directory is None else os.path.normpath(directory)
    for path, of in mount_sizes(roots):
        if of == size and wanted in (None, path):
            return path
    return None


def set_reserved(size: int, count: int, node: int | None = None, roots: Roots = SYSTEM) -> int:
    """Ask the kernel for so many pages in all, on one node or anywhere; return how many there are.

    It may give fewer when memory is short or scattered, and keeps more when they are in use.
    Fails: OSError for a size or node that does not exist, and without the right to ask.
    """
    path = counter(size, "nr_hugepages", node, roots)
    where = "" if node is None else f" on NUMA node {node}"
    if size not in sizes(roots):
        there = ", ".join(map(size_text, sizes(roots))) or "none at all"
        raise OSError(errno.ENOENT, f"the kernel has no huge pages of {size_text(size)}; it has "
                                    f"{there}")
    if node is not None and node not in nodes(roots):
        raise OSError(errno.ENODEV, f"there is no NUMA node {node}")
    had = -1
    try:
        while True:
            with open(path, "w", encoding="ascii") as file:
                file.write(str(count))
            there = read_count(path)
            # The kernel has made room meanwhile; as long as that helps, ask again.
            if there == count or had >= 0 and abs(count - there) >= abs(count - had):
                return there
            had = there
    except OSError as error:
        raise failure(error, f"the number of huge pages of {size_text(size)}{where} cannot be "
                             "set") from None


def lock_directory(path: str) -> int:
    """Take the exclusive lock of a hugetlbfs directory, waiting for it; return the descriptor.

    Who starts holds it from the look at the free pages until it has its own. Closing the
    descriptor gives it back. Fails: OSError.
    """
    fd = -1
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        fcntl.flock(fd, fcntl.LOCK_EX)
        return fd
    except OSError as error:
        if fd >= 0:
            os.close(fd)
        raise failure(error, f"hugepage directory {path} cannot be locked") from None


def clear_directory(path: str) -> list[str]:
    """Remove the files *map_* that no living process holds a lock on; return their names.

    A file that cannot be opened, or is no file, stays. Fails: OSError for the directory itself.
    """
    try:
        folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise failure(error, f"hugepage directory {path} cannot be read") from None
    try:
        return [name for name in sorted(os.listdir(folder))
                if "map_" in name and remove_unlocked(name, folder)]
    finally:
        os.close(folder)


def remove_unlocked(name: str, folder: int) -> bool:
    """Remove one file of an open directory unless somebody holds its lock; whether it is gone."""
    try:
        fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK,
                     dir_fd=folder)
    except OSError:
        return False
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            return False
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # The name may be a newer file's by now, of somebody who lives.
        if not os.path.samestat(os.fstat(fd), os.stat(name, dir_fd=folder, follow_symlinks=False)):
            return False
        os.unlink(name, dir_fd=folder)
        return True
    except OSError:
        return False
    finally:
        os.close(fd)
