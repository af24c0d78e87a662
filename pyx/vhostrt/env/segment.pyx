"""One mapping of memory that the process owns: huge pages where there are any, else a memfd.

Owner:    whoever mapped it, by segment_map or Segment.create.
Threads:  any, one at a time for each segment; the memory itself is anybody's.
Fails:    -errno below, OSError with a sentence above; populating never ends in SIGBUS.
"""
import os

from cpython.buffer cimport PyBuffer_FillInfo
from libc.errno cimport EFAULT, EINTR, EINVAL, ENODEV, ENOENT, ENOMEM, EOPNOTSUPP, errno
from libc.stdint cimport SIZE_MAX, uintptr_t
from libc.stdlib cimport strtoull
from libc.string cimport memset
from posix.fcntl cimport O_CLOEXEC, O_CREAT, O_EXCL, O_RDONLY, O_RDWR, open
from posix.mman cimport (MAP_ANONYMOUS, MAP_FAILED, MAP_FIXED, MAP_NORESERVE, MAP_PRIVATE,
                         MAP_SHARED, PROT_NONE, PROT_READ, PROT_WRITE, mmap, munmap)
from posix.stat cimport fstat, struct_stat
from posix.unistd cimport close, ftruncate, read, unlink
from vhostrt.base.errors cimport ok

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
    #define VH_MFD_2MB (MFD_HUGETLB | 21U << 26)
    #ifndef MADV_POPULATE_WRITE
    #define MADV_POPULATE_WRITE 23
    #endif
    #define VH_HUGETLBFS 0x958458f6
    #define VH_MPOL_PREFERRED 1
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
        MFD_NOEXEC_SEAL
        MFD_2MB "VH_MFD_2MB"
        MADV_DONTFORK
        MADV_HUGEPAGE
        MADV_POPULATE_WRITE
        LOCK_EX
        LOCK_NB
        O_NOFOLLOW
    unsigned long HUGETLBFS "VH_HUGETLBFS"
    int MPOL_PREFERRED "VH_MPOL_PREFERRED"
    int memfd_create(const char *name, unsigned flags) nogil
    int madvise(void *at, size_t size, int advice) nogil
    int fallocate(int fd, int mode, size_t offset, size_t size) nogil
    int flock(int fd, int operation) nogil
    int fstatfs(int fd, struct_statfs *answer) nogil
    long mbind "vh_mbind"(void *at, size_t size, int mode, const unsigned long *nodes,
                          unsigned long bits) nogil

cdef enum:
    PAGE = 4096
    HUGE_PAGE = 2 << 20
    NODES = 1024                # numbers that a node mask has room for
    NODE_WORDS = 16
    WORD_BITS = 64

MIB = 1 << 20
KINDS = {SEGMENT_NONE: "released", SEGMENT_HUGETLB: "hugetlb", SEGMENT_MEMFD: "memfd",
         SEGMENT_FILE: "file"}


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


cdef size_t huge_pages_free() noexcept nogil:
    """Return the huge pages of 2 MiB that are free and promised to nobody."""
    cdef size_t pages = number_in(b"/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages")
    cdef size_t promised = number_in(b"/sys/kernel/mm/hugepages/hugepages-2048kB/resv_hugepages")
    return pages - promised if pages > promised else 0


cdef int memfd(bint huge) noexcept nogil:
    """Return a new memfd or -errno; kernels before 6.3 do not know MFD_NOEXEC_SEAL."""
    cdef unsigned flags = MFD_CLOEXEC | (MFD_2MB if huge else 0)
    cdef int fd = memfd_create(b"vhostrt", flags | MFD_NOEXEC_SEAL)
    if fd < 0 and errno == EINVAL:
        fd = memfd_create(b"vhostrt", flags)
    return -errno if fd < 0 else fd


