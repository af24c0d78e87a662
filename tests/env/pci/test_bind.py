"""vhostrt.env.pci.bind on recorded trees, with a kernel on paper that does what is written to it.

No device of this machine is touched; in a guest real ones are: tests/e2e/test_nvme.py.
"""
import errno
import re

import pytest

from tests.lib.pci_tree import PaperKernel, PciTree
from vhostrt.env.pci import bind
from vhostrt.env.pci.address import Address
from vhostrt.env.pci.device import read_device

AT = "fffe:fd:1e.5"


@pytest.fixture
def tree(tmp_path):
    tree = PciTree(tmp_path)
    tree.device(AT, driver="nvme")
    for name in ("vfio-pci", "uio_pci_generic"):
        tree.driver(name)
    return tree


@pytest.fixture
def device(tree):
    return read_device(tree.roots, Address.parse(AT))


@pytest.fixture(autouse=True)
def hurry(monkeypatch):
    monkeypatch.setattr(bind, "PATIENCE_S", 0.5)


def override(tree):
    return (tree.home(AT) / "driver_override").read_text().strip()


def test_bind_takes_the_driver_away_and_offers_the_device_to_the_other(tree, device):
    with PaperKernel(tree) as kernel:
        bind.bind(device, "vfio-pci")
        assert kernel.said == [f"unbind nvme {AT}", f"probe {AT} for vfio-pci"]
        assert (device.kernel_driver, device.way, override(tree)) == ("vfio-pci", "vfio", "")
        bind.bind(device, "vfio-pci")
        assert len(kernel.said) == 2, "what is bound already is bound again"
        bind.bind(device, "nvme")
        assert device.kernel_driver == "nvme"


def test_bind_a_device_without_a_driver(tree, device):
    (tree.home(AT) / "driver").unlink()
    with PaperKernel(tree) as kernel:
        bind.bind(device, "uio_pci_generic")
        assert kernel.said == [f"probe {AT} for uio_pci_generic"]
    assert device.kernel_driver == "uio_pci_generic"


def test_unbind(tree, device):
    with PaperKernel(tree) as kernel:
        bind.unbind(device)
        bind.unbind(device)
        assert kernel.said == [f"unbind nvme {AT}"]
    assert device.kernel_driver is None


def test_a_driver_that_does_not_take_the_device_leaves_it_to_the_old_one(tree, device):
    with PaperKernel(tree, refuses=("vfio-pci",)) as kernel:
        said = f"{AT} cannot be bound to vfio-pci: the kernel did not do it \\(is there an IOMMU"
        with pytest.raises(OSError, match=said) as refused:
            bind.bind(device, "vfio-pci")
        assert kernel.said == [f"unbind nvme {AT}", f"probe {AT} for vfio-pci",
                               f"probe {AT} for nvme"]
    assert refused.value.errno == errno.ENODEV
    assert (device.kernel_driver, override(tree)) == ("nvme", "")


def test_a_device_that_goes_to_nobody(tree, device):
    with PaperKernel(tree, refuses=("uio_pci_generic", "nvme")) as kernel:
        (tree.home(AT) / "driver").unlink()
        with pytest.raises(OSError, match="the kernel did not do it; its log tells more"):
            bind.bind(device, "uio_pci_generic")
        assert len(kernel.said) == 1
    assert device.kernel_driver is None


def test_a_driver_that_keeps_the_device(tree, device):
    with PaperKernel(tree, refuses=("nvme",)):
        for call in (bind.unbind, lambda device: bind.bind(device, "vfio-pci")):
            with pytest.raises(OSError, match=f"{AT} cannot be unbound from nvme: the kernel has "
                                              "kept it") as refused:
                call(device)
            assert refused.value.errno == errno.EBUSY
    assert device.kernel_driver == "nvme"


@pytest.mark.parametrize("driver", ["none", "igb_uio", "../drivers/nvme", "", "."])
def test_a_driver_that_is_not_there(tree, device, driver):
    with PaperKernel(tree) as kernel:
        with pytest.raises(OSError, match=f"there is no kernel driver {re.escape(driver)}: load it"
                           ) as refused:
            bind.bind(device, driver)
        assert kernel.said == []
    assert refused.value.errno == errno.ENOENT


