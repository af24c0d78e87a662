"""The client of the PyPI package spdk, unchanged, against the running program."""
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.lib.blk_client import Blk
from tests.lib.target import Target

SPDK_RPC = Path(sys.executable).with_name("spdk-rpc")


class Cli:
    """Calls of spdk-rpc, each on a connection of its own, in one process that reads them.

    Where importing the client takes a second, a process for each call would be most of the test.
    """

    def __init__(self, target):
        self.target = target
        self.process = subprocess.Popen([SPDK_RPC, "--server"], text=True, stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE, stderr=subprocess.STDOUT)

    def run(self, *words):
        """Return the status and the text of `spdk-rpc -s SOCKET words`."""
        line = shlex.join(["-s", str(self.target.rpc_path), *map(str, words)])
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        text = []
        for line in self.process.stdout:
            if line.startswith("**STATUS="):
                return int(line.removeprefix("**STATUS=")), "".join(text)
            text.append(line)
        raise AssertionError(f"spdk-rpc ended: {''.join(text)}")

    def __call__(self, *words):
        """Return what it printed, read as JSON where it is JSON; AssertionError when it fails."""
        status, text = self.run(*words)
        assert status == 0, text
        return value_of(text)

    def refused(self, *words):
        """Return the error's code and message, which it printed."""
        status, text = self.run(*words)
        assert status == 1, text
        error = json.loads(text.partition("response:\n")[2])
        return error["code"], error["message"]

    def close(self):
        self.process.stdin.close()
        self.process.wait(30)
        self.process.stdout.close()

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.close()


def value_of(text):
    try:
        return json.loads(text)
    except ValueError:
        return text.strip()


def command(target, *words, stdin=""):
    """Run `spdk-rpc -s SOCKET words` as people do; return its CompletedProcess."""
    return subprocess.run([SPDK_RPC, "-s", str(target.rpc_path), *words], input=stdin,
                          capture_output=True, text=True, timeout=60)


@pytest.fixture(scope="module")
def target():
    with Target(disks=()) as running:
        yield running


@pytest.fixture(scope="module")
def cli(target):
    with Cli(target) as running:
        yield running


def test_the_command(target):
    done = command(target, "spdk_get_version")
    assert done.returncode == 0 and json.loads(done.stdout)["version"].startswith("vhostrt v")
    done = command(target, "bdev_get_bdevs", "-b", "none")
    assert done.returncode == 1 and '"message": "bdev none does not exist"' in done.stdout


def test_methods_and_version(cli):
    names = cli("rpc_get_methods")
    assert {"spdk_get_version", "bdev_malloc_create", "vhost_create_blk_controller"} <= set(names)
    assert "framework_start_init" in names and "get_bdevs" not in names
    assert "framework_start_init" not in cli("rpc_get_methods", "--current")
    assert "get_bdevs" in cli("rpc_get_methods", "--include-aliases")
    version = cli("spdk_get_version")
    fields = version["fields"]
    assert version["version"] == "vhostrt v{major}.{minor}.{patch}{suffix}".format(**fields)


def test_framework(cli, target):
    assert cli("framework_wait_init") == ""
    about = cli("framework_get_reactors")
    assert about["pid"] == target.pid
    assert [r["lcore"] for r in about["reactors"]] == [0]
    order = [s["subsystem"] for s in cli("framework_get_subsystems")]
    assert order.index("bdev") < order.index("vhost_blk")
    assert cli.refused("framework_start_init")[0] == -1


def test_malloc(cli):
    assert cli("bdev_malloc_create", 16, 512) == "Malloc0"
    assert cli("bdev_malloc_create", "-b", "mem", "-u", "fc571169-d385-4c55-869d-9d4a1dc20130",
               2.5, 4096) == "mem"
    bdev, = cli("bdev_get_bdevs", "-b", "mem")
    assert (bdev["block_size"], bdev["num_blocks"]) == (4096, 640)
    assert bdev["uuid"] == "fc571169-d385-4c55-869d-9d4a1dc20130"
    assert [b["name"] for b in cli("bdev_get_bdevs")] == ["Malloc0", "mem"]
    assert cli.refused("bdev_malloc_create", "-b", "mem", 1, 512) == (
        -17, "bdev mem already exists")
    for name in ("mem", "Malloc0"):
        assert cli("bdev_malloc_delete", name) == ""
    assert cli("bdev_get_bdevs") == []
    assert cli.refused("bdev_malloc_delete", "mem")[0] == -19
    code, text = cli.refused("bdev_malloc_create", 16, 513)
    assert code == -32602 and "block size 513" in text


def test_null(cli):
    assert cli("bdev_null_create", "nothing", 100, 4096) == "nothing"
    bdev, = cli("bdev_get_bdevs", "-b", "nothing", "-t", 1000)
    assert bdev["product_name"] == "Null disk" and bdev["num_blocks"] == 25600
    assert cli.refused("bdev_malloc_delete", "nothing")[0] == -19
    assert cli("bdev_null_delete", "nothing") == ""


def test_aio(cli, tmp_path):
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(1 << 20))
    assert cli("bdev_aio_create", image, "file", 512) == "file"
    assert cli("bdev_get_bdevs", "-b", "file")[0]["num_blocks"] == 2048
    assert cli("bdev_aio_delete", "file") == ""
    code, text = cli.refused("bdev_aio_create", tmp_path / "missing", "file")
    assert code == -2 and "missing" in text


