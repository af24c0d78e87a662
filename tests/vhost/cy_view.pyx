"""vhostrt.vhost.view: a client's memory, from the viewpoint of a client that lies about it."""
import errno
import fcntl
import gc
import os
import random
import re
import socket

import pytest
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from vhostrt.vhost.view cimport View

from vhostrt.base import sigbus
from vhostrt.vhost import view as view_module
from vhostrt.vhost.view import Allowance, Mapping, Poison

PAGE = 4096
GUEST, USER = 0x100000, 0x7f0000000000
END = 2**64 - 1


@pytest.fixture
def fd():
    """A memfd of 4 pages; byte i of it is i // 16 % 256."""
    made = os.memfd_create("client-memory")
    os.write(made, bytes(i // 16 % 256 for i in range(4 * PAGE)))
    yield made
    os.close(made)


def mapping(fd, guest=GUEST, size=PAGE, user=USER, offset=0, poison=None, allowance=None):
    return Mapping.create(fd, guest, size, user, offset, Poison() if poison is None else poison,
                          Allowance() if allowance is None else allowance)


def mapped():
    """Return how many mappings of the memfd this process has."""
    with open("/proc/self/maps") as file:
        return sum("client-memory" in line for line in file)


def look(view, user, length):
    """Return the bytes at the client's address `user`; None when they are in no one region."""
    cdef uint8_t *host = <uint8_t *>(<View>view).host_of(user, length)
    if host is NULL:
        return None
    return bytes([(<volatile uint8_t *>host)[<uint64_t>i] for i in range(length)])


# What is refused

NUMBERS = {
    "empty": ({"size": 0}, "empty"),
    "one byte too many": ({"size": 4 * PAGE + 1}, "needs 16385 bytes of its file, which has 16384"),
    "offset too far": ({"offset": 3 * PAGE + 1}, "needs 16385 bytes"),
    "offset at the end": ({"offset": 4 * PAGE}, "needs 20480 bytes"),
    "far too much": ({"size": 2**62}, "needs 4611686018427387904 bytes"),
    "guest passes 2^64": ({"guest": END - PAGE + 1}, "guest address 0xfffffffffffff000 passes"),
    "user passes 2^64": ({"user": END - PAGE + 1}, "user address 0xfffffffffffff000 passes"),
    "offset passes 2^64": ({"offset": END - PAGE + 1}, "offset 0xfffffffffffff000 passes 2^64"),
    "size is all there is": ({"size": END, "guest": 1}, "passes 2^64"),
}


@pytest.mark.parametrize(("numbers", "why"), NUMBERS.values(), ids=NUMBERS)
def test_numbers_refused(fd, numbers, why):
    with pytest.raises(ValueError, match=re.escape(why)):
        mapping(fd, **numbers)
    assert mapped() == 0


@pytest.mark.parametrize("kind", ["pipe", "socket", "procfs", "device", "directory"])
def test_descriptor_refused(kind):
    ends = []
    if kind == "pipe":
        ends += os.pipe()
    elif kind == "socket":
        ends += [end.detach() for end in socket.socketpair()]
    else:
        ends.append(os.open({"procfs": "/proc/self/maps", "device": "/dev/null",
                             "directory": "/dev/shm"}[kind], os.O_RDONLY))
    try:
        with pytest.raises(ValueError, match="is not a memfd|of its file, which has"):
            mapping(ends[0])
    finally:
        for end in ends:
            os.close(end)


def test_no_descriptor():
    with pytest.raises(OSError) as refused:
        mapping(-1)
    assert refused.value.errno == errno.EBADF


def test_memory_that_may_not_be_written(fd):
    """Opened for reading, or sealed: the system's refusal is passed on."""
    reading = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY)
    sealed = os.memfd_create("sealed", os.MFD_ALLOW_SEALING)
    os.ftruncate(sealed, PAGE)
    fcntl.fcntl(sealed, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)
    for made in (reading, sealed):
        with pytest.raises(OSError, match="mapping of 4096 bytes of client memory"):
            mapping(made)
        os.close(made)
    assert mapped() == 0


@pytest.mark.parametrize(("first", "second", "kind"), [
    ((GUEST, USER), (GUEST + PAGE - 1, USER + 2 * PAGE), "guest"),
    ((GUEST, USER), (GUEST, USER + 2 * PAGE), "guest"),
    ((GUEST + PAGE, USER), (GUEST + 1, USER + 2 * PAGE), "guest"),
    ((GUEST, USER), (GUEST + PAGE, USER + PAGE - 1), "user"),
    ((GUEST + PAGE, USER), (GUEST, USER), "user"),
])
def test_overlap_refused(fd, first, second, kind):
    mappings = [mapping(fd, guest, user=user) for guest, user in (first, second)]
    with pytest.raises(ValueError, match=f"two regions overlap at {kind} address"):
        View(mappings)
    del mappings
    assert mapped() == 0


def test_no_region():
    with pytest.raises(ValueError, match="at least one region"):
        View([])


# What is seen

def test_regions_are_sorted_by_guest_address(fd):
    cdef View view
    mappings = [mapping(fd, GUEST + n * PAGE, user=USER - n * PAGE, offset=n * PAGE)
                for n in (2, 0, 1)]
    view = View(mappings)
    assert view.r.count == 3
    assert [view.r.table[i].guest for i in range(3)] == [GUEST + n * PAGE for n in range(3)]
    assert [view.r.table[i].size for i in range(3)] == [PAGE] * 3
    # Their hosts are those of the same mappings: the first bytes of each page.
    assert [view.r.table[i].host[0] for i in range(3)] == [0, 0, 0]
    assert [view.r.table[i].host[16 * (i + 1)] for i in range(3)] == [1, 2, 3]


@pytest.mark.parametrize(("offset", "size"), [(0, 1), (PAGE, PAGE), (100, 5000), (PAGE + 3, 1),
                                              (0, 4 * PAGE), (3 * PAGE + 4095, 1)])
def test_offsets_need_no_alignment(fd, offset, size):
    view = View([mapping(fd, size=size, offset=offset)])
    content = os.pread(fd, size, offset)
    assert look(view, USER, size) == content
    assert look(view, USER, size + 1) is None


def test_addresses(fd):
    view = View([mapping(fd), mapping(fd, GUEST + PAGE, PAGE, USER + PAGE, PAGE)])
    for user, length, found in ((USER, PAGE, True), (USER + PAGE - 1, 1, True),
                                (USER + PAGE - 1, 2, False), (USER - 1, 1, False),
                                (USER - 1, 2, False), (USER + PAGE, PAGE, True),
                                (USER + 2 * PAGE, 1, False), (USER, 2 * PAGE, False),
                                (0, 1, False), (GUEST, 1, False), (END, 1, False)):
        assert (look(view, user, length) is not None) == found, hex(user)
    assert (<View>view).host_of(USER + 1, END) is NULL


def test_the_memory_is_shared(fd):
    cdef View view = View([mapping(fd)])
    cdef uint8_t *host = <uint8_t *>view.host_of(USER, PAGE)
    host[5] = 99
    assert os.pread(fd, 1, 5) == b"\x63"
    os.pwrite(fd, b"\x2a", 6)
    assert look(view, USER + 6, 1) == b"\x2a"


def test_huge_pages():
    """Mapped in whole huge pages where there are any; otherwise the system's refusal is told."""
    huge = 2 << 20
    try:
        with open("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages") as file:
            there = int(file.read())
    except FileNotFoundError:
        there = 0
    fd = os.memfd_create("huge", os.MFD_HUGETLB | os.MFD_HUGE_2MB)
    os.ftruncate(fd, huge)
    try:
        if there:
            view = View([mapping(fd, size=PAGE, offset=huge - 2 * PAGE)])
            assert look(view, USER, 1) == b"\0"
            assert look(view, USER + PAGE, 1) is None
        else:
            with pytest.raises(OSError, match="mapping of"):
                mapping(fd, size=PAGE, offset=huge - 2 * PAGE)
    finally:
        os.close(fd)


# How long it lives

def test_memory_is_unmapped_with_the_last_view_of_it(fd):
    one, two = mapping(fd), mapping(fd, GUEST + PAGE, user=USER + PAGE)
    assert mapped() == 2
    first, second = View([one, two]), View([one])
    del one, two
    assert mapped() == 2
    del first
    gc.collect()
    assert mapped() == 1
    assert look(second, USER, 1) == b"\0"
    del second
    gc.collect()
    assert mapped() == 0
    os.fstat(fd)                        # the descriptor stays its owner's


def test_the_helper_unmaps(fd):
    """Off this thread, and before the helper ends."""
    made = view_module.helper().submit(mapping, fd).result()
    assert view_module.helper() is view_module.helper()
    assert mapped() == 1
    del made
    view_module.fini()
    assert mapped() == 0
    view_module.fini()                  # again is nothing
    late = mapping(fd)
    del late
    assert mapped() == 0


def test_a_forked_child_has_none_of_it(fd):
    made = mapping(fd)
    with open("/proc/self/smaps") as file:
        of = re.search(r"client-memory.*?VmFlags:([^\n]*)", file.read(), re.S)
    assert " dc " in of[1]
    del made


def test_an_allowance_is_kept_and_comes_back(fd):
    """It counts whole pages, until they are unmapped; what is refused takes nothing of it."""
    reading = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY)
    allowance = Allowance(4 * PAGE)
    first = mapping(fd, size=PAGE + 1, offset=PAGE - 1, allowance=allowance)
    assert allowance.used == 2 * PAGE
    with pytest.raises(OSError):
        mapping(reading, allowance=allowance)
    with pytest.raises(ValueError, match="12288 bytes more than the 8192 that are mapped: there "
                                         "may be 16384"):
        mapping(fd, size=3 * PAGE, allowance=allowance)
    assert allowance.used == 2 * PAGE and mapped() == 1
    second = mapping(fd, size=2 * PAGE, allowance=allowance)
    assert allowance.used == 4 * PAGE
    del first
    assert allowance.used == 2 * PAGE
    del second
    assert allowance.used == 0
    os.close(reading)


