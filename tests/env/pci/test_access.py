"""vhostrt.env.pci.access: BARs by way of uio, on recorded trees."""
import errno
import os
import struct

import pytest

from tests.lib.pci_tree import PciTree
from vhostrt.env.pci import config
from vhostrt.env.pci.access import map_device, unmap_device
from vhostrt.env.pci.address import Address
from vhostrt.env.pci.device import read_device

AT = "0000:5e:00.0"
BARS = {0: (0xfebd0000, 0x4000), 2: (0xfebe0100, 0x100), 5: (0x380000000000, 0x2000)}


@pytest.fixture
def tree(tmp_path):
    tree = PciTree(tmp_path)
    tree.device(AT, driver="uio_pci_generic", bars=BARS)
    return tree


@pytest.fixture
def device(tree):
    device = read_device(tree.roots, Address.parse(AT))
    yield device
    unmap_device(device)


def open_files():
    return sorted(os.readlink(f"/proc/self/fd/{n}") for n in os.listdir("/proc/self/fd")
                  if os.path.exists(f"/proc/self/fd/{n}"))


def mapped():
    with open("/proc/self/maps") as file:
        return sorted(line.split()[-1].rpartition("/")[2] for line in file if AT in line)


def test_bars_are_mapped_where_they_are(tree, device):
    home = tree.home(AT)
    (home / "resource2").write_bytes(bytes(0x100) + struct.pack("<I", 0x12345678) + bytes(3836))
    map_device(device, None)
    map_device(device, None)
    assert [bar and (bar.physical, len(bar)) for bar in device.bars] == [
        BARS.get(number) for number in range(6)]
    assert mapped() == ["resource0", "resource2", "resource5"]
    # Its registers begin inside of a page.
    assert device.bars[2].read32(0) == 0x12345678
    device.bars[0].write32(0x3ffc, 0xabcd)
    assert (home / "resource0").read_bytes()[0x3ffc:] == struct.pack("<I", 0xabcd)


def test_a_device_may_use_memory_while_it_is_mapped(tree, device):
    config.write(device, config.COMMAND, 2, 0x400)
    map_device(device, None)
    assert config.read(device, config.COMMAND, 2) == 0x406
    unmap_device(device)
    assert config.read(device, config.COMMAND, 2) == 0x402


def test_the_uio_file_is_open_while_it_is_mapped_and_nothing_afterwards(tree, device):
    before = open_files()
    map_device(device, None)
    assert [path.rpartition("/")[2] for path in open_files() if path not in before] == [
        "uio0", "config"]
    unmap_device(device)
    unmap_device(device)
    assert (open_files(), mapped(), device.bars) == (before, [], (None,) * 6)


BROKEN = {
    "no uio file": ("uio", r"its uio file: No such file"),
    "no resource file": ("resource5", r"BAR 5: No such file"),
    "no configuration space": ("config", r"its configuration space: No such file"),
    "a configuration space that ends": ("short config", r"can be read by root only"),
}


@pytest.mark.parametrize(("what", "text"), BROKEN.values(), ids=BROKEN)
def test_what_cannot_be_mapped_leaves_nothing_open(tree, device, what, text):
    home = tree.home(AT)
    if what == "uio":
        (home / "uio/uio0").rmdir()
        (home / "uio").rmdir()
    elif what == "short config":
        (home / "config").write_bytes(b"\x86\x80")
    else:
        (home / what).unlink()
    before = open_files()
    with pytest.raises(OSError, match=f"PCI device {AT}: .*{text}"):
        map_device(device, None)
    assert (open_files(), mapped(), device.access) == (before, [], None)


@pytest.mark.parametrize("files", [0, 2])
def test_there_has_to_be_one_uio_file(tree, device, files):
    (tree.home(AT) / "uio/uio0").rmdir()
    for number in range(files):
        (tree.home(AT) / f"uio/uio{number}").mkdir()
    with pytest.raises(OSError, match="its uio file: there is none") as refused:
        map_device(device, None)
    assert refused.value.errno == errno.ENODEV


@pytest.mark.parametrize("driver", [None, "nvme", "vfio-pci"])
def test_another_driver_or_none(tree, device, driver):
    device.kernel_driver = driver
    with pytest.raises(OSError, match=f"bound to {driver or 'no driver'}, and not to") as refused:
        map_device(device, None)
    assert refused.value.errno == errno.ENOTSUP


# Configuration space.

def test_registers_of_the_configuration_space(tree, device):
    (tree.home(AT) / "config").write_bytes(bytes(range(64)))
    for width, value in ((1, 8), (2, 0x0908), (4, 0x0b0a0908)):
        assert config.read(device, 8, width) == value
        config.write(device, 8, width, 0)
        assert config.read(device, 8, width) == 0
        config.write(device, 8, width, value)
    assert (tree.home(AT) / "config").read_bytes() == bytes(range(64))


@pytest.mark.parametrize(("offset", "width"), [
    (-4, 4), (4096, 1), (4094, 4), (1, 2), (2, 4), (0, 3), (0, 8), (0, 0)])
def test_registers_that_are_none(device, offset, width):
    for call in (lambda: config.read(device, offset, width),
                 lambda: config.write(device, offset, width, 0)):
        with pytest.raises(OSError, match="there is no register of .* of the configuration space"
                           ) as refused:
            call()
        assert refused.value.errno == errno.EINVAL


@pytest.mark.parametrize(("width", "value"), [(1, 256), (2, 65536), (4, 1 << 32), (1, -1)])
def test_values_that_do_not_fit(device, width, value):
    with pytest.raises(OSError, match=f"{AT}: {value} does not fit in a register of"):
        config.write(device, 0, width, value)


def test_what_lies_beyond_what_may_be_read(device):
    with pytest.raises(OSError, match="at 0x100 can be read by root only, or is not there"):
        config.read(device, 0x100, 4)
