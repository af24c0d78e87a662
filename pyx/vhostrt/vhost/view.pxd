"""A client's memory as this process sees it: mapped regions, immutable, reference-counted."""
from libc.stdint cimport uint32_t, uint64_t
from vhostrt.virtio.regions cimport regions_t

cdef class Poison:
    cdef uint32_t *flag                 # owned

cdef class View:
    cdef regions_t *r                   # owned; sorted by guest address
    cdef readonly list mappings         # Mapping objects, in the order of r.table; shared by views
    cdef list by_user                   # the same, sorted by user address
    cdef readonly Poison poison         # of every mapping; kept alive: r.poisoned points into it
    cdef int fill(self) except -1
    cdef void *host_of(self, uint64_t user, uint64_t length) except? NULL
