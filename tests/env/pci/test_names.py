"""vhostrt.env.pci.names: what devices are called, from a list of the form of pci.ids."""
import pytest

from vhostrt.env.pci.address import Address
from vhostrt.env.pci.device import Device
from vhostrt.env.pci.names import look_up, name_of
from vhostrt.env.roots import SYSTEM

LIST = """#
#\tList of PCI ID's

8086  Intel Corporation
\t0a54  NVMe Datacenter SSD [3DNAND]
\t\t8086 4702  P4500  U.2
\t0a55  Another  One
1b36  Red Hat, Inc.
\t0010  QEMU NVM Express Controller
broken
\tzzzz  No number
C 01  Mass storage controller
\t08  Non-Volatile memory controller
"""


def device(vendor, number, class_code=0x010802):
    return Device(Address(0, 0, 1, 0), SYSTEM, vendor=vendor, device=number, class_code=class_code)


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "pci.ids"
    path.write_text(LIST)
    return path


def test_names_of_the_list_and_others(path):
    devices = [device(0x8086, 0xa54), device(0x1b36, 0x10), device(0x8086, 0xa56),
               device(0x1234, 1, 0x060400), device(0x1234, 2, 0xff0000), device(0x1b36, 8, 0x20000)]
    listed = look_up(devices, (str(path.parent / "none"), str(path)))
    assert [name_of(each, listed) for each in devices] == [
        "NVMe Datacenter SSD [3DNAND] 0a54", "QEMU NVM Express Controller 0010",
        "NVMe controller 8086:0a56", "PCI bridge 1234:0001", "Device 1234:0002",
        "Ethernet controller 1b36:0008"]


def test_without_a_list(tmp_path):
    assert look_up([device(0x8086, 0xa54)], (str(tmp_path / "none"),)) == {}
