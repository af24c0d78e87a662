"""Every snippet of docs/memory.md, as a reader would follow it."""
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_what_the_page_says_is_printed(tmp_path):
    page = (ROOT / "docs/memory.md").read_text()
    blocks = re.findall(r"^```(\w+)\n(.*?)^```$", page, re.M | re.S)
    code = "".join(text for kind, text in blocks if kind == "python")
    # The page's name may be in use on this machine.
    code = code.replace('file_prefix="page"', f'file_prefix="vhostrt-page-{tmp_path.name}"')
    want = "".join(text for kind, text in blocks if kind == "text")
    assert {kind for kind, _ in blocks} == {"python", "text"}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert (run.returncode, run.stderr, run.stdout) == (0, "", want)