def test_memory_that_vanished_poisons_its_view(fd):
    cdef View view
    sigbus.install()
    poison, other = Poison(), Poison()
    view = View([mapping(fd, poison=poison)])
    beside = View([mapping(fd, poison=other)])
    assert not poison
    os.ftruncate(fd, 0)
    assert look(view, USER, 4) == bytes(4)
    assert poison and view.r.poisoned[0] == <uint32_t>1
    assert not other
    del beside


def test_a_slot_of_the_sigbus_table_comes_back(fd):
    """More mappings than it has slots, one after the other."""
    for _ in range(33000):
        mapping(fd)
    assert mapped() == 0


def test_an_allowance_counts_regions(fd):
    allowance = Allowance(END, 2)
    kept = [mapping(fd, allowance=allowance) for _ in range(2)]
    for _ in range(3):
        with pytest.raises(ValueError, match="2 regions are mapped: there may be no more"):
            mapping(fd, allowance=allowance)
    del kept[0]
    assert allowance.regions == 1
    kept.append(mapping(fd, allowance=allowance))
    assert allowance.regions == 2 and mapped() == 2
    del kept
    assert (allowance.regions, allowance.used) == (0, 0)


# One region more or less

def rows(view):
    """What reactors see of a view."""
    cdef View v = view
    return [(v.r.table[i].guest, v.r.table[i].size, <uint64_t>v.r.table[i].host)
            for i in range(v.r.count)]


