"""Memory made present before it is used, by several threads where there is much of it.

Threads:  any; helpers live as long as the call, take no signals and touch no Python.
Fails:    -errno; populating never ends in SIGBUS.
"""
from libc.stdint cimport uint64_t

cdef struct populated_t:
    size_t had                  # bytes of the range that are in memory
    size_t reached              # bytes from its start without a gap

cdef int populate(char *at, size_t size, size_t page_size, int fd, uint64_t offset,
                  populated_t *done) noexcept nogil
cdef int populate_with(int threads, char *at, size_t size, size_t page_size, int fd,
                       uint64_t offset, populated_t *done) noexcept nogil