cdef int map_aligned(segment_t *s) noexcept nogil:
    """Map s.fd shared where whole huge pages fit; 0 or -errno."""
    # Reserved too large and cut: only an aligned mapping can have transparent huge pages.
    cdef size_t align = max(s.page_size, <size_t>HUGE_PAGE)
    cdef size_t room = s.size + align
    cdef char *at
    cdef size_t front
    if room < align:
        return -ENOMEM
    at = <char *>mmap(NULL, room, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
    if at == MAP_FAILED:
        return -errno
    front = (align - <uintptr_t>at % align) % align
    s.base = <char *>mmap(at + front, s.size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED,
                          s.fd, 0)
    if s.base == MAP_FAILED:
        s.base = NULL
        front = errno                                           # before munmap may change it
        munmap(at, room)
        return -<int>front
    if front:
        munmap(at, front)
    if front < align:
        munmap(at + front + s.size, align - front)
    return 0


cdef int prefer_node(segment_t *s) noexcept nogil:
    """Have pages come from s.node first; 0, or -ENODEV when there is no such node."""
    cdef unsigned long mask[NODE_WORDS]
    if s.node < 0:
        return 0
    if s.node >= NODES:
        return -ENODEV
    memset(mask, 0, sizeof(mask))
    mask[s.node // WORD_BITS] = 1UL << (s.node % WORD_BITS)
    # The kernel reads one bit less than it is told of.
    if mbind(s.base, s.size, MPOL_PREFERRED, mask, NODES + 1) == 0:
        return 0
    # A kernel without NUMA, or a container that forbids the call, has no preferences.
    return -ENODEV if errno == EINVAL else 0


cdef int finish_map(segment_t *s, size_t size) noexcept nogil:
    """Size, map and advise the open s.fd; on an error everything is undone."""
    cdef int rc
    s.size = (size + s.page_size - 1) // s.page_size * s.page_size
    if s.size < size:
        rc = -ENOMEM
    elif s.kind != SEGMENT_FILE and ftruncate(s.fd, s.size) < 0:
        rc = -errno
    else:
        rc = map_aligned(s)
    if rc == 0:
        rc = prefer_node(s)
    if rc < 0:
        segment_unmap(s)
        return rc
    madvise(s.base, s.size, MADV_DONTFORK)
    if s.kind == SEGMENT_MEMFD:
        madvise(s.base, s.size, MADV_HUGEPAGE)                  # a wish; refused without THP
    return 0


cdef int segment_map(segment_t *s, size_t size, int node, bint huge) noexcept nogil:
    """Map new zeroed memory of at least size bytes into *s; no page is touched.

    huge: of 2 MiB pages, all of them reserved, else of ordinary ones.  node: the NUMA node
    preferred, -1 for any.  *s need not be initialised.
    0
    -EINVAL   size 0
    -ENODEV   no such node
    -ENOMEM   not so many huge pages, or no room among the addresses
    -errno    of memfd_create or mmap otherwise
    """
    memset(s, 0, sizeof(segment_t))
    s.fd = -1
    if size == 0:
        return -EINVAL
    s.fd = memfd(huge)
    if s.fd < 0:
        return s.fd
    s.node = node
    s.kind = SEGMENT_HUGETLB if huge else SEGMENT_MEMFD
    s.page_size = HUGE_PAGE if huge else PAGE
    return finish_map(s, size)


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
    cdef bint made = False
    cdef int rc
    memset(s, 0, sizeof(segment_t))
    s.node = node
    s.kind = SEGMENT_FILE
    s.fd = open(path, O_RDWR | O_CLOEXEC | O_NOFOLLOW)
    if s.fd < 0 and errno == ENOENT:
        made = True
        s.fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0o600)
    if s.fd < 0:
        return -errno
    rc = check_file(s, &size)
    if rc == 0:
        # A shared mapping grows a hugetlbfs file, and a file that is longer stays so.
        rc = finish_map(s, size)
    else:
        segment_unmap(s)
    if rc < 0 and made:
        unlink(path)
    return rc


cdef void segment_unmap(segment_t *s) noexcept nogil:
    """Give a mapping back; *s is then SEGMENT_NONE, and unmapping it again does nothing."""
    if s.base is not NULL:
        munmap(s.base, s.size)
    if s.fd >= 0:
        close(s.fd)
    memset(s, 0, sizeof(segment_t))
    s.fd = -1


cdef int populate_step(segment_t *s, size_t offset, size_t size) noexcept nogil:
    """Have the pages of one step in memory; 0 or -errno."""
    cdef int rc = madvise(s.base + offset, size, MADV_POPULATE_WRITE)
    while rc < 0 and errno == EINTR:
        rc = madvise(s.base + offset, size, MADV_POPULATE_WRITE)
    # Kernels before 5.14 do not know the advice; there the file is given its pages instead.
    if rc < 0 and errno == EINVAL:
        rc = fallocate(s.fd, 0, offset, size)
    if rc == 0:
        return 0
    # EFAULT is the SIGBUS that touching the page would have been.
    return -ENOMEM if errno == EFAULT else -errno


cdef int segment_populate(segment_t *s, size_t offset, size_t size, size_t *had) noexcept nogil:
    """Have every page of a range in memory, so that touching it is no fault.

    *had: bytes of the range, in whole pages, that are in memory, also after an error.
    0
    -EINVAL   the range is not inside
    -ENOMEM   the system gives no more pages
    """
    cdef size_t at, end, step
    cdef int rc = 0
    had[0] = 0
    if offset > s.size or size > s.size - offset:
        return -EINVAL
    at = offset // s.page_size * s.page_size
    end = (offset + size + s.page_size - 1) // s.page_size * s.page_size
    step = max(s.page_size, <size_t>HUGE_PAGE)
    while at < end:
        step = min(step, end - at)
        rc = populate_step(s, at, step)
        if rc < 0 and step == s.page_size:
            break
        if rc < 0:
            step = s.page_size                                  # to tell how many there were
            continue
        at += step
        had[0] += step
    return rc


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
