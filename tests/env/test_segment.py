"""vhostrt.env.segment: one mapping, of ordinary pages."""
import errno
import fcntl
import gc
import os
import re

import pytest

from vhostrt.env.segment import Segment

MIB = 1 << 20


def maps(segment):
    """Return the fields of smaps for a segment."""
    with open("/proc/self/smaps") as file:
        text = file.read()
    found = re.search(rf"^{segment.address:x}-{segment.address + segment.length:x} (.*?)"
                      r"^VmFlags: ([^\n]*)$", text, re.M | re.S)
    return found[1], found[2].split()


def resident_kib(segment):
    return int(re.search(r"^Rss:\s*(\d+)", maps(segment)[0], re.M)[1])


def test_a_new_segment_is_shared_zeroed_and_untouched():
    segment = Segment.create(5 * MIB + 1, huge="never")
    assert (segment.kind, segment.page_size, segment.node) == ("memfd", 4096, -1)
    assert segment.length == len(segment) == 5 * MIB + 4096
    assert segment.address % (2 * MIB) == 0
    text, flags = maps(segment)
    assert text.startswith("rw-s ") and "/memfd:vhostrt" in text
    assert "dc" in flags, "a child would get the mapping"
    assert "hg" in flags, "no transparent huge pages asked for"
    assert resident_kib(segment) == 0
    assert not any(memoryview(segment)[::4096])


def test_a_segment_of_4_gib_takes_nothing():
    assert resident_kib(Segment.create(4096 * MIB, huge="never")) == 0


def test_populate_takes_every_page():
    segment = Segment.create(5 * MIB, huge="never")
    segment.populate()
    assert resident_kib(segment) == 5 * 1024


def test_populate_says_how_many_pages_there_were_and_raises_no_signal():
    segment = Segment.create(6 * MIB, huge="never")
    os.ftruncate(segment.fd, 3 * MIB)                          # beyond it, touching is SIGBUS
    with pytest.raises(OSError, match="segment of 6 MiB: 768 of 1536 pages of 4 KiB") as refused:
        segment.populate()
    assert refused.value.errno == errno.ENOMEM


def test_the_descriptor_is_closed_on_exec_and_shares_the_memory():
    segment = Segment.create(MIB)
    assert fcntl.fcntl(segment.fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC
    memoryview(segment)[4090:4100] = b"0123456789"
    assert os.pread(segment.fd, 10, 4090) == b"0123456789"


def test_arrays_share_the_memory_and_hold_it():
    segment = Segment.create(MIB)
    grid = segment.array("uint64", (3, 5))
    grid[2, 4] = 2**63
    assert segment.array("uint64")[14] == 2**63
    assert segment.array().size == segment.length
    with pytest.raises(BufferError, match="1 views of it live"):
        segment.release()
    with pytest.raises(ValueError):
        segment.array("uint8", (2 * segment.length,))
    del grid
    segment.release()
    segment.release()
    assert (segment.kind, segment.address, segment.length, segment.fd) == ("released", 0, 0, -1)
    for use in (segment.array, segment.populate, lambda: memoryview(segment)):
        with pytest.raises(ValueError, match="released"):
            use()


def test_a_view_outlives_the_object_and_the_last_reference_gives_everything_back():
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    view = Segment.create(MIB).array()
    gc.collect()
    view[:] = 9
    del view
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("size", [0, -1, 2**63, 2**64])
def test_size_refused(size):
    with pytest.raises(OSError, match=f"segment of {size} bytes") as refused:
        Segment.create(size)
    assert refused.value.errno == errno.EINVAL


def test_size_beyond_the_address_space():
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(OSError) as refused:
        Segment.create(2**50, huge="never")
    assert refused.value.errno in (errno.ENOMEM, errno.EFBIG)
    assert len(os.listdir("/proc/self/fd")) == before


def test_nodes():
    segment = Segment.create(MIB, node=0)
    segment.populate()
    assert segment.node == 0
    for node in (-2, 600, 1 << 20):
        with pytest.raises(OSError, match=f"there is no NUMA node {node}"):
            Segment.create(MIB, node=node)


def test_other_words_for_huge():
    with pytest.raises(ValueError, match="'maybe': auto, always or never"):
        Segment.create(MIB, huge="maybe")


def test_more_huge_pages_than_there_are():
    with pytest.raises(OSError, match=r"\d+ of 8388608 huge pages of 2 MiB are free") as refused:
        Segment.create(1 << 44, huge="always")
    assert refused.value.errno == errno.ENOMEM


def test_a_file_outside_hugetlbfs_is_refused_and_left_alone(tmp_path):
    mine = tmp_path / "mine"
    mine.write_bytes(b"precious")
    for path in (mine, tmp_path / "new"):
        with pytest.raises(OSError, match=f"memory file {path} is not in a huge") as refused:
            Segment.open(str(path), MIB)
        assert refused.value.errno == errno.EOPNOTSUPP
    assert mine.read_bytes() == b"precious"
    assert os.listdir(tmp_path) == ["mine"]


def test_a_file_that_cannot_be_opened(tmp_path):
    with pytest.raises(OSError, match="No such file") as refused:
        Segment.open(str(tmp_path / "none" / "file"), MIB)
    assert refused.value.errno == errno.ENOENT
    (tmp_path / "link").symlink_to("target")
    with pytest.raises(OSError) as refused:
        Segment.open(str(tmp_path / "link"), MIB)
    assert refused.value.errno == errno.ELOOP
