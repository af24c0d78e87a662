"""vhostrt.env.shared: several processes with one memory: who may what, and what is left of whom."""
import fcntl
import os
import re
import subprocess
import sys
import time

import pytest

from tests.lib.env_process import processes
from vhostrt.env import memory, zone
from vhostrt.env.options import EnvOptions

MIB = 1 << 20
BASE = 0x200000000000
RUN = "/run/vhostrt" if os.geteuid() == 0 else None


@pytest.fixture
def prefix(tmp_path, monkeypatch):
    """A name that no other test has; for one who is not root, a directory of his own."""
    if os.geteuid():
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    name = f"vhostrt-test-{os.getpid()}"
    yield name
    assert left_of(name) == [], "files are left"


def directory_of(prefix):
    top = RUN or os.path.join(os.environ["XDG_RUNTIME_DIR"], "vhostrt")
    return os.path.join(top, prefix)


def left_of(prefix):
    """Return the files that there are of an environment."""
    found = [f"/dev/shm/{name}" for name in os.listdir("/dev/shm") if name.startswith(prefix)]
    with_record = directory_of(prefix)
    if os.path.isdir(with_record):
        found += [os.path.join(with_record, name) for name in os.listdir(with_record)]
        assert found, "an empty directory is left"
    return sorted(found)


@pytest.fixture
def two(prefix):
    """A primary and a secondary process, on ordinary pages."""
    with processes(2) as (first, second):
        first.sentence = first.init(file_prefix=prefix, no_huge=True)
        second.sentence = second.init(file_prefix=prefix, proc_type="secondary")
        yield first, second
        second.end()
        first.end()


def test_both_see_the_same_bytes_of_a_zone(two):
    first, second = two
    assert first("(z := zone.reserve('shared', 100_000)).address") == second(
        "(z := zone.lookup('shared')).address")
    first("memoryview(z).__setitem__(slice(0, 5), b'hello')")
    assert second("bytes(memoryview(z)[:5])") == b"hello"
    second("memoryview(z).__setitem__(slice(99_995, None), b'world' + bytes(32))")
    assert first("bytes(memoryview(z)[99_995:100_000])") == b"world"
    assert second("(z.name, len(z), z.node, z.page_size, z.iova is None)") == (
        "shared", 100_032, 0, 4096, True)


def test_both_see_the_same_numbers(two):
    first, second = two
    first("zone.reserve('one', 5 << 20)")
    first("(b := memory.zalloc(3 << 20)).address")
    for what in ("memory.stats()", "memory.segments()", "zone.dump()", "tailq.dump()",
                 "memory.primary_pid()"):
        assert first(what) == second(what)
    assert second("memory.primary_pid()") == first.pid
    assert second.sentence == f"Memory: that of process {first.pid}, 0 MiB in 0 segments"
    assert "; other processes attach as vhostrt-test-" in first.sentence


def test_what_the_primary_process_adds_later_is_mapped_when_it_is_looked_up(two):
    first, second = two
    for n in range(3):
        first(f"memoryview(zone.reserve('z{n}', {5 << n} << 20))[:].__setitem__("
              f"slice(0, 3), b'z{n}!')")
        assert second(f"bytes(memoryview(zone.lookup('z{n}'))[:3])") == b"z%d!" % n
    assert second("memory.stats()['segments']") == first("memory.stats()['segments']") >= 3
    assert second("zone.lookup('z9')") is None


def test_entries_of_tail_queues(two):
    first, second = two
    first("tailq.register('MINE')")
    first("tailq.add('MINE', 'one', (b := memory.zalloc(64)).address)")
    assert second("tailq.find('MINE', 'one')") == first("b.address")
    first("tailq.remove('MINE', 'one')")
    assert second("tailq.find('MINE', 'one')") is None


FORBIDDEN = {
    "block": "memory.zalloc(64)", "zone": "zone.reserve('new', 64)",
    "free": "zone.lookup('there').free()", "free by name": "zone.free('there')",
    "list": "tailq.register('NEW')", "entry": "tailq.add('RTE_RING', 'new', 64)",
    "entry gone": "tailq.remove('RTE_RING', 'there')", "address": "memory.free(4096)",
}


