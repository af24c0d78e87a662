"""docs/perf.md: the options and the keys that it lists are those that there are."""
import json
import re

from tests.test_docs import ROOT
from vhostrt.tools import perf_json, perf_options
from vhostrt.tools.perf_stats import Latency, Result
from vhostrt.vhost.client.blk import BlkFrontEnd
from vhostrt.virtio.driver import latency

PAGE = (ROOT / "docs/perf.md").read_text()
OPTIONS, JSON = (PAGE.split(f"\n## {title}\n", 1)[1].split("\n## ", 1)[0]
                 for title in ("Options", "JSON"))


def test_every_option():
    there = {name for action in perf_options.arguments()._actions
             for name in action.option_strings} - {"-h", "--help"}
    assert set(re.findall(r"(?<![\w-])--?[a-z][a-z-]*", OPTIONS)) == there - {"-t"}


def test_every_key():
    kinds = [Latency(10**6, 1, 512, 5, 5, 5, [0] * 5 + [1] + [0] * (latency.buckets() - 6))] * 4
    found = json.loads(perf_json.text(perf_options.Plan("sock"), BlkFrontEnd(None),
                                      Result(1.0, kinds)))
    listed = set(re.findall(r"`(\w+)`", JSON))
    assert set(found) | set(found["target"]) | set(found["verify"]) <= listed
    assert set(found["all"]) | set(found["all"]["latency_us"]) | set(found["kinds"]) <= listed


def test_the_picture_is_there():
    name, = re.findall(r"!\[.*\]\((.*)\)", PAGE)
    assert (ROOT / "docs" / name).read_bytes().startswith(b"\x89PNG")


def test_every_command_is_one():
    for line in re.findall(r"^    vhostrt-perf (.*?)(?: +#.*)?$", PAGE, re.M):
        words = re.sub(r"--cores \S+", "", line).split()    # of some machines only
        assert perf_options.read_plan(words).socket.endswith(".sock")
