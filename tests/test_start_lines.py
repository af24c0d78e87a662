"""The lines that a start prints on stdout, and that scripts look for."""
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from vhostrt.environment import options_of
from vhostrt.options import parse_args
from vhostrt.start_lines import print_start_lines

ROOT = Path(__file__).parent.parent
PREFIX = f"--file-prefix=spdk_pid{os.getpid()}"


def printed(capsys, *words):
    print_start_lines(options_of(parse_args(list(words))))
    return capsys.readouterr().out.splitlines()


def test_both_lines(capsys):
    first, second = printed(capsys, "-s", "2g", "-m", "0x1000010")
    assert re.fullmatch(r"Starting vhostrt v\S+ / Python \S+ initialization\.\.\.", first)
    assert second == f"[ DPDK EAL parameters: vhostrt --no-shconf -l 4,24 -m 2048 {PREFIX} ]"


@pytest.mark.parametrize("words, parameters", [
    ("-m 1 -i -5", f"--no-shconf -l 0 {PREFIX}"),
    ("-m 1 -s 0", f"--no-shconf -l 0 -m 0 {PREFIX}"),
    ("--lcores 0@(2-3),1@4 -i 3 -n 4 -s 0 -p 1 -u -g -R --huge-dir /h -A 5e:0.0 --iova-mode va "
     "--base-virtaddr 0x200000000000 --vfio-vf-token fc571169-d385-4c55-869d-9d4a1dc20130",
     "--lcores=0@(2-3),1@(4) -n 4 -m 0 --main-lcore=1 --no-pci --single-file-segments "
     "--huge-unlink --huge-dir=/h --allow=0000:5e:00.0 --iova-mode=va "
     "--base-virtaddr=0x200000000000 --file-prefix=spdk3 --proc-type=auto "
     "--vfio-vf-token=fc571169-d385-4c55-869d-9d4a1dc20130"),
    ("-m 1 --no-huge -s 64 -B 1:0.1 -B 1:0.2",
     "--no-shconf -l 0 -m 64 --no-huge --legacy-mem --iova-mode=va --block=0000:01:00.1 "
     f"--block=0000:01:00.2 {PREFIX}"),
])
def test_parameters(capsys, words, parameters):
    assert printed(capsys, *words.split())[1] == f"[ DPDK EAL parameters: vhostrt {parameters} ]"


def test_what_the_environment_is_told_besides_is_part_of_it(capsys):
    _, second = printed(capsys, "-m", "1", "-s", "64", "--env-context",
                        "-l 0-1 -m 128 -r 2 --file-prefix=x --no-telemetry")
    assert second == ("[ DPDK EAL parameters: vhostrt --no-shconf -l 0-1 -r 2 -m 128 "
                      "--file-prefix=x --no-telemetry ]")


@pytest.mark.parametrize("word", ["-v", "--version"])
def test_the_version_is_printed_when_the_environment_is_asked_for_it(capsys, word):
    lines = printed(capsys, "--env-context", word)
    assert re.fullmatch(r"RTE Version: 'vhostrt \d+\.\d+\.\d+'", lines[1]) and len(lines) == 3


def test_a_closed_stdout_does_not_stop_the_start():
    code = ("import sys; from vhostrt import start_lines; sys.stdout.close()\n"
            "from vhostrt.env.options import EnvOptions\n"
            "start_lines.print_start_lines(EnvOptions())")
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=60, check=True)