@pytest.mark.parametrize("call", FORBIDDEN.values(), ids=FORBIDDEN)
def test_only_the_primary_process_changes_anything(two, call):
    first, second = two
    first("zone.reserve('there', 64)")
    first("tailq.add('RTE_RING', 'there', 64)")
    before = first("[memory.stats(), zone.dump(), tailq.dump()]")
    said = second(call)
    assert said.startswith("OSError: [Errno 1] ")
    assert f"only the primary process {first.pid} hands memory out" in said
    assert first("[memory.stats(), zone.dump(), tailq.dump()]") == before


def test_to_detach_leaves_the_primary_process_as_it_is(two, prefix):
    first, second = two
    first("memoryview(zone.reserve('one', 64)).__setitem__(0, 7)")
    second("(v := memoryview(zone.lookup('one')))[0]")
    assert "views of its zones are still in use" in second("memory.fini()")
    assert second("v.release()") is None and second("memory.fini()") is None
    assert second("memory.ready()") is False and second("memory.stats()['total']") == 0
    assert first("memoryview(zone.lookup('one'))[0]") == 7
    # And it may come back.
    assert "that of process" in second.init(file_prefix=prefix, proc_type="secondary")
    assert second("memoryview(zone.lookup('one'))[0]") == 7


def test_a_second_primary_process_is_told_who_the_first_is(two, prefix):
    first, second = two
    second("memory.fini()")
    said = second.init(file_prefix=prefix, no_huge=True)
    assert said.startswith(f"OSError: [Errno 16] process {first.pid} is the primary process of "
                           f"{prefix} (it holds {directory_of(prefix)}/config)")
    assert "--proc-type=secondary" in said
    # It may attach with auto; and after the first one is gone it is the primary one.
    assert "that of process" in second.init(file_prefix=prefix, proc_type="auto")
    second("memory.fini()")
    first("memory.fini()")
    assert "other processes attach" in second.init(file_prefix=prefix, proc_type="auto",
                                                   no_huge=True)
    assert second("zone.reserve('mine', 64) and 1") == 1


def test_a_secondary_process_without_a_primary_one(prefix):
    with processes(1) as (alone,):
        for _ in range(2):
            assert alone.init(file_prefix=prefix, proc_type="secondary").startswith(
                f"OSError: [Errno 3] there is no primary process of {prefix} to attach to")
            assert alone("memory.ready()") is False
            # The same where a primary process was, and has ended in order.
            alone.init(file_prefix=prefix, no_huge=True)
            alone("memory.fini()")
        alone.end()


def test_of_many_that_start_at_once_one_is_primary(prefix):
    with processes(6) as all_:
        for one in all_:
            one.send(f"memory.init(EnvOptions(file_prefix={prefix!r}, proc_type='auto', "
                     "no_huge=True))")
        said = [one.answer() for one in all_]
        assert sum("other processes attach" in text for text in said) == 1
        assert sum("that of process" in text for text in said) == 5
        assert len({one("memory.primary_pid()") for one in all_}) == 1
        pid = all_[0]("memory.primary_pid()")
        for one in sorted(all_, key=lambda one: one.pid == pid):
            one.end()


def test_a_shared_memory_id_is_a_prefix():
    number = 10_000 + os.getpid()
    with processes(2) as (first, second):
        assert first.init(shm_id=number, no_huge=True).endswith(f"attach as spdk{number}")
        assert "that of process" in second.init(shm_id=number, proc_type="auto")
        second.end()
        first.end()
    assert left_of(f"spdk{number}") == []


# Ends.

def test_an_end_in_order_leaves_no_file(prefix):
    with processes(1) as (one,):
        one.init(file_prefix=prefix, no_huge=True)
        one("(b := memory.zalloc(5 << 20)).address")
        assert len(left_of(prefix)) == 2
        assert one("b.free()") is None and one("memory.fini()") is None
        assert left_of(prefix) == []


def test_a_process_that_ends_without_fini_leaves_no_file(prefix):
    with processes(1) as (one,):
        one.init(file_prefix=prefix, no_huge=True)
        one("zone.reserve('one', 5 << 20).address")
        assert len(left_of(prefix)) == 2
        assert one.end() == 0
        assert left_of(prefix) == []


def test_a_forked_child_takes_nothing_away(prefix):
    with processes(2) as (one, other):
        one.init(file_prefix=prefix, no_huge=True)
        one("memoryview(zone.reserve('one', 64)).__setitem__(0, 7)")
        one("(pid := __import__('os').fork()) or __import__('sys').exit()")
        files = left_of(prefix)
        assert len(files) == 2
        other.init(file_prefix=prefix, proc_type="secondary")
        assert other("memoryview(zone.lookup('one'))[0]") == 7
        other.end()
        one.end()


