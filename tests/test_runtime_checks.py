"""Checks of runtime.md, part 20, by their numbers: 3 to 5 and 21 to 25, as this project's rules
have them (docs/compatibility.md).

1, 2 and 6 are in test_checks.py, 7 to 16 in tests/env, 17 to 20 in tests/event.
"""
import asyncio
import os
import re
import signal
import socket
import time
from pathlib import Path

import pytest

from tests.lib.command import Place
from vhostrt import app, log
from vhostrt.config.load import load
from vhostrt.options import parse_args

CPUS = sorted(os.sched_getaffinity(0))


@pytest.fixture
def place():
    with Place() as one:
        yield one


def configuration(folder, text):
    path = folder / "vhost.conf"
    path.write_text(text)
    return str(path)


# Configuration

@pytest.mark.parametrize("text, words, shm_id", [
    ("[Global]\nInstanceID 3\n", [], None), ("[Global]\nSharedMemoryID 3\n", [], 3),
    ("[Global]\nSharedMemoryID 3\n", ["-i", "5"], 5), ("[Global]\nSharedMemoryID 3\n",
                                                       ["-i", "-1"], 3),
])
def test_check_3(tmp_path, text, words, shm_id):
    options = parse_args(["-c", configuration(tmp_path, text), *words])
    load(options)
    assert options.shm_id == shm_id


@pytest.mark.parametrize("text, sentence", [
    ("[Global] # x\n", "vhost.conf:1: broken section: '[Global] # x' is not [name] alone"),
    ("# nothing\n", "vhost.conf: "),
])
def test_check_4(place, text, sentence):
    """The original goes on after a line that it cannot read; here it does not start."""
    done = place.run("-c", configuration(place.folder, text))
    assert done.returncode == 1 and sentence in done.stderr
    assert "Traceback" not in done.stderr


def test_check_5(place):
    with place.start() as first:
        second = place.run("-f", str(place.folder / "pid2"))
        assert second.returncode == 1 and f"(process {first.pid}) holds the lock" in second.stderr
        assert not (place.folder / "pid2").exists()
        first.process.kill()
        first.wait()
    with place.start("-f", str(place.folder / "pid2")) as second:
        second.stop()


# The monitor of context switches

SWITCHES = re.compile(r"\*INFO\*: Reactor (\d): \d+ voluntary context switches and \d+ involuntary "
                      r"context switches in the last second\.")


def test_check_21(place):
    """It is the control thread that looks, not a poller of each reactor."""
    assert len(CPUS) > 1, "this machine has one CPU"
    with place.start("-m", hex(1 << CPUS[0] | 1 << CPUS[1]), "--idle", "sleep") as run:
        assert run.rpc("framework_monitor_context_switch") == {"enabled": True}
        time.sleep(2.5)
        assert not SWITCHES.search(run.said())
        run.rpc("log_set_flag", flag="reactor")
        run.await_that(lambda: set(SWITCHES.findall(run.said())) == {"0", "1"}, "both reactors")
        assert run.rpc("framework_monitor_context_switch", enabled=False) == {"enabled": False}
        before = len(SWITCHES.findall(run.said()))
        time.sleep(2.5)
        assert len(SWITCHES.findall(run.said())) == before
        assert run.rpc("framework_monitor_context_switch", enabled=True) == {"enabled": True}
        run.await_that(lambda: len(SWITCHES.findall(run.said())) > before, "its lines again")
        run.stop()


# Subsystems

LINKED = {"bdev": ["copy"], "copy": [], "nbd": ["bdev"], "interface": [],
          "net_framework": ["interface"], "scsi": ["bdev"], "vhost": ["scsi"]}
ORDER = ["copy", "interface", "net_framework", "bdev", "nbd", "scsi", "vhost"]


@pytest.fixture
def ended():
    yield
    app.fini()
    log.set_up(log.INFO)


def started_as(broken=""):
    """Run the original's subsystems, of which one may be broken; return what they did, status."""
    done = []

    class Part(app.Subsystem):
        def __init__(self, name):
            self.name, self.depends_on = name, tuple(LINKED[name])

        async def init(self):
            done.append(self.name)
            if self.name == broken:
                raise OSError(1, "it is broken")

        async def fini(self):
            done.append(f"-{self.name}")
    opts = app.AppOpts(lcore_map={0: CPUS[0]}, core_locks=False,
                       subsystems=[Part(name) for name in LINKED])
    return done, app.start(opts, lambda running: app.stop())


def test_check_22_the_order(ended):
    done, status = started_as()
    assert done == ORDER + [f"-{name}" for name in reversed(ORDER)] and status == 0


def test_check_22_a_failure(ended):
    """The one that failed is finalised, too."""
    done, status = started_as(broken="bdev")
    assert done == [*ORDER[:4], "-bdev", "-net_framework", "-interface", "-copy"] and status == 255


# RPC

def test_check_23_a_busy_address_ends_the_start(place):
    with socket.socket(socket.AF_UNIX) as taken:
        taken.bind(str(place.rpc))
        taken.listen()
        done = place.run()
        assert done.returncode == 1 and str(place.rpc) in done.stderr
    place.rpc.unlink()
    with place.start() as first:
        done = place.run("--lock-file", str(place.folder / "lock2"),
                         "-f", str(place.folder / "pid2"))
        assert done.returncode == 1 and "in use" in done.stderr
        first.stop()


def test_check_23_the_callback_comes_after_the_server(tmp_path, ended):
    path = str(tmp_path / "rpc")

    async def begin(running):
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(b'{"jsonrpc": "2.0", "id": 1, "method": "framework_wait_init"}')
        assert b'"result":true' in await reader.readline()
        writer.close()
        app.stop()
    opts = app.AppOpts(lcore_map={0: CPUS[0]}, core_locks=False, rpc_addr=path)
    assert app.start(opts, begin) == 0


# The end

def test_check_24(place):
    """The pid file goes, too. The lock's file stays, and is held by nobody."""
    with place.start("--disk", "malloc:8M,socket=d") as run:
        run.process.send_signal(signal.SIGPIPE)
        assert run.rpc("spdk_get_version")
        run.process.send_signal(signal.SIGSTOP)     # both come before it can look at either
        run.process.send_signal(signal.SIGTERM)
        run.process.send_signal(signal.SIGINT)
        run.process.send_signal(signal.SIGCONT)
        assert run.wait() == 0
        said = run.said()
    assert len(re.findall("SIG(TERM|INT): stopping", said)) == 1 and "is ignored" in said
    assert place.left() == {"lock"}
    with place.start() as again:
        again.stop()


def test_check_25(place):
    with place.start("-m", hex(1 << CPUS[-1])) as run:
        names = run.threads()
        assert f"reactor_{CPUS[-1]}" in names
        main = Path(f"/proc/{run.pid}/task/{run.pid}/comm").read_text().strip()
        assert not main.startswith("reactor") and main in Path(
            f"/proc/{run.pid}/cmdline").read_text()
        run.stop()
