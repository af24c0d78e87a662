"""A list of address ranges, each with a count: how often memory is registered, say.

Owner:    who has the runs_t; its array is of malloc.
Threads:  one at a time.
Fails:    -ENOMEM, and nothing has changed.
"""
from libc.stdint cimport uint64_t, uintptr_t

cdef struct run_t:
    uintptr_t at
    uintptr_t end
    uint64_t count              # at least 1

cdef struct runs_t:
    # Sorted, without overlap; those that touch differ in count.  All zero is the empty list.
    run_t *r                    # owned
    size_t n

cdef int runs_change(runs_t *old, uintptr_t at, uintptr_t end, int delta, runs_t *after,
                     runs_t *news) noexcept nogil
cdef int runs_copy(runs_t *source, runs_t *to) noexcept nogil
cdef bint runs_cover(runs_t *list_, uintptr_t at, uintptr_t end) noexcept nogil
cdef size_t runs_whole(runs_t *list_, size_t i, uintptr_t *at, uintptr_t *end) noexcept nogil
