"""docs/logging.md and the unit file: what they list is what there is."""
import configparser
import re
import shutil
import subprocess
from pathlib import Path

from vhostrt import log, log_limit

DOCS = Path(__file__).resolve().parent.parent / "docs"
PAGE = (DOCS / "logging.md").read_text()
UNIT = DOCS / "systemd/vhostrt.service"


def test_every_flag_is_listed():
    listed = PAGE.split("The flags:\n")[1].split(".\n")[0]
    assert set(re.findall(r"`(\w+)`", listed)) == log.FLAGS


def test_every_field_is_listed(capsys):
    table = PAGE.split("| field | |\n")[1].split("\n\n")[0]
    text = log.as_json(log.INFO, "f.py", 1, "f", "text", "rpc")
    assert set(re.findall(r"`(\w+)`", re.sub(r"\| [^|]*\|$", "", table, flags=re.M))) \
        == set(re.findall(r'"(\w+)":', text))


def test_the_limits_are_those_of_the_code():
    assert f"({log_limit.BURST} at once, then one in {log_limit.TOKEN_S:g} s)" in PAGE
    assert f"({log_limit.BURST_ALL} at once, then one in {log_limit.TOKEN_ALL_S:g} s)" in PAGE
    assert f"said at most every {log_limit.TELL_S:g} s" in PAGE


def test_the_unit_is_one(tmp_path):
    unit = configparser.RawConfigParser(strict=False)
    unit.optionxform = str
    unit.read(UNIT)
    assert unit.sections() == ["Unit", "Service", "Install"]
    service = unit["Service"]
    assert service["Type"] == "notify" and service["LimitMEMLOCK"] == "infinity"
    assert "WatchdogSec" in service
    tool = shutil.which("systemd-analyze")
    if tool is None:
        return                          # the rest is its business
    words = service["ExecStart"].split()
    copy = tmp_path / "vhostrt.service"
    copy.write_text(UNIT.read_text().replace(words[0], "/bin/true"))
    done = subprocess.run([tool, "verify", str(copy)], capture_output=True, text=True, timeout=120)
    said = [line for line in done.stderr.splitlines() if "vhostrt.service" in line]
    assert done.returncode == 0 and said == [], done.stderr


def test_the_command_of_the_unit_is_understood():
    from vhostrt.options import parse_args
    words = next(line for line in UNIT.read_text().splitlines() if line.startswith("ExecStart="))
    options = parse_args(words.split()[1:])
    assert options.socket_dir == "/run/vhostrt/" and options.rpc_addr == ("/run/vhostrt/rpc.sock",)