@pytest.mark.parametrize("seed", range(5))
def test_changes_are_as_if_made_at_once(fd, seed):
    """Regions at random, in other orders for guest and user; each view against one from a list."""
    rng = random.Random(seed)
    poison, places = Poison(), list(range(24))
    rng.shuffle(places)
    present, view = [], None
    for _ in range(200):
        n = rng.randrange(24)
        found = [m for m in present if m.guest == GUEST + n * PAGE]
        if found:
            present.remove(found[0])
            view = view.minus(found[0])
        else:
            made = mapping(fd, GUEST + n * PAGE, user=USER + places[n] * PAGE, poison=poison)
            present.append(made)
            view = view.plus(made) if view else View([made])
        assert len(view) == len(present)
        if present:
            assert rows(view) == rows(View(present))
        for i in range(24):
            at = USER + places[i] * PAGE
            there = any(m.user == at for m in present)
            assert (look(view, at + PAGE - 1, 1) is not None) == there
            assert (view.find(GUEST + i * PAGE, PAGE, at) is not None) == there
    del view, present, found, made
    assert mapped() == 0


def test_the_old_view_stays_as_it_was(fd):
    first, second = mapping(fd), mapping(fd, GUEST + PAGE, user=USER + PAGE)
    old = View([first])
    new = old.plus(second)
    less = new.minus(first)
    assert [len(view) for view in (old, new, less)] == [1, 2, 1]
    assert look(old, USER, 1) is not None and look(old, USER + PAGE, 1) is None
    assert look(less, USER, 1) is None and look(less, USER + PAGE, 1) is not None
    del first, second, new
    assert mapped() == 2
    del old
    assert mapped() == 1


@pytest.mark.parametrize(("guest", "user", "kind"), [
    (GUEST + PAGE - 1, USER + 8 * PAGE, "guest"), (GUEST - PAGE + 1, USER + 8 * PAGE, "guest"),
    (GUEST, USER + 8 * PAGE, "guest"), (GUEST + 8 * PAGE, USER + PAGE - 1, "user"),
    (GUEST + 8 * PAGE, USER - PAGE + 1, "user"), (GUEST + 8 * PAGE, USER, "user"),
])
def test_an_overlap_with_one_that_is_there_is_refused(fd, guest, user, kind):
    view = View([mapping(fd), mapping(fd, GUEST + 4 * PAGE, user=USER + 4 * PAGE)])
    with pytest.raises(ValueError, match=f"two regions overlap at {kind} address"):
        view.plus(mapping(fd, guest, user=user))
    assert len(view) == 2


def test_a_view_may_lose_its_last_region(fd):
    cdef View view = View([mapping(fd)])
    view = view.minus(view.mappings[0])
    assert view.r.count == 0 and len(view) == 0
    assert look(view, USER, 1) is None and view.find(GUEST, PAGE, USER) is None
    assert view.r.poisoned[0] == <uint32_t>0


def test_a_file_is_known_again(fd):
    """By what it is, whichever descriptor comes; not by its numbers alone."""
    made = mapping(fd, offset=PAGE)
    again, other = os.dup(fd), os.memfd_create("client-memory")
    os.ftruncate(other, 4 * PAGE)
    assert made.shows(again, GUEST, PAGE, USER, PAGE)
    for numbers in ((GUEST + 1, PAGE, USER, PAGE), (GUEST, PAGE + 1, USER, PAGE),
                    (GUEST, PAGE, USER + 1, PAGE), (GUEST, PAGE, USER, 0)):
        assert not made.shows(again, *numbers)
    assert not made.shows(other, GUEST, PAGE, USER, PAGE)
    os.ftruncate(fd, PAGE)
    assert not made.shows(again, GUEST, PAGE, USER, PAGE)
    for each in (again, other):
        os.close(each)