def test_controllers(cli, target):
    cli("bdev_malloc_create", "-b", "disk", 16, 512)
    try:
        assert cli("vhost_create_blk_controller", "blk.0", "disk", "--cpumask", "0x1") == ""
        assert cli("vhost_create_blk_controller", "-r", "blk.1", "disk") == ""
        first, second = cli("vhost_get_controllers")
        socket = target.folder / "blk.0"
        assert first["ctrlr"] == "blk.0" and first["cpumask"] == "0x1"
        assert first["socket"] == str(socket) and socket.is_socket()
        assert second["backend_specific"] == {"block": {
            "readonly": True, "bdev": "disk", "transport": "vhost_user_blk"}}
        assert cli("vhost_get_controllers", "-n", "blk.1") == [second]
        assert cli("virtio_blk_get_transports") == [{"name": "vhost_user_blk"}]
        assert cli.refused("vhost_create_blk_controller", "blk.0", "disk")[0] == -17
        assert cli.refused("vhost_create_blk_controller", "blk.2", "none")[0] == -19
        code, text = cli.refused("vhost_create_blk_controller", "-p", "blk.2", "disk")
        assert code == -32602 and "packed" in text
        for name in ("blk.0", "blk.1"):
            assert cli("vhost_delete_controller", name) == ""
        assert not socket.exists()
        assert cli.refused("vhost_delete_controller", "blk.0")[0] == -19
    finally:
        cli("bdev_malloc_delete", "disk")


def test_statistics(cli, target):
    cli("bdev_malloc_create", "-b", "disk", 1, 512)
    cli("vhost_create_blk_controller", "blk.0", "disk")
    try:
        assert cli("bdev_enable_histogram", "disk", "--histogram", "--granularity", 5) == ""
        with Blk(target.folder / "blk.0") as blk:
            blk.write(0, bytes(1024))
            told = cli("bdev_get_iostat", "--names", "disk", "--reset-mode", "all")
            assert [(b["name"], b["num_write_ops"], b["bytes_written"])
                    for b in told["bdevs"]] == [("disk", 1, 1024)]
            channels = cli("bdev_get_iostat", "--names", "disk", "-c")["channels"]
            assert [c["num_write_ops"] for c in channels] == [1]
        assert cli("bdev_get_histogram", "disk")["granularity"] == 5
        counts = cli("bdev_get_histogram_borders", "disk", "--borders", "1,1000000000")
        assert counts["borders_count"][1:] == [1, 1]
        assert cli("bdev_reset_iostat", "-b", "disk", "-m", "maxmin") == ""
        assert cli("bdev_enable_histogram", "disk", "--no-histogram") == ""
        assert cli.refused("bdev_get_histogram", "disk")[0] == -61
    finally:
        cli("vhost_delete_controller", "blk.0")
        cli("bdev_malloc_delete", "disk")


def test_log(cli):
    assert cli("log_set_flag", "rpc") == ""
    assert cli("log_get_flags")["rpc"] is True
    assert cli("log_clear_flag", "rpc") == ""
    assert cli("log_get_flags")["rpc"] is False
    level = cli("log_get_print_level")
    assert cli("log_set_print_level", "ERROR") == ""
    assert cli("log_get_print_level") == "ERROR"
    assert cli("log_set_print_level", level) == ""


def test_trace(cli, target):
    assert cli("trace_enable_tpoint_group", "bdev") == ""
    assert cli("trace_set_tpoint_mask", "vhost_blk", "0x1") == ""
    groups = cli("trace_get_tpoint_group_mask")
    assert groups["bdev"]["enabled"] is True and groups["vhost_blk"]["tpoint_mask"] == "0x1"
    info = cli("trace_get_info")
    assert info["tpoint_shm_path"] == f"/dev/shm/vhostrt_trace.pid{target.pid}"
    assert int(info["tpoint_group_mask"], 16) == sum(
        int(groups[name]["mask"], 16) for name in ("bdev", "vhost_blk"))
    assert cli("trace_clear") == ""
    assert cli("trace_clear_tpoint_mask", "vhost_blk", "0x1") == ""
    assert cli("trace_disable_tpoint_group", "all") == ""
    assert cli("trace_get_info")["tpoint_group_mask"] == "0x0"
    code, text = cli.refused("trace_enable_tpoint_group", "nvmf_tcp")
    assert code == -32602 and "must be one of bdev" in text


def test_claims_on_cores(cli):
    # Nothing is claimed here: other tests use the same cores.
    assert cli("framework_disable_cpumask_locks") == ""
    assert "framework_enable_cpumask_locks" in cli("rpc_get_methods")


def test_a_script_and_a_batch_of_calls(cli, target):
    made = "bdev_malloc_create -b a 1 512\nbdev_malloc_create -b b 1 512\n"
    done = command(target, stdin=made)
    assert done.returncode == 0 and done.stdout.split() == ["a", "b"]
    done = command(target, "--batch-mode", stdin="bdev_malloc_delete a\nbdev_malloc_delete b\n")
    assert done.returncode == 0 and cli("bdev_get_bdevs") == []


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_kill(name):
    with Target(disks=()) as target:
        done = command(target, "spdk_kill_instance", name)
        assert done.returncode == 0, done.stdout
        assert target.process.wait(30) == 0
        assert not os.path.exists(target.rpc_path)


def test_start_up_by_rpc():
    with Target(disks=(), extra=["--wait-for-rpc"]) as target, Cli(target) as cli:
        assert cli.refused("bdev_get_bdevs")[0] == -1
        assert "framework_start_init" in cli("rpc_get_methods", "-c")
        assert cli("framework_start_init") == ""
        assert cli("framework_wait_init") == ""
        assert cli("bdev_get_bdevs") == []
