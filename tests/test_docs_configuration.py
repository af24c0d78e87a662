"""Every snippet and command of docs/configuration.md, as a reader would follow it."""
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.lib.command import Place
from vhostrt.config.sections import GLOBAL_KEYS, MODULES
from vhostrt.options import Options
from vhostrt.subsystems import all_subsystems

PAGE = (Path(__file__).resolve().parent.parent / "docs/configuration.md").read_text()
BLOCKS = dict(re.findall(r"^```(\w+)\n(.*?)^```$", PAGE, re.M | re.S))
SHELL = [text for kind, text in re.findall(r"^```(\w+)\n(.*?)^```$", PAGE, re.M | re.S)
         if kind == "sh"]


@pytest.fixture
def place():
    with Place() as one:
        (one.cwd / "disk.img").write_bytes(bytes(1 << 20))
        yield one


def shell(place, text):
    places = [os.path.dirname(sys.executable), os.environ["PATH"]]
    done = subprocess.run(["sh", "-ec", text], cwd=place.cwd, capture_output=True, text=True,
                          timeout=120, env={**place.environment, "PATH": ":".join(places)})
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def served(run):
    return {each["ctrlr"]: (each["backend_specific"]["block"]["bdev"],
                            each["backend_specific"]["block"]["readonly"])
            for each in run.rpc("vhost_get_controllers")}


SERVED = {"vhost.0": ("Malloc0", False), "vhost.1": ("File0", True)}


def test_nothing_on_the_page_is_left_out():
    assert len(SHELL) == 2 and set(BLOCKS) == {"json", "ini", "sh"}
    assert PAGE.count("\n```") == 2 * 4


def test_the_file_and_what_is_saved(place):
    (place.cwd / "vhost.json").write_text(BLOCKS["json"])
    assert "nothing is wrong" in shell(place, "vhostrt-config check vhost.json")
    with place.start("-c", "vhost.json") as run:
        assert served(run) == SERVED
        save, load = SHELL[0].replace("rpc.sock", str(place.rpc)).splitlines()
        shell(place, save)
        saved = run.rpc("save_config")
        run.stop()
    assert json.loads((place.cwd / "saved.json").read_text()) == saved
    with place.start() as run:
        shell(place, load)
        assert run.rpc("save_config") == saved
        run.stop()


def test_the_message(place):
    message, = re.findall(r"^    (vhost.json:\d+: .*)$", PAGE, re.M)
    (place.cwd / "vhost.json").write_text(
        BLOCKS["json"].replace('"dev_name": "Malloc0"', '"dev_name": "Malloc9"'))
    done = place.run("-c", "vhost.json")
    assert done.returncode == 1 and message in done.stderr


def test_the_old_file(place):
    (place.cwd / "vhost.conf").write_text(BLOCKS["ini"])
    shell(place, SHELL[1])
    for file in ("vhost.json", "vhost.conf"):
        with place.start("-c", file) as run:
            assert served(run) == SERVED
            assert {bdev["name"] for bdev in run.rpc("bdev_get_bdevs")} == {
                "Malloc0", "Malloc1", "File0"}
            run.stop()


def test_the_tables_have_everything_there_is():
    names = {name.lower().rstrip("0123456789") for name in re.findall(r"`\[(\w+)\]`", PAGE)}
    assert names == {*MODULES, "global"}
    row, = re.findall(r"^\| `\[Global\]` \| (.*?) \|", PAGE, re.M)
    assert {key.lower() for key in row.split(", ")} == set(GLOBAL_KEYS)
    saved = PAGE.split("| subsystem | what is saved |")[1].split("\n\n")[0]
    assert re.findall(r"^\| `(\w+)`", saved, re.M) == [
        part.name for part in all_subsystems(Options())]
