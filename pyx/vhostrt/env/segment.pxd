"""One mapping of memory that the process owns: huge pages where there are any, else a memfd.

Owner:    whoever mapped it, by segment_map or Segment.create.
Threads:  any, one at a time for each segment; the memory itself is anybody's.
Fails:    -errno below, OSError with a sentence above; populating never ends in SIGBUS.
"""
from libc.stdint cimport uint32_t, uint64_t

cdef enum:
    PAGE = 4096                 # bytes of an ordinary page

cdef enum:
    SEGMENT_NONE = 0
    SEGMENT_HUGETLB = 1         # memfd of huge pages, reserved when mapped
    SEGMENT_MEMFD = 2           # memfd of ordinary pages, transparent huge ones asked for
    SEGMENT_FILE = 3            # a file in a hugetlbfs directory that stays; may hold old data
    SEGMENT_HUGE_FILE = 4       # a new file in a hugetlbfs directory
    SEGMENT_SHM = 5             # a new file of ordinary pages

cdef struct segment_t:
    char *base
    size_t size                 # whole pages
    size_t page_size            # of the file: what MADV_POPULATE_WRITE takes at a time
    uint64_t offset             # of the first byte in the file
    int fd                      # CLOEXEC; closed by segment_unmap; -1 where the file needs none
    int node                    # NUMA node asked for, or -1
    uint32_t kind               # SEGMENT_*
    bint placed                 # in a range that stays reserved when it is unmapped
    bint part                   # of a file that has others too, and gives its pages back

cdef struct place_t:
    # Where a new segment comes from, and where it goes.
    size_t page_size            # PAGE, or a size of huge pages
    const char *path            # of the file to make; NULL: a memfd
    bint unlink                 # the file loses its name at once
    bint part                   # of one file that more is taken of
    int fd                      # that file, to be taken from offset on; -1: to be made
    uint64_t offset
    int node                    # NUMA node, -1: any
    bint bind                   # that node and no other; else it is preferred
    bint unreserved             # pages are not promised; populating may find that there are fewer
    char *at                    # inside a reserved range; NULL: wherever there is room

cdef int segment_map(segment_t *s, size_t size, int node, bint huge) noexcept nogil
cdef int segment_make(segment_t *s, size_t size, const place_t *place) noexcept nogil
cdef int segment_open(segment_t *s, const char *path, size_t *size, bint *made) noexcept nogil
cdef int segment_map_file(segment_t *s, const char *path, size_t size, int node) noexcept nogil
cdef int reserve_addresses(char **at, size_t size, size_t align) noexcept nogil
cdef void leave_addresses(char *at, size_t size, bint placed) noexcept nogil
cdef void segment_unmap(segment_t *s) noexcept nogil
cdef int segment_populate(segment_t *s, size_t offset, size_t size, size_t *had) noexcept nogil
cdef size_t huge_pages_free() noexcept nogil
cdef size_t pages_available(size_t page_size) noexcept nogil
cdef int node_policy(char *at, size_t size, int node, bint bind) noexcept nogil


cdef class Segment:
    cdef segment_t s            # base is NULL after release
    cdef Py_ssize_t exports     # buffers that look into it
    cdef Py_ssize_t shape       # its bytes, for those buffers
    cdef int require(self) except -1
