"""vhostrt.env.tailq: lists by name, and entries by name in each."""
import errno
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vhostrt.env import memory, tailq
from vhostrt.env.options import EnvOptions

pytestmark = pytest.mark.usefixtures("heap")
LONG = "x" * 32


def fresh():
    memory.fini()
    memory.init(EnvOptions(no_huge=True))


def test_two_lists_are_there_from_the_start():
    assert tailq.dump() == {"RTE_RING": [], "RTE_MEMPOOL": []}
    assert (tailq.lookup("RTE_RING"), tailq.lookup("RTE_MEMPOOL")) == (0, 1)


def test_entries_stand_in_the_order_they_were_added_in():
    assert tailq.register("mine") == 2 and tailq.lookup("mine") == 2
    for n, name in enumerate("abc"):
        tailq.add("mine", name, 0x1000 + n)
    tailq.add("RTE_RING", "a", 0x9000)
    assert tailq.dump()["mine"] == ["a", "b", "c"] and tailq.dump()["RTE_RING"] == ["a"]
    assert (tailq.find("mine", "b"), tailq.find("RTE_RING", "a")) == (0x1001, 0x9000)
    tailq.remove("mine", "b")
    assert tailq.dump()["mine"] == ["a", "c"] and tailq.find("mine", "b") is None
    tailq.remove("mine", "c")
    tailq.add("mine", "d", 0x2000)
    tailq.remove("mine", "a")
    assert tailq.dump()["mine"] == ["d"]


def test_what_is_not_there():
    assert tailq.lookup("none") is None and tailq.lookup("") is None
    assert tailq.find("none", "a") is tailq.find("RTE_RING", "a") is tailq.find("", "") is None


def add(list_, name):
    return lambda: tailq.add(list_, name, 0x1000)


REFUSED = {
    "list again": (lambda: tailq.register("RTE_RING"), errno.EEXIST,
                   "tail queue 'RTE_RING': the name is taken"),
    "list too long": (lambda: tailq.register(LONG), errno.ENAMETOOLONG, "31 characters at most"),
    "list without name": (lambda: tailq.register(""), errno.EINVAL, "tail queue ''"),
    "list with a NUL": (lambda: tailq.register("a\0b"), errno.EINVAL, "tail queue"),
    "entry again": (add("RTE_RING", "there"), errno.EEXIST,
                    "entry 'there' of the tail queue 'RTE_RING': the name is taken"),
    "entry too long": (add("RTE_RING", LONG), errno.ENAMETOOLONG, "31 characters at most"),
    "entry without name": (add("RTE_RING", ""), errno.EINVAL, "entry ''"),
    "entry of no list": (add("none", "a"), errno.ENOENT, "the tail queue 'none'"),
    "entry of a list without name": (add("", "a"), errno.ENOENT, "the tail queue ''"),
    "entry that is not there": (lambda: tailq.remove("RTE_RING", "a"), errno.ENOENT, "entry 'a'"),
    "entry of no list, again": (lambda: tailq.remove("none", "a"), errno.ENOENT, "'none'"),
    "no name to remove": (lambda: tailq.remove("RTE_RING", ""), errno.ENOENT, "entry ''"),
}


@pytest.mark.parametrize(("call", "code", "said"), REFUSED.values(), ids=REFUSED)
def test_refused(call, code, said):
    tailq.add("RTE_RING", "there", 0x1000)
    with pytest.raises(OSError, match=re.escape(said)) as refused:
        call()
    assert refused.value.errno == code
    assert tailq.dump() == {"RTE_RING": ["there"], "RTE_MEMPOOL": []}


def test_there_are_32_lists_and_no_more():
    for n in range(30):
        assert tailq.register(f"list{n}") == n + 2
    with pytest.raises(OSError, match="tail queue 'more'") as refused:
        tailq.register("more")
    assert refused.value.errno == errno.ENOSPC


def test_there_are_4096_entries_and_no_more():
    for n in range(4096):
        tailq.add(("RTE_RING", "RTE_MEMPOOL")[n % 2], f"e{n}", n + 1)
    with pytest.raises(OSError, match="entry 'more'") as refused:
        tailq.add("RTE_RING", "more", 1)
    assert refused.value.errno == errno.ENOSPC
    assert tailq.find("RTE_MEMPOOL", "e4095") == 4096
    tailq.remove("RTE_MEMPOOL", "e1")
    tailq.add("RTE_RING", "more", 7)
    assert tailq.find("RTE_RING", "more") == 7


def test_before_init():
    memory.fini()
    for call in (lambda: tailq.register("a"), lambda: tailq.lookup("RTE_RING"), tailq.dump,
                 add("RTE_RING", "a"), lambda: tailq.remove("RTE_RING", "a")):
        with pytest.raises(OSError, match="memory is not initialised") as refused:
            call()
        assert refused.value.errno == errno.ESRCH
    assert tailq.find("RTE_RING", "a") is None


@given(st.lists(st.tuples(st.sampled_from(["add", "remove", "find"]), st.integers(0, 1),
                          st.sampled_from("abcd")), max_size=40))
def test_like_dictionaries(moves):
    fresh()
    model = {"RTE_RING": {}, "RTE_MEMPOOL": {}}
    for at, (what, which, name) in enumerate(moves):
        list_ = list(model)[which]
        there = model[list_]
        if what == "find":
            assert tailq.find(list_, name) == there.get(name)
        elif (what == "add") != (name in there):
            if what == "add":
                tailq.add(list_, name, at + 1)
                there[name] = at + 1
            else:
                tailq.remove(list_, name)
                del there[name]
        else:
            with pytest.raises(OSError):
                tailq.add(list_, name, 1) if what == "add" else tailq.remove(list_, name)
        assert tailq.dump() == {each: list(of) for each, of in model.items()}
