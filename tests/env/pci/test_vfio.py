"""vhostrt.env.pci.vfio where there is none: what it says, and that nothing stays open.

With an IOMMU and a device it runs in a guest: tests/e2e/test_nvme.py.
"""
import errno
import os
import struct

import pytest

from tests.lib.pci_tree import PciTree
from vhostrt.env import vtophys
from vhostrt.env.pci.address import Address
from vhostrt.env.pci.device import read_device
from vhostrt.env.pci.vfio import (REGION_MMAP, Container, Region, capabilities, group_of,
                                  has_groups, probe)

AT = "0000:5e:00.0"


@pytest.fixture
def tree(tmp_path):
    return PciTree(tmp_path)


def open_files():
    return sorted(os.readlink(f"/proc/self/fd/{n}") for n in os.listdir("/proc/self/fd")
                  if os.path.exists(f"/proc/self/fd/{n}"))


def test_no_module(tree):
    assert probe(tree.roots) == (False, False, "VFIO is not there: the module vfio-pci is not "
                                               "loaded")


def test_no_container_file(tree):
    (tree.folder / "sys/module/vfio_pci").mkdir(parents=True)
    path = tree.folder / "dev/vfio/vfio"
    assert probe(tree.roots) == (False, False, f"VFIO cannot be used: {path}: No such file or "
                                               "directory")
    path.write_text("")
    before = open_files()
    assert probe(tree.roots).sentence == (f"VFIO cannot be used: {path}: Inappropriate ioctl for "
                                          "device")
    assert open_files() == before


def test_this_machine_is_told_of_as_it_is():
    support = probe(vtophys.SYSTEM)
    assert support.sentence.startswith("VFIO")
    assert support.iommu <= os.path.exists("/dev/vfio/vfio")


def test_groups_of_an_iommu(tree):
    assert not has_groups(tree.roots)
    tree.device(AT, driver="vfio-pci")
    tree.iommu(AT, 3, bare=True)
    assert not has_groups(tree.roots), "that of no-IOMMU mode counts"
    tree.device("0000:5e:00.1", driver="vfio-pci")
    tree.iommu("0000:5e:00.1", 4)
    assert has_groups(tree.roots)
    first, second = (read_device(tree.roots, Address.parse(a)) for a in (AT, "0000:5e:00.1"))
    assert group_of(first) == (f"{tree.folder}/dev/vfio/noiommu-3", True)
    assert group_of(second) == (f"{tree.folder}/dev/vfio/4", False)


def test_a_device_without_a_group(tree):
    tree.device(AT, driver="vfio-pci")
    with pytest.raises(OSError, match=f"PCI device {AT}: its IOMMU group: No such file"):
        group_of(read_device(tree.roots, Address.parse(AT)))


@pytest.mark.parametrize(("bare", "mode", "container", "text"), [
    (False, "va", False, "VFIO: No such file"),
    (False, "va", True, r"VFIO group .*/4: Inappropriate ioctl"),
    (True, "va", True, r"no-IOMMU mode\), and the environment gives devices virtual addresses"),
    (True, "pa", True, r"VFIO group .*/noiommu-4: Inappropriate ioctl"),
])
def test_a_device_that_cannot_be_opened_leaves_nothing_open(tree, bare, mode, container, text):
    tree.device(AT, driver="vfio-pci")
    tree.iommu(AT, 4, bare=bare)
    if container:
        tree.write("dev/vfio/vfio", "")
    before = open_files()
    vtophys.init(mode)
    try:
        space = Container(tree.roots)
        with pytest.raises(OSError, match=f"PCI device {AT}: .*{text}"):
            space.open(read_device(tree.roots, Address.parse(AT)))
        assert (space.fd, space.groups, vtophys.mappings()) == (-1, {}, [])
    finally:
        vtophys.fini()
    assert open_files() == before


def test_a_token_is_told_with_the_device(tree):
    tree.device(AT)
    device = read_device(tree.roots, Address.parse(AT))
    assert Container(tree.roots).device_name(device) == b"0000:5e:00.0\0"
    assert Container(tree.roots, "14d63f20-8445-11ea-8900-1f9ce7d5650d").device_name(device) == \
        b"0000:5e:00.0 vf_token=14d63f20-8445-11ea-8900-1f9ce7d5650d\0"


@pytest.mark.parametrize(("flags", "whole"), [(0, True), (REGION_MMAP, False)])
def test_a_region_that_cannot_be_mapped_as_a_whole(flags, whole):
    with pytest.raises(OSError, match="vfio-pci does not let it be mapped") as refused:
        Region(flags, 4096, 0, whole).map(-1, 0)
    assert refused.value.errno == errno.ENOTSUP


CHAIN = struct.pack("32xHHI8xHHI", 1, 1, 48, 3, 1, 0)
CHAINS = {
    "two": (CHAIN, 32, {1, 3}), "the second": (CHAIN, 48, {3}), "none": (CHAIN, 0, set()),
    "beyond the end": (CHAIN, 56, set()), "cut": (CHAIN[:50], 32, {1}),
    "in a circle": (struct.pack("32xHHI", 7, 1, 32), 32, {7}),
}


@pytest.mark.parametrize(("data", "at", "found"), CHAINS.values(), ids=CHAINS)
def test_chains_of_capabilities(data, at, found):
    assert capabilities(data, at) == found
