"""vhostrt.event.trace: what trace points write, read back by the reader that people use."""
import os
import time

import pytest
from libc.errno cimport EBUSY
from libc.stdint cimport UINT64_MAX, uint32_t, uint64_t
from vhostrt.base.atomics cimport (fence_acquire, load_acquire_u32, load_relaxed_u32,
                                   load_relaxed_u64, store_release_u32)
from vhostrt.env.lcore cimport lcore_launch, lcore_wait
from vhostrt.event.trace cimport TRACE_POINTS, trace, trace_any, trace_on, trace_text

from tests.lib.traces import events_of, tracing
from vhostrt.env import lcore
from vhostrt.event import trace as module
from vhostrt.tools.trace_file import CONTROL, open_trace

cdef extern from "<pthread.h>" nogil:
    ctypedef unsigned long pthread_t
    int pthread_create(pthread_t *thread, const void *attr, void *(*fn)(void *), void *arg)
    int pthread_join(pthread_t thread, void **result)

cdef extern from "<sched.h>" nogil:
    int sched_yield()

cdef enum:
    GROUP = 30
    BARE = GROUP * TRACE_POINTS
    FULL = GROUP * TRACE_POINTS + 63
    ENTRIES = 64
    LINE = 64                           # bytes of an entry

module.register("test", GROUP, [
    module.Point(0, "BARE", object="thing"),
    module.Point(63, "FULL", (("a", "int"), ("b", "signed"), ("c", "text"), ("d", "hex")),
                 size="bytes"),
])

CPUS = sorted(os.sched_getaffinity(0))
STRESS = int(os.environ.get("VHOSTRT_STRESS", "1"))


@pytest.fixture
def two():
    """Lcores 0 and 1, waiting for work."""
    lcore.init({n: (CPUS[n % len(CPUS)],) for n in range(2)})
    yield
    lcore.fini()


cdef struct work_t:
    uint64_t from_                      # the first number to trace
    uint64_t count
    uint32_t go_on                      # 1: until it is 0, instead of count
    uint32_t began


cdef int trace_numbers(void *arg) noexcept nogil:
    """Trace count numbers: each is object, size and, times something, the words."""
    cdef work_t *w = <work_t *>arg
    cdef uint64_t n = w.from_
    store_release_u32(&w.began, 1)
    while load_relaxed_u32(&w.go_on) or n < w.from_ + w.count:
        trace(FULL, <void *>n, <uint32_t>n, n, n * 3, n * 5, n * 7)
        n += 1
        if n % 256 == 0:
            sched_yield()
    return 0


cdef void *trace_numbers_outside(void *arg) noexcept nogil:
    trace_numbers(arg)
    return NULL


cdef run_on(int where, uint64_t from_, uint64_t count):
    """Have an lcore trace some numbers."""
    cdef work_t w
    cdef int ret
    w.from_, w.count, w.go_on, w.began = from_, count, 0, 0
    assert lcore_launch(where, trace_numbers, &w) == 0
    with nogil:
        lcore_wait(where, &ret)


def numbers(events, where):
    """Return the objects of the events of an lcore, after a check that each is whole."""
    for event in events:
        n = event.object
        assert event.size == n & 0xffffffff
        assert event.words == (n, n * 3 % 2**64, n * 5 % 2**64, n * 7 % 2**64)
    return [event.object for event in events if event.lcore == where]


def test_a_point_that_is_off_writes_nothing(tmp_path):
    with tracing(tmp_path) as path:
        assert not trace_on(BARE) and not trace_on(FULL) and not trace_any(GROUP)
        trace(BARE, NULL)
        module.set_mask("test", 1 << 63)
        assert not trace_on(BARE) and trace_on(FULL) and trace_any(GROUP)
        trace(BARE, NULL)
        trace(FULL, NULL)
        assert [event.point.name for event in events_of(path)] == ["FULL"]


def test_an_entry_has_what_the_point_told(tmp_path):
    before = time.time_ns()
    with tracing(tmp_path) as path:
        module.set_mask("test", UINT64_MAX)
        trace(FULL, <void *>(UINT64_MAX - 5), 0xffffffff, UINT64_MAX, <uint64_t>-5,
              trace_text(b"Malloc0"), 0xabc)
        trace(BARE, <void *>7)
        with open_trace(path) as found:
            full, bare = found.events()
            assert found.pid == os.getpid() and found.program == "vhostrt"
            assert before <= found.start_unix_ns <= time.time_ns()
            assert 0 <= found.us(full.tsc) <= found.us(bare.tsc) < 60e6
    assert (full.point.group, full.point.name) == ("test", "FULL")
    assert full.object == 2**64 - 6
    assert (full.lcore, full.owner) == (CONTROL, "control")
    assert full.arguments() == {"bytes": 2**32 - 1, "a": 2**64 - 1, "b": -5, "c": "Malloc0",
                                "d": "0xabc"}
    assert bare.point.object == "thing" and bare.object == 7 and bare.arguments() == {}


