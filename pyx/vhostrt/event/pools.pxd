"""Pools of events and messages that grow, on the control thread, when they run low.

Owner:    pools.create and pools.free, by the control thread.
Threads:  pool_low: any.
"""
from libc.stdint cimport uint32_t
from vhostrt.env.mempool cimport mempool_t

cdef void pool_low(mempool_t *pool) noexcept nogil
cdef mempool_t *pool_create(uint32_t first, uint32_t most, size_t size, int node) except NULL
cdef void pool_free(mempool_t *pool) noexcept
