"""Claims of CPUs against other polled-mode programs, SPDK's among them.

A CPU is claimed by a write lock on /var/tmp/spdk_cpu_lock_NNN, the file that SPDK locks, too, with
the process id in it as four bytes of a C int. The lock is of the process (fcntl): it goes with the
last of its threads, and would go with any descriptor of the file that the process closes, so each
file is opened once and only here.

Threads: the control thread.
Fails:   Claimed when another process has the CPU; what keeps a file from being used at all is
         told in a sentence and is no failure.
"""
import errno
import fcntl
import os
import re
import stat
import struct

from vhostrt import log
from vhostrt.env.cpus import cpu_list

FOLDER = "/var/tmp"
PID = struct.Struct("=i")
TRIES = 10                              # at a name that others make and remove


class Claimed(Exception):
    """Another process has claimed a CPU; the text is the sentence for the user."""

    def __init__(self, cpu: int, pid: int) -> None:
        self.cpu = cpu
        self.holder = f"probably process {pid}" if pid else "another process"
        super().__init__(f"Cannot create lock on core {cpu}, {self.holder} has claimed it: give "
                         "others with -m, or share it with --disable-cpumask-locks")


class CoreLocks:
    """The CPUs of one run.  held: CPU -> descriptor of the file that is locked for it."""

    def __init__(self, cpus: frozenset[int], folder: str = FOLDER) -> None:
        self.cpus = cpus
        self.folder = folder
        self.held: dict[int, int] = {}

    def path(self, cpu: int) -> str:
        return os.path.join(self.folder, f"spdk_cpu_lock_{cpu:03d}")

    def claim(self) -> str:
        """Claim every CPU that is not claimed yet; all of them, or none more than before.

        A CPU whose file cannot be used is left unclaimed: return a sentence about that, or "".
        Fails: Claimed.
        """
        before = set(self.held)
        refusals: dict[int, OSError] = {}
        try:
            for cpu in sorted(self.cpus - before):
                try:
                    self.held[cpu] = lock_file(self.path(cpu), cpu)
                except OSError as error:
                    refusals[cpu] = error
        except Claimed:
            for cpu in set(self.held) - before:
                self.give_back(cpu)
            raise
        if not refusals:
            return ""
        first, refusal = next(iter(refusals.items()))
        return (f"core {cpu_list(refusals)} is not claimed against other programs, as "
                f"{self.path(first)} cannot be locked: {refusal.strerror}")

    def release(self) -> None:
        """Give all CPUs back, and remove their files."""
        for cpu in sorted(self.held):
            self.give_back(cpu)

    def give_back(self, cpu: int) -> None:
        fd, path = self.held.pop(cpu), self.path(cpu)
        try:
            if same_file(path, fd):
                os.unlink(path)         # first: who locks it afterwards would lock nothing
        except OSError as error:
            log.warning(f"the lock file {path} stays: {error.strerror}")
        os.close(fd)


def lock_file(path: str, cpu: int) -> int:
    """Lock a CPU's file, made where missing; return its descriptor.

    Fails: Claimed; OSError when there can be no such file, or it is somebody else's and not locked.
    """
    for _ in range(TRIES):
        try:
            fd = open_file(path)
        except PermissionError:
            holder = holder_of(path)
            if holder is None:
                raise
            raise Claimed(cpu, holder) from None
        try:
            check_file(fd)
            fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if same_file(path, fd):     # else its last owner has just removed it
                os.ftruncate(fd, PID.size)
                os.pwrite(fd, PID.pack(os.getpid()), 0)
                return fd
        except (BlockingIOError, PermissionError):
            # Of lockf: POSIX leaves the choice between the two.
            pid = written_pid(fd) or holder_of(path) or 0
            os.close(fd)
            raise Claimed(cpu, pid) from None
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)
    raise OSError(errno.EAGAIN, "others make and remove it all the time")


def open_file(path: str) -> int:
    """Open a lock file as it is, or make it.  Fails: OSError."""
    flags = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    while True:
        try:
            # Without O_CREAT: in a directory of everybody's the kernel refuses that for a file of
            # another user, to root as well.
            return os.open(path, flags)
        except FileNotFoundError:
            pass
        try:
            return os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            continue


def check_file(fd: int) -> None:
    """Refuse what somebody has put there in place of a lock file: it would be written to."""
    about = os.fstat(fd)
    if not stat.S_ISREG(about.st_mode) or about.st_nlink > 1:
        raise OSError(errno.EINVAL, "it is no file of its own")


def same_file(path: str, fd: int) -> bool:
    """Return whether this name is still that of the open file.  Fails: OSError."""
    try:
        named, held = os.lstat(path), os.fstat(fd)
    except FileNotFoundError:
        return False
    return (named.st_dev, named.st_ino) == (held.st_dev, held.st_ino)


def written_pid(fd: int) -> int:
    """Return the process that a lock file names, or 0."""
    data = os.pread(fd, PID.size, 0)
    return max(0, PID.unpack(data)[0]) if len(data) == PID.size else 0


def holder_of(path: str) -> int | None:
    """Return the process that has a write lock on a file (0: one that cannot be seen), or None.

    For files that may not be opened: the kernel lists all locks to everybody.
    """
    try:
        about = os.lstat(path)
        with open("/proc/locks", encoding="ascii") as file:
            lines = file.read().splitlines()
    except OSError:
        return None
    place = (f"{os.major(about.st_dev):02x}:{os.minor(about.st_dev):02x}:{about.st_ino}")
    for line in lines:
        if found := re.fullmatch(r"\d+: (?:POSIX|OFDLCK) +\w+ +WRITE (-?\d+) (\S+) .*", line):
            if found[2] == place:
                return max(0, int(found[1]))
    return None
