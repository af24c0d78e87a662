"""Who may use the socket of a controller: its mode and owner, and which users' processes.

Threads: any.
Fails:   ValueError with one sentence.
"""
import socket
import struct
from collections.abc import Iterable
from dataclasses import dataclass

from vhostrt.values import shown

ID_MAX = 2**32 - 2                      # 2^32 - 1 stands for none
PEER = struct.Struct("iII")             # of SO_PEERCRED: process, user, group


@dataclass(slots=True, frozen=True)
class Access:
    """What was asked for; None: as the system has it.

    mode   permissions of the socket file, 0 to 0o777; None: as the umask leaves them
    owner  its user, by name or number (str); None: that of this process
    group  its group, likewise
    peers  users (str) whose processes may connect, root only where it is named; None: all that the
           permissions let in
    """

    mode: int | None = None
    owner: str | None = None
    group: str | None = None
    peers: tuple[str, ...] | None = None

    def ids(self) -> tuple[int, int]:
        """Return the numbers of owner and group, -1 for none. Fails: ValueError."""
        return (-1 if self.owner is None else read_user(self.owner),
                -1 if self.group is None else read_group(self.group))

    def peer_ids(self) -> frozenset[int] | None:
        """Return the numbers of the users that may connect; None: all. Fails: ValueError."""
        return None if self.peers is None else frozenset(map(read_user, self.peers))

    def check(self) -> "Access":
        """Return it when all it names is there. Fails: ValueError."""
        if self.peers is not None and not self.peers:
            raise ValueError("an empty list of peers lets nobody in: name users, or leave it out")
        self.ids()
        self.peer_ids()
        return self

    def params(self) -> dict[str, object]:
        """Return what was asked for, in the words of vhost_create_blk_controller."""
        words = {"mode": None if self.mode is None else f"{self.mode:04o}", "owner": self.owner,
                 "group": self.group, "peers": None if self.peers is None else list(self.peers)}
        return {name: value for name, value in words.items() if value is not None}


def make(mode: str | None = None, owner: object = None, group: object = None,
         peers: Iterable[object] | None = None) -> Access:
    """Make an Access of the words of the command line or of an RPC. Fails: ValueError."""
    return Access(None if mode is None else read_mode(mode),
                  None if owner is None else str(owner), None if group is None else str(group),
                  None if peers is None else tuple(map(str, peers))).check()


def read_mode(text: str) -> int:
    """Read permissions in octal: "660", "0660"."""
    if not 1 <= len(text) <= 4 or set(text) - set("01234567") or int(text, 8) > 0o777:
        raise ValueError(f"mode {shown(text)} is not permissions in octal, like 0660")
    return int(text, 8)


def read_user(text: str) -> int:
    """Return the number of a user, given by name or number."""
    if text.isascii() and text.isdecimal():
        return checked("user", text)
    import pwd                          # not in a start that names none
    try:
        return pwd.getpwnam(text).pw_uid
    except (KeyError, ValueError, UnicodeEncodeError):
        raise ValueError(f"there is no user {shown(text)}: give its number, or create it") from None


def read_group(text: str) -> int:
    """Return the number of a group, given by name or number."""
    if text.isascii() and text.isdecimal():
        return checked("group", text)
    import grp
    try:
        return grp.getgrnam(text).gr_gid
    except (KeyError, ValueError, UnicodeEncodeError):
        raise ValueError(f"there is no group {shown(text)}: give its number, or create it") \
            from None


def checked(what: str, text: str) -> int:
    """Return a number that can be one of a user or group."""
    if len(text) > 10 or int(text) > ID_MAX:
        raise ValueError(f"{what} {shown(text)} is more than {ID_MAX}")
    return int(text)


def peer_of(sock: socket.socket) -> tuple[int, int]:
    """Return the process and the user at the other end of a connected unix socket."""
    pid, uid, _ = PEER.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, PEER.size))
    return pid, uid
