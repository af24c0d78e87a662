"""vhostrt.env.memmap: what is registered, who is told, and values of addresses.

Checks 12 and 13 of the behavioural specification stand here under their numbers.
"""
import errno
import gc
import os
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vhostrt.env import memmap, memory
from vhostrt.env.memmap import Map
from vhostrt.env.options import EnvOptions

PAGE, BIG, GIB = 1 << 12, 2 << 20, 1 << 30
TOP = 1 << 48
NONE = 2**64 - 1


@pytest.fixture(autouse=True)
def clean():
    """Nothing is registered before a test, nor after it."""
    assert memmap.registered() == []
    yield
    for address, size, count in memmap.registered():
        for _ in range(count):
            memmap.unregister(address, size)


class Log:
    """A notify that keeps what it is told, and refuses what it is told to refuse."""

    def __init__(self):
        self.lines = []
        self.refused = None             # (address, added)

    def __call__(self, address, size, added):
        if (address, added) == self.refused:
            raise OSError(errno.EPERM, "refused by the test")
        self.lines.append((address, size, added))

    def take(self):
        lines, self.lines = self.lines, []
        return lines


@pytest.fixture
def log():
    return Log()


@pytest.fixture
def told(log):
    """A map that keeps what it is told."""
    return Map(notify=log)


# Check 12.

def test_12_registered_twice_is_unregistered_once_without_a_word(told, log):
    memmap.register(4 * BIG, 2 * BIG)
    assert log.take() == [(4 * BIG, 2 * BIG, True)]
    memmap.register(4 * BIG, 2 * BIG)
    memmap.unregister(4 * BIG, 2 * BIG)
    assert log.take() == []
    assert memmap.registered() == [(4 * BIG, 2 * BIG, 1)]
    memmap.unregister(4 * BIG, 2 * BIG)
    assert log.take() == [(4 * BIG, 2 * BIG, False)]


def test_12_a_range_with_a_hole_is_not_unregistered(told, log):
    memmap.register(0, 2 * PAGE)
    memmap.register(3 * PAGE, 2 * PAGE)
    before, _ = memmap.registered(), log.take()
    with pytest.raises(OSError, match="memory of 20480 bytes at 0x0: .* not registered") as refused:
        memmap.unregister(0, 5 * PAGE)
    assert refused.value.errno == errno.EINVAL
    assert (memmap.registered(), log.take()) == (before, [])


REFUSED = {
    "48-bit overflow": (TOP - PAGE, 2 * PAGE),
    "beyond 48 bits": (TOP, PAGE),
    "64-bit overflow": (2**64 - PAGE, 2 * PAGE),
    "larger than all": (0, TOP + PAGE),
    "address not aligned": (PAGE + 1, PAGE),
    "size not aligned": (PAGE, PAGE + 512),
    "nothing": (PAGE, 0),
    "less than nothing": (PAGE, -PAGE),
    "below zero": (-PAGE, PAGE),
    "no address": (2**64, PAGE),
    "no size": (PAGE, 2**64),
}


@pytest.mark.parametrize("call", ["register", "unregister", "set", "clear"])
@pytest.mark.parametrize(("address", "size"), REFUSED.values(), ids=REFUSED)
def test_12_a_range_that_makes_no_sense(told, log, call, address, size):
    other = Map()
    calls = {"register": memmap.register, "unregister": memmap.unregister,
             "set": lambda a, s: other.set(a, s, 7), "clear": other.clear}
    with pytest.raises(OSError, match=f"memory of {size} bytes at ") as refused:
        calls[call](address, size)
    assert refused.value.errno == errno.EINVAL
    assert (memmap.registered(), log.take()) == ([], [])


@pytest.mark.parametrize("none", [0, 5, NONE])
def test_12_what_is_not_known_has_the_default(none):
    values = Map(none)
    values.set(GIB, BIG, 99)
    for address in (0, GIB - 1, GIB + BIG, 5 * GIB, TOP - 1, TOP, NONE, -1, 2**70):
        assert values.translate(address) == none


def test_the_last_pages_below_48_bits_can_be_had(told, log):
    memmap.register(TOP - BIG, BIG)
    assert log.take() == [(TOP - BIG, BIG, True)]
    values = Map()
    values.set(TOP - PAGE, PAGE, 5)
    assert [values.translate(TOP - PAGE - 1), values.translate(TOP - 1), values.translate(TOP)] == \
        [NONE, 5, NONE]


# Check 13.

