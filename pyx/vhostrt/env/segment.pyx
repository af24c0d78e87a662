"""One mapping of memory that the process owns: huge pages where there are any, else a memfd.

Owner:    whoever mapped it, by segment_map or Segment.create.
Threads:  any, one at a time for each segment; the memory itself is anybody's.
Fails:    -errno below, OSError with a sentence above; populating never ends in SIGBUS.
"""
import os

from cpython.buffer cimport PyBuffer_FillInfo
from libc.errno cimport EAGAIN, EINVAL, ENODEV, ENOENT, ENOMEM, EOPNOTSUPP, errno
from libc.stdint cimport SIZE_MAX, uint64_t, uintptr_t
from libc.stdio cimport snprintf
from libc.stdlib cimport strtoull
from libc.string cimport memset
from posix.fcntl cimport (F_DUPFD_CLOEXEC, O_CLOEXEC, O_CREAT, O_EXCL, O_RDONLY, O_RDWR, fcntl,
                          open)
from posix.mman cimport (MAP_ANONYMOUS, MAP_FAILED, MAP_FIXED, MAP_NORESERVE, MAP_PRIVATE,
                         MAP_SHARED, PROT_NONE, PROT_READ, PROT_WRITE, mmap, munmap)
from posix.stat cimport fstat, struct_stat
from posix.unistd cimport close, ftruncate, read, unlink
from vhostrt.base.errors cimport ok
from vhostrt.env.populate cimport populate, populated_t

cdef extern from *:
    """
    #ifndef _GNU_SOURCE
    #define _GNU_SOURCE
    #endif
    #include <errno.h>
    #include <fcntl.h>
    #include <sys/file.h>
    #include <sys/mman.h>
    #include <sys/syscall.h>
    #include <sys/vfs.h>
    #include <unistd.h>
    #ifndef MFD_HUGETLB
    #define MFD_HUGETLB 4U
    #endif
    #ifndef MFD_NOEXEC_SEAL
    #define MFD_NOEXEC_SEAL 8U
    #endif
    #define VH_HUGETLBFS 0x958458f6
    #define VH_MPOL_PREFERRED 1
    #define VH_MPOL_BIND 2
    static long vh_mbind(void *at, size_t size, int mode, const unsigned long *nodes,
                         unsigned long bits)
    {
        return syscall(SYS_mbind, at, size, mode, nodes, bits, 0);
    }
    """
    ctypedef struct struct_statfs "struct statfs":
        unsigned long f_type
        size_t f_bsize
    enum:
        MFD_CLOEXEC
        MFD_HUGETLB
        MFD_NOEXEC_SEAL
        MADV_DONTFORK
        MADV_HUGEPAGE
        LOCK_EX
        LOCK_NB
        LOCK_SH
        O_NOFOLLOW
        FALLOC_FL_KEEP_SIZE
        FALLOC_FL_PUNCH_HOLE
    unsigned long HUGETLBFS "VH_HUGETLBFS"
    int MPOL_PREFERRED "VH_MPOL_PREFERRED"
    int MPOL_BIND "VH_MPOL_BIND"
    int memfd_create(const char *name, unsigned flags) nogil
    int madvise(void *at, size_t size, int advice) nogil
    int fallocate(int fd, int mode, uint64_t offset, size_t size) nogil
    int flock(int fd, int operation) nogil
    int statfs(const char *path, struct_statfs *answer) nogil
    int fstatfs(int fd, struct_statfs *answer) nogil
    int ctz "__builtin_ctzl"(unsigned long n) nogil
    long mbind "vh_mbind"(void *at, size_t size, int mode, const unsigned long *nodes,
                          unsigned long bits) nogil

cdef enum:
    HUGE_PAGE = 2 << 20
    MFD_HUGE_SHIFT = 26         # where the size is, as a power of two, in memfd's flags
    NODES = 1024                # numbers that a node mask has room for
    NODE_WORDS = 16
    WORD_BITS = 64

MIB = 1 << 20
KINDS = {SEGMENT_NONE: "released", SEGMENT_HUGETLB: "hugetlb", SEGMENT_MEMFD: "memfd",
         SEGMENT_FILE: "file", SEGMENT_HUGE_FILE: "huge file", SEGMENT_SHM: "shm file"}


