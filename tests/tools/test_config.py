"""vhostrt-config as its user runs it."""
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
COMMAND = [sys.executable, "-m", "vhostrt.tools.config"]
OLD = """\
[Global]
  ReactorMask 0x5
  NoPci Yes
  TpointGroupMask bdev
  SharedMemoryID 2
[VhostBlk0]
  Name vhost.0
  Dev Null0
  Cpumask 0x1
[Null]
  Dev Null0 16
"""
NEW = {"subsystems": [
    {"subsystem": "bdev", "config": [{"method": "bdev_null_create", "params": {
        "name": "Null0", "num_blocks": 32768, "block_size": 512}}]},
    {"subsystem": "vhost_blk", "config": [{"method": "vhost_create_blk_controller", "params": {
        "ctrlr": "vhost.0", "dev_name": "Null0", "cpumask": "0x1"}}]}]}


@pytest.fixture
def run(tmp_path):
    def run_words(*words, status=0, **settings):
        """Run the command; return what it printed on stdout, and the lines on stderr."""
        settings = {"stdout": subprocess.PIPE, **settings}
        done = subprocess.run([*COMMAND, *map(str, words)], stderr=subprocess.PIPE, text=True,
                              timeout=120, cwd=tmp_path,
                              env={**os.environ, "PYTHONPATH": str(ROOT)}, **settings)
        assert done.returncode == status, done.stderr
        assert "Traceback" not in done.stderr
        return done.stdout, done.stderr.splitlines()
    return run_words


@pytest.fixture
def old(tmp_path):
    (tmp_path / "old.conf").write_text(OLD)
    return tmp_path / "old.conf"


def test_convert(run, old, tmp_path):
    out, said = run("convert", "old.conf")
    assert json.loads(out) == NEW
    assert said == ["vhostrt-config: [Global] belongs to the command line: "
                    "vhostrt -m '[0,2]' -i 2 -u -e bdev"]
    out, _ = run("convert", "old.conf", "-o", "new.json")
    assert out == "" and json.loads((tmp_path / "new.json").read_text()) == NEW


def test_warnings_are_told_and_the_file_converted(run, old):
    old.write_text(OLD + "  Size 3\n")
    out, said = run("convert", "old.conf")
    assert json.loads(out) == NEW
    assert said[0] == "vhostrt-config: old.conf:12: [Null] 'Size' means nothing to vhostrt"


@pytest.mark.parametrize("text, lines", [
    ("[Null]\nDev Null0\nDev\n", ["old.conf:2: Dev needs name size_in_MB [block_size], and has 1 "
                                  "values", "old.conf:3: Dev needs name size_in_MB [block_size], "
                                  "and has 0 values"]),
    ("[Nvme]\n", ["old.conf:1: the module of section [Nvme] is not there yet"]),
    ("[Null]\nDev '' 16\n", ["old.conf:2: [Null]: bdev_null_create: Invalid parameters: 'name' "
                             "must be a string of 1 to 255 characters, not \"\""]),
    ("Null\n", ["old.conf:1: unknown section: 'Null' stands before the first [section]",
                ]),
    ("{}", ["old.conf is JSON already"]),
])
def test_what_cannot_be_converted(run, old, text, lines):
    old.write_text(text)
    out, said = run("convert", "old.conf", "-o", "new.json", status=1)
    assert said == [f"vhostrt-config: {line}" for line in lines]
    assert out == "" and not old.with_name("new.json").exists()


def test_check(run, old, tmp_path):
    (tmp_path / "new.json").write_text(json.dumps(NEW))
    for name in ("old.conf", "new.json"):
        assert run("check", name) == (f"{name}: nothing is wrong with its 2 calls\n", [])


def test_check_names_everything(run, tmp_path):
    config = [{"method": "bdev_null_create", "params": {"name": "a"}},
              {"method": "bdev_malloc_create", "params": {"num_blocks": 1, "block_size": "x"}},
              {"method": "sock_set_default_impl", "params": {"impl_name": "posix"}}]
    file = tmp_path / "new.json"
    file.write_text(json.dumps({"subsystems": [{"subsystem": "bdev", "config": config}]}, indent=1))
    _, said = run("check", "new.json", status=1)
    assert said[1:] == [
        "vhostrt-config: new.json:6: subsystems[0].config[0]: bdev_null_create: Invalid parameters:"
        " missing 'num_blocks'",
        "vhostrt-config: new.json:12: subsystems[0].config[1]: bdev_malloc_create: Invalid "
        "parameters: 'block_size' must be a positive number of bytes, not \"x\""]
    assert "ignored, settings of modules" in said[0] and "sock_set_default_impl" in said[0]
    config.append({"method": "nonsense"})
    file.write_text(json.dumps({"subsystems": [{"subsystem": "bdev", "config": config}]}))
    _, said = run("check", "new.json", status=1)
    assert "new.json:1: subsystems[0].config[3]: Method 'nonsense' not found" in said[-1]


@pytest.mark.parametrize("words, why", [
    (["check", "none"], "Could not read config file none: No such file or directory"),
    (["convert", "none"], "Could not read config file none: No such file or directory"),
    (["convert", "old.conf", "-o", "none/new.json"], "none/new.json: No such file or directory"),
])
def test_files_that_are_not_there(run, old, words, why):
    assert run(*words, status=1)[1][-1] == f"vhostrt-config: {why}"


def test_a_full_stdout_is_told(run, old):
    with open("/dev/full", "w") as full:
        _, said = run("convert", "old.conf", status=1, stdout=full)
    assert said[-1] == "vhostrt-config: cannot print on stdout: No space left on device"


def test_usage(run):
    assert "usage: vhostrt-config" in run(status=2)[1][0]
    assert run("nonsense", "x", status=2)[1]
    out, _ = run("--help")
    assert "convert" in out and "check" in out and "vhostrt -c vhost.json" in out
    for word in ("convert", "check"):
        assert "FILE" in run(word, "--help")[0]
