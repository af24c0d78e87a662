"""Checks of runtime.md, part 20, by their numbers: 1, 2 and 6, as this project's rules have them.

Where the original takes a bad word for another one, or drops it, here it is refused.
"""
import os

import pytest

from tests.lib.command import Place
from vhostrt.env import arguments
from vhostrt.environment import options_of
from vhostrt.options import UsageError, parse_args

PREFIX = f"--file-prefix=spdk_pid{os.getpid()}"


def built(line):
    return arguments.build(options_of(parse_args(line.split())))[1:]


@pytest.mark.parametrize("words, status, sentence", [
    (["-h"], 0, "usage: vhostrt [options]"), (["-Z"], 2, "there is no option '-Z'"),
    (["-s", "1.5G"], 2, "option -s: '1.5G' is not a size"),
    (["-s", "512k"], 2, "option -s: '512k' is not a whole number of MiB"),
])
def test_check_1(words, status, sentence):
    with Place() as place:
        done = place.run(*words)
        assert done.returncode == status and sentence in done.stdout + done.stderr
        assert place.left() == set(), "the lock is touched"


@pytest.mark.parametrize("line, sentence", [
    ("-i abc", "option -i: 'abc' is not a whole number"), ("-n x", "option -n: 'x' is not a whole"),
    ("-p x", "option -p: 'x' is not a whole number"), ("-p 0 -m 0x2", "main core 0 is not among"),
])
def test_check_2_what_is_refused(line, sentence):
    with pytest.raises(UsageError) as refused:
        built(line)
    assert sentence in str(refused.value)


@pytest.mark.parametrize("line, words", [
    ("-m 1 -i 0", ["-l 0", "--file-prefix=spdk0", "--proc-type=auto"]),
    ("-m 1 -p 0", ["--no-shconf", "-l 0", "--main-lcore=0", PREFIX]),
    ("-m [0-2,5]", ["--no-shconf", "-l 0-2,5", PREFIX]),
    ("-m 1 -g", ["--no-shconf", "-l 0", "--single-file-segments", PREFIX]),
])
def test_check_2_what_is_built(line, words):
    assert built(line) == words


def test_check_6():
    words = built("-m 0x1000010 -n 2 -s 2048 --mem-file /h/a,/h/b -p 24 -u")
    assert words == ["--no-shconf", "-l 4,24", "-n 2", "-m 2048", "--mem-file", "/h/a,/h/b",
                     "--main-lcore=24", "--no-pci", PREFIX]
    assert arguments.line(words).endswith(f"{PREFIX} ]")