cdef size_t number_in(const char *path) noexcept nogil:
    """Return the number a file begins with; 0 when there is none."""
    cdef char text[32]
    cdef ssize_t n
    cdef int fd = open(path, O_RDONLY | O_CLOEXEC)
    if fd < 0:
        return 0
    n = read(fd, text, sizeof(text) - 1)
    close(fd)
    text[max(n, 0)] = 0
    return strtoull(text, NULL, 10)


cdef size_t pages_available(size_t page_size) noexcept nogil:
    """Return the huge pages of a size that are free and promised to nobody."""
    cdef char path[96]
    cdef size_t pages, promised
    snprintf(path, sizeof(path), b"/sys/kernel/mm/hugepages/hugepages-%zukB/free_hugepages",
             page_size >> 10)
    pages = number_in(path)
    if pages == 0:
        return 0
    snprintf(path, sizeof(path), b"/sys/kernel/mm/hugepages/hugepages-%zukB/resv_hugepages",
             page_size >> 10)
    promised = number_in(path)
    return pages - promised if pages > promised else 0


cdef size_t huge_pages_free() noexcept nogil:
    """Return the huge pages of 2 MiB that are free and promised to nobody."""
    return pages_available(HUGE_PAGE)


cdef int new_memfd(size_t page_size) noexcept nogil:
    """Return a new memfd or -errno; kernels before 6.3 do not know MFD_NOEXEC_SEAL."""
    cdef unsigned flags = MFD_CLOEXEC
    cdef int fd
    if page_size > PAGE:
        flags |= MFD_HUGETLB | <unsigned>ctz(page_size) << MFD_HUGE_SHIFT
    fd = memfd_create(b"vhostrt", flags | MFD_NOEXEC_SEAL)
    if fd < 0 and errno == EINVAL:
        fd = memfd_create(b"vhostrt", flags)
    return -errno if fd < 0 else fd