def test_13_a_late_map_is_told_of_everything_once():
    memmap.register(3 * GIB - BIG, 4 * GIB)             # over limits of a GiB, odd and even
    memmap.register(BIG, PAGE)
    memmap.register(BIG + PAGE, PAGE)                   # touches the one before
    memmap.register(3 * GIB, BIG)                       # again
    log = Log()
    late = Map(notify=log)
    assert sorted(log.take()) == [(BIG, 2 * PAGE, True), (3 * GIB - BIG, 4 * GIB, True)]
    late.free()
    assert sorted(log.take()) == [(BIG, 2 * PAGE, False), (3 * GIB - BIG, 4 * GIB, False)]


def test_13_a_late_map_that_refuses_is_told_the_opposite_of_what_it_took(log):
    memmap.register(BIG, PAGE)
    memmap.register(GIB, PAGE)
    memmap.register(2 * GIB, PAGE)
    log.refused = (2 * GIB, True)
    with pytest.raises(OSError, match="refused by the test"):
        Map(notify=log)
    assert sorted(log.take()) == [(BIG, PAGE, False), (BIG, PAGE, True),
                                  (GIB, PAGE, False), (GIB, PAGE, True)]
    memmap.register(3 * GIB, PAGE)
    assert log.take() == [], "a map that is none is told something"


# Notifications.

def test_only_pages_whose_state_changes_are_told_in_maximal_runs(told, log):
    memmap.register(2 * PAGE, PAGE)
    memmap.register(5 * PAGE, 2 * PAGE)
    log.take()
    memmap.register(0, 9 * PAGE)
    assert log.take() == [(0, 2 * PAGE, True), (3 * PAGE, 2 * PAGE, True),
                          (7 * PAGE, 2 * PAGE, True)]
    memmap.unregister(PAGE, 7 * PAGE)
    assert log.take() == [(PAGE, PAGE, False), (3 * PAGE, 2 * PAGE, False), (7 * PAGE, PAGE, False)]
    assert memmap.registered() == [(0, PAGE, 1), (2 * PAGE, PAGE, 1), (5 * PAGE, 2 * PAGE, 1),
                                   (8 * PAGE, PAGE, 1)]


def test_maps_are_told_in_the_order_of_their_age():
    order = []
    maps = [Map(notify=lambda *_, n=n: order.append(n)) for n in range(3)]
    memmap.register(0, PAGE)
    assert order == [0, 1, 2]
    maps[1].free()
    memmap.register(PAGE, PAGE)
    assert order == [0, 1, 2, 1, 0, 2]                  # 1: that it is registered no more, by free


RUNS = [(0, 2 * PAGE), (3 * PAGE, 3 * PAGE)]            # what the changes below are told as


@pytest.mark.parametrize("added", [True, False], ids=["register", "unregister"])
@pytest.mark.parametrize("refused", [0, 1], ids=["first run", "second run"])
def test_what_is_refused_has_never_been(refused, added):
    memmap.register(2 * PAGE, PAGE)
    if not added:
        memmap.register(0, 6 * PAGE)
    before = memmap.registered()
    logs = [Log(), Log(), Log()]
    maps = [Map(notify=log) for log in logs]
    for log in logs:
        log.take()
    logs[1].refused = (RUNS[refused][0], added)
    with pytest.raises(OSError, match="refused by the test") as error:
        (memmap.register if added else memmap.unregister)(0, 6 * PAGE)
    assert error.value.errno == errno.EPERM
    there, back = [(*run, added) for run in RUNS], [(*run, not added) for run in RUNS]
    assert logs[0].take() == there + back[::-1]
    assert logs[1].take() == there[:refused] + back[:refused]
    assert logs[2].take() == []
    assert memmap.registered() == before
    logs[1].refused = None
    (memmap.register if added else memmap.unregister)(0, 6 * PAGE)
    assert [log.take() for log in logs] == [there] * 3
    assert len(maps) == 3


@pytest.mark.parametrize(("raised", "caught"), [
    (ValueError("bad"), ValueError), (KeyboardInterrupt(), KeyboardInterrupt),
    (OSError("without a number"), OSError),
])
def test_whatever_a_notify_raises_comes_through(raised, caught):
    def refuse(*_):
        raise raised
    told = Map(notify=refuse)
    with pytest.raises(caught) as found:
        memmap.register(0, PAGE)
    assert found.value is raised
    assert memmap.registered() == []
    told.free()


