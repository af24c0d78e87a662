"""One mapping of memory that the process owns: huge pages where there are any, else a memfd.

Owner:    whoever mapped it, by segment_map or Segment.create.
Threads:  any, one at a time for each segment; the memory itself is anybody's.
Fails:    -errno below, OSError with a sentence above; populating never ends in SIGBUS.
"""
from libc.stdint cimport uint32_t

cdef enum:
    SEGMENT_NONE = 0
    SEGMENT_HUGETLB = 1         # memfd of 2 MiB pages, reserved when mapped
    SEGMENT_MEMFD = 2           # memfd of ordinary pages, transparent huge ones asked for
    SEGMENT_FILE = 3            # a file in a hugetlbfs directory; may hold old data

cdef struct segment_t:
    char *base
    size_t size                 # whole pages
    size_t page_size            # of the file: what MADV_POPULATE_WRITE takes at a time
    int fd                      # CLOEXEC; closed by segment_unmap
    int node                    # NUMA node asked for, or -1
    uint32_t kind               # SEGMENT_*

cdef int segment_map(segment_t *s, size_t size, int node, bint huge) noexcept nogil
cdef int segment_map_file(segment_t *s, const char *path, size_t size, int node) noexcept nogil
cdef void segment_unmap(segment_t *s) noexcept nogil
cdef int segment_populate(segment_t *s, size_t offset, size_t size, size_t *had) noexcept nogil
cdef size_t huge_pages_free() noexcept nogil


cdef class Segment:
    cdef segment_t s            # base is NULL after release
    cdef Py_ssize_t exports     # buffers that look into it
    cdef Py_ssize_t shape       # its bytes, for those buffers
    cdef int require(self) except -1
