"""The command as a process: what it prints and the status it leaves."""
import os
import subprocess
import sys
from pathlib import Path

import pytest

import vhostrt
from vhostrt.process import take_lock

ROOT = Path(__file__).parent.parent


def run(*words):
    return subprocess.run([sys.executable, "-m", "vhostrt", *words], cwd=ROOT, timeout=60,
                          check=False, capture_output=True, text=True)


@pytest.mark.parametrize("word", ["-h", "--help"])
def test_help(word):
    done = run(word)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("vhostrt: ") and "--cpumask MASK" in done.stdout


@pytest.mark.parametrize("word", ["-v", "--version"])
def test_version(word):
    done = run(word)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"vhostrt v{vhostrt.__version__}\n",
                                                           "")


@pytest.mark.parametrize("words, part", [
    (["-Z"], "'-Z'"), (["-s", "1.5G"], "option -s: '1.5G'"), (["stray"], "'stray'"),
    (["-m", b"\xff\n"], "option -m: '\\udcff\\n'"),
])
def test_bad_words_are_refused_with_a_sentence(words, part):
    done = run(*map(os.fsdecode, words))
    assert (done.returncode, done.stdout) == (2, "")
    first, second = done.stderr.splitlines()
    assert first.startswith("vhostrt: ") and part in first
    assert second == "Try 'vhostrt --help'."


def test_help_loads_nothing_heavy():
    code = ("import sys, vhostrt.__main__ as m; m.main(['--help']);"
            "print(sorted({'asyncio', 'argparse', 'numpy', 'ssl', 'json', 'logging', 'msgspec',"
            "'tempfile', 'subprocess', 'vhostrt.life'} & set(sys.modules)))")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=60, capture_output=True,
                          text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.fixture
def locked(tmp_path):
    """The path of a lock that this process holds."""
    lock = take_lock(str(tmp_path / "lock"))
    yield lock.path
    lock.release()


def test_a_second_instance_is_refused_and_leaves_the_pid_file(locked, tmp_path):
    (tmp_path / "pid").write_text("of the first\n")
    done = run("--lock-file", locked, "-f", str(tmp_path / "pid"))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (f"vhostrt: another vhostrt (process {os.getpid()}) holds the lock "
                           f"'{locked}'; stop it, or give this one its own with --lock-file\n")
    assert (tmp_path / "pid").read_text() == "of the first\n"


def test_help_version_and_refusals_do_not_touch_the_lock(locked, tmp_path):
    for word, status in (("-h", 0), ("-v", 0), ("-Z", 2)):
        assert run("--lock-file", locked, "-f", str(tmp_path / "pid"), word).returncode == status
    assert not (tmp_path / "pid").exists()


def test_a_pid_file_that_cannot_be_written(tmp_path):
    done = run("--lock-file", str(tmp_path / "lock"), "-f", str(tmp_path / "none" / "pid"))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("vhostrt: Couldn't create pid file ")
    take_lock(str(tmp_path / "lock")).release()


def test_options_without_effect_are_named(locked):
    lines = run("--lock-file", locked, "-n", "4").stderr.splitlines()
    assert "*WARNING*: option -n has no effect: placing of objects by memory " in lines[0]
    assert len(lines) == 2


def test_signals_while_python_ends_do_not_change_the_status(tmp_path):
    # Objects of __main__ go when Python has given up its handlers.
    code = ("import os, sys; from vhostrt.__main__ import main\n"
            "class Late:\n"
            "    def __del__(self, kill=os.kill, pid=os.getpid(), out=os.write):\n"
            "        kill(pid, 15), kill(pid, 2), out(1, b'lived')\n"
            "late = Late()\n"
            f"sys.exit(main(['--lock-file', {str(tmp_path / 'none' / 'lock')!r}]))")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=60, capture_output=True,
                          check=False)
    assert (done.returncode, done.stdout) == (1, b"lived")
