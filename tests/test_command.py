"""The live command: what it prints, serves, leaves behind, and how it is stopped."""
import json
import os
import re
import select
import signal
import socket
import subprocess

import pytest

from tests.lib.command import Place
from tests.lib.target import RpcError, rpc_call

STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
LOCK_ONLY = {"lock"}


@pytest.fixture
def place():
    with Place() as one:
        yield one


def connects(path):
    """True when somebody listens at a unix socket."""
    with socket.socket(socket.AF_UNIX) as client:
        try:
            client.connect(str(path))
        except OSError:
            return False
        return True


# Start and stop

def test_the_lines_of_a_start(place):
    with place.start("--disk", "malloc:8M", "-m", "0x1") as run:
        first, second, qemu = run.out.read_text().splitlines()
        assert re.fullmatch(r"Starting vhostrt v\S+ / Python 3\.\d+\.\d+ initialization\.\.\.",
                            first)
        assert second.startswith("[ DPDK EAL parameters: vhostrt --no-shconf -l 0 ")
        assert second.endswith(f" --file-prefix=spdk_pid{run.pid} ]")
        assert qemu.startswith("To attach with QEMU: qemu-system-x86_64 ")
        assert f"path={place.sockets}/vhost.0 -device vhost-user-blk-pci," in qemu
        notices = run.err.read_text()
        order = ["Total cores available: 1", "Idle policy: yield", "Reactor started on core 0",
                 f"Disk0 is served at {place.sockets}/vhost.0"]
        assert re.search(".*".join(map(re.escape, order)), notices, re.DOTALL), notices
        run.stop()


def test_quiet_prints_the_start_lines_only(place):
    with place.start("--disk", "malloc:8M", "-q", "-m", "0x1") as run:
        run.stop()
        assert len(run.out.read_text().splitlines()) == 3
        assert run.err.read_text() == ""


