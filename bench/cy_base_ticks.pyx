"""Loops over the clock and the atomic operations, for bench_base_ticks."""
from libc.stdint cimport uint32_t, uint64_t
from vhostrt.base.atomics cimport fetch_add_u32, load_acquire_u32, store_release_u32
from vhostrt.base.ticks cimport ticks_now


def read_clock(uint64_t n):
    """Read the clock n times; return the last reading."""
    cdef uint64_t _, now = 0
    with nogil:
        for _ in range(n):
            now = ticks_now()
    return now


def load_and_store(uint64_t n):
    """Load with acquire and store with release n times; return the word."""
    cdef uint32_t word = 0
    cdef uint64_t _
    with nogil:
        for _ in range(n):
            store_release_u32(&word, load_acquire_u32(&word) + 1)
    return word


def fetch_and_add(uint64_t n):
    """Add to a word atomically n times; return it."""
    cdef uint32_t word = 0
    cdef uint64_t _
    with nogil:
        for _ in range(n):
            fetch_add_u32(&word, 1)
    return word
