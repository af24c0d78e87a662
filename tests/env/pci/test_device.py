"""vhostrt.env.pci.device: devices as recorded trees of sysfs show them."""
import os
import re

import pytest

from tests.lib.pci_tree import IO, PciTree
from vhostrt.env.pci.address import Address
from vhostrt.env.pci.device import Resource, list_addresses, read_device

AT = Address.parse("0000:5e:00.0")


@pytest.fixture
def tree(tmp_path):
    return PciTree(tmp_path)


def test_everything_that_is_shown(tree):
    tree.device(str(AT), vendor=0x1b36, device=0x10, subsystem=(0x1af4, 0x1100),
                class_code=0x010802, numa_node=1, vfs=8, driver="nvme",
                bars={0: (0xfebd0000, 0x4000), 4: (0x380000000000, 1 << 32)})
    device = read_device(tree.roots, AT)
    assert (device.vendor, device.device) == (0x1b36, 0x10)
    assert (device.subsystem_vendor, device.subsystem_device) == (0x1af4, 0x1100)
    assert (device.class_code, device.numa_node, device.max_vfs) == (0x010802, 1, 8)
    assert (device.kernel_driver, device.way) == ("nvme", None)
    assert [bar and (bar.start, bar.size) for bar in device.resources] == [
        (0xfebd0000, 0x4000), None, None, None, (0x380000000000, 1 << 32), None]
    assert device.bars == (None,) * 6


def test_what_may_be_missing(tree):
    home = tree.device(str(AT), numa_node=None)
    device = read_device(tree.roots, AT)
    assert (device.numa_node, device.max_vfs, device.kernel_driver) == (0, 0, None)
    (home / "max_vfs").write_text("16\n")
    (home / "sriov_numvfs").write_text("2\n")
    (home / "numa_node").write_text("-1\n")
    device.refresh()
    assert (device.numa_node, device.max_vfs) == (-1, 16)


@pytest.mark.parametrize(("driver", "way"), [
    ("vfio-pci", "vfio"), ("uio_pci_generic", "uio"), ("igb_uio", "uio"), ("nvme", None)])
def test_kernel_drivers(tree, driver, way):
    tree.device(str(AT), driver=driver)
    assert read_device(tree.roots, AT).way == way


def test_only_memory_is_a_resource(tree):
    tree.device(str(AT), resource="\n".join([
        f"0x000000000000c000 0x000000000000c0ff {IO:#018x}",
        "0x00000000fe000000 0x00000000fe00ffff 0x000000000014220c", "0x0 0x0 0x0"]))
    resources = read_device(tree.roots, AT).resources
    assert resources == (None, Resource(0xfe000000, 0x10000, 0x14220c), None, None, None, None)


BAD = {
    "vendor missing": ("vendor", None), "device missing": ("device", None),
    "class missing": ("class", None), "subsystem missing": ("subsystem_vendor", None),
    "resource missing": ("resource", None), "vendor unreadable": ("vendor", "folder"),
    "class no number": ("class", "0xzz\n"), "vendor empty": ("vendor", "\n"),
    "numa_node no number": ("numa_node", "here\n"), "resource no numbers": ("resource", "1 2 x\n"),
    "resource too short": ("resource", "0x1 0x2\n"), "resource empty": ("resource", ""),
    "not ascii": ("class", "\u2167\n"),
}


@pytest.mark.parametrize(("name", "text"), BAD.values(), ids=BAD)
def test_a_file_that_cannot_be_read_is_named(tree, name, text):
    home = tree.device(str(AT))
    device = read_device(tree.roots, AT)
    (home / name).unlink()
    if text == "folder":
        (home / name).mkdir()
    elif text is not None:
        (home / name).write_text(text)
    before = (device.class_code, device.resources, device.vendor)
    for call in (device.refresh, lambda: read_device(tree.roots, AT)):
        with pytest.raises((OSError, ValueError), match=re.escape(f"5e:00.0/{name}")):
            call()
    assert (device.class_code, device.resources, device.vendor) == before


def test_addresses_come_in_order_and_other_names_are_left(tree):
    names = ["10000:00:00.0", "0001:00:00.0", "0000:5e:00.1", "0000:5e:00.0", "0000:00:1f.7"]
    for name in names:
        tree.device(name)
    for name in ("5e:00.0", "0000:5e:00", "0000:5e:00.8", "0000:5E:00.2", "pci0000:00", "README"):
        os.mkdir(tree.folder / "sys/bus/pci/devices" / name)
    assert [str(a) for a in list_addresses(tree.roots)] == sorted(
        names, key=lambda name: Address.parse(name))


def test_a_device_behind_a_bridge(tree):
    tree.device("0000:00:1c.0", class_code=0x060400, driver="pcieport")
    tree.device("0000:5e:00.0", below="0000:00:1c.0")
    assert os.path.realpath(read_device(tree.roots, AT).path).endswith("00:1c.0/0000:5e:00.0")
