"""Alarms: one call of a function after a time, on the interrupt thread.

Owner:    whoever sets one; it is gone when it has been called, or cancelled.
Threads:  any may set and cancel; the calls come on the interrupt thread, one at a time.
Fails:    -errno, as told at each function.
"""
from libc.stdint cimport uint64_t

ctypedef void (*alarm_fn)(void *arg) noexcept nogil

cdef int alarm_set(uint64_t us, alarm_fn fn, void *arg) noexcept nogil
cdef int alarm_cancel(alarm_fn fn, void *arg, int *count) noexcept nogil
