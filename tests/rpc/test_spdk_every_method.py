"""spdk-rpc, unchanged, over every method that it and the target have: what people type works.

Those that need nothing are called as they are; CALLS has words for the others.
"""
import subprocess

import pytest

from tests.lib.blk_client import Blk
from tests.lib.target import Target
from tests.rpc.test_spdk_client import SPDK_RPC, Cli
from vhostrt.rpc.methods import METHODS
from vhostrt.rpc.schema import schema_of

SCHEMA = schema_of(METHODS)
FILE, THREAD = "FILE", "THREAD"         # put in when the call is made
# Method -> calls in their order; what is left when they are done goes with the target.
CALLS = {
    "bdev_aio_create": [("bdev_aio_create", FILE, "a1", 512)],
    "bdev_aio_delete": [("bdev_aio_create", FILE, "a2", 512), ("bdev_aio_delete", "a2")],
    "bdev_aio_rescan": [("bdev_aio_create", FILE, "a3", 512), ("bdev_aio_rescan", "a3")],
    "bdev_enable_histogram": [("bdev_enable_histogram", "--histogram", "Disk0"),
                              ("bdev_enable_histogram", "--no-histogram", "Disk0")],
    "bdev_get_histogram": [("bdev_enable_histogram", "--histogram", "Disk0"),
                           ("bdev_get_histogram", "Disk0")],
    "bdev_get_histogram_borders": [("bdev_enable_histogram", "--histogram", "Disk0"),
                                   ("bdev_get_histogram_borders", "--borders", "1000,2000",
                                    "Disk0")],
    "bdev_examine": [("bdev_examine", "-b", "Disk0")],
    "bdev_malloc_create": [("bdev_malloc_create", 1, 512)],
    "bdev_malloc_delete": [("bdev_malloc_create", "-b", "m", 1, 512), ("bdev_malloc_delete", "m")],
    "bdev_null_create": [("bdev_null_create", "n1", 1, 512)],
    "bdev_null_delete": [("bdev_null_create", "n2", 1, 512), ("bdev_null_delete", "n2")],
    "bdev_null_resize": [("bdev_null_create", "n3", 1, 512), ("bdev_null_resize", "n3", 2)],
    "bdev_split_create": [("bdev_malloc_create", "-b", "s1", 2, 512),
                          ("bdev_split_create", "s1", 2)],
    "bdev_split_delete": [("bdev_malloc_create", "-b", "s2", 2, 512),
                          ("bdev_split_create", "s2", 2), ("bdev_split_delete", "s2")],
    "bdev_uring_create": [("bdev_uring_create", FILE, "u1", 512)],
    "bdev_uring_delete": [("bdev_uring_create", FILE, "u2", 512), ("bdev_uring_delete", "u2")],
    "bdev_uring_rescan": [("bdev_uring_create", FILE, "u3", 512), ("bdev_uring_rescan", "u3")],
    "framework_get_config": [("framework_get_config", "bdev")],
    "framework_set_scheduler": [("framework_set_scheduler", "static")],
    "log_clear_flag": [("log_clear_flag", "rpc")],
    "log_enable_timestamps": [("log_enable_timestamps", "--timestamps")],
    "log_set_flag": [("log_set_flag", "rpc")],
    "log_set_level": [("log_set_level", "ERROR")],
    "log_set_print_level": [("log_set_print_level", "DEBUG")],
    "thread_set_cpumask": [("thread_set_cpumask", "-i", THREAD, "-m", "0x1")],
    "trace_clear_tpoint_mask": [("trace_clear_tpoint_mask", "bdev", "0x1")],
    "trace_disable_tpoint_group": [("trace_disable_tpoint_group", "bdev")],
    "trace_enable_tpoint_group": [("trace_enable_tpoint_group", "bdev")],
    "trace_set_tpoint_mask": [("trace_set_tpoint_mask", "bdev", "0x1")],
    "vhost_controller_set_coalescing": [
        ("vhost_create_blk_controller", "c3", "Disk0"),
        ("vhost_controller_set_coalescing", "c3", 10, 60000)],
    "vhost_create_blk_controller": [("vhost_create_blk_controller", "c1", "Disk0")],
    "vhost_delete_controller": [("vhost_create_blk_controller", "c2", "Disk0"),
                                ("vhost_delete_controller", "c2")],
}
# Claims would keep out the tests that run beside; of the start, of the end; what reads files is in
# test_config.py.
ELSEWHERE = {"framework_enable_cpumask_locks", "framework_start_init", "load_config",
             "load_subsystem_config", "scheduler_set_options", "spdk_kill_instance"}
# What is refused, as the sentence says.
REFUSED = {"virtio_blk_create_transport": ("vhost_user_blk", -17)}


def known_to_spdk():
    done = subprocess.run([SPDK_RPC, "-h"], capture_output=True, text=True, timeout=60)
    return {line.split()[0] for line in done.stdout.splitlines() if line.startswith("    ")
            and line.split()}


BOTH = sorted(SCHEMA.keys() & known_to_spdk() - ELSEWHERE)


@pytest.fixture(scope="module")
def cli():
    with Target(disks=("malloc:8M",)) as target, Cli(target) as running, \
            Blk(target.socket(), queues=1):
        yield running


@pytest.fixture
def put_in(cli, tmp_path):
    """Return what stands for a word of CALLS."""
    file = tmp_path / "disk.img"
    file.write_bytes(bytes(1 << 20))

    def word(text):
        if text == THREAD:
            reactor, = cli("framework_get_reactors")["reactors"]
            return reactor["lw_threads"][0]["id"]
        return file if text == FILE else text
    return word


@pytest.mark.parametrize("name", BOTH)
def test_method(cli, put_in, name):
    if name in REFUSED:
        word, code = REFUSED[name]
        assert cli.refused(name, word)[0] == code
        return
    for words in CALLS.get(name, [(name,)]):
        status, said = cli.run(*map(put_in, words))
        # Where the kernel refuses io_uring the sentence says so.
        assert status == 0 or "_uring_" in name and "io_uring" in said, said


def test_many_are_shared():
    assert len(BOTH) > 50, BOTH


def test_before_the_start():
    with Target(disks=(), extra=["--wait-for-rpc"]) as target, Cli(target) as cli:
        assert cli("scheduler_set_options", "-s", 0) == ""
        assert cli("framework_start_init") == ""
        assert cli("spdk_kill_instance", "SIGTERM") == ""
        assert target.process.wait(30) == 0
