"""Loops over trace points, for bench_event_trace; each passes a trace point n times.

The words that a point tells are read from memory that the loop has just written, as those of a
request are.
"""
from libc.stdint cimport uint32_t, uint64_t
from vhostrt.base.atomics cimport store_relaxed_u64
from vhostrt.event.trace cimport trace

from vhostrt.event import trace as tracing

cdef enum:
    GROUP = 31
    BARE = GROUP * 64
    FULL = GROUP * 64 + 1

tracing.register("bench", GROUP, [
    tracing.Point(0, "BARE"),
    tracing.Point(1, "FULL", (("a", "int"), ("b", "int"), ("c", "int"), ("d", "int")), size="n"),
])

cdef struct request_t:
    uint64_t words[4]


def nothing(uint64_t n):
    """The loop alone."""
    cdef request_t request
    cdef uint64_t i
    with nogil:
        for i in range(n):
            store_relaxed_u64(&request.words[0], i)


def bare(uint64_t n):
    """A point without arguments."""
    cdef request_t request
    cdef uint64_t i
    with nogil:
        for i in range(n):
            store_relaxed_u64(&request.words[0], i)
            trace(BARE, &request)


def full(uint64_t n):
    """A point with a size and four words."""
    cdef request_t request
    cdef uint64_t i
    with nogil:
        for i in range(n):
            store_relaxed_u64(&request.words[0], i)
            trace(FULL, &request, <uint32_t>i, request.words[0], i, i, i)
