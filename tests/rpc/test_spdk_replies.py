"""What SPDK answers, vhostrt does: the same keys with values of the same types, at least.

tests/rpc/spdk has replies of SPDK v26.05's vhost target. The calls are made by SPDK's own client.
"""
import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.lib.blk_client import Blk
from tests.lib.target import Target
from tests.rpc.test_spdk_client import Cli

SAMPLES = {path.name.removesuffix(".json"): json.loads(path.read_text())
           for path in sorted((Path(__file__).parent / "spdk").glob("*.json"))}
# Keys that stand for things that only the one or the other has: its components, its subsystems.
OWN_KEYS = {"log_get_flags", "trace_get_info", "trace_get_tpoint_group_mask"}
NUMBERS = (int, float)


def lacks(sample, answer, path=""):
    """Return what a reply has not got of a sample: keys, and types of values."""
    if isinstance(sample, bool) or not isinstance(sample, NUMBERS):
        if type(sample) is not type(answer):
            return [f"{path} is {answer!r}, and {sample!r} there"]
    elif isinstance(answer, bool) or not isinstance(answer, NUMBERS):
        return [f"{path} is {answer!r}, and {sample!r} there"]
    if isinstance(sample, dict):
        missing = [f"{path}.{key} is missing" for key in sample if key not in answer]
        return missing + [lack for key, value in sample.items() if key in answer
                          for lack in lacks(value, answer[key], f"{path}.{key}")]
    if isinstance(sample, list) and sample and answer:
        # Members of one list are alike; those that differ are of different kinds.
        return lacks(sample[0], answer[0], f"{path}[0]")
    return []


def test_what_is_missing_is_found():
    sample = {"a": 1, "b": [{"c": "x", "d": True}], "e": None}
    assert lacks(sample, {"a": 2, "b": [{"c": "", "d": False, "more": 1}], "e": None, "f": 1}) == []
    assert lacks(sample, {"a": "2", "b": [{"c": 1}]}) == [
        ".e is missing", ".a is '2', and 1 there", ".b[0].d is missing",
        ".b[0].c is 1, and 'x' there"]
    assert lacks({"a": 1}, {"a": True}) and lacks({"a": True}, {"a": 1})


@pytest.fixture(scope="module")
def cli():
    with Target(disks=("malloc:8M,name=Malloc0",)) as target, Cli(target) as running:
        target.rpc("bdev_null_create", name="Null0", num_blocks=8, block_size=512)
        with Blk(target.socket(), queues=2):
            yield running


@pytest.mark.parametrize("name", SAMPLES)
def test_reply(cli, name):
    sample, method = SAMPLES[name], name.partition(".")[0]
    answer = cli(method)
    if method in OWN_KEYS:
        shared = sample.keys() & answer.keys()
        assert len(shared) >= 3
        sample = {key: sample[key] for key in shared}
    if method == "vhost_get_controllers":
        sample = sample[:1]
    if method == "thread_get_io_channels":
        assert all(type(channel["ref"]) is int for thread in answer["threads"]
                   for channel in thread["io_channels"])
    assert lacks(sample, answer) == []


def test_notifications_say_the_same(cli):
    assert {"bdev_register", "bdev_unregister", "bdev_resize"} <= set(cli("notify_get_types"))
    events = cli("notify_get_notifications", "-i", 0, "-n", 2)
    assert [(event["type"], event["ctx"]) for event in events] == [
        ("bdev_register", "Malloc0"), ("vhost_controller_create", "disk0.sock")]
    assert cli("notify_get_notifications", "-i", 1, "-n", 1) == events[1:]


def test_sizes_that_change(cli):
    assert cli("bdev_null_resize", "Null0", 3) is True
    assert cli("bdev_get_bdevs", "-b", "Null0")[0]["num_blocks"] == 3 << 11
    assert cli.refused("bdev_null_resize", "Malloc0", 3)[0] == -19
    assert cli.refused("bdev_aio_rescan", "Malloc0")[0] == -19
    assert cli("bdev_examine", "-b", "Null0") == "" and cli("bdev_wait_for_examine") == ""


def test_the_shell_of_spdk(cli):
    """spdk-cli, which shows a target as a tree of directories."""
    command = Path(sys.executable).with_name("spdk-cli")

    def run(*words):
        done = subprocess.run([command, "-s", str(cli.target.rpc_path), *words], text=True,
                              capture_output=True, timeout=60)
        assert done.returncode == 0 and "Traceback" not in done.stderr, done.stdout + done.stderr
        assert "JSON-RPC error" not in done.stdout + done.stderr, done.stdout + done.stderr
        return done.stdout

    tree = run("ls")
    assert "Malloc0" in tree and "disk0.sock" in tree and "Null0" in tree
    assert "Shell1" in run("/bdevs/malloc", "create", "1", "512", "Shell1") + run("/bdevs/malloc",
                                                                                 "ls")
    run("/vhost/block", "create", "shell.1", "Shell1")
    assert "shell.1" in run("/vhost", "ls")
    run("/vhost/block", "delete", "shell.1")
    run("/bdevs/malloc", "delete", "Shell1")
    assert "Shell1" not in run("ls")
