"""vhostrt.tools.trace_file: whatever the file, a sentence or what is whole in it."""
import os
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.lib.cy_traces import mark
from tests.lib.traces import events_of, tracing
from vhostrt.event import trace
from vhostrt.tools.trace_file import (
    CONTROL,
    ENTRY,
    HEADER,
    OWNER,
    RING,
    Argument,
    TraceError,
    open_trace,
)

ENTRIES = 16
# Where fields of the header lie; see trace.h.
AT = {"magic": 0, "version": 8, "header_bytes": 12, "pid": 16, "rings": 20, "entries": 24,
      "entry_bytes": 28, "tsc_hz": 32, "owners_at": 56, "text_at": 64, "rings_at": 72,
      "text_copy": 80, "text_bytes": 84}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The bytes of a trace with 20 entries in the ring of 16 of this thread, and an empty ring."""
    with tracing(tmp_path_factory.mktemp("whole"), [3], ENTRIES, [(7, "disk0.vq0")]) as path:
        trace.set_mask("sample", 2**64 - 1)
        for i in range(10):
            mark("IO_START", i, 8, i % 2)
            mark("IO_DONE", i, 0, -i % 2**64)
        with open(path, "rb") as file:
            return file.read()


@pytest.fixture
def file(tmp_path):
    """A function: write these bytes to a file and return its path."""
    def write(data):
        path = str(tmp_path / "trace")
        with open(path, "wb") as out:
            out.write(data)
        return path
    return write


def changed(data, **fields):
    """Return a header with other numbers in these fields."""
    new = bytearray(data)
    for name, value in fields.items():
        form = "<Q" if name in ("tsc_hz", "owners_at", "text_at", "rings_at") else "<I"
        struct.pack_into(form, new, AT[name], value)
    return bytes(new)


def rings_at(data):
    return struct.unpack_from("<Q", data, AT["rings_at"])[0]


def control_ring(data):
    """Return where the second ring, this thread's, begins."""
    return rings_at(data) + 2 * 4096


def described(data, text):
    """Return the file with another description."""
    at = struct.unpack_from("<Q", data, AT["text_at"])[0]
    new = bytearray(changed(data, text_copy=1))
    struct.pack_into("<I", new, AT["text_bytes"] + 4, len(text))
    new[at + (1 << 20):at + (1 << 20) + len(text)] = text
    return bytes(new)


