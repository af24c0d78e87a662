"""The short way to serve a disk: what --disk says."""
from dataclasses import dataclass, replace
from typing import Any

from vhostrt.values import UNIX_PATH_MAX, read_bytes, shown

ACCESS = ("mode", "owner", "group", "peers")
SETTINGS = ("name", "socket", *ACCESS)
BLOCK_SIZE = 512                        # bytes; the sector of virtio-blk


@dataclass(slots=True, frozen=True)
class Disk:
    """One disk: a bdev, and a vhost-user-blk controller in front of it.

    kind      "malloc" or "file"
    size      bytes of a malloc disk, 0 for a file (its own size counts)
    path      path of the file, "" for malloc
    name      name of the bdev; "" until name_disks gives one
    socket    name of the controller: a socket in the -S directory, or a path; as name
    readonly  the guest may not write
    access    who may use the socket: words of mode, owner, group and peers, as they were given
    """

    kind: str
    size: int = 0
    path: str = ""
    name: str = ""
    socket: str = ""
    readonly: bool = False
    access: tuple[tuple[str, Any], ...] = ()


def split_spec(text: str) -> list[str]:
    """Split at single commas; a doubled comma stands for one comma."""
    parts = [""]
    for piece in text.split(",,"):
        first, *more = piece.split(",")
        parts[-1] += first
        parts += more
        parts[-1] += ","
    parts[-1] = parts[-1][:-1]
    return parts


def read_disk(text: str) -> Disk:
    """Read `malloc:SIZE` or `[file:]PATH`, then `,name=N`, `,socket=S`, `,ro`, `,mode=0660`,
    `,owner=USER`, `,group=GROUP`, `,peers=USER:USER` in any order.

    Fails: ValueError with a sentence that names the part.
    """
    what, *settings = split_spec(text)
    given: dict[str, Any] = {"kind": "file", "path": what.removeprefix("file:")}
    if what.startswith("malloc:"):
        size = read_bytes(what.removeprefix("malloc:"))
        if size == 0 or size % BLOCK_SIZE:
            raise ValueError(f"{shown(what)} is not a whole number of {BLOCK_SIZE}-byte blocks")
        given = {"kind": "malloc", "size": size}
    elif not given["path"]:
        raise ValueError(f"{shown(text)} names no file")
    for setting in settings:
        key, _, value = setting.partition("=")
        if setting == "ro":
            key = "readonly"
        elif key not in SETTINGS or not value:
            raise ValueError(f"{shown(setting)} in {shown(text)} is none of name=NAME, "
                             "socket=NAME, mode=0660, owner=USER, group=GROUP, peers=USER:USER "
                             "and ro (a comma in a path is written twice)")
        if key in given:
            raise ValueError(f"{shown(setting)} in {shown(text)} says the same thing again")
        given[key] = value or True
    who = {key: given.pop(key) for key in ACCESS if key in given}
    if who:
        check_access(who)
    return Disk(**given, access=tuple(who.items()))


def check_access(who: dict[str, Any]) -> None:
    """Refuse users and permissions that cannot be; peers becomes a tuple. Fails: ValueError."""
    from vhostrt.vhost import access    # its sockets, only where somebody asks for them
    if "peers" in who:
        who["peers"] = tuple(who["peers"].split(":"))
    access.make(**who)


def name_disks(disks: tuple[Disk, ...], socket_dir: str) -> tuple[Disk, ...]:
    """Give nameless disks the first free of Disk0, Disk1, ... and sockets vhost.0, vhost.1, ...

    Fails: ValueError when two disks share a name or a socket, or a socket's path is too long.
    """
    named = []
    for attribute, pattern in (("name", "Disk{}"), ("socket", "vhost.{}")):
        values = [getattr(disk, attribute) for disk in disks]
        taken = set(values)
        fresh = (word for word in map(pattern.format, range(2 * len(disks))) if word not in taken)
        values = [value or next(fresh) for value in values]
        for value in values:
            if values.count(value) > 1:
                raise ValueError(f"two disks have the {attribute} {shown(value)}")
        named.append(values)
    for socket in named[1]:
        path = socket if socket.startswith("/") else socket_dir + socket
        if len(path.encode("utf-8", "surrogateescape")) > UNIX_PATH_MAX:
            raise ValueError(f"socket path {shown(path)} is longer than {UNIX_PATH_MAX} bytes")
    return tuple(replace(disk, name=name, socket=socket)
                 for disk, name, socket in zip(disks, *named, strict=True))


def qemu_words(sockets: list[str]) -> str:
    """Return the arguments of QEMU that attach the disks at these sockets to a virtual machine.

    The guest's memory has to be shared with the program that serves its disks.
    """
    words = ["-m 1G -object memory-backend-memfd,id=mem,size=1G,share=on -numa node,memdev=mem"]
    for number, socket in enumerate(sockets):
        path = socket.replace(",", ",,")        # QEMU's own way to write a comma
        words.append(f"-chardev socket,id=disk{number},path={quote(path)} "
                     f"-device vhost-user-blk-pci,chardev=disk{number}")
    return " ".join(words)


def quote(text: str) -> str:
    """Quote text for a shell where it needs it."""
    if text and all(char.isascii() and (char.isalnum() or char in "@%+=:,./-_") for char in text):
        return text
    return "'" + text.replace("'", "'\"'\"'") + "'"
