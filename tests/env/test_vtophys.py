"""vhostrt.env.vtophys: where devices find our memory, held against the page map read here.

Physical addresses take CAP_SYS_ADMIN.  Where the tests have it not, the answer is ERROR and the
sentence says why; where they have it, that is seen by a process which gives it away.
"""
import ctypes
import errno
import gc
import mmap
import os
import re
import struct
import subprocess
import sys

import pytest

from tests.lib.command import unprivileged_words
from vhostrt.env import memmap, memory, vtophys, zone
from vhostrt.env.mmio import Bar
from vhostrt.env.options import EnvOptions
from vhostrt.env.roots import Roots

PAGE, BIG, MIB = 1 << 12, 2 << 20, 1 << 20
ERROR = 2**64 - 1
PRESENT = 1 << 63
RESERVED = "/proc/sys/vm/nr_hugepages"


@pytest.fixture(autouse=True)
def clean():
    yield
    gc.collect()
    vtophys.fini()
    memmap.fini()
    memory.fini()
    assert memmap.registered() == []


@pytest.fixture
def heap():
    """The heap on ordinary pages, registered."""
    gc.collect()
    memory.fini()
    memory.init(EnvOptions(no_huge=True))
    memmap.init()


def frames(address, size):
    """Return the physical address of each page, ERROR where there is none to be seen."""
    with open("/proc/self/pagemap", "rb") as file:
        file.seek(address // PAGE * 8)
        entries = struct.unpack(f"{size // PAGE}Q", file.read(size // PAGE * 8))
    return [(entry & (1 << 55) - 1) * PAGE or ERROR if entry & PRESENT else ERROR
            for entry in entries]


def pages(address, size):
    """Return what vtophys says of each page, once it has looked."""
    try:
        vtophys.learn(address, size)
    except OSError as error:
        assert error.errno == errno.EFAULT
    return [vtophys.translate(at) for at in range(address, address + size, PAGE)]


def address_of(buffer):
    """Return where a mapping begins, without a view that would keep it."""
    return ctypes.addressof(ctypes.c_char.from_buffer(buffer))


def allowed():
    """Return whether this process may see physical addresses."""
    return frames(address_of(bytearray(b"here")) & -PAGE, PAGE)[0] != ERROR


# Physical addresses.

def test_every_page_of_an_allocation_is_where_the_page_map_says(heap):
    sentence = vtophys.init()
    assert (sentence == "Addresses for devices: physical ones") == allowed()
    block = memory.zalloc(6 * MIB + 3 * PAGE, PAGE)
    expected = frames(block.address, len(block))
    assert pages(block.address, len(block)) == expected
    assert (ERROR not in expected) == allowed()
    for at in (0, 1, 77, PAGE - 1):
        assert vtophys.translate(block.address + at) == min(expected[0] + at, ERROR)


@pytest.fixture
def huge():
    """Eight more huge pages, where we may reserve them; whether there are."""
    with open(RESERVED) as file:
        before = int(file.read())
    try:
        with open(RESERVED, "w") as file:
            file.write(str(before + 8))
        reserved = True
    except OSError:
        reserved = False
    yield reserved
    gc.collect()
    vtophys.fini()
    memmap.fini()
    memory.fini()
    if reserved:
        with open(RESERVED, "w") as file:
            file.write(str(before))


def test_every_page_of_a_zone_is_where_the_page_map_says(heap):
    vtophys.init()
    table = zone.reserve("table", 6 * MIB + 3 * PAGE, align=PAGE)
    expected = frames(table.address, len(table))
    assert len(expected) == 6 * MIB // PAGE + 3
    assert pages(table.address, len(table)) == expected
    assert (ERROR not in expected) == allowed()
    table.free()


def test_huge_pages_are_in_one_piece(huge):
    memory.init(EnvOptions(mem_size=8 * MIB))
    memmap.init()
    vtophys.init()
    block = memory.zalloc(5 * MIB, BIG)
    expected = frames(block.address, 4 * MIB)
    assert pages(block.address, 4 * MIB) == expected
    # There may be free ones that are not this test's.
    assert memory.stats()["huge"] == 8 * MIB or not huge
    if memory.stats()["huge"] and allowed():
        assert vtophys.run(block.address + 5, BIG - 5) == (expected[0] + 5, BIG - 5)


def test_what_the_heap_knows_of_its_pages_comes_first(huge, tmp_path):
    """Pages that were sorted are known; the page map here would tell nothing."""
    try:
        memory.init(EnvOptions(mem_size=8 * MIB, legacy_mem=True))
    except OSError as error:
        assert not huge and "huge pages" in str(error)
        return
    memmap.init()
    vtophys.init(roots=Roots(proc=str(tmp_path)))
    block = memory.zalloc(5 * MIB, BIG)
    assert pages(block.address, 4 * MIB) == frames(block.address, 4 * MIB)
    assert (vtophys.translate(block.address) != ERROR) == allowed()


def test_nothing_is_looked_up_before_it_is_asked_for(heap):
    vtophys.init()
    block = memory.zalloc(BIG, PAGE)
    assert vtophys.run(block.address, BIG) == (ERROR, BIG)
    vtophys.translate(block.address)
    first = frames(block.address, PAGE)[0]
    assert vtophys.run(block.address, PAGE) == (first, PAGE)
    assert vtophys.run(block.address + PAGE, PAGE) == (ERROR, PAGE)


def test_memory_that_goes_is_forgotten(heap):
    vtophys.init()
    block = memory.zalloc(4 * MIB, PAGE)
    address = block.address
    pages(address, len(block))
    block.free()
    assert memmap.registered() == []
    assert vtophys.run(address, 4 * MIB) == (ERROR, 4 * MIB)
    assert vtophys.translate(address) == ERROR


def test_pages_that_are_not_in_memory_have_no_address_until_they_are():
    vtophys.init()
    area = mmap.mmap(-1, 4 * PAGE)
    area[PAGE] = 1
    address = address_of(area)
    memmap.register(address, 4 * PAGE)
    with pytest.raises(OSError, match=f"memory of {4 * PAGE} bytes at .* for devices: ") as refused:
        vtophys.learn(address, 4 * PAGE)
    assert refused.value.errno == errno.EFAULT
    assert ("not all of it is in memory" in str(refused.value)) == allowed()
    assert pages(address, 4 * PAGE) == frames(address, 4 * PAGE)
    for page in range(4):
        area[page * PAGE] = 1
    assert pages(address, 4 * PAGE) == frames(address, 4 * PAGE)
    memmap.unregister(address, 4 * PAGE)


@pytest.mark.parametrize("call", [vtophys.learn, vtophys.translate], ids=["learn", "translate"])
def test_what_is_not_registered_has_no_address(heap, call):
    vtophys.init()
    here = address_of(bytearray(100))
    if call is vtophys.translate:
        assert call(here) == ERROR
        return
    block = memory.zalloc(PAGE)
    [(address, size, _)] = memmap.registered()
    for where in ((here, 100), (address, size + 1), (address - 1, 2), (ERROR, 1), (ERROR - 1, 5)):
        with pytest.raises(OSError, match="not registered") as refused:
            call(*where)
        assert refused.value.errno == errno.EINVAL
    block.free()


def run_python(code, before=()):
    done = subprocess.run([*before, sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_without_the_right_it_says_so_and_answers_the_error():
    out = run_python("""if 1:
        from vhostrt.env import memmap, memory, vtophys
        from vhostrt.env.options import EnvOptions
        memory.init(EnvOptions(no_huge=True))
        memmap.init()
        print(vtophys.init())
        block = memory.zalloc(4096, 4096)
        print(hex(vtophys.translate(block.address)), vtophys.why() != "")
        try:
            vtophys.learn(block.address, 4096)
        except OSError as refused:
            print(refused)
    """, unprivileged_words())
    first, second, third = out.splitlines()
    assert re.fullmatch(r"no physical addresses: /proc/self/pagemap (shows them only to a process "
                        r"with CAP_SYS_ADMIN|cannot be opened \\(.*\\))", first)
    assert second == "0xffffffffffffffff True"
    assert first in third


def test_the_right_is_needed_at_the_start_only():
    out = run_python("""if 1:
        import os
        from vhostrt.env import memmap, memory, vtophys
        from vhostrt.env.options import EnvOptions
        memory.init(EnvOptions(no_huge=True))
        memmap.init()
        vtophys.init()
        block = memory.zalloc(4096, 4096)
        if os.geteuid() == 0:
            os.setresuid(65534, 65534, 65534)
        print(vtophys.translate(block.address) != 2**64 - 1)
    """)
    assert out == f"{allowed()}\n"


# A page map of the test's own.

class Paper:
    """A root of /proc whose page map says what a test wants."""

    def __init__(self, folder):
        self.path = folder / "self/pagemap"
        self.path.parent.mkdir()
        self.roots = Roots(proc=str(folder))
        self.file = self.path.open("w+b")

    def say(self, address, *entries):
        os.pwrite(self.file.fileno(), struct.pack(f"{len(entries)}Q", *entries), address // 512)


@pytest.fixture
def paper(tmp_path):
    return Paper(tmp_path)


ENTRIES = {
    "present": (PRESENT | 0x1234, 0x1234000), "not present": (0x1234, ERROR),
    "swapped": (1 << 62 | 0x1234, ERROR), "no frame to be seen": (PRESENT, ERROR),
    "other bits": (PRESENT | 1 << 61 | 1 << 55 | 7, 0x7000),
    "the highest frame": (PRESENT | (1 << 55) - 1, (1 << 67) - PAGE & ERROR),
}


@pytest.mark.parametrize(("entry", "address"), ENTRIES.values(), ids=ENTRIES)
def test_entries_of_the_page_map(paper, entry, address):
    vtophys.init(roots=paper.roots)
    where = 7 * BIG
    paper.say(where, entry, PRESENT | 5)
    memmap.register(where, 2 * PAGE)
    assert pages(where, 2 * PAGE) == [address, 5 * PAGE]
    memmap.unregister(where, 2 * PAGE)


def test_runs_are_as_long_as_frames_follow_each_other(paper):
    vtophys.init(roots=paper.roots)
    where = 7 * BIG - 2 * PAGE
    paper.say(where, *(PRESENT | frame for frame in (10, 11, 12, 13, 99, 15)))
    memmap.register(where, 6 * PAGE)
    vtophys.learn(where, 6 * PAGE)
    assert vtophys.run(where + 3, 10 * PAGE) == (10 * PAGE + 3, 4 * PAGE - 3)
    assert vtophys.run(where + 4 * PAGE, 10 * PAGE) == (99 * PAGE, PAGE)
    memmap.unregister(where, 6 * PAGE)


def test_a_page_map_that_ends_too_soon(paper):
    sentence = vtophys.init(roots=paper.roots)
    assert sentence == f"no physical addresses: {paper.path} cannot be read"
    memmap.register(BIG, PAGE)
    assert vtophys.translate(BIG) == ERROR
    memmap.unregister(BIG, PAGE)


def test_no_page_map(tmp_path):
    sentence = vtophys.init(roots=Roots(proc=str(tmp_path)))
    assert sentence == (f"no physical addresses: {tmp_path}/self/pagemap cannot be opened "
                        "(No such file or directory)")


def test_registers_have_the_address_of_their_resource(tmp_path):
    vtophys.init(roots=Roots(proc=str(tmp_path)))
    with open(tmp_path / "resource0", "w+b") as file:
        file.truncate(4 * PAGE)
        bar = Bar.map(file.fileno(), 4 * PAGE, physical=0xfe000000)
    memmap.register(bar.address, 4 * PAGE)
    assert pages(bar.address, 4 * PAGE) == [0xfe000000 + at for at in range(0, 4 * PAGE, PAGE)]
    assert vtophys.translate(bar.address + PAGE + 8) == 0xfe000000 + PAGE + 8
    memmap.unregister(bar.address, 4 * PAGE)
    bar.release()


# Memory of a guest.

def test_memory_of_a_guest_is_taken_in_and_let_go():
    vtophys.init()
    guest = mmap.mmap(-1, 3 * MIB)
    address, size = address_of(guest) + PAGE, 3 * MIB - PAGE    # not in whole pages of 2 MiB
    if not allowed():
        with pytest.raises(OSError, match="no physical addresses") as refused:
            vtophys.add(address, size)
        assert refused.value.errno == errno.EFAULT
        assert memmap.registered() == []
        return
    vtophys.add(address, size)
    expected = frames(address, size)
    assert ERROR not in expected, "not all of it is in memory"
    assert [vtophys.run(at, 1)[0] for at in range(address, address + size, PAGE)] == expected
    vtophys.remove(address, size)
    assert memmap.registered() == []
    assert vtophys.run(address, size) == (ERROR, size)


GUEST_REFUSED = {
    "not aligned": (5, PAGE, errno.EINVAL), "no pages": (BIG, 5, errno.EINVAL),
    "nothing": (BIG, 0, errno.EINVAL), "not mapped": (BIG, PAGE, errno.ENOMEM),
}


@pytest.mark.parametrize(("address", "size", "code"), GUEST_REFUSED.values(), ids=GUEST_REFUSED)
def test_memory_of_a_guest_that_cannot_be_taken(address, size, code):
    vtophys.init()
    with pytest.raises(OSError, match=f"memory of {size} bytes at {address:#x}") as refused:
        vtophys.add(address, size)
    assert refused.value.errno == code
    assert memmap.registered() == []


def test_what_was_not_added_cannot_be_removed():
    vtophys.init()
    with pytest.raises(OSError, match="not registered") as refused:
        vtophys.remove(BIG, PAGE)
    assert refused.value.errno == errno.EINVAL


# Virtual addresses.

def test_with_an_iommu_the_addresses_are_the_virtual_ones(heap):
    assert vtophys.init("va") == "Addresses for devices: virtual ones, through the IOMMU"
    assert (vtophys.mode(), vtophys.mappings()) == ("va", [])
    block = memory.zalloc(6 * MIB)
    assert vtophys.run(block.address, len(block)) == (block.address, len(block))
    vtophys.learn(block.address, len(block))
    assert vtophys.translate(address_of(bytearray(8))) == ERROR
    block.free()


# Life.

def test_before_the_start_and_after_the_end():
    for _ in range(2):
        assert (vtophys.translate(BIG), vtophys.run(BIG, 9)) == (ERROR, (ERROR, 9))
        assert (vtophys.mode(), vtophys.why(), vtophys.mappings()) == (None, "", [])
        for call in (vtophys.learn, vtophys.add):
            with pytest.raises(OSError, match="not initialised"):
                call(BIG, PAGE)
        with pytest.raises(OSError, match="not initialised"):
            vtophys.start_dma(0)
        vtophys.init()
        vtophys.fini()
        vtophys.fini()


def test_started_twice_or_in_a_mode_that_is_none():
    with pytest.raises(ValueError, match="addresses for devices 'ra': pa or va"):
        vtophys.init("ra")
    vtophys.init()
    with pytest.raises(OSError, match="already initialised") as refused:
        vtophys.init()
    assert refused.value.errno == errno.EALREADY


def test_a_container_that_is_none_is_refused_and_nothing_is_mapped(heap):
    vtophys.init("va")
    block = memory.zalloc(PAGE)
    with open(os.devnull) as file, pytest.raises(OSError, match="mappings for devices"):
        vtophys.start_dma(file.fileno())
    assert vtophys.mappings() == []
    vtophys.stop_dma()
    block.free()


def test_starts_and_ends_leave_nothing_open():
    before = os.listdir("/proc/self/fd")
    for _ in range(3):
        memory.init(EnvOptions(no_huge=True))
        memmap.init()
        vtophys.init()
        vtophys.fini()
        memmap.fini()
        memory.fini()
    assert os.listdir("/proc/self/fd") == before
