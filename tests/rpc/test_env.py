"""vhostrt/rpc/env.py: what is in the environment, by RPC."""
import asyncio
import os
import stat
from types import SimpleNamespace

import pytest

from tests.lib.pci_tree import PciTree
from tests.lib.target import Target
from vhostrt.env.options import EnvOptions
from vhostrt.env.pci.bus import Bus
from vhostrt.env.roots import Roots
from vhostrt.rpc import env


def test_the_memory_is_written_down():
    with Target(disks=("malloc:8M",)) as target:
        path = target.rpc("env_dpdk_get_mem_stats")["filename"]
        assert path == target.rpc("env_dpdk_get_mem_stats")["filename"]
        about = os.stat(path)
        assert stat.S_IMODE(about.st_mode) == 0o600 and str(target.pid) in path
        with open(path, encoding="utf-8") as file:
            first, *rest = file.read().splitlines()
        assert first.startswith("memory: total ") and "zones:" in rest
        assert target.rpc("framework_get_pci_devices") == []
    assert not os.path.exists(path)


def test_no_directory_for_the_file(tmp_path, monkeypatch):
    places = [(str(tmp_path / "none" / "deep"), False), (str(tmp_path / "shared"), True)]
    (tmp_path / "shared").mkdir(mode=0o755)
    monkeypatch.setattr(env, "candidates", lambda: places)
    with pytest.raises(OSError, match="shared: it is not this user's alone"):
        env.write_new("x", "text")
    (tmp_path / "shared").chmod(0o700)
    (tmp_path / "shared" / "x").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="[Ss]ymbolic"):
        env.write_new("x", "text")
    assert not (tmp_path / "elsewhere").exists()


def test_pci_devices_that_are_taken(tmp_path, monkeypatch):
    tree = PciTree(tmp_path)
    for address in ("0000:00:04.0", "0000:00:05.0"):
        home = tree.device(address)
        (home / "config").write_bytes(bytes(range(256)))
    bus = Bus(EnvOptions(roots=Roots(*(str(tmp_path / name) for name in ("sys", "proc", "dev")))))
    bus.scan()
    monkeypatch.setattr(env, "current", lambda: SimpleNamespace(bus=bus))
    assert asyncio.run(env.framework_get_pci_devices(None)) == []
    bus.devices[1].driver = object()
    assert asyncio.run(env.framework_get_pci_devices(None)) == [
        {"address": "0000:00:05.0", "config_space": bytes(range(256)).hex()}]
    monkeypatch.setattr(env, "current", lambda: None)
    assert asyncio.run(env.framework_get_pci_devices(None)) == []
