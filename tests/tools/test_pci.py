"""vhostrt-pci as its user runs it: on recorded buses, and on this machine without touching it."""
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.lib.command import unprivileged_words
from tests.lib.pci_tree import PaperKernel, PciTree

ROOT = Path(__file__).resolve().parents[2]
COMMAND = [sys.executable, "-m", "vhostrt.tools.pci"]
# Addresses that no machine has: claims are looked for in their real place.
NET, DISK, OTHER, BRIDGE = "fffe:01:00.0", "fffe:02:00.0", "fffe:03:00.0", "fffe:00:1c.0"


def run(*words, before=(), status=0):
    """Run the command; return what it printed on stdout, then what was on stderr."""
    done = subprocess.run([*before, *COMMAND, *map(str, words)], capture_output=True, text=True,
                          timeout=120, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == status, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    if status == 1:
        assert all(line.startswith("vhostrt-pci: ") for line in done.stderr.splitlines())
    return done.stdout + done.stderr


@pytest.fixture
def tree(tmp_path):
    """A network card with two functions, a disk, an accelerator and a bridge."""
    tree = PciTree(tmp_path)
    tree.device(BRIDGE, vendor=0xfffe, class_code=0x060400, driver="pcieport")
    tree.device(NET, vendor=0xfffe, device=0x1533, class_code=0x020000, driver="igb", numa_node=1)
    tree.net(NET, "eth0", up=True)
    tree.device("fffe:01:00.1", vendor=0xfffe, device=0x1533, class_code=0x020000,
                driver="vfio-pci")
    tree.device(DISK, vendor=0xfffe, device=0x10, driver="nvme", vfs=4,
                bars={0: (0xfebd0000, 0x4000)})
    tree.block(DISK, "nvme0n1", "259:0")
    tree.device(OTHER, vendor=0xfffe, device=0xd00d, class_code=0x120000)
    tree.driver("uio_pci_generic")
    return tree


def on(tree, *words, status=0):
    return run("--root", tree.folder, *words, status=status)


LISTED = """\
Network devices using DPDK-compatible driver
============================================
fffe:01:00.1 'Ethernet controller fffe:1533' drv=vfio-pci unused=uio_pci_generic

Network devices using kernel driver
===================================
fffe:01:00.0 'Ethernet controller fffe:1533' if=eth0 drv=igb unused=vfio-pci,uio_pci_generic \
*Active*

Storage devices using kernel driver
===================================
fffe:02:00.0 'NVMe controller fffe:0010' blk=nvme0n1 drv=nvme unused=vfio-pci,uio_pci_generic

Other devices using no driver
=============================
fffe:03:00.0 'Processing accelerator fffe:d00d' unused=vfio-pci,uio_pci_generic
"""


@pytest.mark.parametrize("words", [[], ["list"]])
def test_list_is_what_people_know_from_dpdk_devbind(tree, words):
    assert on(tree, *words) == LISTED
    assert run("--sysfs", tree.folder / "sys", *words) == LISTED


def test_list_all_shows_bridges_too(tree):
    assert f"{BRIDGE} 'PCI bridge fffe:0a54' drv=pcieport" in on(tree, "list", "--all")


def test_an_empty_bus(tmp_path):
    PciTree(tmp_path)
    assert run("--root", tmp_path) == "\n".join(
        f"No '{kind}' devices detected\n{'=' * len(f'No {kind!r} devices detected')}\n"
        for kind in ("Network", "Storage", "Other"))


def test_list_for_programs(tree):
    tree.mount("259:0", "/srv")
    found = {device["address"]: device for device in json.loads(on(tree, "list", "--json"))}
    assert list(found) == [NET, "fffe:01:00.1", DISK, OTHER]
    assert found[DISK] == {
        "address": DISK, "name": "NVMe controller fffe:0010", "kind": "storage", "vendor": "fffe",
        "device": "0010", "subsystem_vendor": "8086", "subsystem_device": "4702",
        "class": "010802", "numa_node": 0, "max_vfs": 4, "driver": "nvme",
        "unused": ["vfio-pci", "uio_pci_generic"], "interfaces": [], "blocks": ["nvme0n1"],
        "in_use": ["nvme0n1 is mounted at /srv"],
        "bars": [{"number": 0, "start": 0xfebd0000, "size": 0x4000}]}
    assert (found[NET]["kind"], found[NET]["in_use"]) == (
        "network", ["network interface eth0 is up"])
    assert (found[OTHER]["kind"], found[OTHER]["driver"]) == ("other", None)


def test_a_device_that_cannot_be_read_is_said_and_the_others_are_listed(tree):
    (tree.home(OTHER) / "class").unlink()
    out = on(tree)
    assert f"vhostrt-pci: PCI device {OTHER} cannot be read: " in out
    assert DISK in out and f"{OTHER} '" not in out


def test_this_machine_is_listed_as_it_is():
    if not os.path.isdir("/sys/bus/pci/devices"):
        assert "No such file or directory" in run(status=1)
        return
    listed = json.loads(run("list", "--all", "--json"))
    assert [device["address"] for device in listed] == sorted(os.listdir("/sys/bus/pci/devices"))


# Bind and unbind.

def test_bind_and_unbind(tree):
    with PaperKernel(tree) as kernel:
        assert on(tree, "bind", "uio_pci_generic", DISK, "fffe:3:0") == (
            f"{DISK} is bound to uio_pci_generic\n{OTHER} is bound to uio_pci_generic\n")
        assert on(tree, "unbind", "fffe:02:00") == f"{DISK} has no driver\n"
        assert kernel.said == [
            f"unbind nvme {DISK}", f"probe {DISK} for uio_pci_generic",
            f"probe {OTHER} for uio_pci_generic", f"unbind uio_pci_generic {DISK}"]
    assert "Storage devices using no driver" in on(tree)


REFUSED = {
    "no such device": (["unbind", "fffe:09:00.0"], "there is no PCI device fffe:09:00.0"),
    "no such driver": (["bind", "igb_uio", DISK], "there is no kernel driver igb_uio: load it "
                       "first (modprobe igb_uio)"),
    "in use": (["bind", "vfio-pci", NET], f"PCI device {NET} is in use: network interface eth0 is "
               "up; end that first, or say --force"),
    "a bridge": (["unbind", "--force", BRIDGE], f"PCI device {BRIDGE} is a bridge: other devices "
                 "are reached through it"),
}


@pytest.mark.parametrize(("words", "text"), REFUSED.values(), ids=REFUSED)
def test_refused(tree, words, text):
    with PaperKernel(tree) as kernel:
        assert on(tree, *words, status=1) == f"vhostrt-pci: {text}\n"
        assert kernel.said == []


def test_one_that_is_refused_keeps_none_of_the_others_from_it(tree):
    with PaperKernel(tree):
        out = on(tree, "unbind", NET, DISK, status=1)
    assert out.startswith(f"{DISK} has no driver\nvhostrt-pci: PCI device {NET} is in use")


def test_force(tree):
    with PaperKernel(tree):
        assert on(tree, "bind", "vfio-pci", NET, "--force") == f"{NET} is bound to vfio-pci\n"


@pytest.mark.parametrize("words", [["unbind"], ["bind", "vfio-pci"]])
def test_an_ordinary_user_is_told_that_it_takes_root(words):
    with tempfile.TemporaryDirectory() as folder:       # others may look into it
        os.chmod(folder, 0o755)
        tree = PciTree(Path(folder))
        tree.device(DISK, driver="nvme")
        tree.driver("vfio-pci")
        os.chmod(f"{folder}/sys/bus/pci/drivers_probe", 0o444)
        out = run("--root", folder, *words, DISK, before=unprivileged_words(), status=1)
    assert out == "vhostrt-pci: the drivers of PCI devices are changed by root only\n"


# Usage.

@pytest.mark.parametrize(("words", "text"), [
    (["bind"], "the following arguments are required: DRIVER, ADDR"),
    (["bind", "vfio-pci"], "the following arguments are required: ADDR"),
    (["unbind", "5e"], "'5e' is not a PCI address such as 0000:5e:00.0"),
    (["show"], "invalid choice: 'show'"), (["list", "x"], "unrecognized arguments: x"),
])
def test_bad_usage(words, text):
    out = run(*words, status=2)
    assert text in out and out.startswith("usage: vhostrt-pci")


@pytest.mark.parametrize("words", [["--help"], ["list", "-h"], ["bind", "-h"], ["unbind", "-h"]])
def test_help_names_every_option(words):
    out = run(*words)
    named = {"--help": ["--root", "--sysfs", "list", "bind", "unbind", "examples:", "--force"],
             "list": ["--json", "--all"], "bind": ["DRIVER", "ADDR", "--force"],
             "unbind": ["ADDR", "--force"]}[words[0]]
    assert all(name in out for name in named)


def test_output_that_nobody_takes(tree):
    done = subprocess.run([*COMMAND, "--root", str(tree.folder)], stdout=open("/dev/full", "w"),
                          stderr=subprocess.PIPE, text=True, env={**os.environ,
                                                                  "PYTHONPATH": str(ROOT)})
    assert (done.returncode, done.stderr) == (
        1, "vhostrt-pci: cannot print on stdout: No space left on device\n")
