"""The listening socket of a controller, and whose its path is.

A path is taken over only from a process that is gone: who is alive answers a connection. Between
that look and the new socket nobody else may do the same, so it happens under a lock of the
directory; and the new socket comes to its path by a link or a rename when it listens already, so
that a look of others never finds one that is not answered yet.

Owner:   a Listener owns its socket and, as long as it is the one that it made, the file.
Threads: the control thread.
Fails:   OSError with one sentence that says what to do.
"""
import asyncio
import errno
import fcntl
import os
import socket
import stat

from vhostrt import log
from vhostrt.values import UNIX_PATH_MAX
from vhostrt.vhost.access import Access

BACKLOG = 16
LOCK_S = 5.0                            # what we wait for others that make sockets there
LOCK_STEP_S = 0.01
NO_FOLLOW = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
told: set[str] = set()                  # directories that were warned of


class Listener:
    """A socket that listens at a path.  sock: socket.socket, not blocking; path: str."""

    def __init__(self, sock: socket.socket, path: str, inode: tuple[int, int]) -> None:
        self.sock, self.path, self.inode = sock, path, inode

    def close(self) -> None:
        """Remove the file, where it is ours yet, then listen no more: while we do, nobody takes the
        path over, whose file we might remove."""
        try:
            if inode_of(os.lstat(self.path)) == self.inode:
                os.unlink(self.path)
        except FileNotFoundError:
            pass                        # somebody else tidied up
        except OSError as error:
            log.warning(f"socket {self.path} cannot be removed: {error.strerror}")
        self.sock.close()


def inode_of(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


async def listen(path: str, access: Access) -> Listener:
    """Open a socket at an absolute path.

    OSError: EADDRINUSE when a living process has it, EEXIST when something else is there,
    ENAMETOOLONG, or why it cannot be made; ValueError for users that are not there.
    """
    if len(os.fsencode(path)) > UNIX_PATH_MAX:
        raise OSError(errno.ENAMETOOLONG, f"socket path {path} is longer than "
                                          f"{UNIX_PATH_MAX} bytes: choose a shorter one")
    folder, name = os.path.split(path)
    fd = open_folder(folder)
    try:
        await lock(fd, folder)
        return publish(f"/proc/self/fd/{fd}/", name, path, access)
    finally:
        os.close(fd)


# The directory

def look_at(folder: str) -> None:
    """Warn at the start of a directory in which no socket can be made, before somebody wants one.
    """
    try:
        fd = open_folder(folder)
        os.close(fd)
        if not os.access(folder, os.W_OK | os.X_OK, effective_ids=True):
            raise PermissionError(errno.EACCES, refusal(folder, PermissionError(
                errno.EACCES, os.strerror(errno.EACCES))))
    except OSError as error:
        log.warning(error.strerror)


def open_folder(folder: str) -> int:
    """Open a directory in which sockets may be made."""
    try:
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise OSError(error.errno, refusal(folder, error)) from None
    mode = os.fstat(fd).st_mode
    if mode & stat.S_IWOTH and not mode & stat.S_ISVTX and folder not in told:
        told.add(folder)
        log.warning(f"everybody may write to the directory {folder}, and so put a socket "
                    "of their own in the place of ours: chmod o-w, or choose another with -S")
    return fd


def refusal(folder: str, error: OSError) -> str:
    """Say why no socket can be made in a directory, and what to do."""
    what = f"the socket directory {folder}"
    if error.errno == errno.ENOENT and not os.path.isdir(folder):
        return f"{what} is not there (No such file or directory): create it, or choose another " \
               "with -S"
    if error.errno == errno.ENOTDIR:
        return f"{what} is not a directory: choose another with -S"
    if error.errno in (errno.EACCES, errno.EPERM):
        return f"{what} gives user {os.geteuid()} no right to make sockets in it " \
               f"({error.strerror}): change its owner or mode, or choose another with -S"
    return f"no socket can be made in {folder}: {error.strerror}; choose another with -S"


async def lock(fd: int, folder: str) -> None:
    """Have the directory for ourselves, among those that make sockets in it as we do."""
    for _ in range(int(LOCK_S / LOCK_STEP_S)):
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            await asyncio.sleep(LOCK_STEP_S)
    raise OSError(errno.EBUSY, f"the socket directory {folder} has been locked by another "
                               f"process for {LOCK_S:g} s: choose another with -S")


# The socket; `inside` is the directory as it is open, whatever its path leads to meanwhile

def publish(inside: str, name: str, path: str, access: Access) -> Listener:
    """Make a socket that listens, and bring it to its path. With the lock."""
    temporary = f"{inside}.vhostrt.{os.getpid()}"
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    made = False
    try:
        try:
            remove(temporary)           # of a process that had our number and was killed
            sock.bind(temporary)
        except OSError as error:
            raise OSError(error.errno, refusal(os.path.dirname(path), error)) from None
        made = True
        inode = give(temporary, path, access)
        sock.listen(BACKLOG)
        sock.setblocking(False)
        place(temporary, inside + name, path)
        return Listener(sock, path, inode)
    except BaseException:
        sock.close()
        raise
    finally:
        if made:
            remove(temporary)


def remove(path: str) -> None:
    """Remove a file, if it is there."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass


def give(temporary: str, path: str, access: Access) -> tuple[int, int]:
    """Give our new socket to whom it shall belong; nobody can connect to it yet."""
    owner, group = access.ids()
    fd = os.open(temporary, NO_FOLLOW)
    try:
        status = os.fstat(fd)
        if not stat.S_ISSOCK(status.st_mode) or status.st_uid != os.geteuid():
            raise OSError(errno.EEXIST, f"socket {path}: somebody replaced it while it was "
                                        "made: choose a directory of your own with -S")
        itself = f"/proc/self/fd/{fd}"
        if access.mode is not None:
            os.chmod(itself, access.mode)
        if (owner, group) != (-1, -1):
            try:
                os.chown(itself, owner, group)
            except OSError as error:
                whom = " and ".join(f"{kind} {word}" for kind, word in
                                    (("user", access.owner), ("group", access.group))
                                    if word is not None)
                raise OSError(error.errno, f"socket {path} cannot be given to {whom}: "
                                           f"{error.strerror}; that takes root, or a group that "
                                           "vhostrt's user is in") from None
        return inode_of(status)
    finally:
        os.close(fd)


def place(temporary: str, final: str, path: str) -> None:
    """Bring our socket to its path, over that of a dead process."""
    try:
        there = os.lstat(final)
    except FileNotFoundError:
        try:
            os.link(temporary, final, follow_symlinks=False)    # over nothing that has come there
        except FileExistsError:
            raise in_use(path) from None
        return
    if not stat.S_ISSOCK(there.st_mode):
        raise OSError(errno.EEXIST, f"{path} exists and is not a socket: remove it, or choose "
                                    "another path")
    if answers(final):
        raise in_use(path)
    os.rename(temporary, final)


def answers(path: str) -> bool:
    """Return whether a living process has a socket: all but a refusal, by a full one, too."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            return False
        except OSError:
            pass
    return True


def in_use(path: str) -> OSError:
    return OSError(errno.EADDRINUSE, f"socket {path} is in use by a running program: stop "
                                     "that, or choose another path")
