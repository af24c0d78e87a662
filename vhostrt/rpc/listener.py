"""Listening sockets of the RPC server and others: unix paths, each with a lock beside it, and TCP.

Owner:    the lock file says whose a path is.  A path is taken over only from a dead program.
Fails:    OSError whose text is one sentence with the address in it.
"""
import asyncio
import errno
import fcntl
import os
import socket
import stat

from vhostrt.rpc.address import split_address
from vhostrt.values import UNIX_PATH_MAX, shown

LOCK_TRIES = 16


class Listener:
    """One bound socket, not yet listening.  address: str; sock: socket.socket, owned."""

    def __init__(self, address: str, sock: socket.socket):
        self.address = address
        self.sock = sock

    def close(self) -> None:
        self.sock.close()


class UnixListener(Listener):
    """A socket at a path.  close() removes it and its lock, while they are this program's.

    what: whose socket it is, for errors.
    """

    def __init__(self, path: str, mode: int, owner: tuple[int, int], what: str):
        if len(os.fsencode(path)) > UNIX_PATH_MAX:
            raise OSError(errno.ENAMETOOLONG,
                          f"{what} socket path {shown(path)} is longer than {UNIX_PATH_MAX} bytes")
        self.lock_path = path + ".lock"
        self.lock_fd = take_lock(path, self.lock_path, what)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            remove_stale(path, what)
            bind(sock, path, path, what)
            # Nobody can connect before it listens, so there is no moment with another mode.
            give(path, owner, what)
            os.chmod(path, mode)
            self.stat = os.lstat(path)
        except BaseException:
            sock.close()
            self._drop_lock()
            raise
        super().__init__(path, sock)

    def close(self) -> None:
        super().close()
        try:
            if os.path.samestat(self.stat, os.lstat(self.address)):
                os.unlink(self.address)
        except FileNotFoundError:
            pass                        # somebody else tidied up
        self._drop_lock()

    def _drop_lock(self) -> None:
        # Removed while it is held: who waits for it sees that the file is no longer there.
        try:
            os.unlink(self.lock_path)
        except FileNotFoundError:
            pass
        os.close(self.lock_fd)


def take_lock(path: str, lock_path: str, what: str) -> int:
    """Return a descriptor that holds the lock of the socket `path`; EADDRINUSE when it is taken."""
    for _ in range(LOCK_TRIES):
        try:
            fd = os.open(lock_path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        except OSError as e:
            # Where several users may write, it is most likely another's.
            hint = "; choose another" if e.errno == errno.EACCES else ""
            raise OSError(e.errno, f"{what} socket {shown(path)} cannot be made: its lock file "
                          f"{shown(lock_path)}: {e.strerror}{hint}") from None
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(fd), os.lstat(lock_path)):
                return fd
        except BlockingIOError:
            os.close(fd)
            raise in_use(path, what) from None
        except FileNotFoundError:
            pass
        os.close(fd)                    # its last owner removed this file meanwhile
    raise in_use(path, what)


def in_use(address: str, what: str) -> OSError:
    return OSError(errno.EADDRINUSE,
                   f"{what} socket {shown(address)} is in use by a running program: choose "
                   "another")


def remove_stale(path: str, what: str) -> None:
    """Remove the socket that a dead program left; OSError for anything else that is there."""
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise OSError(errno.EEXIST, f"{what} socket {shown(path)} cannot be made: there is a "
                          "file of that name that is no socket")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
        except OSError:
            pass                        # somebody is there, and busy or not for us
    raise in_use(path, what)


def give(path: str, owner: tuple[int, int], what: str) -> None:
    """Give a socket to a user and a group; -1 leaves it."""
    if owner == (-1, -1):
        return
    try:
        os.chown(path, *owner)
    except OSError as e:
        whom = [f"{kind} {number}" for kind, number in zip(("user", "group"), owner, strict=True)
                if number != -1]
        raise OSError(e.errno, f"{what} socket {shown(path)} cannot be given to "
                      f"{' and '.join(whom)}: {e.strerror}; without root it can be given to groups "
                      "that the user is in") from None


def bind(sock: socket.socket, where, address: str, what: str) -> None:
    try:
        sock.bind(where)
    except OSError as e:
        raise OSError(e.errno, f"{what} address {shown(address)} cannot be listened on: "
                      f"{os.strerror(e.errno)}") from None


async def open_tcp(address: str, what: str) -> Listener:
    """Return a Listener for `host[:port]`, at the first address that the host's name has."""
    host, port = split_address(address, what)
    try:
        found = await asyncio.get_running_loop().getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (socket.gaierror, UnicodeError) as e:
        why = e.strerror if isinstance(e, OSError) else "not a host name"
        raise OSError(errno.EADDRNOTAVAIL,
                      f"{what} address {shown(address)} cannot be looked up: {why} "
                      "(the path of a unix socket has a slash in it)") from None
    family, kind, protocol, _, where = found[0]
    sock = socket.socket(family, kind, protocol)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        bind(sock, where, address, what)
    except BaseException:
        sock.close()
        raise
    return Listener(address, sock)


async def open_listener(address: str, mode: int, owner: tuple[int, int] = (-1, -1),
                        what: str = "RPC") -> Listener:
    """Bind an address: one with a slash is the path of a unix socket.

    mode: its permissions.  owner: its user and group, -1 the process's own.  what: whose it is, for
    errors.
    """
    if "/" in address:
        return UnixListener(address, mode, owner, what)
    return await open_tcp(address, what)