def test_what_is_in_a_whole_file(whole, file):
    with open_trace(file(whole)) as found:
        events = found.events()
        assert [ring.lcore for ring in found.rings] == [3, CONTROL]
        assert (found.rings[1].read, found.rings[1].lost) == (16, 4)
        assert not found.runs() and found.pid == os.getpid()
    assert [event.object for event in events] == [i // 2 for i in range(4, 20)]
    assert events[0].arguments() == {"blocks": 8, "type": "READ"}
    assert events[1].arguments() == {"rc": -2}


@pytest.mark.parametrize("make, words", [
    (lambda data: b"", "ends at byte 0, in the middle of its header"),
    (lambda data: b"VHTRACE\0", "ends at byte 8"),
    (lambda data: b"hello" * 1000, "does not begin as one"),
    (lambda data: bytes(len(data)), "does not begin as one"),
    (lambda data: data[:HEADER.size], "speaks of"), (lambda data: data[:-1], "speaks of"),
    (lambda data: changed(data, version=2), "form has the number 2"),
    (lambda data: changed(data, entry_bytes=32), "form"),
    (lambda data: changed(data, header_bytes=0), "form"),
    (lambda data: changed(data, entries=0), "ring of 0 entries"),
    (lambda data: changed(data, entries=15), "ring of 15 entries"),
    (lambda data: changed(data, entries=1 << 25), "entries cannot be"),
    (lambda data: changed(data, entries=1 << 24), "speaks of"),
    (lambda data: changed(data, rings=0), "0 rings"),
    (lambda data: changed(data, rings=2**32 - 1), "4294967295 rings"),
    (lambda data: changed(data, rings=1025), "speaks of"),
    (lambda data: changed(data, tsc_hz=0), "clock of 0 Hz"),
    (lambda data: changed(data, tsc_hz=2**64 - 1), "clock of"),
    (lambda data: changed(data, owners_at=2**64 - 1), "speaks of"),
    (lambda data: changed(data, text_at=2**63), "speaks of"),
    (lambda data: changed(data, rings_at=2**64 - 4096), "speaks of"),
    (lambda data: changed(data, rings_at=1_000_000), "two of its rings"),
    (lambda data: changed(data, text_copy=2), "no description"),
    (lambda data: changed(data, text_copy=0, text_bytes=2**32 - 1), "no description"),
    (lambda data: described(data, b""), "description cannot be read"),
    (lambda data: described(data, b"\xff\xfe"), "description cannot be read"),
    (lambda data: described(data, b"[]"), "description cannot be read"),
    (lambda data: described(data, b"[" * 100_000), "description cannot be read"),
    (lambda data: described(data, b'{"groups": [{"name": 1}]}'), "description cannot be read"),
    (lambda data: described(data, b'{"groups": [{"name": "a", "number": 1, "points": [{}]}]}'),
     "description cannot be read"),
])
def test_what_is_no_trace(whole, file, make, words):
    path = file(make(whole))
    fds = len(os.listdir("/proc/self/fd"))
    with pytest.raises(TraceError, match=words) as error:
        with open_trace(path) as found:
            found.events()
    assert path in str(error.value) and str(error.value).isprintable()
    assert len(os.listdir("/proc/self/fd")) == fds


@pytest.mark.parametrize("path, words", [
    ("/nonexistent/trace", "No such file"), ("/dev/null", "no file"), ("/dev/zero", "no file"),
    ("/proc", "no file"), ("a\0b", "null"), ("x" * 5000, "File name too long"),
])
def test_what_is_no_file(path, words):
    with pytest.raises(TraceError, match=words):
        open_trace(path)


def test_a_pipe_nobody_writes_to_does_not_block(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(TraceError, match="no file"):
        open_trace(str(tmp_path / "pipe"))


@pytest.mark.parametrize("size", [0, 100, 4096, 300_000, -3500])
def test_a_file_that_shrinks_while_it_is_read(whole, file, size):
    path = file(whole)
    with open_trace(path) as found:
        os.truncate(path, size % len(whole))
        with pytest.raises(TraceError, match="was cut short"):
            found.events()


@pytest.mark.parametrize("stamp", [0, 1, 3, 2**32 - 1])
def test_an_entry_of_another_lap_is_left_out(whole, file, stamp):
    data = bytearray(whole)
    struct.pack_into("<I", data, control_ring(whole) + 4096, stamp)    # that of entry 16
    with open_trace(file(data)) as found:
        assert 8 not in [event.object for event in found.events() if event.point.role == "begin"]
        assert (found.rings[1].read, found.rings[1].lost) == (15, 5)


@pytest.mark.parametrize("cleared, end, read", [
    (0, 2**64 - 1, 0), (2**64 - 1, 2**64 - 1, 0), (2**64 - 1, 0, 0), (20, 20, 0), (19, 20, 1),
    (0, 3, 0),
])
def test_counters_that_cannot_be(whole, file, cleared, end, read):
    data = bytearray(whole)
    RING.pack_into(data, control_ring(whole), CONTROL, 0, cleared, end)
    with open_trace(file(data)) as found:
        assert len(found.events()) == read
        assert found.events() == []


def test_points_and_threads_that_the_file_does_not_tell(whole, file):
    data = bytearray(whole)
    for slot, (tpoint, owner) in enumerate([(65535, 2**32 - 1), (29 * 64 + 9, 7)]):
        ENTRY.pack_into(data, control_ring(whole) + 4096 + slot * 64, 2, tpoint, 0, slot, 1, owner,
                        0, 1, 2, 3, 4)
    with open_trace(file(data)) as found:
        first, second = found.events()[:2]
    assert (first.point.name, first.point.group, first.owner) == (
        "group1023:63", "group1023", "thread 4294967295")
    assert (second.point.name, second.owner) == ("sample:9", "disk0.vq0")
    assert first.arguments() == {}


def test_what_would_act_on_a_terminal_is_shown_harmless(whole, file):
    text = (rb'{"groups": [{"name": "g\u001b[2J", "number": 29, "points": [{"number": 1, "name": '
            rb'"p\u0007", "args": [["a\u001b", "x\u001b|y"]], "object": "o\n", "role": "begin", '
            rb'"size": "s\u001b"}]}]}')
    data = bytearray(described(whole, text))
    OWNER.pack_into(data, 4096, 1, b"\x1b]0;x\x07")
    data[96:128] = b"prog\x1b".ljust(32, b"\0")
    with open_trace(file(data)) as found:
        event = next(e for e in found.events() if e.point.role == "begin")
        said = [found.program, *found.owners.values(), *found.groups, event.point.name,
                event.point.object,
                *event.arguments(), *map(str, event.arguments().values())]
        assert all(word.isprintable() for word in said) and "\\x1b" in "".join(said)


@pytest.mark.parametrize("kind, word, value", [
    ("int", 2**64 - 1, 2**64 - 1), ("signed", 2**64 - 1, -1), ("signed", 2**63 - 1, 2**63 - 1),
    ("hex", 255, "0xff"), ("text", int.from_bytes(b"ab\x1bc", "little"), "ab\\x1bc"),
    ("text", 0, ""), ("text", 0xff, "\ufffd"), ("newer kind", 5, 5),
])
def test_kinds_of_arguments(kind, word, value):
    assert Argument("x", kind, ()).value(word) == value


@pytest.mark.parametrize("word, value", [(0, "READ"), (1, "WRITE"), (2, 2), (3, "FLUSH"), (4, 4),
                                         (2**64 - 1, 2**64 - 1)])
def test_names_by_value(word, value):
    assert Argument("x", "", ("READ", "WRITE", "", "FLUSH")).value(word) == value


def consumed(path):
    """Read all that a reader reads."""
    with open_trace(path) as found:
        events = found.events()
        for event in events:
            event.arguments()
            found.us(event.tsc)
        found.points_on()
        return events


@settings(deadline=None, max_examples=300)
@given(data=st.data())
def test_hostile_files(whole, tmp_path_factory, data):
    """A true file with some bytes changed and perhaps an end cut off: read, or refused."""
    places = [st.integers(0, HEADER.size - 1), st.integers(4096, 5000),
              st.integers(rings_at(whole), len(whole) - 1),
              st.integers(AT["version"], AT["text_bytes"] + 8)]
    text = struct.unpack_from("<Q", whole, AT["text_at"])[0]
    places += [st.integers(at, at + 4000) for at in (text, text + (1 << 20))]
    new = bytearray(whole)
    for at in data.draw(st.lists(st.one_of(places), min_size=1, max_size=12)):
        piece = data.draw(st.binary(min_size=1, max_size=9))
        new[at:at + len(piece)] = piece[:len(new) - at]
    if data.draw(st.booleans()):
        new = new[:data.draw(st.integers(0, len(new)))]
    path = str(tmp_path_factory.getbasetemp() / "hostile")
    with open(path, "wb") as out:
        out.write(new)
    try:
        consumed(path)
    except TraceError as error:
        assert str(error).isprintable()


@settings(deadline=None, max_examples=100)
@given(noise=st.binary(max_size=2000), magic=st.booleans())
def test_noise(tmp_path_factory, noise, magic):
    path = str(tmp_path_factory.getbasetemp() / "noise")
    with open(path, "wb") as out:
        out.write((b"VHTRACE\0\1\0\0\0\x80\1\0\0" if magic else b"") + noise)
    with pytest.raises(TraceError):
        consumed(path)


def test_a_changing_file(whole, file):
    """Between two reads the file becomes another one: of less, of more, of something else."""
    path = file(whole)
    with open_trace(path) as found:
        assert len(found.events()) == 16
        with open(path, "r+b") as out:
            out.write(b"something else".ljust(HEADER.size, b"!"))
        with pytest.raises(TraceError):
            found.events()
    assert pytest.raises(TraceError, events_of, path)
