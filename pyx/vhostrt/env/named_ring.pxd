"""Rings with a name, which every process of the environment finds: each in a zone of its own.

Owner:    a named ring is there until named_ring_free, in the primary process.
Threads:  create, lookup and free: any, at set-up time.  The ring itself as ring.pxd says, by
          threads of any of the processes: it lies at one address in all of them.
Fails:    -errno, as told at each function.
"""
from libc.stdint cimport uint32_t
from vhostrt.env.ring cimport ring_t

cdef ring_t *ring_create_named(const char *name, uint32_t count, uint32_t kind, int node,
                               int *rc) noexcept nogil
cdef ring_t *ring_lookup(const char *name) noexcept nogil
cdef int named_ring_free(ring_t *r) noexcept nogil