@pytest.mark.parametrize("text, kept", [(b"", ""), (b"12345678", "12345678"),
                                        (b"123456789", "12345678")])
def test_a_text_is_cut_to_a_word(tmp_path, text, kept):
    with tracing(tmp_path) as path:
        module.set_mask("test", UINT64_MAX)
        trace(FULL, NULL, 0, 0, 0, trace_text(text))
        assert events_of(path)[0].arguments()["c"] == kept


def test_each_lcore_has_a_ring_of_its_own(tmp_path, two):
    with tracing(tmp_path, [0, 1]) as path:
        module.set_mask("test", UINT64_MAX)
        run_on(0, 0, 5)
        run_on(1, 100, 5)
        run_on(0, 5, 5)
        events = events_of(path)
        assert numbers(events, 0) == list(range(10))
        assert numbers(events, 1) == list(range(100, 105))
        assert {event.owner for event in events} == {"reactor_0", "reactor_1"}


def test_a_thread_without_a_ring_writes_nothing(tmp_path, two):
    cdef pthread_t thread = 0
    cdef work_t w
    w.from_, w.count, w.go_on, w.began = 0, 5, 0, 0
    with tracing(tmp_path, [1]) as path:
        module.set_mask("test", UINT64_MAX)
        run_on(0, 0, 5)                                         # lcore 0 is not in the trace
        assert pthread_create(&thread, NULL, trace_numbers_outside, &w) == 0
        with nogil:
            pthread_join(thread, NULL)
        assert events_of(path) == []


@pytest.mark.parametrize("written, read, lost", [
    (ENTRIES - 1, ENTRIES - 1, 0), (ENTRIES, ENTRIES, 0), (ENTRIES + 1, ENTRIES, 1),
    (5 * ENTRIES + 7, ENTRIES, 4 * ENTRIES + 7)])
def test_a_full_ring_overwrites_its_oldest(tmp_path, two, written, read, lost):
    with tracing(tmp_path, [0], ENTRIES) as path:
        module.set_mask("test", UINT64_MAX)
        run_on(0, 0, written)
        with open_trace(path) as found:
            assert numbers(found.events(), 0) == list(range(written - read, written))
            assert (found.rings[0].read, found.rings[0].lost) == (read, lost)


def test_a_reader_that_comes_again_gets_what_is_new(tmp_path, two):
    with tracing(tmp_path, [0], ENTRIES) as path, open_trace(path) as found:
        module.set_mask("test", UINT64_MAX)
        assert found.events() == []
        for start, count in ((0, 10), (10, 0), (10, ENTRIES), (10 + ENTRIES, 3)):
            run_on(0, start, count)
            assert numbers(found.events(), 0) == list(range(start, start + count))
        run_on(0, 1000, 2 * ENTRIES + 1)
        assert numbers(found.events(), 0) == list(range(1001 + ENTRIES, 1001 + 2 * ENTRIES))
        assert found.rings[0].lost == ENTRIES + 1


def test_clear_hides_what_was_there(tmp_path, two):
    with tracing(tmp_path, [0], ENTRIES) as path:
        module.set_mask("test", UINT64_MAX)
        run_on(0, 0, 2 * ENTRIES)
        trace(BARE, NULL)
        module.clear()
        assert events_of(path) == []
        run_on(0, 7, 2)
        with open_trace(path) as found:
            assert numbers(found.events(), 0) == [7, 8]
            assert found.rings[0].lost == 0


def test_an_entry_that_was_not_finished_is_left_out(tmp_path, two):
    """As a process that is killed in the middle of one leaves it: the stamp is 0."""
    with tracing(tmp_path, [0], ENTRIES) as path:
        module.set_mask("test", UINT64_MAX)
        run_on(0, 0, 10)
        with open_trace(path) as found:
            entries_at = found.rings[0].at + 4096
        with open(path, "r+b") as file:
            file.seek(entries_at + 4 * LINE)
            file.write(bytes(4))
        with open_trace(path) as found:
            assert numbers(found.events(), 0) == [0, 1, 2, 3, 5, 6, 7, 8, 9]
            assert found.rings[0].lost == 1


def test_writers_trust_nothing_in_the_file(tmp_path, two):
    with tracing(tmp_path, [0], ENTRIES) as path:
        module.set_mask("test", UINT64_MAX)
        run_on(0, 0, 3)
        with open(path, "r+b") as file:
            for at in range(0, os.path.getsize(path), 4096):
                file.seek(at)
                file.write(b"\xff" * 512)
        run_on(0, 3, 3 * ENTRIES)
        module.set_mask("test", 0)
        module.clear()
        assert not module.cut()


