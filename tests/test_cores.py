"""The choice of cores and of the idle policy, and the start lines, on the machine at hand."""
import os
import subprocess
import sys
from pathlib import Path

import pytest

from vhostrt import cores, start_lines
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
    (["-m", "0x3", "--idle", "sleep"], "0-3", "sleep"), (["--idle", "spin"], "", "spin"),
])
def test_idle_policy(words, isolated, idle, tmp_path, monkeypatch):
    (tmp_path / "isolated").write_text(isolated + "\n")
    monkeypatch.setattr(cores, "CPUS", str(tmp_path))
    options = parse_args(words)
    chosen = dict(options.lcore_map or [(n, (n,)) for n in options.cores or (0,)])
    assert cores.choose_idle(options, chosen) == idle


@pytest.mark.parametrize("numbers, text", [
    ((4,), "4"), ((0, 1, 2, 5), "0-2,5"), ((4, 24), "4,24"), ((0, 1), "0-1"), ((), "")])
def test_compact(numbers, text):
    assert cores.compact(numbers) == text


def test_start_lines(capsys):
    start_lines.print_start_lines(parse_args(["-s", "2g"]), {4: (4,), 24: (24,)})
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("Starting vhostrt v") and first.endswith(" initialization...")
    assert " / " in first
    assert second == ("[ DPDK EAL parameters: vhostrt --no-shconf -l 4,24 -m 2048 "
                      f"--file-prefix=spdk_pid{os.getpid()} ]")


def test_every_parameter_in_its_order():
    words = ("--lcores 0@(2-3),1@4 -i 3 -n 4 -s 0 -p 1 -u -g -R --huge-dir /h -A 5e:0.0 "
             "--iova-mode va --base-virtaddr 0x200000000000 "
             "--vfio-vf-token fc571169-d385-4c55-869d-9d4a1dc20130").split()
    options = parse_args([*words, "--env-context", "--x y"])
    assert start_lines.parameters(options, dict(options.lcore_map)) == [
        "vhostrt", "--lcores=0@(2-3),1@(4)", "-n 4", "-m 0", "--main-lcore=1", "--no-pci",
        "--single-file-segments", "--huge-unlink", "--huge-dir=/h", "--allow=0000:5e:00.0",
        "--iova-mode=va", "--base-virtaddr=0x200000000000", "--file-prefix=spdk3",
        "--proc-type=auto", "--vfio-vf-token=fc571169-d385-4c55-869d-9d4a1dc20130", "--x", "y"]
    options = parse_args("--no-huge -s 64 -B 1:0.1 -B 1:0.2".split())
    assert start_lines.parameters(options, {0: (0,)})[1:7] == [
        "--no-shconf", "-l 0", "-m 64", "--no-huge", "--legacy-mem", "--iova-mode=va"]
    assert "--block=0001:00:00.1" not in start_lines.parameters(options, {0: (0,)})
    assert "--block=0000:01:00.2" in start_lines.parameters(options, {0: (0,)})


def test_a_closed_stdout_does_not_stop_the_start():
    code = ("import sys; from vhostrt import start_lines, options; sys.stdout.close()\n"
            "start_lines.print_start_lines(options.Options(), {0: (0,)})")
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=60, check=True)
