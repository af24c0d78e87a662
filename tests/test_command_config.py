"""-c as its user runs it: the files that SPDK has saved, old ones, and those that are refused."""
import json
from pathlib import Path

import pytest

from tests.lib.command import Place

SAVED_BY_SPDK = json.loads(
    (Path(__file__).parent / "rpc/save_config.spdk.json").read_text())["subsystems"]
DISKS = [part for part in SAVED_BY_SPDK if part["subsystem"] != "vhost_scsi"]


@pytest.fixture
def place():
    with Place() as one:
        yield one


def write(place, *subsystems):
    (place.cwd / "vhost.json").write_text(json.dumps({"subsystems": subsystems}, indent=2))


def controllers(run):
    return sorted(each["ctrlr"] for each in run.rpc("vhost_get_controllers"))


@pytest.mark.parametrize("option", ["-c", "--json"])
def test_what_spdk_saved(place, option):
    write(place, *DISKS)
    with place.start(option, "vhost.json", "-m", "0x1") as run:
        assert controllers(run) == ["blk.malloc", "blk.null"]
        lines = [line for line in run.said().splitlines() if "ignored" in line]
        assert len(lines) == 1 and "*NOTICE*: vhost.json: ignored, settings of modules that" in \
            lines[0] and "sock_set_default_impl" in lines[0]
        run.stop()


def test_a_controller_that_cannot_be_served_is_refused_by_line(place):
    write(place, *SAVED_BY_SPDK)
    done = place.run("-c", "vhost.json", "-m", "0x1")
    text = (place.cwd / "vhost.json").read_text()
    assert done.returncode == 1
    for j, method in enumerate(("vhost_create_scsi_controller", "vhost_scsi_controller_add_target",
                                "vhost_start_scsi_controller")):
        line = text[:text.index(f'"{method}"')].count("\n")
        assert (f"*ERROR*: vhost.json:{line}: subsystems[10].config[{j}]: Method '{method}' not "
                "found: remove the entry, or pass over what fails with --json-ignore-init-errors"
                ) in done.stderr
    with place.start("-c", "vhost.json", "-m", "0x1", "--json-ignore-init-errors") as run:
        assert controllers(run) == ["blk.malloc", "blk.null"]
        run.stop()


@pytest.mark.parametrize("part", [part for part in DISKS if part["subsystem"] != "vhost_blk"],
                         ids=lambda part: part["subsystem"])
def test_each_subsystem_alone(place, part):
    """Composed as people do: one part of a file, whatever it is of."""
    write(place, part)
    with place.start("-c", "vhost.json", "-m", "0x1") as run:
        assert controllers(run) == []
        run.stop()


def test_controllers_without_their_bdevs(place):
    write(place, *[part for part in DISKS if part["subsystem"] == "vhost_blk"])
    done = place.run("-c", "vhost.json", "-m", "0x1")
    assert done.returncode == 1
    assert ("*ERROR*: vhost.json:6: subsystems[0].config[0]: vhost_create_blk_controller: bdev "
            "Malloc0 does not exist") in done.stderr
    with place.start("-c", "vhost.json", "-m", "0x1", "--json-ignore-init-errors") as run:
        assert controllers(run) == []
        assert run.said().count("does not exist") == 2
        run.stop()


def test_what_waits_for_the_file_itself_is_refused_and_does_not_hang(place):
    write(place, {"subsystem": "bdev", "config": [{"method": "framework_start_init"}]})
    done = place.run("-c", "vhost.json")
    assert done.returncode == 1 and "framework_start_init has no place" in done.stderr


OLD = """\
[Global]
  Comment "an old file"
  ReactorMask 0x1
[Ioat]
  Disable Yes
[Malloc]
  NumberOfLuns 2
  LunSizeInMB 16
  BlockSize 4096
[VhostBlk0]
  Name vhost.0
  Dev Malloc1
"""


def test_an_old_file(place):
    (place.cwd / "vhost.conf").write_text(OLD)
    with place.start("-c", "vhost.conf") as run:
        assert controllers(run) == ["vhost.0"]
        assert [(bdev["name"], bdev["block_size"]) for bdev in run.rpc("bdev_get_bdevs")] == [
            ("Malloc0", 4096), ("Malloc1", 4096)]
        assert "vhost.conf:4: [Ioat] means nothing" in run.said()
        run.stop()


def test_an_old_file_with_a_controller_that_cannot_be_served(place):
    (place.cwd / "vhost.conf").write_text(
        OLD + "[VhostScsi0]\nName vhost.1\nDev 0 Malloc0\n[VhostBlk1]\nName b\nDev None\n")
    done = place.run("-c", "vhost.conf")
    assert done.returncode == 1
    errors = [line.partition("*ERROR*: ")[2] for line in done.stderr.splitlines()
              if "*ERROR*" in line]
    assert errors == [
        "vhost.conf:13: [VhostScsi0]: the module of this section is not there yet (it needs "
        "vhost_create_scsi_controller): remove the section",
        "vhost.conf:15: [VhostScsi0]: the module of this section is not there yet (it needs "
        "vhost_scsi_controller_add_target): remove the section"]
    (place.cwd / "vhost.conf").write_text(OLD + "[VhostBlk1]\nName b\nDev None\n")
    done = place.run("-c", "vhost.conf")
    assert ("*ERROR*: vhost.conf:13: [VhostBlk1]: vhost_create_blk_controller: bdev None does not "
            "exist") in done.stderr
