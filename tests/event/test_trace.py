"""vhostrt.event.trace as Python sees it: the registry, the file, names of threads, forks."""
import os
import subprocess
import sys

import pytest

from tests.lib.cy_traces import mark
from tests.lib.traces import events_of, tracing
from vhostrt.event import trace
from vhostrt.event.trace import Point
from vhostrt.tools.trace_file import open_trace

FIVE = tuple((name, "int") for name in "abcde")


@pytest.fixture
def registry(monkeypatch):
    """The registry, put back afterwards; the groups of other modules are in it."""
    monkeypatch.setattr(trace, "g_groups",
                        {name: group._replace(points=list(group.points))
                         for name, group in trace.g_groups.items()})


@pytest.mark.parametrize("group, number, points, word", [
    ("Test", 1, (), "'Test'"), ("", 1, (), "''"), ("a b", 1, (), "'a b'"), ("a", -1, (), "-1"),
    ("a", 32, (), "32"), ("a", 29, (), "number 29 is sample"), ("sample", 28, (), "number 28"),
    ("sample", 29, [Point(5, "MOMENT")], "MOMENT"), ("sample", 29, [Point(1, "NEW")], "NEW"),
    ("a", 1, [Point(64, "NEW")], "NEW"), ("a", 1, [Point(-1, "NEW")], "NEW"),
    ("a", 1, [Point(0, "NEW", FIVE)], "NEW"), ("a", 1, [Point(0, "NEW", role="start")], "NEW"),
    ("a", 1, [Point(0, "NEW"), Point(0, "OTHER")], "OTHER"),
    ("a", 1, [Point(0, "NEW", role="span")], "duration"),
    ("a", 1, [Point(0, "NEW", (("n", "int"), ("t", "ticks")), role="span")], "duration"),
])
def test_what_cannot_be_registered(registry, group, number, points, word):
    with pytest.raises(ValueError, match=word):
        trace.register(group, number, points)


def test_groups_come_by_number_and_points_by_theirs(registry):
    trace.register("late", 28, [Point(9, "NINE"), Point(3, "THREE")])
    trace.register("late", 28, [Point(5, "FIVE")])
    numbers = [group.number for group in trace.groups()]
    assert numbers == sorted(numbers)
    late = next(group for group in trace.groups() if group.name == "late")
    assert [point.name for point in late.points] == ["THREE", "FIVE", "NINE"]
    assert trace.masks()["late"] == 0


def test_the_file_tells_of_points_that_are_registered_later(tmp_path, registry):
    with tracing(tmp_path) as path, open_trace(path) as found:
        assert "late" not in found.groups
        for i in range(3):
            trace.register("late", 28, [Point(i, f"LATE_{i}", (("n", "int"),), "thing")])
            found.read_description()
            assert found.groups["late"] == 28
            assert found.points[28 * 64 + i].name == f"LATE_{i}"
            assert found.points[28 * 64 + i].args[0].name == "n"


def test_a_mask_is_of_one_group_and_is_told_in_the_file(tmp_path):
    with tracing(tmp_path) as path, open_trace(path) as found:
        assert found.points_on() == []
        trace.set_mask("sample", 0b110)
        assert trace.masks()["sample"] == 0b110
        assert found.points_on() == ["sample:IO_START+IO_DONE"]
        trace.set_mask("sample", 2**64 - 1)
        assert found.points_on() == ["sample"]
        mark("MOMENT")
        trace.set_mask("sample", 0)
        mark("MOMENT")
        assert len(events_of(path)) == 1
        with pytest.raises(KeyError):
            trace.set_mask("none", 1)
    assert set(trace.masks().values()) == {0}


@pytest.mark.parametrize("entries, lcores, error", [
    (0, [], ValueError), (3, [], ValueError), (1 << 25, [], ValueError), (64, [1024], ValueError),
    (64, [-1], ValueError),
])
def test_a_file_that_cannot_be(tmp_path, entries, lcores, error):
    with open(tmp_path / "x", "w+b") as file:
        with pytest.raises(error):
            trace.create(file.fileno(), lcores, entries)
        assert not trace.is_open() and os.fstat(file.fileno()).st_size == 0


def test_a_descriptor_for_reading_is_refused(tmp_path):
    (tmp_path / "x").touch()
    with open(tmp_path / "x", "rb") as file, pytest.raises(OSError):
        trace.create(file.fileno(), [], 64)
    assert not trace.is_open()


def test_there_is_one_trace_at_a_time(tmp_path):
    with tracing(tmp_path), open(tmp_path / "x", "w+b") as file:
        with pytest.raises(RuntimeError, match="already"):
            trace.create(file.fileno(), [], 64)
    (tmp_path / "trace").unlink()
    with tracing(tmp_path):
        assert trace.is_open()
    assert not trace.is_open()
    trace.close()


def test_a_file_takes_the_memory_that_was_written_to(tmp_path):
    with tracing(tmp_path, range(64), trace.ENTRIES) as path:
        about = os.stat(path)
        assert about.st_size == trace.file_bytes(65, trace.ENTRIES) > 64 * trace.ENTRIES * 64
        assert about.st_blocks * 512 < 1 << 20


@pytest.mark.parametrize("name, shown", [
    ("disk0.vq1", "disk0.vq1"), ("", ""), ("x" * 99, "x" * 55),
    ("\u00fc" * 40, "\u00fc" * 27 + "\ufffd"), ("a\x1b[31m\n", "a\\x1b[31m\\n"),
])
def test_names_of_threads(tmp_path, name, shown):
    with tracing(tmp_path, owners=[(7, name)]) as path, open_trace(path) as found:
        found.read_owners()
        assert found.owner(0, 7) == shown


def test_a_name_gives_way_to_one_that_comes_much_later(tmp_path):
    trace.name_owner(1, "before there is a file: nothing happens")
    with tracing(tmp_path) as path, open_trace(path) as found:
        trace.name_owner(5, "old")
        trace.name_owner(6, "other")
        found.read_owners()
        trace.name_owner(5 + 4096, "new")
        found.read_owners()
        assert found.owners == {5: "old", 6: "other", 4101: "new"}
    with open_trace(path) as found:
        found.read_owners()
        assert found.owners == {6: "other", 4101: "new"}
        assert found.owner(3, 5) == "thread 5" and found.owner(3, 0) == "reactor_3"


FORK = """
import os, sys
from tests.lib.cy_traces import mark
from vhostrt.event import trace
fd = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
trace.create(fd, [], 64)
trace.set_mask("sample", 1)
mark("MOMENT", 1)
pid = os.fork()
if pid == 0:
    assert not trace.is_open() and trace.masks()["sample"] == 0
    mark("MOMENT", 2)
    trace.clear()
    trace.name_owner(1, "x")
    trace.close()
    os._exit(0)
assert os.waitpid(pid, 0)[1] == 0
mark("MOMENT", 3)
"""


def test_a_forked_child_has_no_trace(tmp_path):
    subprocess.run([sys.executable, "-c", FORK, tmp_path / "trace"], check=True, timeout=60,
                   env={**os.environ, "PYTHONPATH": os.getcwd()})
    assert [event.object for event in events_of(str(tmp_path / "trace"))] == [1, 3]
