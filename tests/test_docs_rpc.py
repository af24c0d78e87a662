"""The commands of docs/vhostrt-rpc.md and of the README, as a reader would type them."""
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.lib.target import Target
from vhostrt.notify import notifications

ROOT = Path(__file__).resolve().parent.parent
PAGES = ("docs/vhostrt-rpc.md", "README.md")


def commands(page):
    """Return the calls of a page, in order; not those that never end, or need another program."""
    lines = re.findall(r"^    (vhostrt-rpc [a-z-].*?)(?:  +#.*)?$", (ROOT / page).read_text(), re.M)
    return [line for line in lines if "|" not in line and not line.startswith("vhostrt-rpc watch")]


@pytest.mark.parametrize("page", PAGES)
def test_commands(page, tmp_path):
    with Target(disks=()) as target:
        command = tmp_path / "vhostrt-rpc"
        command.write_text(f'#!/bin/sh\nexec {sys.executable} -m vhostrt.tools.rpc '
                           f'-s {target.rpc_path} "$@"\n')
        command.chmod(0o755)
        lines = commands(page)
        assert len(lines) >= 5
        done = subprocess.run(["sh", "-ec", "\n".join(lines)], text=True, capture_output=True,
                              timeout=100, cwd="/", env={
                                  **os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}",
                                  "PYTHONPATH": str(ROOT)})
        assert done.returncode == 0 and not done.stderr, (done.stdout, done.stderr)
        if "spdk_kill_instance" in lines[-1]:
            assert target.process.wait(30) == 0


def test_notifications_of_ones_own():
    page = (ROOT / PAGES[0]).read_text()
    code = page[page.index("    from vhostrt.notify import"):]
    exec("\n".join(line[4:] for line in code.splitlines()), {})
    assert notifications.kept[-1]["type"] == "door_opened"
    assert notifications.kept[-1]["details"] == {"by": "Ada"}
    del notifications.types["door_opened"]
