"""The PCI bus of the environment, VFIO and DMA, with an NVMe controller in a real Linux guest.

The controller is QEMU's; that it answers an Identify command into memory of ours, which it was
told of by the address that vtophys gave, shows that all of it fits together.
"""
import re

import pytest

from tests.e2e.python import COMMAND, ROOT, python_files

MODULES = ["tests.e2e.nvme", "vhostrt.env.*", "vhostrt.tools.pci"]
SERIAL = "vhostrt-17"
# What the driver of docs/pci.md takes for granted.
PAGE_START = """
from vhostrt.env.options import EnvOptions
options = EnvOptions(mem_size=16 << 20)
"""


@pytest.fixture(scope="module")
def files():
    page = (ROOT / "docs/pci.md").read_text()
    driver = re.search(r"^```python\n(.*?)^```$", page, re.M | re.S)[1]
    return python_files(MODULES) | {"/page.py": f"{PAGE_START}\n{driver}".encode()}


# A disk that is mounted, or taken by a program, is not unbound.
IN_USE = f"""
address=$(basename $(readlink /sys/class/nvme/nvme0/device))
refused() {{
    ! {COMMAND} -m vhostrt.tools.pci unbind $address 2> /tmp/why
    cat /tmp/why
    grep -q "is in use: nvme0n1 $1; end that first, or say --force" /tmp/why
}}
/tools/mke2fs -q -t ext4 -F /dev/nvme0n1
mount -t ext4 /dev/nvme0n1 /mnt
refused "is mounted at /mnt"
umount /mnt
{COMMAND} -c '
import os, time
fd = os.open("/dev/nvme0n1", os.O_RDONLY | os.O_EXCL)
open("/tmp/begun", "w").close()
while not os.path.exists("/tmp/end"):
    time.sleep(0.05)' &
while [ ! -e /tmp/begun ]; do
    usleep 50000
done
refused "is open for one user alone"
touch /tmp/end
wait
"""


def steps(driver, *arguments):
    """Return the steps: bind the controller, drive it, and give it back to the kernel's driver."""
    tool = f"{COMMAND} -m vhostrt.tools.pci"
    return {
        "hugepages": "mkdir -p /var/tmp\n"
                     "echo 64 > /proc/sys/vm/nr_hugepages\n"
                     "value hugepages $(cat /proc/sys/vm/nr_hugepages)",
        "before": f"{tool} list\n"
                  "value kernel-serial $(cat /sys/class/nvme/nvme0/serial)\n"
                  "value kernel-model $(cat /sys/class/nvme/nvme0/model)",
        "in-use": f"{IN_USE}\n",
        "bind": f"{tool} bind {driver} $(for c in /sys/class/nvme/*; do"
                " basename $(readlink $c/device); done)\n"
                f"{tool} list",
        "drive": f"{COMMAND} -m tests.e2e.nvme {' '.join(arguments)}",
        "page": f"{COMMAND} /page.py > /tmp/page\n"
                "value page $(cat /tmp/page)",
        "return": f"addr=$({tool} list | sed -n 's/ .*drv={driver}.*//p')\n"
                  f"{tool} bind nvme $(echo $addr | cut -d ' ' -f 1)\n"
                  "for i in $(seq 100); do\n"
                  "    [ -e /sys/class/nvme/nvme0/serial ] && break\n"
                  "    usleep 50000\n"
                  "done\n"
                  "value returned $(cat /sys/class/nvme/nvme0/serial)",
    }


def check(guest):
    """Check what every case has to find."""
    assert guest.value("hugepages") == "64"
    assert guest.value("found").endswith(" 010802")
    cap = int(guest.value("cap"), 16)
    # As QEMU's controller has them: 2048 entries a queue, doorbells of 4 bytes, pages of 4 KiB.
    assert (cap & 0xffff, cap >> 32 & 0xf, cap >> 48 & 0xf) == (2047, 0, 0)
    assert guest.value("vs") == "0x10400"
    assert guest.value("serial") == guest.value("kernel-serial") == SERIAL
    assert guest.value("model") == guest.value("kernel-model") == "QEMU NVMe Ctrl"
    assert guest.value("pages") == str(6 << 8)
    assert guest.value("returned") == SERIAL
    # CAP of each controller, an address, and that each has been let go of.
    words = guest.value("page").split()
    count = words.count("gone")
    assert words == [f"{cap:#x}"] * count + [words[count]] + ["gone"] * count
    assert count > 0 and int(words[count], 16) % 4096 == 0


@pytest.fixture
def controller(tmp_path):
    """The words for QEMU that make the controller, with a disk of 64 MiB."""
    with open(tmp_path / "disk", "wb") as file:
        file.truncate(64 << 20)
    return ["-drive", f"file={tmp_path}/disk,if=none,id=disk,format=raw",
            "-device", f"nvme,serial={SERIAL},drive=disk"]


# Pages are looked up when they are asked for, or have been sorted while the memory started.
@pytest.mark.parametrize("more", [[], ["legacy"]], ids=["lazy", "legacy"])
def test_uio_pci_generic(boot, files, controller, more):
    with boot(steps=steps("uio_pci_generic", "identify", "pa", *more), files=files, memory=512,
              modules=["uio_pci_generic"], devices=controller) as guest:
        guest.wait(240)
        check(guest)
        assert guest.value("vfio") == "VFIO is not there: the module vfio-pci is not loaded"


# An IOMMU that is as wide as our addresses, and one that is not: there memory has physical ones.
@pytest.mark.parametrize(("bits", "mode"), [(48, "va"), (39, "pa")])
def test_vfio_pci(boot, files, controller, bits, mode):
    devices = ["-device", f"intel-iommu,aw-bits={bits}", *controller, "-device",
               "nvme,serial=another"]
    with boot(steps=steps("vfio-pci", "limits", mode), files=files, memory=512, devices=devices,
              modules=["vfio_iommu_type1", "vfio-pci"], append="intel_iommu=on") as guest:
        guest.wait(240)
        check(guest)
        assert guest.value("vfio") == "VFIO support initialized"
        assert int(guest.value("mappings")) > 0
        assert guest.value("limits") == "kept"
        assert guest.value("serial-of-another") == "another"