@pytest.mark.parametrize("call", [bind.unbind, lambda device, force=False: bind.bind(
    device, "vfio-pci", force)], ids=["unbind", "bind"])
def test_a_device_in_use_is_left_alone_unless_forced(tree, device, call):
    tree.block(AT, "nvme0n1", "259:0")
    tree.mount("259:0", "/srv")
    tree.net(AT, "eth0", up=True)
    with PaperKernel(tree) as kernel:
        with pytest.raises(OSError, match=f"PCI device {AT} is in use: network interface eth0 is "
                           "up; nvme0n1 is mounted at /srv; end that first, or say --force"
                           ) as refused:
            call(device)
        assert refused.value.errno == errno.EBUSY
        assert (kernel.said, device.kernel_driver) == ([], "nvme")
        call(device, force=True)
        assert device.kernel_driver != "nvme"


def test_a_bridge_is_left_alone_also_when_forced(tree):
    tree.device("fffe:fd:1d.0", class_code=0x060400, driver="pcieport")
    bridge = read_device(tree.roots, Address.parse("fffe:fd:1d.0"))
    with PaperKernel(tree) as kernel:
        for call in (bind.unbind, lambda *a: bind.bind(bridge, "vfio-pci", True)):
            with pytest.raises(OSError, match="fffe:fd:1d.0 is a bridge") as refused:
                call(bridge, True)
            assert refused.value.errno == errno.EPERM
        assert kernel.said == []


def test_a_tree_that_cannot_be_written_to(tree, device):
    (tree.folder / "sys/bus/pci/drivers_probe").unlink()
    with pytest.raises(OSError, match="the drivers of PCI devices are changed by root only"):
        bind.unbind(device)
    tree.write("sys/bus/pci/drivers_probe", "")
    (tree.folder / "sys/bus/pci/drivers/nvme/unbind").unlink()
    (tree.folder / "sys/bus/pci/drivers/nvme/unbind").mkdir()
    with pytest.raises(OSError, match=f"{AT} cannot be unbound from nvme: .*/unbind: Is a dir"):
        bind.unbind(device)
    (tree.home(AT) / "driver").unlink()
    (tree.home(AT) / "driver_override").unlink()
    (tree.home(AT) / "driver_override").mkdir()
    with pytest.raises(OSError, match=f"{AT} cannot be bound to vfio-pci: .*/driver_override"):
        bind.bind(device, "vfio-pci")


# What could be bound.

ALIASES = """# Aliases extracted from modules themselves.
alias pci:v*d*sv*sd*bc01sc08i02* nvme
alias pci:v00008086d00000A54sv*sd*bc*sc*i* intel_other
alias pci:v00008087d*sv*sd*bc*sc*i* not_this_vendor
alias pci:v00008086d00000A55sv*sd*bc*sc*i* not_this_device
alias usb:v8086p* usb_thing
alias pci:broken
"""


def test_candidates_are_modules_that_fit_and_user_drivers_that_are_loaded(tree, device):
    tree.write("modules/modules.alias", ALIASES)
    aliases = bind.read_aliases(str(tree.folder / "modules"))
    assert bind.candidates(device, aliases) == ["intel_other", "vfio-pci", "uio_pci_generic"]
    device.kernel_driver = "vfio-pci"
    assert bind.candidates(device, aliases) == ["intel_other", "nvme", "uio_pci_generic"]
    device.kernel_driver = "intel-other"
    assert "intel_other" not in bind.candidates(device, aliases)
    assert bind.candidates(device, []) == ["vfio-pci", "uio_pci_generic"]
    (tree.home(AT) / "modalias").unlink()
    assert bind.candidates(device, aliases) == ["vfio-pci", "uio_pci_generic"]


def test_no_list_of_modules(tmp_path):
    assert bind.read_aliases(str(tmp_path)) == []
