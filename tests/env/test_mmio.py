"""vhostrt.env.mmio: registers, here those of a file, of exactly the width that is said."""
import os
import struct

import pytest

from vhostrt.env.mmio import Bar

PAGE = os.sysconf("SC_PAGE_SIZE")
CONTENT = bytes(range(256)) * (2 * PAGE // 256)
WIDTHS = {8: "B", 16: "H", 32: "I", 64: "Q"}


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "resource0"
    path.write_bytes(CONTENT)
    return path


def map_file(path, *arguments, **more):
    fd = os.open(path, os.O_RDWR)
    try:
        return Bar.map(fd, *arguments, **more)
    finally:
        os.close(fd)


@pytest.mark.parametrize("width", WIDTHS)
def test_a_register_is_read_and_written_alone(path, width):
    bar = map_file(path, 2 * PAGE)
    read, write = getattr(bar, f"read{width}"), getattr(bar, f"write{width}")
    size = width // 8
    assert read(2 * size) == struct.unpack_from(WIDTHS[width], CONTENT, 2 * size)[0]
    write(2 * size, (1 << width) - 1)
    write(len(bar) - size, 0)
    expected = bytearray(CONTENT)
    expected[2 * size:3 * size] = b"\xff" * size
    expected[-size:] = bytes(size)
    assert path.read_bytes() == expected
    assert read(2 * size) == (1 << width) - 1


REFUSED = [-1, -8, 2 * PAGE, 2 * PAGE - 1, 1 << 64, 3]


@pytest.mark.parametrize("offset", REFUSED)
@pytest.mark.parametrize("width", [16, 32, 64])
def test_a_register_that_is_none(path, width, offset):
    bar = map_file(path, 2 * PAGE)
    with pytest.raises(ValueError, match=f"no register of {width} bits at {offset:#x} of a BAR"):
        getattr(bar, f"read{width}")(offset)
    with pytest.raises(ValueError, match="there is no register"):
        getattr(bar, f"write{width}")(offset, 0)
    assert path.read_bytes() == CONTENT


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("much", [True, False], ids=["too much", "less than nothing"])
def test_a_value_that_does_not_fit(path, width, much):
    value = 1 << width if much else -1
    bar = map_file(path, PAGE)
    with pytest.raises(ValueError, match=f"{value} does not fit in a register of {width} bits"):
        getattr(bar, f"write{width}")(0, value)
    assert path.read_bytes() == CONTENT


def test_registers_that_begin_inside_of_a_page(path):
    bar = map_file(path, 512, PAGE, physical=0xfe001200, skip=0x200)
    assert (len(bar), bar.physical, bar.address % PAGE) == (512, 0xfe001200, 0x200)
    assert bar.read32(4) == struct.unpack_from("I", CONTENT, PAGE + 0x204)[0]
    with pytest.raises(ValueError):
        bar.read32(512)


def test_what_cannot_be_mapped(path):
    with pytest.raises(OSError, match="mapping of 4096 bytes of registers"):
        Bar.map(-1, 4096)
    with pytest.raises(OSError):
        map_file(path, PAGE, 5)


def test_a_bar_that_is_released(path):
    bar = map_file(path, PAGE)
    assert bar.address and bar.physical is None
    with open("/proc/self/maps") as file:
        assert str(path) in file.read()
    bar.release()
    bar.release()
    assert bar.address == 0
    with open("/proc/self/maps") as file:
        assert str(path) not in file.read()
    for call in (lambda: bar.read8(0), lambda: bar.write64(0, 0)):
        with pytest.raises(ValueError, match="the BAR has been released"):
            call()


def test_a_bar_ends_with_its_last_reference(path):
    map_file(path, PAGE)
    with open("/proc/self/maps") as file:
        assert str(path) not in file.read()
