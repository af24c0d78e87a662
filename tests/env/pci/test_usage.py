"""vhostrt.env.pci.usage on recorded trees: what of a device is in use, and by whom."""
import os

import pytest

from tests.lib.pci_tree import PciTree
from vhostrt.env.pci import usage
from vhostrt.env.pci.address import Address
from vhostrt.env.pci.claim import claim
from vhostrt.env.pci.device import read_device

# One that no machine has: claims are looked for in their real place.
AT = "fffe:fd:1e.5"


@pytest.fixture
def tree(tmp_path):
    tree = PciTree(tmp_path)
    tree.device(AT, driver="nvme")
    return tree


def uses(tree):
    return usage.uses(read_device(tree.roots, Address.parse(AT)))


def test_a_device_that_nobody_uses(tree):
    tree.net(AT, "eth0")
    tree.block(AT, "sda", "8:0")
    tree.block(AT, "sda1", "8:1", above="sda")
    assert uses(tree) == []
    device = read_device(tree.roots, Address.parse(AT))
    assert (usage.interfaces(device), usage.blocks(device)) == (["eth0"], ["sda", "sda1"])


def test_what_belongs_to_another_device_does_not_count(tree):
    tree.device("fffe:fd:1e.6")
    tree.net("fffe:fd:1e.6", "eth0", up=True)
    tree.block("fffe:fd:1e.6", "sda", "8:0")
    tree.mount("8:0", "/")
    assert uses(tree) == []


def test_a_network_interface_that_is_up(tree):
    tree.net(AT, "eth0")
    tree.net(AT, "eth1", up=True)
    assert uses(tree) == ["network interface eth1 is up"]


def test_a_file_system_that_is_mounted(tree):
    tree.block(AT, "sda", "8:0")
    tree.block(AT, "sda1", "8:1", above="sda")
    tree.mount("0:22", "/proc", "proc")
    tree.mount("8:1", "/srv")
    assert uses(tree) == ["sda1 is mounted at /srv"]


def test_a_file_system_that_names_its_device(tree):
    tree.block(AT, "vdz", "254:9")
    tree.mount("0:35", "/btrfs", "/dev/vdz")
    assert uses(tree) == ["vdz is mounted at /btrfs"]


def test_a_disk_that_is_swapped_to(tree):
    tree.block(AT, "sda2", "8:2")
    with open(tree.folder / "proc/swaps", "a") as file:
        file.write("/dev/sda2 partition 1048572 0 -2\n")
    assert uses(tree) == ["sda2 is swapped to"]


def test_a_disk_that_others_are_built_on(tree):
    tree.block(AT, "sda", "8:0", holders=("dm-0", "md0"))
    assert uses(tree) == ["sda is used by dm-0, md0"]


def test_a_disk_of_nvme_with_several_paths(tree):
    """nvme0c1n1 is the path that belongs to the controller; nvme0n1 is what is mounted."""
    tree.block(AT, "nvme0c1n1", "0:0")
    for name, number in (("nvme0n1", "259:0"), ("nvme0n1p2", "259:1"), ("nvme1n1", "259:2")):
        home = tree.folder / f"sys/devices/virtual/nvme-subsystem/nvme-subsys0/{name}"
        tree.write(str(home / "dev"), number + "\n")
        tree.link(f"sys/class/block/{name}", home)
    tree.mount("259:1", "/")
    tree.mount("259:2", "/other")
    device = read_device(tree.roots, Address.parse(AT))
    assert usage.blocks(device) == ["nvme0n1", "nvme0n1p2"]
    assert uses(tree) == ["nvme0n1p2 is mounted at /"]


def test_a_device_that_a_program_has_claimed(tree):
    held = claim(Address.parse(AT))
    assert uses(tree) == [f"process {os.getpid()} has claimed it"]
    held.release()
    assert uses(tree) == []


def test_files_that_are_missing_are_no_use(tree):
    tree.block(AT, "sda", "8:0")
    (tree.home(AT) / "block/sda/dev").unlink()
    (tree.folder / "proc/self/mountinfo").write_text("nonsense\n\n1 2 3\n")
    (tree.folder / "proc/swaps").unlink()
    assert uses(tree) == []
    (tree.folder / "proc/self/mountinfo").unlink()
    assert uses(tree) == []


def test_only_a_block_device_can_be_taken(tmp_path):
    # One that is: in a guest, tests/e2e/test_nvme.py.
    for path in ("/dev/null", "/dev/none", str(tmp_path)):
        assert not usage.is_taken(path)