cdef int reserve_addresses(char **at, size_t size, size_t align) noexcept nogil:
    """Reserve size bytes of addresses at a multiple of align; 0 or -errno."""
    # Reserved too large and cut: only an aligned mapping can have transparent huge pages.
    cdef size_t room = size + align
    cdef char *base
    cdef size_t front
    if room < align:
        return -ENOMEM
    base = <char *>mmap(NULL, room, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
    if base == MAP_FAILED:
        return -errno
    front = (align - <uintptr_t>base % align) % align
    if front:
        munmap(base, front)
    if front < align:
        munmap(base + front + size, align - front)
    at[0] = base + front
    return 0


cdef void leave_addresses(char *at, size_t size, bint placed) noexcept nogil:
    """Unmap; where the range is to stay reserved, nothing else gets its addresses."""
    if placed:
        mmap(at, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0)
    else:
        munmap(at, size)


cdef int map_file(segment_t *s, char *at, bint unreserved) noexcept nogil:
    """Map s.fd shared, at an address that is reserved or where whole huge pages fit; 0 or -errno.
    """
    cdef int rc = 0
    s.placed = at is not NULL
    if not s.placed:
        rc = reserve_addresses(&at, s.size, max(s.page_size, <size_t>HUGE_PAGE))
    if rc < 0:
        return rc
    s.base = <char *>mmap(at, s.size, PROT_READ | PROT_WRITE,
                          MAP_SHARED | MAP_FIXED | (MAP_NORESERVE if unreserved else 0), s.fd,
                          s.offset)
    if s.base == MAP_FAILED:
        s.base = NULL
        rc = -errno                                             # before munmap may change it
        leave_addresses(at, s.size, s.placed)
    return rc


cdef int node_policy(char *at, size_t size, int node, bint bind) noexcept nogil:
    """Have pages of a mapping come from a node first, or from no other.

    0
    -EINVAL  node is negative or beyond what a mask holds
    -ENODEV  there is no such node
    """
    cdef unsigned long mask[NODE_WORDS]
    if node < 0 or node >= NODES:
        return -EINVAL
    memset(mask, 0, sizeof(mask))
    mask[node // WORD_BITS] = 1UL << (node % WORD_BITS)
    # The kernel reads one bit less than it is told of.
    if mbind(at, size, MPOL_BIND if bind else MPOL_PREFERRED, mask, NODES + 1) == 0:
        return 0
    # A kernel without NUMA, or a container that forbids the call, has no preferences.
    return -ENODEV if errno == EINVAL else 0


cdef int finish_map(segment_t *s, size_t size, const place_t *place) noexcept nogil:
    """Size, map and advise the open s.fd; on an error everything is undone."""
    cdef int rc
    s.size = (size + s.page_size - 1) // s.page_size * s.page_size
    if s.size < size:
        rc = -ENOMEM
    elif s.kind != SEGMENT_FILE and ftruncate(s.fd, s.offset + s.size) < 0:
        rc = -errno
    else:
        rc = map_file(s, place.at, place.unreserved)
    if rc == 0 and s.node >= 0:
        rc = node_policy(s.base, s.size, s.node, place.bind)
        rc = -ENODEV if rc == -EINVAL else rc
    if rc < 0:
        segment_unmap(s)
        return rc
    madvise(s.base, s.size, MADV_DONTFORK)
    if s.page_size == PAGE:
        madvise(s.base, s.size, MADV_HUGEPAGE)                  # a wish; refused without THP
    return 0


cdef int new_file(segment_t *s, const place_t *place) noexcept nogil:
    """Open the file of a new segment; 0 or -errno, -EAGAIN when a cleaner took it from us."""
    cdef struct_stat st
    if place.fd >= 0:
        s.fd = fcntl(place.fd, F_DUPFD_CLOEXEC, 3)
        return -errno if s.fd < 0 else 0
    if place.path is NULL:
        s.fd = new_memfd(place.page_size)
        return min(s.fd, 0)
    s.fd = open(place.path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0o600)
    if s.fd < 0:
        return -errno
    # Who cleans up takes files that nobody has locked, and may have come between.
    if flock(s.fd, LOCK_SH | LOCK_NB) < 0 or fstat(s.fd, &st) < 0 or st.st_nlink == 0:
        close(s.fd)
        s.fd = -1
        return -EAGAIN
    if place.unlink:
        unlink(place.path)
    return 0


cdef int segment_make(segment_t *s, size_t size, const place_t *place) noexcept nogil:
    """Map new zeroed memory of at least size bytes into *s; no page is touched.

    *s need not be initialised.  A new file is locked, shared, as long as it is mapped.
    0
    -EINVAL   size 0
    -EEXIST   there is a file of that name
    -EAGAIN   somebody who cleans up has removed the new file: try again
    -ENODEV   no such node
    -ENOMEM   not so many huge pages, or no room among the addresses
    -errno    of memfd_create, open or mmap otherwise
    """
    cdef bint huge = place.page_size > PAGE
    cdef int rc
    memset(s, 0, sizeof(segment_t))
    s.fd = -1
    if size == 0:
        return -EINVAL
    s.node = place.node
    s.page_size = place.page_size
    s.offset = place.offset
    s.part = place.part
    if place.path is NULL:
        s.kind = SEGMENT_HUGETLB if huge else SEGMENT_MEMFD
    else:
        s.kind = SEGMENT_HUGE_FILE if huge else SEGMENT_SHM
    rc = new_file(s, place)
    if rc < 0:
        return rc
    rc = finish_map(s, size, place)
    if rc < 0 and place.path is not NULL and place.fd < 0 and not place.unlink:
        unlink(place.path)
    return rc


cdef int segment_map(segment_t *s, size_t size, int node, bint huge) noexcept nogil:
    """As segment_make, of a memfd: of 2 MiB pages, all of them reserved, or of ordinary ones.

    node: the NUMA node preferred, -1 for any.
    """
    cdef place_t place
    memset(&place, 0, sizeof(place_t))
    place.page_size = HUGE_PAGE if huge else PAGE
    place.fd = -1
    place.node = node
    return segment_make(s, size, &place)


cdef int check_file(segment_t *s, size_t *size) noexcept nogil:
    """Lock the open file, learn its page size and, where *size is 0, its size; 0 or -errno."""
    cdef struct_statfs fs
    cdef struct_stat st
    if fstatfs(s.fd, &fs) < 0 or fstat(s.fd, &st) < 0:
        return -errno
    if fs.f_type != HUGETLBFS:
        return -EOPNOTSUPP
    if flock(s.fd, LOCK_EX | LOCK_NB) < 0:
        return -errno
    if size[0] == 0:
        size[0] = st.st_size
    s.page_size = fs.f_bsize
    return 0 if size[0] else -EINVAL


cdef int segment_open(segment_t *s, const char *path, size_t *size, bint *made) noexcept nogil:
    """Open and lock a file in a hugetlbfs directory, without mapping it; made where missing.

    *size: bytes wanted, 0 for all there is; then it says how many those are.  Errors: those of
    segment_map_file; then nothing is open, and a new file is gone.
    """
    cdef int rc
    memset(s, 0, sizeof(segment_t))
    s.node = -1
    s.kind = SEGMENT_FILE
    made[0] = False
    s.fd = open(path, O_RDWR | O_CLOEXEC | O_NOFOLLOW)
    if s.fd < 0 and errno == ENOENT and size[0]:
        made[0] = True
        s.fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0o600)
    if s.fd < 0:
        return -errno
    rc = check_file(s, size)
    if rc < 0:
        segment_unmap(s)
        if made[0]:
            unlink(path)
    return rc


cdef int segment_map_file(segment_t *s, const char *path, size_t size, int node) noexcept nogil:
    """Map the first bytes of a file in a hugetlbfs directory, made or grown when need be.

    The file stays, locked while mapped, and keeps pages and contents; one made by a call that
    fails is removed.  size 0: all there is.
    0
    -EINVAL      size 0 and the file is empty
    -EAGAIN      another process has it
    -EOPNOTSUPP  not in a hugetlbfs directory
    -ENODEV      no such node
    -ENOMEM      not so many huge pages
    -errno       of open otherwise
    """
    cdef place_t place
    cdef bint made = False
    cdef int rc = segment_open(s, path, &size, &made)
    if rc < 0:
        return rc
    memset(&place, 0, sizeof(place_t))
    s.node = node
    # A shared mapping grows a hugetlbfs file, and a file that is longer stays so.
    rc = finish_map(s, size, &place)
    if rc < 0 and made:
        unlink(path)
    return rc


cdef void segment_unmap(segment_t *s) noexcept nogil:
    """Give a mapping back; *s is then SEGMENT_NONE, and unmapping it again does nothing."""
    if s.base is not NULL:
        leave_addresses(s.base, s.size, s.placed)
    if s.part and s.fd >= 0:
        fallocate(s.fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, s.offset, s.size)
    if s.fd >= 0:
        close(s.fd)
    memset(s, 0, sizeof(segment_t))
    s.fd = -1


cdef int segment_populate(segment_t *s, size_t offset, size_t size, size_t *had) noexcept nogil:
    """Have every page of a range in memory, so that touching it is no fault.

    *had: bytes of the range, in whole pages, that are in memory, also after an error.
    0
    -EINVAL   the range is not inside
    -ENOMEM   the system gives no more pages
    """
    cdef populated_t done
    cdef size_t at, end
    cdef int rc
    had[0] = 0
    if offset > s.size or size > s.size - offset:
        return -EINVAL
    at = offset // s.page_size * s.page_size
    end = (offset + size + s.page_size - 1) // s.page_size * s.page_size
    rc = populate(s.base + at, end - at, s.page_size, s.fd, s.offset + at, &done)
    had[0] = done.had
    return rc


def hugepage_size(directory: str) -> int:
    """Return the bytes of a page of the hugetlbfs that a directory is in; 0 when it is in none."""
    cdef struct_statfs fs
    if statfs(os.fsencode(directory), &fs) < 0 or fs.f_type != HUGETLBFS:
        return 0
    return fs.f_bsize


def check_node(node: int, what: str) -> None:
    """Raise OSError ENODEV for a NUMA node that does not exist; -1 is any, and 0 always is one."""
    if node > 0 and not os.path.exists(f"/sys/devices/system/node/node{node}") or node < -1:
        ok(-ENODEV, f"{what}: there is no NUMA node {node}")


def array_over(owner, dtype, shape):
    """Return a NumPy array that is a view of a buffer's first bytes and keeps its owner."""
    import numpy
    count = -1 if shape == -1 else int(numpy.prod(shape))
    # Not numpy.ndarray(buffer=owner): that gives its export back at once, and owner could go.
    return numpy.frombuffer(owner, dtype=dtype, count=count).reshape(shape)


cdef class Segment:
    """One mapping, made by Segment.create; given back by release or with the last reference.

    It is a buffer: memoryview, numpy.frombuffer and .array share its memory and keep it.  In a
    forked child the memory is not there.
    """

    def __cinit__(self):
        self.s.fd = -1

    def __dealloc__(self):
        segment_unmap(&self.s)

    @staticmethod
    def create(size: int, node: int = -1, huge: str = "auto") -> Segment:
        """Return a segment of `size` bytes, rounded up to pages, that is all zeroes.

        No page is touched.  node: NUMA node preferred, -1 for any.  huge: "auto" takes huge pages
        when enough are free, "always" or "never".  OSError with a sentence.  Any thread.
        """
        if huge not in ("auto", "always", "never"):
            raise ValueError(f"huge pages {huge!r}: auto, always or never")
        what = f"segment of {size} bytes"
        if not 0 < size <= SIZE_MAX // 2:
            ok(-EINVAL, what)
        check_node(node, what)
        cdef Segment segment = Segment.__new__(Segment)
        cdef size_t pages = (size + HUGE_PAGE - 1) // HUGE_PAGE
        cdef int rc = -ENOMEM
        if huge == "always" or huge == "auto" and pages <= huge_pages_free():
            rc = segment_map(&segment.s, size, node, True)
        if huge == "always" and rc == -ENOMEM:
            ok(rc, f"{what}: {huge_pages_free()} of {pages} huge pages of 2 MiB are free")
        if rc < 0 and huge != "always":
            rc = segment_map(&segment.s, size, node, False)
        ok(rc, what)
        segment.shape = segment.s.size
        return segment

    @staticmethod
    def open(path: str, size: int = 0, node: int = -1) -> Segment:
        """Return a segment over a file in a hugetlbfs directory; it may hold old data.

        The file is made or grown when need be, locked while mapped, and stays.  size: bytes,
        rounded up to pages; 0 for the whole file.  OSError with a sentence.
        """
        what = f"memory file {path}"
        check_node(node, what)
        cdef Segment segment = Segment.__new__(Segment)
        cdef int rc = segment_map_file(&segment.s, os.fsencode(path), size, node)
        if rc == -EOPNOTSUPP:
            ok(rc, f"{what} is not in a hugetlbfs directory")
        ok(rc, what)
        segment.shape = segment.s.size
        return segment

    @property
    def address(self) -> int:
        """Where it begins; 0 once released."""
        return <uintptr_t>self.s.base

    @property
    def length(self) -> int:
        """Bytes, in whole pages."""
        return self.s.size

    @property
    def page_size(self) -> int:
        """Bytes of a page of its file."""
        return self.s.page_size

    @property
    def fd(self) -> int:
        """The descriptor behind it, the segment's own; -1 once released."""
        return self.s.fd

    @property
    def node(self) -> int:
        """The NUMA node preferred, or -1."""
        return self.s.node

    @property
    def kind(self) -> str:
        """"hugetlb", "memfd" or "file"; "released" afterwards."""
        return KINDS[self.s.kind]

    def __len__(self) -> int:
        return self.s.size

    def __getbuffer__(self, Py_buffer *view, int flags):
        self.require()
        PyBuffer_FillInfo(view, self, self.s.base, self.shape, 0, flags)
        self.exports += 1

    def __releasebuffer__(self, Py_buffer *view):
        self.exports -= 1

    cdef int require(self) except -1:
        if self.s.base is NULL:
            raise ValueError("the segment has been released")
        return 0

    def array(self, dtype="uint8", shape=-1):
        """Return a NumPy array over the first bytes, or with shape -1 over all; it is a view."""
        return array_over(self, dtype, shape)

    def populate(self) -> None:
        """Have every page in memory; OSError says how many there were.  Runs without the GIL."""
        self.require()
        cdef size_t had = 0
        cdef int rc
        self.exports += 1                                       # no release meanwhile
        try:
            with nogil:
                rc = segment_populate(&self.s, 0, self.s.size, &had)
        finally:
            self.exports -= 1
        ok(rc, f"segment of {self.s.size // MIB} MiB: {had // self.s.page_size} of "
               f"{self.s.size // self.s.page_size} pages of {self.s.page_size // 1024} KiB "
               "could be had")

    def release(self) -> None:
        """Give the memory back; BufferError while a view into it lives.  Again: nothing."""
        if self.exports:
            raise BufferError(f"the segment is in use: {self.exports} views of it live")
        segment_unmap(&self.s)
        self.shape = 0