CALLS = {
    "register": lambda told: memmap.register(GIB, PAGE),
    "unregister": lambda told: memmap.unregister(0, PAGE),
    "new map": lambda told: Map(notify=print),
    "free": lambda told: told.free(),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_a_notify_that_calls_back_is_refused_and_does_not_hang(call):
    maps = []
    maps.append(Map(notify=lambda *_: maps and call(maps[0])))
    with pytest.raises(OSError, match="from within a notify") as refused:
        memmap.register(0, PAGE)
    assert refused.value.errno == errno.EDEADLK
    assert memmap.registered() == []
    maps.pop().free()


def test_a_notify_may_set_translations_and_look_at_what_is_registered():
    def on_change(address, size, added):
        if added:
            values.set(address, size, address + 1)
        else:
            values.clear(address, size)
        seen.append(memmap.registered())
    seen = []
    values = Map()
    told = Map(notify=on_change)
    memmap.register(BIG, BIG)
    assert values.translate(BIG + 5) == BIG + 1
    told.free()
    assert values.translate(BIG + 5) == NONE
    assert seen == [[], [(BIG, BIG, 1)]], "a change is there once all have taken it"


def test_a_map_without_notify_is_told_nothing():
    values = Map()
    memmap.register(0, PAGE)
    assert values.deliver() == 0
    values.free()
    values.free()
    for call in (lambda: values.translate(0), lambda: values.set(0, PAGE, 1),
                 lambda: values.clear(0, PAGE), lambda: values.run(0, 1), values.deliver):
        with pytest.raises(ValueError, match="the memory map has been freed"):
            call()


def test_a_map_that_is_forgotten_is_not_called_any_more(log):
    told = Map(notify=log)
    del told
    gc.collect()
    memmap.register(0, PAGE)
    assert log.take() == []


# The heap.

@pytest.fixture
def heap():
    gc.collect()
    memory.fini()
    memory.init(EnvOptions(no_huge=True))
    yield
    gc.collect()
    memmap.fini()
    memory.fini()


def test_memory_of_the_heap_is_registered_as_it_comes_and_goes(heap):
    first = memory.zalloc(BIG)
    memmap.init()
    memmap.init()
    second = memory.zalloc(20 * BIG)
    assert sum(size for _, size, _ in memmap.registered()) == memory.stats()["total"]
    for block in (first, second):
        assert any(address <= block.address and block.address + len(block) <= address + size
                   for address, size, _ in memmap.registered())
    second.free()
    assert sum(size for _, size, _ in memmap.registered()) == memory.stats()["total"]
    memmap.fini()
    memmap.fini()
    assert memmap.registered() == []
    memmap.init()
    assert sum(size for _, size, _ in memmap.registered()) == memory.stats()["total"]
    first.free()
    assert memmap.registered() == []


def test_what_the_heap_does_is_delivered_later_and_in_order(heap, log):
    memmap.init()
    told = Map(notify=log)
    block = memory.zalloc(BIG)
    [(address, size, _)] = memmap.registered()
    assert log.take() == []
    assert told.deliver() == 1
    assert log.take() == [(address, size, True)]
    block.free()
    # Also before the next that is told at once.
    memmap.register(0, PAGE)
    assert log.take() == [(address, size, False), (0, PAGE, True)]
    assert told.deliver() == 0


def test_what_others_have_registered_stays_theirs(heap):
    memmap.init()
    memmap.register(0, PAGE)
    block = memory.zalloc(64)
    memmap.fini()
    assert memmap.registered() == [(0, PAGE, 1)]
    block.free()


# Values.

def test_a_value_is_of_its_pages_alone():
    values = Map(0)
    values.set(BIG, 2 * BIG, 7)
    values.set(BIG + PAGE, PAGE, 8)
    assert [values.translate(BIG + at) for at in (0, PAGE - 1, PAGE, 2 * PAGE - 1, 2 * PAGE)] == \
        [7, 7, 8, 8, 7]
    values.clear(BIG + 3 * PAGE, BIG)
    assert [values.translate(BIG + at) for at in (3 * PAGE - 1, 3 * PAGE, BIG + 3 * PAGE - 1,
                                                  BIG + 3 * PAGE)] == [7, 0, 0, 7]


def test_a_linear_value_goes_on_with_the_address():
    values = Map(linear=True)
    values.set(GIB - PAGE, 2 * BIG, 0x1003)             # over the end of a table
    for at in (0, 1, PAGE - 1, PAGE, BIG, 2 * BIG - 1):
        assert values.translate(GIB - PAGE + at) == 0x1003 + at
    assert values.translate(GIB - PAGE - 1) == values.translate(GIB - PAGE + 2 * BIG) == NONE


def test_a_run_ends_where_the_values_do():
    values = Map(0, linear=True)
    values.set(PAGE, 3 * BIG, 5 * GIB)
    values.set(3 * BIG + PAGE, PAGE, 5 * GIB + 3 * BIG)     # goes on
    values.set(3 * BIG + 2 * PAGE, PAGE, 9 * GIB)           # does not
    assert values.run(PAGE + 5, NONE >> 1) == (5 * GIB + 5, 3 * BIG + PAGE - 5)
    assert values.run(PAGE, 10) == (5 * GIB, 10)
    assert values.run(0, GIB) == (0, PAGE)
    assert values.run(7 * GIB, GIB) == (0, GIB)
    assert values.run(TOP + 1, GIB) == (0, GIB)
    same = Map(0)
    same.set(PAGE, 3 * PAGE, 5)
    assert same.run(2 * PAGE, BIG) == (5, 2 * PAGE)


def test_no_memory_for_tables_changes_nothing():
    code = """if 1:
        import resource
        from vhostrt.env.memmap import Map
        values = Map()
        values.set(5 << 30, 4096, 3)
        with open("/proc/self/statm") as file:
            used = int(file.read().split()[0]) * 4096
        resource.setrlimit(resource.RLIMIT_AS, (used + (200 << 20), -1))
        try:
            values.set(0, 1 << 47, 7)
        except OSError as refused:
            print(refused)
        print([values.translate(at) for at in (0, 5 << 30, 6 << 30)])
    """
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    expected = ("[Errno 12] memory of 140737488355328 bytes at 0x0: Cannot allocate memory\n"
                f"{[NONE, 3, NONE]}\n")
    # A sanitizer has taken its addresses before there is a limit.
    if "libasan" in os.environ.get("LD_PRELOAD", ""):
        expected = f"{[7, 7, 7]}\n"
    assert run.stdout == expected, run.stderr


# Against a model: a count and a value for each page of a window over the limits of tables.

BASE = GIB - 2 * BIG
PAGES = 4 * 512
ranges = st.tuples(st.integers(0, PAGES - 1), st.one_of(
    st.integers(1, 6), st.sampled_from([510, 512, 1024, 1030])))


def runs_of(pages):
    """Return a set of page numbers as runs (first, count)."""
    runs = []
    for page in sorted(pages):
        if runs and sum(runs[-1]) == page:
            runs[-1][1] += 1
        else:
            runs.append([page, 1])
    return [(BASE + first * PAGE, count * PAGE) for first, count in runs]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.booleans(), ranges), max_size=30))
