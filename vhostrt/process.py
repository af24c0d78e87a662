"""What belongs to the process as a whole: its limits, its lock, its pid file.

Threads: the control thread.
Fails:   StartError with a sentence.
"""
import fcntl
import os
import resource
import stat

from vhostrt import log

OPEN_FILES_WANTED = 1 << 20             # descriptors; a client brings some for each queue
OPEN_FILES_ENOUGH = 4096                # below it there is a warning
OPEN_FILES_LEAST = 64                   # below it parts of the program itself could not work
UNLIMITED = 2**63
CORE_LIMIT = 5 << 30                    # bytes of a core dump, as in SPDK v26.05
LOCK_NAME = "vhostrt.lock"


class StartError(Exception):
    """The program cannot start; the text is the sentence for the user, the exit status is 1."""


def reason(error: OSError) -> str:
    """Return what the system said, without the number and the path."""
    return error.strerror or str(error)


def raise_limit(which: int, wanted: int) -> int:
    """Raise a soft limit to wanted, and the hard one with it where that is allowed.

    Nothing is ever lowered. Return the soft limit now.
    """
    soft, hard = (value if value != resource.RLIM_INFINITY else UNLIMITED
                  for value in resource.getrlimit(which))
    for reachable in (wanted, min(wanted, hard)):
        if soft >= reachable:
            break
        higher = max(hard, reachable)
        try:
            resource.setrlimit(which, (reachable, higher if higher < UNLIMITED else -1))
            return reachable
        except (OSError, ValueError):
            continue
    return soft


def raise_open_files() -> None:
    """Raise the limit of open files, before any client can bring descriptors.

    Fails: StartError when it leaves too few for the program itself.
    """
    wanted = OPEN_FILES_WANTED
    try:
        with open("/proc/sys/fs/nr_open", encoding="ascii") as file:
            wanted = min(wanted, int(file.read()))
    except (OSError, ValueError):
        pass                            # no /proc: setrlimit itself knows what is too much
    limit = raise_limit(resource.RLIMIT_NOFILE, wanted)
    if limit < OPEN_FILES_LEAST:
        raise StartError(f"at most {limit} files can be open, and {OPEN_FILES_LEAST} are needed at "
                         "least: raise the limit (ulimit -n)")
    if limit < OPEN_FILES_ENOUGH:
        log.warning(f"at most {limit} files can be open, and the limit may not be raised: clients "
                    "with many queues may be turned away")


def raise_core_limit() -> None:
    """Let a crash leave a core dump of up to 5 GiB, where that is allowed."""
    raise_limit(resource.RLIMIT_CORE, CORE_LIMIT)


class Lock:
    """The lock that keeps a second instance out, held until release() or the process's end.

    The file stays: removing it would let two instances each lock a file of their own.
    """

    def __init__(self, fd: int, path: str) -> None:
        self.fd = fd
        self.path = path

    def release(self) -> None:
        """Give the lock back; nothing when it is done already."""
        if self.fd >= 0:
            os.ftruncate(self.fd, 0)
            os.close(self.fd)
            self.fd = -1


def lock_at(path: str, folder: int | None = None, option: str = "--lock-file") -> Lock:
    """Take the lock of this file (made where missing), relative to the open directory folder.

    option: what names another one, for the message.
    Fails: StartError when another process holds it, OSError when the file cannot be opened.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    name = path if folder is None else os.path.basename(path)
    fd = os.open(name, flags, 0o600, dir_fd=folder)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(fd, 0)
        os.write(fd, b"%d\n" % os.getpid())
    except BlockingIOError:
        holder = os.pread(fd, 32, 0).strip()
        os.close(fd)
        who = f" (process {holder.decode()})" if holder.isdigit() else ""
        raise StartError(f"another vhostrt{who} holds the lock {path!a}; stop it, or give "
                         f"this one its own with {option}") from None
    except BaseException:
        os.close(fd)
        raise
    return Lock(fd, path)


def lock_in_folder(folder: str, mode: int, mine_only: bool) -> Lock:
    """Take the lock in this directory, made where missing; its parent has to be there.

    mine_only: refuse a directory that others can write to or that is someone else's, for places
    where anyone may have put one. Fails: as lock_at.
    """
    try:
        os.mkdir(folder, mode)
    except FileExistsError:
        pass
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        about = os.fstat(fd)
        if mine_only and (about.st_uid != os.geteuid() or stat.S_IMODE(about.st_mode) & 0o077):
            raise StartError(f"the directory {folder!a} is not this user's alone; remove it, "
                             "or name a lock with --lock-file")
        return lock_at(os.path.join(folder, LOCK_NAME), fd)
    finally:
        os.close(fd)


def default_folders() -> list[tuple[str, bool]]:
    """Return where the lock may be, best first, and whether anyone could have made it."""
    folders = [("/run/vhostrt", False)]
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    if os.path.isabs(runtime):
        folders.append((os.path.join(runtime, "vhostrt"), True))
    temporary = os.environ.get("TMPDIR", "")
    if not os.path.isabs(temporary):
        temporary = "/tmp"
    folders.append((os.path.join(temporary, f"vhostrt-{os.geteuid()}"), True))
    return folders


def take_lock(path: str | None) -> Lock:
    """Take the lock at path, or at the first default place that can be written.

    Fails: StartError.
    """
    if path is not None:
        try:
            return lock_at(path)
        except OSError as error:
            raise StartError(f"cannot open the lock file {path!a}: {reason(error)}") from None
    refusals = []
    for folder, anyone in default_folders():
        try:
            return lock_in_folder(folder, 0o700 if anyone else 0o755, anyone)
        except OSError as error:
            refusals.append(f"{folder}: {reason(error)}")
    raise StartError("no place for the lock file, name one with --lock-file ("
                     + "; ".join(refusals) + ")")


class PidFile:
    """A file with the process id, removed at the end by the process that wrote it."""

    def __init__(self, path: str) -> None:
        """Write the file. Fails: StartError."""
        self.pid = os.getpid()
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NONBLOCK
        try:
            self.path = os.path.abspath(path)
            fd = os.open(path, flags, 0o644)
            try:
                os.write(fd, b"%d\n" % self.pid)
            finally:
                os.close(fd)
        except OSError as error:
            raise StartError(f"Couldn't create pid file {path!a}: {reason(error)}") from None

    def remove(self) -> None:
        """Remove the file if this process wrote it and it still says so."""
        try:
            with open(self.path, "rb") as file:
                ours = stat.S_ISREG(os.fstat(file.fileno()).st_mode) and file.read(32).split()
            if ours == [b"%d" % self.pid] and os.getpid() == self.pid:
                os.unlink(self.path)
        except OSError as error:
            log.warning(f"the pid file {self.path!a} stays: {reason(error)}")