def test_a_file_that_is_cut_short_costs_the_trace_alone(tmp_path, two):
    with tracing(tmp_path, [0], ENTRIES) as path:
        module.set_mask("test", UINT64_MAX)
        run_on(0, 0, 3)
        assert not module.cut()
        os.truncate(path, 0)
        run_on(0, 3, 3 * ENTRIES)
        assert module.cut()
        module.name_owner(9, "later")


def test_no_trace_ends_while_an_lcore_runs(tmp_path, two):
    cdef work_t w
    cdef int ret
    w.from_, w.count, w.go_on, w.began = 0, 1, 1, 0
    with tracing(tmp_path, [0, 1], ENTRIES) as path:
        module.set_mask("test", UINT64_MAX)
        assert lcore_launch(0, trace_numbers, &w) == 0
        try:
            with pytest.raises(OSError) as error:
                module.close()
            assert error.value.errno == EBUSY and "lcore 0" in str(error.value)
        finally:
            store_release_u32(&w.go_on, 0)
            with nogil:
                lcore_wait(0, &ret)
        assert module.is_open() and numbers(events_of(path), 0)


# Under stress.

cdef struct copy_t:
    uint32_t stamp
    uint64_t object
    uint64_t words[4]


cdef uint64_t check_mapping(const char *entries, uint32_t count) noexcept nogil:
    """Look at all entries of a ring as the reader's rule says; return how many were whole, or
    UINT64_MAX when one that seemed so was not."""
    cdef copy_t copy
    cdef uint64_t whole = 0
    cdef uint32_t i, k
    cdef const uint64_t *words
    for i in range(count):
        words = <const uint64_t *>(entries + <size_t>i * LINE)
        copy.stamp = load_acquire_u32(<const uint32_t *>words)
        copy.object = load_relaxed_u64(&words[2])
        for k in range(4):
            copy.words[k] = load_relaxed_u64(&words[4 + k])
        fence_acquire()
        if copy.stamp == 0 or load_relaxed_u32(<const uint32_t *>words) != copy.stamp:
            continue
        whole += 1
        for k in range(4):
            if copy.words[k] != copy.object * (2 * k + 1):
                return UINT64_MAX
    return whole


def mapping_of(path):
    """Return where this process has mapped a file."""
    with open("/proc/self/maps") as maps:
        line = next(line for line in maps if line.rstrip().endswith(path))
    return int(line.split("-")[0], 16)


cdef class Load:
    """Lcores 0 and 1 trace numbers until stop()."""
    cdef work_t w[2]

    def __init__(self):
        cdef int i
        for i in range(2):
            self.w[i].from_, self.w[i].count = i * <uint64_t>1 << 40, 1
            self.w[i].go_on = 1
            assert lcore_launch(i, trace_numbers, &self.w[i]) == 0
            while not load_acquire_u32(&self.w[i].began):
                time.sleep(0.001)

    def stop(self):
        cdef int ret, i
        for i in range(2):
            store_release_u32(&self.w[i].go_on, 0)
            with nogil:
                lcore_wait(i, &ret)


def test_stress_two_lcores_trace_while_a_reader_decodes(tmp_path, two):
    """What the reader takes for whole is whole, in order, and with what it lost it is all."""
    entries = 4096
    with tracing(tmp_path, [0, 1], entries) as path, open_trace(path) as found:
        module.set_mask("test", UINT64_MAX)
        load = Load()
        seen = {0: [], 1: []}
        try:
            for _ in range(20 * STRESS):
                events = found.events()
                for n in seen:
                    seen[n] += numbers(events, n)
        finally:
            load.stop()
        events = found.events()
        for n, ring in zip(seen, found.rings, strict=False):
            seen[n] += numbers(events, n)
            assert seen[n] == sorted(set(seen[n])) and len(seen[n]) == ring.read
            assert ring.read >= min(entries, ring.next)
            assert ring.read + ring.lost == ring.next == max(seen[n]) - (n << 40) + 1


def test_stress_a_reader_of_the_same_memory_sees_whole_entries(tmp_path, two):
    """Reader and writers share one mapping, so that the thread sanitizer sees both."""
    cdef uint32_t entries = 256
    cdef uint64_t whole
    cdef uint64_t at
    cdef int i
    with tracing(tmp_path, [0, 1], entries) as path:
        with open_trace(path) as found:
            places = [mapping_of(path) + ring.at + 4096 for ring in found.rings[:2]]
        module.set_mask("test", UINT64_MAX)
        load = Load()
        try:
            for i in range(2000 * STRESS):
                at = places[i % 2]
                with nogil:
                    whole = check_mapping(<const char *>at, entries)
                assert whole <= entries
        finally:
            load.stop()
        for at in places:
            assert check_mapping(<const char *>at, entries) == entries