def test_like_a_dict_of_counts(moves):
    counts = dict.fromkeys(range(PAGES), 0)
    log = Log()
    told = Map(notify=log)
    for added, (first, size) in moves:
        pages = range(first, min(first + size, PAGES))
        where = (BASE + first * PAGE, len(pages) * PAGE)
        if not added and not all(counts[page] for page in pages):
            with pytest.raises(OSError):
                memmap.unregister(*where)
            assert log.take() == []
            continue
        (memmap.register if added else memmap.unregister)(*where)
        for page in pages:
            counts[page] += 1 if added else -1
        changed = {page for page in pages if counts[page] == added}
        assert log.take() == [(*run, added) for run in runs_of(changed)]
    found = dict.fromkeys(range(PAGES), 0)
    for address, size, count in memmap.registered():
        for page in range((address - BASE) // PAGE, (address + size - BASE) // PAGE):
            found[page] = count
    assert found == counts
    late = Log()
    maps = Map(notify=late), told
    assert late.take() == [(*run, True) for run in runs_of({p for p, n in counts.items() if n})]
    for each in maps:
        each.free()
    for address, size, count in memmap.registered():
        for _ in range(count):
            memmap.unregister(address, size)
    assert memmap.registered() == []


@settings(max_examples=60, deadline=None)
@given(st.booleans(), st.lists(st.tuples(st.one_of(st.none(), st.integers(0, 2**40)), ranges),
                               max_size=30))
def test_like_a_dict_of_values(linear, moves):
    values, expected = Map(linear=linear), dict.fromkeys(range(-1, PAGES + 1), NONE)
    for value, (first, size) in moves:
        pages = range(first, min(first + size, PAGES))
        where = (BASE + first * PAGE, len(pages) * PAGE)
        if value is None:
            values.clear(*where)
        else:
            values.set(*where, value)
        for page in pages:
            step = (page - first) * PAGE if linear else 0
            expected[page] = NONE if value is None else value + step
    for offset in (0, 17, PAGE - 1):
        step = offset if linear else 0
        assert [values.translate(BASE + page * PAGE + offset) for page in expected] == [
            value if value == NONE else value + step for value in expected.values()]
    at = BASE
    while at < BASE + PAGES * PAGE:
        value, size = values.run(at, BASE + PAGES * PAGE - at)
        assert value == expected[(at - BASE) // PAGE] and size % PAGE == 0 < size
        step = 1 if linear and value != NONE else 0
        assert all(values.translate(at + n) == value + n * step for n in range(0, size, PAGE))
        at += size
        assert at == BASE + PAGES * PAGE or values.translate(at) != value + size * step
