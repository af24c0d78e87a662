"""Where the processes of one environment meet: the file of its record, and who owns it.

<runtime directory>/<prefix>/config is the record. The primary process holds its lock, by one
descriptor that it keeps; the lock of the directory is held only while somebody finds out who is
primary.

Threads: the control thread.
Fails:   OSError with a sentence; ValueError for a prefix that cannot be a name.
"""
import errno
import fcntl
import os
import stat

from vhostrt.values import shown

RECORD = "config"
PREFIX_MAX = 64                         # characters


def candidates() -> list[tuple[str, bool]]:
    """Return where the directory may be, best first, and whether anyone could have made it."""
    places = [("/run/vhostrt", False)] if os.geteuid() == 0 else []
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    if os.path.isabs(runtime):
        places.append((os.path.join(runtime, "vhostrt"), True))
    temporary = os.environ.get("TMPDIR", "")
    if not os.path.isabs(temporary):
        temporary = "/tmp"
    places.append((os.path.join(temporary, f"vhostrt-{os.geteuid()}"), True))
    return places


def open_directory(path: str, mine_only: bool, make: bool) -> int:
    """Open a directory, made where missing if so asked; return the descriptor. Fails: OSError."""
    if make:
        try:
            os.mkdir(path, 0o700)
        except FileExistsError:
            pass
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    about = os.fstat(fd)
    if mine_only and (about.st_uid != os.geteuid() or stat.S_IMODE(about.st_mode) & 0o077):
        os.close(fd)
        raise OSError(errno.EPERM, "it is not this user's alone")
    return fd


def open_meeting(prefix: str, make: bool) -> tuple[int, str]:
    """Open the directory of a prefix; return its descriptor and path.

    make: have it where it is not yet. Fails: OSError, ENOENT when it is nowhere.
    """
    refusals = []
    for path, anyone in candidates():
        own = os.path.join(path, prefix)
        try:
            os.close(open_directory(path, anyone, make))
            return open_directory(own, True, make), own
        except OSError as error:
            refusals.append((error.errno, f"{own}: {error.strerror}"))
    code = next((code for code, _ in refusals if code != errno.ENOENT), errno.ENOENT)
    raise OSError(code, f"no directory for the processes of {prefix}: "
                        + "; ".join(text for _, text in refusals))


def enter_meeting(prefix: str, make: bool) -> tuple[int, str]:
    """As open_meeting, with the lock of the directory taken. Fails: OSError."""
    while True:
        folder, path = open_meeting(prefix, make)
        fcntl.flock(folder, fcntl.LOCK_EX)
        if os.fstat(folder).st_nlink:
            return folder, path
        os.close(folder)                # who was here before us has taken it away


def check_prefix(prefix: str) -> None:
    """Raise ValueError for a prefix that cannot be the name of a directory and of files."""
    if not prefix or len(prefix) > PREFIX_MAX:
        raise ValueError(f"prefix of files {shown(prefix)}: it has {len(prefix)} characters, not 1 "
                         f"to {PREFIX_MAX}")
    if prefix in (".", ".."):
        raise ValueError(f"prefix of files {shown(prefix)}: it cannot be the name of a directory")
    for char in "/%\0":
        if char in prefix:
            raise ValueError(f"prefix of files {prefix!a}: it must not contain {char!a}")


class Claim:
    """A process's place among those of one prefix, made by claim(); kept until release().

    primary   whether it is the primary process
    fd        of the record: its own, new and empty, or that of the primary process
    dead      descriptor of the record that a dead primary process has left, or -1
    """

    def __init__(self, prefix: str, folder: int, path: str) -> None:
        self.prefix = prefix
        self.folder = folder
        self.path = path
        self.primary = False
        self.fd = -1
        self.dead = -1
        self.pid = os.getpid()

    def open_record(self) -> int:
        """Open the record there is; -1: there is none."""
        try:
            return os.open(RECORD, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=self.folder)
        except FileNotFoundError:
            return -1

    def make_record(self) -> None:
        """Put a new record in the place of what is there, with its lock taken before it is seen."""
        fresh = f"{RECORD}.{os.getpid()}"
        try:
            os.unlink(fresh, dir_fd=self.folder)
        except FileNotFoundError:
            pass
        self.fd = os.open(fresh, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600,
                          dir_fd=self.folder)
        fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.rename(fresh, RECORD, src_dir_fd=self.folder, dst_dir_fd=self.folder)
        self.primary = True

    def alive(self) -> bool:
        """True while a primary process holds the record that this process has open."""
        fcntl.flock(self.folder, fcntl.LOCK_EX)
        try:
            return held(self.fd)
        finally:
            fcntl.flock(self.folder, fcntl.LOCK_UN)

    def forget_dead(self) -> None:
        """Close what a dead primary process has left; its files have been seen to."""
        if self.dead >= 0:
            os.close(self.dead)
            self.dead = -1

    def remove_record(self) -> None:
        """Remove the record unless it is another's by now, and the directory with it."""
        there = self.open_record()
        if there < 0:
            return
        if os.path.sameopenfile(there, self.fd):
            os.unlink(RECORD, dir_fd=self.folder)
            try:
                os.rmdir(os.path.dirname(self.path))
            except OSError:
                pass                    # something else is in it
        os.close(there)

    def release(self) -> None:
        """Give the place up; a primary process takes its record away.  In a forked child: nothing.
        """
        if self.folder < 0 or self.pid != os.getpid():
            return
        self.forget_dead()
        fcntl.flock(self.folder, fcntl.LOCK_EX)
        if self.primary and self.fd >= 0:
            self.remove_record()
        if self.fd >= 0:
            os.close(self.fd)
        os.close(self.folder)
        self.fd = self.folder = -1


def held(fd: int) -> bool:
    """True when another descriptor has the lock of this file."""
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    fcntl.flock(fd, fcntl.LOCK_UN)
    return False


def claim(prefix: str, proc_type: str, pid_of) -> Claim:
    """Take the place that a process is to have: primary, secondary, or with auto what is free.

    pid_of: a function from the descriptor of a record to the process id in it, 0 without.
    Fails: OSError EBUSY when there is a primary process already, ESRCH when there is none to
    attach to; and of the system.
    """
    check_prefix(prefix)
    folder, path = -1, ""
    try:
        folder, path = enter_meeting(prefix, proc_type != "secondary")
    except OSError as error:
        if proc_type == "secondary" and error.errno == errno.ENOENT:
            raise nobody(prefix) from None
        raise
    mine = Claim(prefix, folder, os.path.join(path, RECORD))
    try:
        there = mine.open_record()
        if there >= 0 and held(there):
            mine.fd = there
            if proc_type == "primary":
                raise busy(prefix, mine.path, pid_of(there))
        elif proc_type == "secondary":
            mine.dead = there
            raise nobody(prefix)
        else:
            mine.dead = there
            mine.make_record()
        fcntl.flock(folder, fcntl.LOCK_UN)
        return mine
    except BaseException:
        mine.release()
        raise


def nobody(prefix: str) -> OSError:
    return OSError(errno.ESRCH, f"there is no primary process of {prefix} to attach to: start it "
                                "first, with the same id or --file-prefix")


def busy(prefix: str, path: str, pid: int) -> OSError:
    who = f"process {pid}" if pid else "another process"
    return OSError(errno.EBUSY, f"{who} is the primary process of {prefix} (it holds {path}): "
                                "attach with --proc-type=secondary or auto, or take another id")
