"""Tracing: what happened on each core, in a ring of that core in shared memory.

A trace point that is off costs one test of a word.  One that is on writes one entry of 64 bytes
into the ring of its lcore: no lock, no system call; a full ring overwrites its oldest entry.

Owner:    the control thread registers points, makes the file and removes it.
Threads:  trace, trace_on and trace_record from any.  Each lcore has a ring, and so has the control
          thread; other threads leave no entry.
Fails:    never: without a file nothing is written.
"""
from cython cimport unlikely
from libc.stdint cimport uint32_t, uint64_t
from vhostrt.base.atomics cimport load_relaxed_u64

cdef enum:
    TRACE_GROUPS = 32
    TRACE_POINTS = 64           # of a group; the id of a point is 64 * group + number

# The groups, where SPDK has such a group with its number.
cdef enum:
    TRACE_BDEV = 3
    TRACE_THREAD = 10
    TRACE_SCHEDULER = 18
    TRACE_REACTOR = 24
    TRACE_VHOST_BLK = 25

# For each group the points that are on.  Written by the control thread, read relaxed.
cdef uint64_t trace_masks[TRACE_GROUPS]

ctypedef uint32_t (*trace_owner_fn)() noexcept nogil

cdef void trace_record(uint32_t point, uint64_t object, uint32_t size, uint64_t a, uint64_t b,
                       uint64_t c, uint64_t d) noexcept nogil
cdef void trace_owner_by(trace_owner_fn fn) noexcept nogil
cdef uint64_t trace_text(const char *text) noexcept nogil


cdef inline bint trace_any(uint32_t group) noexcept nogil:
    """Return whether any point of a group is on: one test where several points lie close by."""
    return load_relaxed_u64(&trace_masks[group]) != 0


cdef inline bint trace_on(uint32_t point) noexcept nogil:
    """Return whether a point is on.  To be asked before arguments that take work to have."""
    return load_relaxed_u64(&trace_masks[point // TRACE_POINTS]) >> point % TRACE_POINTS & 1


cdef inline void trace(uint32_t point, const void *object, uint32_t size=0, uint64_t a=0,
                       uint64_t b=0, uint64_t c=0, uint64_t d=0) noexcept nogil:
    """Trace a point: the object it is about, a size and up to four words, as registered."""
    if unlikely(trace_on(point)):
        trace_record(point, <uint64_t>object, size, a, b, c, d)