def test_the_next_start_cleans_up_after_a_killed_one(prefix):
    with processes(3) as (first, next_, other):
        other.init(file_prefix=f"{prefix}-other", no_huge=True)
        other("zone.reserve('one', 64).address")
        first.init(file_prefix=prefix, no_huge=True)
        first("zone.reserve('one', 5 << 20).address")
        first("zone.reserve('two', 50 << 20).address")
        first.kill()
        dead = left_of(prefix)
        assert len(dead) > 3 and any("-other" in path for path in dead)
        assert "other processes attach" in next_.init(file_prefix=prefix, no_huge=True)
        # Its own record; of the dead one there is nothing, the living one has all it had.
        assert left_of(prefix) == sorted(
            [f"{directory_of(prefix)}/config"] + [path for path in dead if "-other" in path])
        assert next_("zone.walk()") == [] and next_("memory.stats()['blocks']") == 0
        assert other("len(memoryview(zone.lookup('one')))") == 64
        next_.end()
        other.end()
    left_of(f"{prefix}-other")


def test_who_is_attached_to_a_killed_process_keeps_what_it_has(two, prefix):
    first, second = two
    first("memoryview(zone.reserve('one', 5 << 20)).__setitem__(0, 7)")
    assert second("(v := memoryview(zone.lookup('one')))[0]") == 7
    first.kill()
    with processes(1) as (next_,):
        assert "other processes attach" in next_.init(file_prefix=prefix, no_huge=True)
        # The file that is in use is not taken away, nor its name used.
        next_("memoryview(zone.reserve('one', 5 << 20)).__setitem__(0, 9)")
        assert second("v[0]") == 7 and second("memoryview(zone.lookup('one'))[0]") == 7
        assert len([path for path in left_of(prefix) if "map_" in path]) == 2
        second.end()
        next_.end()
    with processes(1) as (last,):
        last.init(file_prefix=prefix, no_huge=True)
        assert left_of(prefix) == [f"{directory_of(prefix)}/config"]
        last.end()


def test_a_primary_process_that_dies_in_the_tables_is_reported(two, prefix):
    first, second = two
    first("zone.reserve('one', 64).address")
    assert second("zone.lookup('one').name") == "one"
    assert first("cy_shared.take_lock(True)") == 0
    first.kill()
    started = time.monotonic()
    for what in ("zone.lookup('one')", "memory.stats()", "tailq.dump()", "zone.walk()"):
        said = second(what)
        assert said.startswith("OSError: [Errno 130] ")
        assert f"the primary process {first.pid} has died while it changed the memory" in said
    assert second("memory.fini()") is None
    assert time.monotonic() - started < 60
    with processes(1) as (next_,):
        assert "other processes attach" in next_.init(file_prefix=prefix, no_huge=True)
        next_.end()


def test_a_process_that_dies_while_it_looks_harms_nobody(two):
    first, second = two
    first("zone.reserve('one', 64).address")
    assert second("cy_shared.take_lock(False)") == 0
    second.kill()
    assert first("zone.lookup('one').name") == "one"
    assert first("zone.reserve('two', 64).name") == "two"


@pytest.mark.parametrize("what", ["regions", "order", "zones", "zone below", "zone beyond",
                                  "zone name", "list", "circle", "free space"])
def test_a_damaged_record_is_refused_and_the_next_start_takes_it_away(prefix, what):
    with processes(3) as (first, second, third):
        first.init(file_prefix=prefix, no_huge=True)
        zone = first("zone.reserve('one', 4096).address")
        first(f"tailq.add('RTE_RING', 'ring', {zone})")
        second.init(file_prefix=prefix, proc_type="secondary")
        first(f"cy_shared.damage({what!r})")
        damaged = f"the record of the primary process {first.pid} is damaged: Protocol error"
        for look in ("zone.lookup('one')", "zone.walk()", "memory.stats()", "memory.segments()",
                     "tailq.dump()", "tailq.find('RTE_RING', 'ring')"):
            said = second(look)
            # Without an answer of its own, find() says nothing.
            assert said is None or said.startswith("OSError: [Errno 71] ") and damaged in said
        assert damaged in third.init(file_prefix=prefix, proc_type="secondary")
        second.kill()
        first.kill()
        assert "other processes attach" in third.init(file_prefix=prefix, no_huge=True)
        third.end()


