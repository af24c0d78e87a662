"""vhostrt.syslog: lines as a system's logging daemon gets them."""
import contextlib
import os
import re
import socket
import stat

import pytest

from vhostrt import log, syslog
from vhostrt.syslog import Syslog, find

LINE = re.compile(r"<(\d+)>mine\[(\d+)\]: (.*)")


class Daemon:
    """The socket of a logging daemon."""

    def __init__(self, path):
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.sock.bind(path)
        self.sock.settimeout(10)

    def read(self):
        """Return (priority, process id, text) of the next line."""
        number, pid, text = LINE.fullmatch(self.sock.recv(65536).decode()).groups()
        return int(number), int(pid), text

    def close(self):
        self.sock.close()


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "log")


@pytest.fixture
def daemon(path):
    daemon = Daemon(path)
    yield daemon
    daemon.close()


@pytest.fixture
def settings(path, daemon, monkeypatch):
    """The program's log, with a system's log beside it."""
    monkeypatch.delenv("JOURNAL_STREAM", raising=False)
    monkeypatch.setattr(log.settings, "system", find("mine", path))
    monkeypatch.setattr(log.settings, "level", log.NOTICE)
    log.set_up(log.ERROR)
    yield log.settings
    log.settings.system.close()
    log.set_up(log.INFO)


def test_a_line_has_facility_severity_name_and_process(path, daemon):
    system = Syslog("mine", path)
    for level, severity in ((log.ERROR, 3), (log.WARNING, 4), (log.NOTICE, 5), (log.INFO, 6),
                            (log.DEBUG, 7)):
        system.send(level, f"line {level}")
        assert daemon.read() == (23 * 8 + severity, os.getpid(), f"line {level}")
    system.send(log.ERROR, "\u00fcmlaut")
    assert daemon.read()[2] == "\u00fcmlaut"
    system.close()


def test_lines_go_there_as_far_as_its_level_says_whatever_is_printed(settings, daemon, capsys):
    log.error("e"), log.notice("n"), log.info("reactor", "i")
    settings.level = log.DEBUG
    log.set_up(log.ERROR, ("rpc",))
    log.debug("rpc", "d"), log.debug("bdev", "no")
    log.record(log.WARNING, "reactor.pyx", 7, "reactor_run", "compiled\ncode")
    settings.level = log.ERROR
    log.warning("w"), log.error("last")
    texts = [daemon.read()[2].split("*: ")[1] for _ in range(5)]
    assert texts == ["e", "n", "d", "compiled\\ncode", "last"]
    printed = [line.split("*: ")[1] for line in capsys.readouterr().err.splitlines()]
    assert printed == ["e", "last"]


def test_the_print_level_is_another_one(settings, daemon, capsys):
    log.set_up(log.NOTICE)
    settings.level = log.ERROR
    log.notice("printed alone")
    log.error("both")
    assert daemon.read()[2].endswith("both")
    assert capsys.readouterr().err.count("\n") == 2


@pytest.mark.parametrize("meanwhile", [0, 1, 2])
def test_a_daemon_that_was_restarted_gets_the_next_line(path, daemon, meanwhile):
    system = Syslog("mine", path)
    system.send(log.ERROR, "first")
    assert daemon.read()[2] == "first"
    daemon.close()
    os.unlink(path)
    for _ in range(meanwhile):
        system.send(log.ERROR, "nobody hears this")
    again = Daemon(path)
    system.send(log.ERROR, "second")
    assert again.read()[2] == "second"
    again.close()
    system.close()


def test_a_daemon_that_reads_nothing_is_not_waited_for(path, daemon):
    system = Syslog("mine", path)
    for _ in range(100_000):
        system.send(log.ERROR, "x" * 1000)
    assert system.sock is not None
    daemon.sock.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while daemon.sock.recv(65536):
            pass
    daemon.sock.settimeout(10)
    system.send(log.ERROR, "again")
    assert daemon.read()[2] == "again"
    system.close()


def test_where_there_is_none(path, tmp_path, monkeypatch):
    monkeypatch.delenv("JOURNAL_STREAM", raising=False)
    assert find("mine", path) is None
    (tmp_path / "file").write_text("")
    assert find("mine", str(tmp_path / "file")) is None
    assert find("mine", str(tmp_path / "file" / "below")) is None
    Syslog("mine", path).send(log.ERROR, "lost")


def test_the_journal_has_what_is_on_stderr(path, daemon, monkeypatch):
    about = os.fstat(2)
    monkeypatch.setenv("JOURNAL_STREAM", f"{about.st_dev}:{about.st_ino}")
    assert find("mine", path) is None
    monkeypatch.setenv("JOURNAL_STREAM", f"{about.st_dev}:{about.st_ino + 1}")
    assert find("mine", path) is not None


def test_the_program_has_it_while_it_runs(monkeypatch):
    """As far as this machine has one."""
    there = os.path.exists(syslog.PATH) and stat.S_ISSOCK(os.stat(syslog.PATH).st_mode)
    monkeypatch.delenv("JOURNAL_STREAM", raising=False)
    monkeypatch.setattr(log.settings, "system", None)
    log.open_system("mine")
    assert (log.settings.system is not None) == there
    log.close_system()
    assert log.settings.system is None
    log.close_system()
