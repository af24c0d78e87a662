"""Reading of a trace file: of a program that runs, or of one that has ended.

The file says itself what is in it. Nothing in it is trusted: it may be cut short, be something
else, be written to while it is read, or have been made up. It is read, never mapped, so that a
file that shrinks is an error and not a signal.

Owner:   a TraceFile has its descriptor; it is a context manager.
Threads: any, one at a time for each TraceFile.
Fails:   TraceError with a sentence, for whatever is wrong with the file.
Source:  pyx/vhostrt/event/trace.h
"""
import fcntl
import os
import stat
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple, Self

import msgspec

from vhostrt.log import printable

FOLDER = "/dev/shm"
PREFIX = "vhostrt_trace."
MAGIC, VERSION = b"VHTRACE\0", 1
CONTROL = 0xffffffff                    # instead of an lcore: the ring of the control thread
POINTS = 64                             # of a group
ENTRIES_MAX = 1 << 24                   # of a ring
RINGS_MAX = 1025
OWNERS = 4096
TEXT_MAX = 1 << 20
PAGE = 4096
CHUNK = 2048                            # entries that are copied at once
WINDOW = 1 << 20                        # entries that are copied before any is looked at

HEADER = struct.Struct("=8s6I6Q4I32s32Q")
ENTRY = struct.Struct("=IHHQQII4Q")
RING = struct.Struct("=IIQ48xQ")
OWNER = struct.Struct("=Q56s")
FLOCK = struct.Struct("hhqqi4x")


class TraceError(Exception):
    """A trace cannot be read; the text is the sentence for the user."""


class PointText(msgspec.Struct):
    """A trace point as the description has it; see Point of vhostrt.event.trace."""

    number: int
    name: str
    args: list[tuple[str, str]]
    object: str
    role: str
    size: str


class GroupText(msgspec.Struct):
    name: str
    number: int
    points: list[PointText]


class DescriptionText(msgspec.Struct):
    groups: list[GroupText]


@dataclass(slots=True, frozen=True)
class Argument:
    """One word of an entry.  kind: "int", "signed", "hex", "text" or "ticks"; names: by value, or
    ()."""

    name: str
    kind: str
    names: tuple[str, ...]

    def value(self, word: int) -> int | str:
        """Return what a word (unsigned 64 bits) says."""
        if self.names:
            return (self.names[word] if word < len(self.names) else "") or word
        if self.kind == "signed":
            return word - (1 << 64) if word >> 63 else word
        if self.kind == "hex":
            return f"{word:#x}"
        if self.kind == "text":
            return printable(word.to_bytes(8, "little").rstrip(b"\0").decode(errors="replace"))
        return word


@dataclass(slots=True, frozen=True)
class Point:
    """A trace point.  Its fields are those of vhostrt.event.trace.Point, and the group's name."""

    group: str
    name: str
    args: tuple[Argument, ...] = ()
    object: str = ""
    role: str = ""
    size: str = ""


class Event(NamedTuple):
    """One entry of a ring.  object: 64 bits that tell one object from another."""

    tsc: int
    lcore: int
    point: Point
    owner: str
    object: int
    size: int
    words: tuple[int, ...]

    def arguments(self) -> dict[str, int | str]:
        """Return the size and the arguments by name, but for the duration of a span."""
        found: dict[str, int | str] = {self.point.size: self.size} if self.point.size else {}
        for argument, word in zip(self.point.args, self.words, strict=False):
            if argument.kind != "ticks":
                found[argument.name] = argument.value(word)
        return found


@dataclass(slots=True)
class Ring:
    """A ring and how far it has been read.

    read  entries given out.  lost  entries overwritten before they could be read, or torn: the
    writer was at them, or died there.
    """

    lcore: int
    at: int                             # offset of its page
    next: int = 0                       # index of the entry to be read next
    read: int = 0
    lost: int = 0


