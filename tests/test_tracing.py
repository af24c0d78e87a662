"""vhostrt.tracing: what -e means, and the file from the first point that is on to the end."""
import errno
import fcntl
import os
import resource
import re
import stat

import pytest

from tests.lib.cy_traces import mark
from tests.lib.traces import events_of
from vhostrt.event import trace
from vhostrt.tracing import ALL, Tracing, known_groups, lock, make_file, read_choice

BDEV_IO = 0b11                          # BDEV_IO_START and BDEV_IO_DONE


@pytest.fixture
def tracing(tmp_path):
    """A Tracing of no core but this thread, in a folder of its own."""
    one = Tracing([], 64, None, str(tmp_path))
    yield one
    one.close()


@pytest.mark.parametrize("text, chosen", [
    ("bdev", {"bdev": ALL}), ("bdev,sample", {"bdev": ALL, "sample": ALL}), ("0x8", {"bdev": ALL}),
    ("8", {"bdev": ALL}), ("20000008", {"bdev": ALL, "sample": ALL}), ("0", {}), ("0x0,bdev",
                                                                                {"bdev": ALL}),
    ("bdev:0x3", {"bdev": 3}), ("bdev:BDEV_IO_START", {"bdev": 1}),
    ("bdev:BDEV_IO_DONE+BDEV_IO_START", {"bdev": BDEV_IO}), ("bdev:0x4+BDEV_IO_START", {"bdev": 5}),
    ("bdev:1,bdev:2,sample:10", {"bdev": 3, "sample": 16}), ("8:3", {"bdev": 3}),
    ("bdev:ffffffffffffffff", {"bdev": ALL}), ("bdev:1,bdev", {"bdev": ALL}),
    ("0x20000008,bdev:1", {"bdev": ALL, "sample": ALL}),
])
def test_what_e_means(text, chosen):
    assert read_choice(text) == chosen


def test_all_groups():
    assert read_choice("all") == dict.fromkeys(known_groups(), ALL)
    assert read_choice("ffffffff") == read_choice("all")
    assert {"bdev", "vhost_blk"} <= known_groups().keys()


@pytest.mark.parametrize("text, words", [
    ("none", "'none' is no trace group and no mask of them; there are bdev (0x8)"),
    ("bdev,none", "'none'"), ("BDEV", "there are bdev (0x8)"), ("0x10", "no trace group"),
    ("100000000", "'100000000' names no trace group; there are bdev"),
    ("bdev:none", "'none' is no trace point and no mask of them; group bdev has BDEV_IO_START, "),
    ("bdev:BDEV_IO_START+none", "'none'"), ("bdev:0", "'0' names no trace point; group bdev has"),
    ("bdev:0x8000000000000000", "names no trace point"), ("bdev:1ffffffffffffffff", "no trace"),
    ("all:1", "'all:1' names points of no single group"), ("20000008:1", "no single group"),
    ("0:1", "no single group"),
])
def test_what_e_cannot_mean(text, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        read_choice(text)


@pytest.mark.parametrize("shm_id, name, reader", [
    (None, f"vhostrt_trace.pid{os.getpid()}", f"-p {os.getpid()}"),
    (-1, f"vhostrt_trace.pid{os.getpid()}", f"-p {os.getpid()}"),
    (0, "vhostrt_trace.0", "-i 0"), (7, "vhostrt_trace.7", "-i 7"),
])
def test_the_name_of_the_file(tmp_path, shm_id, name, reader):
    one = Tracing([0], 64, shm_id, str(tmp_path))
    assert (one.path, one.reader_words) == (str(tmp_path / name), reader)


def test_the_file_is_there_from_the_first_point_that_is_on(tracing):
    assert set(tracing.masks().values()) == {0}
    tracing.turn_on({"sample": 0})
    tracing.turn_off({"sample": 1})
    tracing.clear()
    assert not os.path.exists(tracing.path)
    tracing.turn_on({"sample": 1})
    about = os.stat(tracing.path)
    assert stat.S_IMODE(about.st_mode) == 0o600
    tracing.turn_on({"sample": 4})
    assert tracing.masks()["sample"] == 5 and os.stat(tracing.path).st_ino == about.st_ino
    mark("MOMENT", 1)
    tracing.turn_off({"sample": 1})
    mark("MOMENT", 2)
    assert tracing.masks()["sample"] == 4
    tracing.turn_off({"sample": ALL})
    assert [event.object for event in events_of(tracing.path)] == [1]
    tracing.clear()
    assert events_of(tracing.path) == []
    assert tracing.close()
    assert not os.path.exists(tracing.path) and not trace.is_open()


def test_points_of_no_group(tracing):
    with pytest.raises(KeyError):
        tracing.turn_on({"none": 1})


def test_no_entries_mean_no_tracing(tmp_path):
    one = Tracing([0], 0, None, str(tmp_path))
    with pytest.raises(OSError, match="--num-trace-entries 0") as error:
        one.turn_on({"sample": 1})
    assert error.value.errno == errno.ENODEV and one.path == ""
    one.turn_off({"sample": 1})
    assert one.close() and list(tmp_path.iterdir()) == []


def test_a_trace_that_has_no_room(tmp_path):
    one = Tracing(range(1000), 1 << 24, None, str(tmp_path))
    with pytest.raises(OSError, match="MiB free: give fewer with --num-trace-entries") as error:
        one.turn_on({"sample": 1})
    assert error.value.errno == errno.ENOSPC and list(tmp_path.iterdir()) == []
    assert set(one.masks().values()) == {0}


def test_a_trace_that_is_larger_than_files_may_be(tmp_path):
    one = Tracing([0], 64, None, str(tmp_path))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        with pytest.raises(OSError, match=f"trace file {one.path} cannot be made: File too large"):
            one.turn_on({"sample": 1})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.iterdir()) == [] and set(one.masks().values()) == {0}