# What cannot be attached to.

def test_addresses_that_are_in_use(two, prefix):
    first, second = two
    second("memory.fini()")
    assert second("(libc := __import__('ctypes').CDLL(None)) and 1") == 1
    second("setattr(libc.mmap, 'restype', __import__('ctypes').c_void_p)")
    mapped = second(f"libc.mmap(__import__('ctypes').c_void_p({BASE + (1 << 30)}), 4096, 0, 0x32, "
                    "-1, __import__('ctypes').c_long(0))")
    assert mapped == BASE + (1 << 30)
    said = second.init(file_prefix=prefix, proc_type="secondary")
    assert said.startswith(f"OSError: [Errno 17] attaching to process {first.pid} (")
    assert "its addresses are in use here; give the primary process others, with " in said
    assert "--base-virtaddr" in said
    first("memory.fini()")
    first.init(file_prefix=prefix, no_huge=True, base_virtaddr=0x300000000000)
    assert "that of process" in second.init(file_prefix=prefix, proc_type="secondary")
    # Taken addresses of the primary process itself are named, too.
    second("memory.fini()")
    said = second.init(base_virtaddr=BASE)
    assert said.startswith(f"OSError: [Errno 17] --base-virtaddr {BASE:#x}: something else is ")


def test_memory_without_file_names(two, prefix):
    first, second = two
    second("memory.fini()")
    first("memory.fini()")
    assert first.init(file_prefix=prefix, huge_unlink=True).endswith(
        "no other process can attach, as its files are unlinked")
    first("zone.reserve('one', 64).address")
    assert [path for path in left_of(prefix) if "map_" in path] == []
    said = second.init(file_prefix=prefix, proc_type="secondary")
    assert said.startswith("OSError: [Errno 2] attaching to process ")
    assert "its memory has no files, as it was started with --huge-unlink" in said


MAGIC = (19820526).to_bytes(8, sys.byteorder)
ONE = (1).to_bytes(4, sys.byteorder)
GARBAGE = {"no record": b"\xA5" * 4096, "another version": MAGIC + ONE * 100,
           "cut short": MAGIC + ONE}


@pytest.mark.parametrize("content", GARBAGE.values(), ids=GARBAGE)
def test_a_record_that_is_none(prefix, content):
    folder = directory_of(prefix)
    os.makedirs(folder, mode=0o700, exist_ok=True)
    path = os.path.join(folder, "config")
    with open(path, "wb") as file, processes(1) as (second,):
        file.write(content)
        file.flush()
        fcntl.flock(file, fcntl.LOCK_EX)
        said = second.init(file_prefix=prefix, proc_type="secondary")
        assert re.match(r"OSError: \[Errno 71\] attaching to process \d+ \(.*config\): it is of "
                        "another version", said)
        assert second("memory.ready()") is False
        fcntl.flock(file, fcntl.LOCK_UN)
        # Nobody's any more: a primary process puts its own in the place.
        assert "other processes attach" in second.init(file_prefix=prefix, no_huge=True)
        second.end()


def test_a_primary_process_that_ends_before_it_is_ready(prefix):
    folder = directory_of(prefix)
    os.makedirs(folder, mode=0o700, exist_ok=True)
    with open(os.path.join(folder, "config"), "wb") as file, processes(1) as (second,):
        fcntl.flock(file, fcntl.LOCK_EX)
        second.send(f"memory.init(EnvOptions(file_prefix={prefix!r}, proc_type='secondary'))")
        time.sleep(0.05)
        fcntl.flock(file, fcntl.LOCK_UN)
        assert "there is no primary process" in second.answer()
        os.unlink(file.name)
        os.rmdir(folder)


def test_a_private_environment_has_nothing_to_attach_to():
    with pytest.raises(OSError, match="a secondary process needs a primary one to attach to"):
        memory.init(EnvOptions(proc_type="secondary"))
    with pytest.raises(OSError, match="a secondary process needs a primary one"):
        memory.init(EnvOptions(shm_id=3, no_shconf=True, proc_type="secondary"))
    with pytest.raises(OSError, match="a secondary process needs a primary one"):
        memory.init(EnvOptions(shm_id=3, in_memory=True, proc_type="secondary"))


