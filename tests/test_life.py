"""The life cycle, from the viewpoint of its steps and of who stops it."""
import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from vhostrt.life import App, Step, live
from vhostrt.config import ConfigError
from vhostrt.options import Options
from vhostrt.process import StartError
from vhostrt.stop_signals import StopSignals
from vhostrt.subsystem import SubsystemError

ROOT = Path(__file__).parent.parent


class Noting(Step):
    """Notes its start and stop; fails or stops the program where told to."""

    def __init__(self, name, notes, error=None, stop_error=None, rc=None, hang=False):
        self.name, self.notes, self.error, self.stop_error = name, notes, error, stop_error
        self.rc, self.hang = rc, hang

    async def start(self, app):
        self.notes.append(f"+{self.name}")
        await asyncio.sleep(0)
        if self.error:
            raise self.error
        if self.rc is not None:
            app.stop(self.rc)
        if self.hang:
            await asyncio.Event().wait()

    async def stop(self, app):
        await asyncio.sleep(0)
        self.notes.append(f"-{self.name}")
        if self.stop_error:
            raise self.stop_error


def run(*steps, started=None):
    return asyncio.run(live(Options(), steps, StopSignals(), started))


def test_started_is_called_when_all_runs_and_stop_is_in_reverse():
    notes = []

    def started(app):
        notes.append("run")
        app.stop()
    assert run(Noting("a", notes), Noting("b", notes), started=started) == 0
    assert notes == ["+a", "+b", "run", "-b", "-a"]


@pytest.mark.parametrize("error, rc, line", [
    (StartError("no core"), 1, "no core"), (MemoryError(), 1, "MemoryError"),
    (OSError(28, "no room for it"), 1, "*ERROR*: no room for it"),
    (OSError(2, "No such file", "/x"), 1, "No such file: '/x'"),
    (SubsystemError("Init subsystem bdev failed: x"), -1, "Init subsystem bdev failed: x"),
    (ConfigError(["f:1: a", "f:2: b"]), 1, "f:2: b"),
])
def test_a_failed_step_is_told_and_undone(capsys, error, rc, line):
    notes = []
    assert run(Noting("a", notes), Noting("b", notes, error), Noting("c", notes)) == rc
    assert notes == ["+a", "+b", "-b", "-a"]
    assert line in capsys.readouterr().err


def test_an_unexpected_error_is_passed_on_after_the_undoing():
    notes = []
    with pytest.raises(ZeroDivisionError):
        run(Noting("a", notes), Noting("b", notes, ZeroDivisionError()))
    assert notes == ["+a", "+b", "-b", "-a"]


def test_an_error_while_stopping_does_not_keep_the_rest(capsys):
    notes = []
    assert run(Noting("a", notes), Noting("b", notes, stop_error=OSError(5, "gone"), rc=0)) == 1
    assert notes[-2:] == ["-b", "-a"]
    assert "*ERROR*: b did not stop in order: [Errno 5] gone" in capsys.readouterr().err


def test_a_stop_during_the_start_ends_it_there(capsys):
    notes = []
    assert run(Noting("a", notes, rc=7, hang=True), Noting("b", notes)) == 7
    assert notes == ["+a", "-a"]
    assert "stopped before the start was complete" in capsys.readouterr().err


def test_the_first_status_but_0_counts(capsys):
    async def stop_thrice():
        app = App(Options(), ())
        for rc in (0, 3, 4):
            app.stop(rc)
        return await app.live()
    assert asyncio.run(stop_thrice()) == 3
    text = capsys.readouterr().err
    assert text.count("spdk_app_stop called twice") == 2
    assert text.count("*WARNING*: spdk_app_stop'd on non-zero") == 2


def test_an_early_signal_is_kept_for_the_loop():
    signals = StopSignals()
    signals.handle(signal.SIGTERM, None)
    notes = []
    assert asyncio.run(live(Options(), [Noting("a", notes, hang=True)], signals)) == 0
    assert notes == ["+a", "-a"]


PROGRAM = """
import asyncio, os, signal, sys
from vhostrt.life import Step, live
from vhostrt.options import Options
from vhostrt.stop_signals import StopSignals

class Slow(Step):
    name = "slow"
    async def stop(self, app):
        print("stopping", flush=True)
        await asyncio.to_thread(sys.stdin.readline)
        print("stopped", flush=True)

signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
signals = StopSignals()
signals.install()
os.kill(os.getpid(), signal.SIGPIPE)
rc = asyncio.run(live(Options(), [Slow()], signals, lambda app: print("up", flush=True)))
os.kill(os.getpid(), signal.SIGINT)
print("rc", rc)
"""


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
def test_signals_stop_once_in_order(first):
    with subprocess.Popen([sys.executable, "-c", PROGRAM], cwd=ROOT, stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as program:
        assert program.stdout.readline() == "up\n"
        os.kill(program.pid, first)
        assert program.stdout.readline() == "stopping\n"
        os.kill(program.pid, signal.SIGTERM)
        while "is ignored" not in (line := program.stderr.readline()):
            assert line
        output, _ = program.communicate("go on\n", timeout=60)
    assert (output, program.returncode) == ("stopped\nrc 0\n", 0)
