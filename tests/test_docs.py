"""Every snippet and command of docs/env.md, as a reader would follow it."""
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.lib.recorded import GIB, MIB, System

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs/env.md").read_text()
BLOCKS = re.findall(r"^```([\w-]+)\n(.*?)^```$", PAGE, re.M | re.S)
FILES = {text.split("\n", 1)[0].removeprefix("# "): text for kind, text in BLOCKS
         if kind in ("cython", "python-file")}


def section(title):
    """Return the blocks below a heading."""
    text = PAGE.split(f"\n## {title}\n", 1)[1].split("\n## ", 1)[0]
    return re.findall(r"^```([\w-]+)\n(.*?)^```$", text, re.M | re.S)


def run(*words, cwd, path=""):
    """Run a command; return what it printed."""
    places = [path, os.path.dirname(sys.executable), os.environ["PATH"]]
    done = subprocess.run(words, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          text=True, timeout=250, env={
                              **os.environ, "PATH": ":".join(filter(None, places)),
                              "PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stdout
    return done.stdout


def test_the_page_has_nothing_that_is_not_run():
    assert {kind for kind, _ in BLOCKS} == {"python", "python-file", "cython", "sh", "text"}
    assert len(BLOCKS) == PAGE.count("\n```") / 2
    assert len(BLOCKS) == sum(len(section(title)) for title in
                              ("From Python", "From Cython", "Huge pages"))


def test_python(tmp_path):
    blocks = section("From Python")
    code = "".join(text for kind, text in blocks if kind == "python")
    assert "shm_id=2718" in code
    code = code.replace("2718", str(os.getpid()))       # another run of the tests has another
    want = "".join(text for kind, text in blocks if kind == "text")
    assert run(sys.executable, "-c", code, cwd=tmp_path) == want


def test_cython(tmp_path):
    blocks = section("From Cython")
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    commands, = (text for kind, text in blocks if kind == "sh")
    want, = (text for kind, text in blocks if kind == "text")
    assert run("sh", "-ec", commands, cwd=tmp_path).endswith(want)


@pytest.fixture
def paper(tmp_path):
    """A machine on paper, and a folder whose vhostrt-hugepages looks at it."""
    system = System(tmp_path / "machine")
    for size in (2 * MIB, GIB):
        system.huge(size)
        system.huge_on_node(0, size)
    system.mount(f"{tmp_path}/machine/dev/hugepages")
    (tmp_path / "bin").mkdir()
    command = tmp_path / "bin/vhostrt-hugepages"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m vhostrt.tools.hugepages '
                       f'--root {tmp_path}/machine "$@"\n')
    command.chmod(0o755)
    return system


def test_huge_pages(paper, tmp_path):
    commands, = (text for kind, text in section("Huge pages") if kind == "sh")
    said = run("sh", "-ec", commands, cwd=tmp_path, path=f"{tmp_path}/bin")
    assert "1024 pages of 2 MiB: 2 GiB" in said
    assert "4 pages of 1 GiB on NUMA node 0: 4 GiB" in said
    assert paper.count(GIB, 0) == "4" and paper.count(2 * MIB) == "0"
