"""The choice of cores and of the idle policy, on the machine at hand."""
import os
import subprocess
import sys
from pathlib import Path

import pytest

from vhostrt import cores
from vhostrt.environment import cores_asked
from vhostrt.options import parse_args

ROOT = Path(__file__).parent.parent
FIRST = min(os.sched_getaffinity(0))


def lcores(*words):
    return cores.choose_lcores(parse_args(list(words)))


def test_without_a_mask_the_first_cpu_allowed():
    last = max(os.sched_getaffinity(0))
    code = ("import os; from vhostrt import cores, options\n"
            f"os.sched_setaffinity(0, [{last}])\n"
            "print(cores.choose_lcores(options.Options()))")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True,
                          timeout=60, check=True)
    assert done.stdout == f"{{{last}: ({last},)}}\n"


def test_as_asked():
    assert lcores("-m", f"[{FIRST}]") == {FIRST: (FIRST,)}
    assert lcores("--lcores", f"7@{FIRST},5@({FIRST})") == {5: (FIRST,), 7: (FIRST,)}


@pytest.mark.parametrize("words, isolated, idle", [
    ([], "0-3", "yield"), (["-m", "0x3"], "", "yield"), (["-m", "0x3"], "1", "yield"),
    (["-m", "0x3"], "0-3", "spin"), (["--lcores", "9@1"], "1", "spin"),
    (["--env-context", "-l 0"], "0-3", "spin"), (["--env-context", "-r 2"], "0-3", "yield"),
    (["-m", "0x3", "--idle", "sleep"], "0-3", "sleep"), (["--idle", "spin"], "", "spin"),
])
def test_idle_policy(words, isolated, idle, tmp_path, monkeypatch):
    (tmp_path / "isolated").write_text(isolated + "\n")
    monkeypatch.setattr(cores, "CPUS", str(tmp_path))
    options = parse_args(words)
    chosen = dict(options.lcore_map or [(n, (n,)) for n in options.cores or (0,)])
    assert cores.choose_idle(options, chosen, cores_asked(options)) == idle