def test_a_folder_that_is_not_there(tmp_path):
    one = Tracing([], 64, None, str(tmp_path / "none"))
    with pytest.raises(OSError, match=f"no trace can be kept in {tmp_path}/none"):
        one.turn_on({"sample": 1})


def test_the_file_of_a_dead_process_is_replaced(tracing):
    with open(tracing.path, "wb") as file:
        file.write(b"of one that was killed" * 1000)
    before = os.stat(tracing.path).st_ino
    with open(tracing.path, "rb") as reader:        # the old one, for who reads it
        tracing.turn_on({"sample": 1})
        assert os.stat(tracing.path).st_ino != before
        assert reader.read(22) == b"of one that was killed"
    assert events_of(tracing.path) == []


def test_the_file_of_another_process_is_left_alone(tracing):
    with open(tracing.path, "w+b") as file:
        assert lock(file.fileno())
        with pytest.raises(OSError, match="in use by another process.*-i") as error:
            tracing.turn_on({"sample": 1})
        assert error.value.errno == errno.EBUSY
        assert os.path.exists(tracing.path) and not trace.is_open()
    assert set(tracing.masks().values()) == {0}


def put_link(path):
    os.symlink("/etc/passwd", path)


@pytest.mark.parametrize("put", [os.mkdir, os.mkfifo, put_link], ids=["folder", "pipe", "link"])
def test_what_is_no_file_is_left_alone(tracing, put):
    put(tracing.path)
    with pytest.raises(OSError, match=f"{tracing.path}.*remove it"):
        tracing.turn_on({"sample": 1})
    assert os.path.lexists(tracing.path) and not trace.is_open()


def test_only_the_own_file_is_removed(tracing):
    tracing.turn_on({"sample": 1})
    os.unlink(tracing.path)
    with open(tracing.path, "w"):
        pass
    tracing.close()
    assert os.path.exists(tracing.path)


def test_a_file_that_was_cut_short_is_told(tracing):
    tracing.turn_on({"sample": 1})
    os.truncate(tracing.path, 100)
    mark("MOMENT")
    assert not tracing.close()


def test_the_lock_is_of_who_made_the_file(tmp_path):
    path = str(tmp_path / "trace")
    fd = make_file(path)
    with open(path, "r+b") as other:
        assert not lock(other.fileno())
        with pytest.raises(OSError):
            fcntl.lockf(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(fd)
    with open(path, "r+b") as other:
        assert lock(other.fileno())