# On huge pages.

def hold(one, options, prefix):
    assert "other processes attach" in one.init(file_prefix=prefix, **options)
    one("[memoryview(zone.reserve(f'z{n}', 3 << 20)).__setitem__(0, n) for n in range(4)]")


def huge_modes(directory):
    return {
        "as needed": {"huge_dir": directory},
        "limited": {"huge_dir": directory, "mem_size": 24 * MIB},
        "one file": {"huge_dir": directory, "single_file_segments": True},
        "legacy": {"huge_dir": directory, "legacy_mem": True, "mem_size": 30 * MIB},
        "reserved": {"mem_file_dir": directory, "mem_size": 30 * MIB},
    }


@pytest.mark.parametrize("mode", huge_modes(None))
def test_both_see_huge_pages(prefix, directory, mode):
    if directory is None:
        with pytest.raises(OSError, match="hugetlbfs|hugepage"):
            memory.init(EnvOptions(huge_dir="/proc"))
        return
    with processes(2) as (first, second):
        hold(first, huge_modes(directory)[mode], prefix)
        assert "that of process" in second.init(file_prefix=prefix, proc_type="auto")
        assert second("[memoryview(zone.lookup(f'z{n}'))[0] for n in range(4)]") == [0, 1, 2, 3]
        assert second("memory.segments()") == first("memory.segments()")
        assert {s["page_size"] for s in first("memory.segments()")} == {2 * MIB}
        # Every page is where the primary process has it.
        first("[memoryview(zone.lookup(f'z{n}')).__setitem__(slice(None, None, 4096), "
              "bytes([n * 50 + i % 50 for i in range(768)])) for n in range(4)]")
        assert second("[bytes(memoryview(zone.lookup(f'z{n}'))[::4096]) == bytes([n * 50 + i % 50 "
                      "for i in range(768)]) for n in range(4)]") == [True] * 4
        second.end()
        first.end()
    kept = ["vhost_spdk_reserved_0"] if mode == "reserved" else []
    assert os.listdir(directory) == kept


def test_huge_pages_of_a_killed_process_are_cleaned_up_and_those_of_a_living_one_stay(
        prefix, directory):
    if directory is None:
        return
    with processes(3) as (first, second, next_):
        hold(first, {"huge_dir": directory}, prefix)
        hold(second, {"huge_dir": directory}, f"{prefix}-b")
        of_second = [name for name in os.listdir(directory) if name.startswith(f"{prefix}-b")]
        first.kill()
        hold(next_, {"huge_dir": directory, "mem_size": 16 * MIB}, f"{prefix}-c")
        there = os.listdir(directory)
        assert [name for name in there if name.startswith(f"{prefix}map_")] == []
        assert set(of_second) < set(there)
        assert second("[memoryview(zone.lookup(f'z{n}'))[0] for n in range(4)]") == [0, 1, 2, 3]
        next_.end()
        second.end()
    with processes(1) as (again,):              # the record of the first, in its own directory
        again.init(file_prefix=prefix, no_huge=True)
        again.end()
    for name in (f"{prefix}-b", f"{prefix}-c"):
        assert left_of(name) == []


def test_a_start_that_fails_leaves_no_huge_pages(prefix, directory):
    if directory is None:
        return
    with pytest.raises(OSError, match="Not enough memory available!"):
        memory.init(EnvOptions(file_prefix=prefix, huge_dir=directory, legacy_mem=True,
                               mem_size=1 << 40))
    assert os.listdir(directory) == [] and left_of(prefix) == []


def test_the_environment_of_this_process_may_be_shared(prefix, clean):
    memory.init(EnvOptions(file_prefix=prefix, no_huge=True))
    one = zone.reserve("one", 4096)
    one.array("uint32")[:3] = (1, 2, 3)
    code = ("import sys; from vhostrt.env import memory, zone\n"
            "from vhostrt.env.options import EnvOptions\n"
            "memory.init(EnvOptions(file_prefix=sys.argv[1], proc_type='secondary'))\n"
            "print(zone.lookup('one').array('uint32')[:4])")
    run = subprocess.run([sys.executable, "-c", code, prefix], capture_output=True, text=True)
    assert (run.stdout, run.stderr) == ("[1 2 3 0]\n", "")
    one.free()
    memory.fini()

