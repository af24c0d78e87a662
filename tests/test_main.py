"""The command as a process: what it prints and the status it leaves."""
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import vhostrt

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


def test_the_version_is_that_of_the_package():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert vhostrt.__version__ == project["version"]


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
            "'tempfile', 'subprocess', 'vhostrt.app'} & set(sys.modules)))")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=60, capture_output=True,
                          text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
