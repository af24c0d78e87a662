"""The compiled core is built in floors, and its reactors never take the GIL."""
import re
import subprocess
import sys

import pytest

from tests.source.cysource import PYX, ROOT
from tests.source.layers import FLOORS, violations

SOURCES = sorted(p for kind in ("*.pyx", "*.pxd", "*.h") for p in PYX.rglob(kind))


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(PYX)))
def test_takes_only_from_below(path):
    assert violations(path, PYX, path.read_text()) == []


@pytest.mark.parametrize("source", [
    "from vhostrt.event.reactor cimport reactor_t\n",
    "cimport vhostrt.event.reactor\n",
    "cimport vhostrt.base.atomics, vhostrt.bdev.core\n",
    "from vhostrt cimport event\n",
    "from vhostrt.rpc import server\n",
    "import vhostrt.app\n",
    "from ..event cimport reactor\n",
    "def f():\n    import vhostrt.vhost.session\n",
    'cdef extern from *:\n    """\n    #include "vhostrt/virtio/ring.h"\n    """\n',
])
def test_upward_is_found(source):
    assert len(violations(PYX / "vhostrt/env/x.pyx", PYX, source)) == 1


@pytest.mark.parametrize("source", [
    "from vhostrt.base.atomics cimport (\n    load_acquire_u32, store_release_u32)\n",
    "from vhostrt.env.ring cimport ring_t\n",
    '#include "vhostrt/base/atomics.h"\n',
    '"""Text: from vhostrt.event.reactor cimport x"""\n',
])
def test_downward_passes(source):
    assert violations(PYX / "vhostrt/env/x.pyx", PYX, source) == []


def test_floors_exist():
    assert {p.name for p in (PYX / "vhostrt").iterdir() if any(p.rglob("*.pyx"))} <= set(FLOORS)


def gil_without_reason(source):
    """Return the lines that take the GIL with no comment above that says why no reactor does."""
    lines = source.splitlines()
    wrong = []
    for at, line in enumerate(lines):
        if not re.search(r"\bwith gil\b", line.partition("#")[0]):
            continue
        above = at
        while above and lines[above - 1].strip().startswith("#"):
            above -= 1
        if "reactor" not in " ".join(lines[above:at]):
            wrong.append(at + 1)
    return wrong


@pytest.mark.parametrize("path", [p for p in SOURCES if p.suffix != ".h"],
                         ids=lambda p: str(p.relative_to(PYX)))
def test_gil_is_taken_off_the_reactors_only(path):
    assert gil_without_reason(path.read_text()) == []


def test_gil_without_a_reason_is_found():
    assert gil_without_reason("x = 1\nwith gil:\n") == [2]
    assert gil_without_reason("cdef void f() noexcept with gil:\n") == [1]
    assert gil_without_reason("# A helper thread, never a reactor.\nwith gil:\n") == []


IMPORT_ALL = """
import importlib, os, pkgutil, vhostrt
for module in pkgutil.walk_packages(vhostrt.__path__, "vhostrt."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
        assert len(os.listdir("/proc/self/task")) == 1, f"{module.name} starts a thread"
        assert "numpy" not in __import__("sys").modules, f"{module.name} imports numpy"
"""


def test_import_starts_no_thread():
    done = subprocess.run([sys.executable, "-c", IMPORT_ALL], cwd=ROOT, capture_output=True,
                          text=True, timeout=120)
    assert done.returncode == 0, done.stderr
