"""Words taken apart as getopt_long does, over a table of a few options."""
from typing import NamedTuple

import pytest

from vhostrt.words import UsageError, split_words


class Option(NamedTuple):
    names: str
    argument: str = ""


TABLE = [Option("-q --quiet"), Option("-d"), Option("-m --mask --cpumask", "MASK"),
         Option("--map", "MAP"), Option("--unlink", "[WHEN]"), Option("-w", "[WHEN]")]
BY_NAME = {name: option for option in TABLE for name in option.names.split()}


def split(*words):
    return [(name, text) for name, _, text in split_words(list(words), BY_NAME)]


@pytest.mark.parametrize("words, said", [
    ([], []), (["-q"], [("-q", "")]), (["-qd"], [("-q", ""), ("-d", "")]),
    (["-m", "3"], [("-m", "3")]), (["-m3"], [("-m", "3")]), (["-m 3"], [("-m", " 3")]),
    (["-qdm3", "-q"], [("-q", ""), ("-d", ""), ("-m", "3"), ("-q", "")]),
    (["-m", ""], [("-m", "")]),
    (["--mask=3"], [("--mask", "3")]), (["--mask", "3"], [("--mask", "3")]),
    (["--mask="], [("--mask", "")]), (["--mask", "--quiet"], [("--mask", "--quiet")]),
    (["--mas", "-3"], [("--mask", "-3")]), (["--cpu=3"], [("--cpumask", "3")]),
    (["--q", "--"], [("--quiet", "")]), (["--map=a=b"], [("--map", "a=b")]),
    (["--unlink"], [("--unlink", "")]), (["--unlink=now"], [("--unlink", "now")]),
    (["--unlink", "now", "-q"], [("--unlink", "now"), ("-q", "")]),
    (["--unlink", "-q"], [("--unlink", ""), ("-q", "")]), (["-w"], [("-w", "")]),
    (["-wnow"], [("-w", "now")]), (["-w", "--quiet"], [("-w", ""), ("--quiet", "")]),
])
def test_taken_apart(words, said):
    assert split(*words) == said


@pytest.mark.parametrize("words, sentence", [
    (["-Z"], "there is no option '-Z'"), (["-qZ"], "there is no option '-Z'"),
    (["--nope=1"], "there is no option '--nope'"), (["--x"], "there is no option '--x'"),
    (["--ma", "3"], "option '--ma' may mean --mask or --map"), (["-m"], "option -m needs a value"),
    (["-qm"], "option -m needs a value"), (["--map"], "option --map needs a value"),
    (["--quiet=1"], "option --quiet takes no value, and '1' was given"),
    (["word"], "argument 'word' belongs to no option"), (["-"], "argument '-' belongs to no"),
    (["-q", "--", "-q"], "argument '-q' belongs to no option"),
])
def test_refused(words, sentence):
    with pytest.raises(UsageError) as refused:
        split(*words)
    assert sentence in str(refused.value)
