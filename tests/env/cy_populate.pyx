"""vhostrt.env.populate: what it says was had is in memory, however many threads did it."""
import errno
import os
import time

import pytest
from libc.stdint cimport uint32_t
from posix.unistd cimport ftruncate
from vhostrt.env.populate cimport populate, populate_with, populated_t
from vhostrt.env.segment cimport PAGE, segment_map, segment_t, segment_unmap

cdef extern from "<sys/mman.h>" nogil:
    int mincore(void *at, size_t size, unsigned char *present)
    int munmap(void *at, size_t size)

cdef enum:
    MIB = 1 << 20


cdef uint32_t pages_present(segment_t *s):
    """Count the pages of a segment that are in memory, as the kernel has them."""
    cdef bytearray present = bytearray(s.size // 4096)
    assert mincore(s.base, s.size, present) == 0
    return sum(byte & 1 for byte in present)


@pytest.mark.parametrize("threads", [1, 2, 5, 64])
def test_all_of_a_range_and_nothing_else(threads):
    cdef segment_t s
    cdef populated_t done
    assert segment_map(&s, 80 * MIB, -1, False) == 0
    assert populate_with(threads, s.base + 8 * MIB, 64 * MIB, PAGE, s.fd, 8 * MIB, &done) == 0
    assert done.had == done.reached == 64 * MIB
    assert pages_present(&s) == 64 * MIB // PAGE
    segment_unmap(&s)


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("there", [0, 3 * PAGE, 33 * MIB, 40 * MIB + 2 * PAGE])
def test_what_can_be_had_where_there_is_not_enough(threads, there):
    # Beyond the end of its file, touching a mapping would be SIGBUS.
    cdef segment_t s
    cdef populated_t done
    assert segment_map(&s, 64 * MIB, -1, False) == 0
    assert ftruncate(s.fd, there) == 0
    assert populate_with(threads, s.base, s.size, PAGE, s.fd, 0, &done) == -errno.ENOMEM
    assert done.had == done.reached == there
    segment_unmap(&s)


@pytest.mark.parametrize("threads", [1, 4])
def test_what_is_there_from_the_start_ends_at_the_first_gap(threads):
    cdef segment_t s
    cdef populated_t done
    assert segment_map(&s, 64 * MIB, -1, False) == 0
    assert munmap(s.base + 21 * MIB, PAGE) == 0
    assert populate_with(threads, s.base, s.size, PAGE, s.fd, 0, &done) == -errno.ENOMEM
    assert done.reached == <size_t>21 * MIB and <size_t>21 * MIB <= done.had < <size_t>64 * MIB
    segment_unmap(&s)


def test_as_many_threads_as_cpus_and_none_is_left():
    cdef segment_t s
    cdef populated_t done
    before = len(os.listdir("/proc/self/task"))
    assert segment_map(&s, 100 * MIB, -1, False) == 0
    assert populate(s.base, s.size, PAGE, s.fd, 0, &done) == 0
    assert done.had == s.size
    # The kernel takes a moment to forget a thread that has been joined.
    deadline = time.monotonic() + 10
    while len(os.listdir("/proc/self/task")) > before:
        assert time.monotonic() < deadline, "a helper is left"
        time.sleep(0.001)
    segment_unmap(&s)
