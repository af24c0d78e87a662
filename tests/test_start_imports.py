"""What a start loads: nothing that only a plot, a terminal or a TLS connection would need."""
import re
import subprocess
import sys

import pytest

from tests.lib.command import Place

# Each would cost the start its time and the idle program its memory. "ssl" is not among them: the
# attempt to import it is told as well, which asyncio makes and is refused; _ssl is the proof.
NOT_LOADED = {
    "numpy", "scipy", "pandas", "matplotlib", "PIL", "prometheus_client",
    "curses", "_curses", "readline", "rich", "textual", "prompt_toolkit", "urwid",
    "_ssl", "cryptography", "http", "urllib", "email", "xml", "requests", "aiohttp",
    "argparse", "getopt", "optparse", "configparser", "tomllib", "yaml", "tempfile", "shutil",
    "pathlib", "multiprocessing", "unittest", "pdb", "doctest", "sqlite3", "ctypes", "cProfile",
    "pytest", "setuptools", "Cython", "spdk",
    "vhostrt.vhost.client", "vhostrt.virtio.driver", "vhostrt.tools",
}


@pytest.fixture
def place():
    with Place() as one:
        # Each import is told on stderr when it is over.
        one.environment["PYTHONPROFILEIMPORTTIME"] = "1"
        yield one


def imported(text):
    """Return the modules that a run has imported, and the packages they are in."""
    names = set(re.findall(r"^import time: +\d+ \| +\d+ \| +(\S+)$", text, re.MULTILINE))
    return names | {name.rpartition(".")[0] for name in names} | {n.split(".")[0] for n in names}


def of_interpreter(place):
    """Return what the interpreter imports by itself: its installation may have hooks."""
    done = subprocess.run([sys.executable, "-c", ""], env=place.environment, stderr=subprocess.PIPE,
                          text=True, timeout=60, check=True)
    return imported(done.stderr)


def test_a_start_imports_what_it_needs(place):
    with place.start("--disk", "malloc:8M") as run:
        run.rpc("framework_get_reactors")
        run.rpc("vhost_get_controllers")
        names = imported(run.said())
        assert {"asyncio", "vhostrt.life", "vhostrt.event.reactor", "vhostrt.vhost.blk"} <= names
        assert (names & NOT_LOADED) - of_interpreter(place) == set()
        run.stop()
    # Nothing on the way to the end either: the disk is served until then.
    assert (imported(run.said()) & NOT_LOADED) - of_interpreter(place) == set()


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["-Z"]])
def test_words_alone_import_less(place, words):
    names = imported(place.run(*words).stderr)
    heavy = NOT_LOADED | {"asyncio", "msgspec", "json", "logging", "socket", "vhostrt.life"}
    assert "vhostrt.options" in names and (names & heavy) - of_interpreter(place) == set()
