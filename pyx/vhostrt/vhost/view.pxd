"""A client's memory as this process sees it: mapped regions, immutable, reference-counted."""
from libc.stdint cimport uint64_t
from vhostrt.virtio.regions cimport regions_t

cdef class View:
    cdef regions_t *r                   # owned; sorted by guest address
    cdef readonly list mappings         # Mapping objects, in the order of r.table; shared by views
    cdef void *host_of(self, uint64_t user, uint64_t length) except? NULL
