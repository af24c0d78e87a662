"""Walks over the light threads: a function runs on each of them, one after the other.

Threads:  light threads, app_thread too.
Fails:    -errno, as told at the function.
Source:   spdk_for_each_thread.
"""
from vhostrt.event.reactor cimport msg_fn

cdef int for_each_thread(msg_fn fn, void *ctx, msg_fn cpl) noexcept nogil
