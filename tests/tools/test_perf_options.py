"""The command line of vhostrt-perf: what is read from it and what is refused, in one sentence."""
import importlib.util
import os

import pytest

from vhostrt.tools import perf_options
from vhostrt.tools.perf_options import read_plan

CPU = max(os.sched_getaffinity(0))


def test_what_is_done_unless_told():
    plan = read_plan(["sock"])
    assert (plan.rw, plan.bs, plan.depth, plan.queues, plan.time) == (
        "randread", ((4096, 1),), 32, 1, 10)
    assert not plan.writes and plan.random and plan.reads == 1 and plan.descriptors == 128


@pytest.mark.parametrize(("words", "key", "value"), [
    ("--bs 4k:70,64k:30", "bs", ((4096, 70), (65536, 30))),
    ("--bs 512", "bs", ((512, 1),)),
    ("--ios 7", "time", None),
    ("--ramp 5", "time", 15),
    ("--rw randrw --rwmixread 70", "reads", 0.7),
    ("--rw write", "random", False),
    ("--rw randtrim", "other", 3),
    ("-q 43", "descriptors", 256),
    ("-q 43 --indirect", "descriptors", 128),
    ("--ring-size 1024", "descriptors", 1024),
    ("--bs 1536,4096", "unit", 512),
    ("--hugepages 2M", "hugepages", 2 << 20),
    (f"--cores {CPU}", "cores", (CPU,)),
    ("--size 1G --offset 1M", "size", 1 << 30),
    ("--rate 10M", "rate", 10 << 20),
], ids=lambda value: str(value))
def test_what_is_read(words, key, value):
    assert getattr(read_plan(["sock", *words.split()]), key) == value


@pytest.mark.parametrize("rw", perf_options.MODES)
def test_only_the_reads_change_nothing(rw):
    assert read_plan(["sock", "--rw", rw]).writes == (rw not in ("read", "randread"))


REFUSED = {
    "": "the following arguments are required: SOCKET",
    "sock --bs 0": "a block of '0' is not a multiple of 512 bytes",
    "sock --bs 1000": "a block of '1000' is not a multiple of 512 bytes",
    "sock --bs 128M": "up to 64 MiB",
    "sock --bs 4k:0": "'0' is not between 1 and 1000000",
    "sock --bs 4k,": "'' is not a size",
    "sock --bs 4x": "'4x' is not a size: write a whole number of bytes",
    "sock --bs " + ",".join(["4k"] * 17): "17 block sizes are more than 16",
    "sock --rw wipe": "invalid choice: 'wipe'",
    "sock --rwmixread 101": "'101' is not between 0 and 100",
    "sock -q 0": "'0' is not between 1 and 10922",
    "sock -n 257": "'257' is not between 1 and 256",
    "sock --time 0": "0 seconds are no time to wait",
    "sock --time nan": "'nan' is not a time in seconds",
    "sock --timeout -1": "'-1' is not a time in seconds",
    "sock --time 5 --ramp 5": "nothing is left of 5 seconds after 5",
    "sock --ios 0": "'0' is not between",
    "sock --rate 1M --rate-iops 5": "not allowed with argument",
    "sock --offset 100": "'100' is not a multiple of 512 bytes",
    "sock --size 4k -n 2": "4096 bytes are less than a block of 4096 for each of 2 queues",
    "sock --flush 4": "--rw randread writes nothing",
    "sock --rw trim --verify": "what --rw trim leaves is not known",
    "sock --ring packed": "packed rings are not there yet",
    "sock --ring-size 100": "a ring of 100 descriptors cannot be: the size is a power of two",
    "sock --ring-size 64": "32 requests in flight need 96 descriptors, and the ring has 64",
    "sock --cores 65000": "this process may run on",
    "sock --cores x": "'x' is not a whole number",
    "sock --plot x.gif": "'x.gif' does not end with one of .png, .svg, .pdf, .html",
    "sock --hugepages 4M": "invalid choice: '4M'",
    "sock --seed -1": "'-1'",
    "sock --tim 5": "unrecognized arguments: --tim 5",
    "sock more": "unrecognized arguments: more",
}


@pytest.mark.parametrize(("words", "text"), REFUSED.items(), ids=[k[:40] for k in REFUSED])
def test_refused(words, text, capsys):
    with pytest.raises(SystemExit) as end:
        read_plan(words.split())
    said = capsys.readouterr().err
    assert end.value.code == 2 and text in said and len(said.splitlines()) == 2


def test_a_plot_without_matplotlib(monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit):
        read_plan(["sock", "--plot", "x.png"])
    assert "a plot needs matplotlib: pip install 'vhostrt[plot]'" in capsys.readouterr().err


def test_help_names_every_option(capsys):
    with pytest.raises(SystemExit) as end:
        read_plan(["--help"])
    said = capsys.readouterr().out
    assert end.value.code == 0
    for name in ("--rw", "--bs", "--verify", "--depth", "--json", "--plot", "--interrupt"):
        assert name in said