def hear_hangups():
    """In the child: a terminal would not have them ignored, as whoever runs the tests may."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.mark.parametrize("number", STOPS)
def test_a_signal_stops_it_and_only_the_lock_file_stays(place, number):
    with place.start("--disk", "malloc:8M", preexec_fn=hear_hangups) as run:
        assert place.left() == {"lock", "pid", "rpc", "rpc.lock", "sockets/vhost.0"}
        assert place.pid.read_text() == place.lock.read_text() == f"{run.pid}\n"
        run.stop(number)
    assert place.left() == LOCK_ONLY
    assert place.lock.read_text() == ""


def test_a_stop_with_clients_connected(place):
    with place.start("--disk", "malloc:8M") as run, \
            socket.socket(socket.AF_UNIX) as disk, socket.socket(socket.AF_UNIX) as rpc:
        disk.connect(str(place.sockets / "vhost.0"))
        rpc.connect(str(place.rpc))
        run.rpc("vhost_get_controllers")
        run.stop()
        for client in (disk, rpc):
            client.settimeout(10)
            assert client.recv(1) == b""
    assert place.left() == LOCK_ONLY


def test_more_signals_while_it_stops(place):
    with place.start("--wait-for-rpc") as run, socket.socket(socket.AF_UNIX) as waiting:
        # Answers that nobody fetches keep the server from closing for a while.
        waiting.connect(str(place.rpc))
        waiting.sendall(b'{"jsonrpc":"2.0","id":1,"method":"rpc_get_schema"}' * 32)
        select.select([waiting], [], [], 60)
        run.rpc("spdk_get_version")
        run.process.send_signal(signal.SIGTERM)
        run.await_line("SIGTERM: stopping")
        run.process.send_signal(signal.SIGTERM)
        run.process.send_signal(signal.SIGINT)
        assert run.wait() == 0
        assert run.said().count(": stopping") == 1
        assert "is ignored, the program is stopping already" in run.said()
        assert "Traceback" not in run.said()
    assert place.left() == LOCK_ONLY


@pytest.mark.parametrize("line", ["Starting vhostrt", "DPDK EAL", "Total cores", "Idle policy",
                                  "Reactor started", "Files are served"])
def test_a_signal_during_the_start(place, line):
    store = place.folder / "disk"
    store.write_bytes(bytes(1 << 20))
    with place.start("-m", "0x1", "--disk", str(store), ready=False) as run:
        run.await_line(line)
        run.stop()
    store.unlink()
    assert place.left() == LOCK_ONLY


def test_signals_that_the_parent_has_blocked_or_ignored(place):
    def deaf():
        signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with place.start(preexec_fn=deaf) as run:
        run.stop()


def test_hangups_that_the_parent_ignores(place):
    """As under nohup."""
    def deaf():
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with place.start(preexec_fn=deaf) as run:
        run.process.send_signal(signal.SIGHUP)
        assert run.rpc("spdk_get_version")
        run.stop()


def test_nobody_reads_stdout(place):
    reader, writer = os.pipe()
    os.close(reader)
    with place.start("--disk", "malloc:8M", stdout=writer, stderr=writer) as run:
        os.close(writer)
        ignored = int(re.search(r"SigIgn:\s*(\w+)", run.file("status"))[1], 16)
        assert ignored >> signal.SIGPIPE - 1 & 1
        run.rpc("bdev_null_create", name="n", num_blocks=8, block_size=512)
        run.process.send_signal(signal.SIGTERM)
        assert run.wait() == 0
    assert place.left() == LOCK_ONLY


def test_started_without_standard_descriptors(place):
    def close():
        os.closerange(0, 3)
    with place.start("--disk", "malloc:8M", preexec_fn=close) as run:
        # Else a socket or an eventfd would be what some library takes for stderr.
        for fd in range(3):
            assert os.readlink(f"/proc/{run.pid}/fd/{fd}") == "/dev/null"
        run.process.send_signal(signal.SIGTERM)
        assert run.wait() == 0


@pytest.mark.parametrize("word", ["--help", "--version"])
def test_help_that_cannot_be_printed(place, word):
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as broken, open("/dev/full", "w") as full:
        for stdout, why in ((broken, "Broken pipe"), (full, "No space left on device")):
            done = subprocess.run(place.words(word), stdout=stdout, stderr=subprocess.PIPE,
                                  text=True, timeout=60, env=place.environment, check=False)
            assert done.returncode == 1
            assert done.stderr == f"vhostrt: cannot print on stdout: {why}\n"


def test_stdout_and_stderr_are_full(place):
    with open("/dev/full", "w") as full, place.start(stdout=full, stderr=full) as run:
        run.process.send_signal(signal.SIGTERM)
        assert run.wait() == 0


def test_a_path_that_is_no_text_of_the_locale(place):
    folder = os.fsencode(place.folder) + b"/\xff"
    os.mkdir(folder)
    place.environment["PYTHONIOENCODING"] = "utf-8:strict"
    with place.start("--disk", "malloc:8M", "-S", os.fsdecode(folder)) as run:
        run.stop()
        assert b"path='" + folder + b"/vhost.0'" in run.out.read_bytes()


def test_kill_instance(place):
    with place.start() as run:
        assert run.rpc("spdk_kill_instance", sig_name="SIGTERM") is True
        assert run.wait() == 0
        assert "SIGTERM: stopping" in run.said()
    assert place.left() == LOCK_ONLY


# Several instances

def test_a_second_instance_on_the_same_lock(place):
    with place.start("--disk", "malloc:8M") as run:
        second = place.run("-r", str(place.folder / "other"))
        assert (second.returncode, second.stdout) == (1, "")
        assert second.stderr == (f"vhostrt: another vhostrt (process {run.pid}) holds the lock "
                                 f"'{place.lock}'; stop it, or give this one its own with "
                                 "--lock-file\n")
        assert place.pid.read_text() == f"{run.pid}\n"
        assert run.answers("spdk_get_version") and connects(place.sockets / "vhost.0")
        run.stop()


def test_a_killed_instance_leaves_nothing_in_the_way(place):
    with place.start("--disk", "malloc:8M") as run:
        run.process.kill()
        run.process.wait()
    assert {"rpc", "rpc.lock", "sockets/vhost.0", "pid"} <= place.left()
    assert not connects(place.sockets / "vhost.0")
    with place.start("--disk", "malloc:8M") as run:
        assert connects(place.sockets / "vhost.0")
        assert place.pid.read_text() == place.lock.read_text() == f"{run.pid}\n"
        run.stop()
    assert place.left() == LOCK_ONLY


def test_two_instances_side_by_side():
    with Place() as one, Place() as other:
        with one.start("--disk", "malloc:8M") as first, \
                other.start("--disk", "malloc:16M") as second:
            for run, blocks in ((first, 16384), (second, 32768)):
                assert [bdev["num_blocks"] for bdev in run.rpc("bdev_get_bdevs")] == [blocks]
            first.stop()
            assert connects(other.sockets / "vhost.0") and not connects(one.sockets / "vhost.0")
            second.stop()


def test_the_rpc_socket_of_a_live_instance_is_not_taken():
    with Place() as one, Place() as other:
        with one.start() as first:
            second = other.run("-r", str(one.rpc))
            assert second.returncode == 1
            assert f"RPC socket '{one.rpc}' is in use" in second.stderr
            assert "Traceback" not in second.stderr
            assert first.answers("spdk_get_version")
            first.stop()
        assert other.left() == LOCK_ONLY


def test_the_disk_socket_of_a_live_instance_is_not_taken():
    with Place() as one, Place() as other:
        with one.start("--disk", "malloc:8M") as first:
            second = other.run("--disk", f"malloc:8M,socket={one.sockets}/vhost.0")
            assert second.returncode == 1
            assert re.search(r"disk Disk0: .*vhost\.0 is in use", second.stderr)
            assert connects(one.sockets / "vhost.0")
            first.stop()
        assert other.left() == LOCK_ONLY


# Configuration

def test_json_configuration(place):
    file = place.folder / "config.json"
    file.write_text(json.dumps({"subsystems": [
        {"subsystem": "bdev", "config": [
            {"method": "bdev_malloc_create",
             "params": {"name": "Ram", "num_blocks": 2048, "block_size": 4096}}]},
        {"subsystem": "vhost_blk", "config": [
            {"method": "vhost_create_blk_controller",
             "params": {"ctrlr": "ram", "dev_name": "Ram", "readonly": True}}]}]}))
    with place.start("-c", str(file), "--disk", "malloc:8M,name=Other") as run:
        assert [bdev["name"] for bdev in run.rpc("bdev_get_bdevs")] == ["Ram", "Other"]
        controllers = run.rpc("vhost_get_controllers")
        assert [(c["ctrlr"], c["backend_specific"]["block"]["readonly"]) for c in controllers] == \
            [("ram", True), ("vhost.0", False)]
        assert connects(place.sockets / "ram")
        run.stop()
    file.unlink()
    assert place.left() == LOCK_ONLY


def test_ini_global_section(place):
    file = place.folder / "config.ini"
    file.write_text("# as SPDK had them\n[Global]\n  ReactorMask 0x2\n  Comment \"of mine\"\n")
    with place.start("-c", str(file)) as run:
        assert [r["lcore"] for r in run.rpc("framework_get_reactors")["reactors"]] == [1]
        assert " -l 1 " in run.said() and "Reactor started on core 1" in run.said()
        run.stop()


def test_wait_for_rpc(place):
    with place.start("--wait-for-rpc", "--disk", "malloc:8M") as run:
        with pytest.raises(RpcError):
            run.rpc("bdev_get_bdevs")
        assert not (place.sockets / "vhost.0").exists()
        assert run.rpc("framework_start_init") is True
        assert run.rpc("framework_wait_init") is True
        run.await_that(lambda: connects(place.sockets / "vhost.0"), "the disk")
        assert [bdev["name"] for bdev in run.rpc("bdev_get_bdevs")] == ["Disk0"]
        run.stop()
    with place.start("--wait-for-rpc", "--disk", "malloc:8M") as run:
        run.stop()
    assert place.left() == LOCK_ONLY


def test_a_client_that_is_early_is_answered_when_the_disks_are_served(place):
    with place.start("--disk", "malloc:8M", ready=False) as run:
        run.await_that(lambda: connects(place.rpc), "the RPC socket")
        assert [c["ctrlr"] for c in rpc_call(place.rpc, "vhost_get_controllers")] == ["vhost.0"]
        run.stop()


def test_without_rpc_server(place):
    with place.start("--no-rpc-server", "--disk", "malloc:8M", ready=False) as run:
        run.await_line("To attach with QEMU")
        assert connects(place.sockets / "vhost.0") and not place.rpc.exists()
        run.stop()


def test_a_disk_of_a_file(place):
    store = place.folder / "disk.img"
    store.write_bytes(bytes(range(256)) * 4096)
    with place.start("--disk", f"{store},name=d,socket=d,ro") as run:
        bdev, = run.rpc("bdev_get_bdevs")
        assert (bdev["num_blocks"], bdev["block_size"]) == (2048, 512)
        controller, = run.rpc("vhost_get_controllers")
        assert controller["socket"] == f"{place.sockets}/d"
        assert controller["backend_specific"]["block"]["readonly"] is True
        run.stop()
    assert store.read_bytes() == bytes(range(256)) * 4096


def test_relative_paths_are_those_of_the_working_directory(place):
    with place.start("-r", "./rpc", "--lock-file", "lock", "-f", "pid", "-S", ".", "--disk",
                     "malloc:8M", ready=False) as run:
        run.await_that(lambda: connects(place.cwd / "rpc"), "the RPC socket")
        rpc_call(place.cwd / "rpc", "spdk_get_version")
        assert {path.name for path in place.cwd.iterdir()} == \
            {"rpc", "rpc.lock", "lock", "pid", "vhost.0"}
        run.stop()
    assert [path.name for path in place.cwd.iterdir()] == ["lock"]