@dataclass(slots=True)
class TraceFile:
    """An open trace.  Made by open_trace."""

    path: str
    fd: int
    pid: int = 0
    program: str = ""
    tsc_hz: int = 1
    start_tsc: int = 0
    start_unix_ns: int = 0
    entries: int = 0                    # of a ring
    owners_at: int = 0
    text_at: int = 0
    rings: list[Ring] = field(default_factory=list)
    groups: dict[str, int] = field(default_factory=dict)        # name -> number
    points: dict[int, Point] = field(default_factory=dict)
    owners: dict[int, str] = field(default_factory=dict)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        os.close(self.fd)

    def copy(self, size: int, at: int, what: str) -> bytes:
        """Return `size` bytes of the file."""
        try:
            data = os.pread(self.fd, size, at)
        except OSError as error:
            raise TraceError(f"{self.path!a} cannot be read: {error.strerror}") from None
        if len(data) != size:
            raise TraceError(f"{self.path!a} ends at byte {at + len(data)}, in the middle of "
                             f"{what}: it was cut short")
        return data

    def wrong(self, what: str) -> TraceError:
        return TraceError(f"{self.path!a} is no trace that can be read: {what}")

    def runs(self) -> bool:
        """Return whether the program that writes the file still does: it holds a lock on it."""
        asked = FLOCK.pack(fcntl.F_RDLCK, os.SEEK_SET, 0, 0, 0)
        try:
            answer = fcntl.fcntl(self.fd, fcntl.F_OFD_GETLK, asked)
        except OSError:
            return False
        return bool(FLOCK.unpack(answer)[0] != fcntl.F_UNLCK)

    def points_on(self) -> list[str]:
        """Return what is traced now, each as -e of vhostrt takes it."""
        masks = HEADER.unpack(self.copy(HEADER.size, 0, "its header"))[-32:]
        found = []
        for name, number in self.groups.items():
            names = {tpoint % POINTS: point.name for tpoint, point in self.points.items()
                     if tpoint // POINTS == number}
            on = [text for bit, text in sorted(names.items()) if masks[number] >> bit & 1]
            if on:
                found.append(name if len(on) == len(names) else f"{name}:{'+'.join(on)}")
        return found

    def us(self, tsc: int) -> float:
        """Return microseconds from the start of the trace to a reading of the clock."""
        return (tsc - self.start_tsc) * 1e6 / self.tsc_hz

    def events(self) -> list[Event]:
        """Return what has been written since the last call, or all there is, by time."""
        self.read_description()
        found = [event for ring in self.rings for event in self.ring_events(ring)]
        found.sort(key=lambda event: event.tsc)
        return found

    def ring_events(self, ring: Ring) -> Iterator[Event]:
        whole = list(self.read_ring(ring))
        self.read_owners()              # now: those of threads that are named in what was read
        for _, tpoint, _, tsc, obj, owner, size, *words in whole:
            yield Event(tsc, ring.lcore, self.point(tpoint), self.owner(ring.lcore, owner), obj,
                        size, tuple(words))

    def read_ring(self, ring: Ring) -> Iterator[tuple[int, ...]]:
        """Yield the entries (as ENTRY unpacks them) of a ring that are whole, oldest first."""
        _, _, cleared, end = RING.unpack(self.copy(RING.size, ring.at, "a ring"))
        first = max(ring.next, cleared)
        start = max(first, end - self.entries)
        ring.lost += start - first
        ring.next = max(end, ring.next)
        for window in range(start, end, WINDOW):
            # The writer does not wait: copying comes first, and has no Python in its loop.
            copies = list(self.copy_entries(ring, window, min(end, window + WINDOW)))
            for lap, data, stamps in copies:
                for entry, stamp in zip(ENTRY.iter_unpack(data), stamps, strict=True):
                    if entry[0] == stamp == lap:
                        ring.read += 1
                        yield entry
                    else:
                        ring.lost += 1

    def copy_entries(self, ring: Ring, start: int,
                     end: int) -> Iterator[tuple[int, bytes, list[int]]]:
        """Yield (stamp, copy of some entries, the stamps they have afterwards) for a range.

        An entry is whole if its stamp before and after is the one of its lap: a writer that came
        in between has left 0 or the next lap's.
        """
        while start < end:
            slot = start % self.entries
            count = min(CHUNK, end - start, self.entries - slot)
            at = ring.at + PAGE + slot * ENTRY.size
            data = self.copy(count * ENTRY.size, at, "a ring")
            again = memoryview(self.copy(count * ENTRY.size, at, "a ring"))
            lap = start // self.entries + 1 & 0xffffffff
            yield lap, data, again.cast("I")[::ENTRY.size // 4].tolist()
            start += count

    def point(self, tpoint: int) -> Point:
        """Return a trace point by its id, or one in its place when the file does not tell it."""
        found = self.points.get(tpoint)
        if found is None:
            group, number = divmod(tpoint, POINTS)
            name = next((name for name, n in self.groups.items() if n == group), f"group{group}")
            found = self.points[tpoint] = Point(name, f"{name}:{number}")
        return found

    def owner(self, lcore: int, owner: int) -> str:
        """Return the name of what wrote an entry: a light thread, a reactor, the control thread."""
        if owner:
            return self.owners.get(owner, f"thread {owner}")
        return "control" if lcore == CONTROL else f"reactor_{lcore}"

    def read_owners(self) -> None:
        """Read the names of light threads; one that is being written is left out."""
        size = OWNERS * OWNER.size
        first = self.copy(size, self.owners_at, "the names of threads")
        second = self.copy(size, self.owners_at, "the names of threads")
        for one, two in zip(OWNER.iter_unpack(first), OWNER.iter_unpack(second), strict=True):
            if one[0] and one == two:
                name = one[1].partition(b"\0")[0].decode(errors="replace")
                self.owners[one[0]] = printable(name)

    def read_header(self) -> None:
        header = HEADER.unpack(self.copy(HEADER.size, 0, "its header"))
        magic, version, header_bytes, self.pid, rings, self.entries, entry_bytes = header[:7]
        self.tsc_hz, self.start_tsc, self.start_unix_ns = header[7:10]
        self.owners_at, self.text_at, rings_at = header[10:13]
        if magic != MAGIC:
            raise self.wrong("it does not begin as one")
        if (version, header_bytes, entry_bytes) != (VERSION, HEADER.size, ENTRY.size):
            raise self.wrong(f"its form has the number {version}, this program knows {VERSION}")
        if not 0 < self.entries <= ENTRIES_MAX or self.entries & (self.entries - 1):
            raise self.wrong(f"a ring of {self.entries} entries cannot be")
        if not 0 < rings <= RINGS_MAX:
            raise self.wrong(f"{rings} rings cannot be")
        if not 0 < self.tsc_hz < 1 << 40:
            raise self.wrong(f"a clock of {self.tsc_hz} Hz cannot be")
        self.program = printable(header[17].partition(b"\0")[0].decode(errors="replace"))
        stride = PAGE + (self.entries * ENTRY.size + PAGE - 1) // PAGE * PAGE
        end = max(self.owners_at + OWNERS * OWNER.size, self.text_at + 2 * TEXT_MAX,
                  rings_at + rings * stride)
        size = os.fstat(self.fd).st_size
        if end > size:
            raise TraceError(f"{self.path!a} has {size} bytes and speaks of {end}: it was cut "
                             "short")
        self.rings = [Ring(RING.unpack(self.copy(RING.size, at, "a ring"))[0], at)
                      for at in range(rings_at, rings_at + rings * stride, stride)]
        if len({ring.lcore for ring in self.rings}) != rings:
            raise self.wrong("two of its rings are of one core")

    def read_description(self) -> None:
        """Read groups and points anew: modules that are loaded later bring some."""
        header = HEADER.unpack(self.copy(HEADER.size, 0, "its header"))
        which, sizes = header[13], header[14:16]
        if which > 1 or sizes[which] > TEXT_MAX:
            raise self.wrong("it has no description")
        text = self.copy(sizes[which], self.text_at + which * TEXT_MAX, "its description")
        try:
            groups = msgspec.json.decode(text, type=DescriptionText).groups
        except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
            raise self.wrong(f"its description cannot be read: {printable(str(error))}") from None
        self.groups = {printable(group.name): group.number for group in groups
                       if 0 <= group.number < 32}
        self.points = {group.number * POINTS + point.number: known_point(group, point)
                       for group in groups for point in group.points}


def known_point(group: GroupText, point: PointText) -> Point:
    """Return a point of the description with names that a terminal can show."""
    args = tuple(Argument(printable(name), kind if "|" not in kind else "",
                          tuple(map(printable, kind.split("|"))) if "|" in kind else ())
                 for name, kind in point.args)
    return Point(printable(group.name), printable(point.name), args, printable(point.object),
                 point.role, printable(point.size))


def open_trace(path: str) -> TraceFile:
    """Open a trace for reading.  Fails: TraceError."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise TraceError(f"trace {path!a} cannot be opened: {why}") from None
    trace = TraceFile(path, fd)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise trace.wrong("it is no file")
        trace.read_header()
        trace.read_description()
    except BaseException:
        os.close(fd)
        raise
    return trace


def traces() -> list[TraceFile]:
    """Open all traces in FOLDER that can be read, by name; the caller closes them."""
    found = []
    try:
        names = sorted(name for name in os.listdir(FOLDER) if name.startswith(PREFIX))
    except OSError:
        names = []
    for name in names:
        try:
            found.append(open_trace(os.path.join(FOLDER, name)))
        except TraceError:
            continue
    return found
