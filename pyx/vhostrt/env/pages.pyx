"""The pages of a file of huge pages: where they are physically, and how they are mapped in order.

A new mapping has its pages in the order of the file, which says nothing of where they are in
memory.  Here all are made present, their physical addresses and NUMA nodes are learnt, and they
are mapped again in the order of those, so that what is physically consecutive is so in memory.

Owner:    who makes Pages; what map_into has mapped belongs to the heap.
Threads:  one at a time.
Fails:    OSError with a sentence; populating never ends in SIGBUS.
Source:   rte_eal_hugepage_init of DPDK 17.11, which has a file for each page where this has one.
"""
import os

from libc.errno cimport (EAGAIN, EEXIST, EINVAL, ELOOP, ENAMETOOLONG, ENOMEM, ENOSPC, EOPNOTSUPP,
                         errno)
from libc.stdint cimport UINT64_MAX, uint32_t, uint64_t, uintptr_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset, strcpy
from posix.fcntl cimport O_CLOEXEC, O_RDONLY, open
from posix.mman cimport munmap
from posix.unistd cimport close, pread, unlink
from vhostrt.base.errors cimport ok
from vhostrt.env.heap cimport PAGES_MAX, REGION_FILE, heap_add, region_t
from vhostrt.env.populate cimport populate, populated_t
from vhostrt.env.segment cimport (PAGE, SEGMENT_HUGE_FILE, leave_addresses, pages_available,
                                  place_t, reserve_addresses, segment_make, segment_map_file,
                                  segment_t, segment_unmap)
from vhostrt.env.shared cimport config_map_pages, env_config_t, range_find
from vhostrt.env.supply cimport pages_of_t, supply_file, supply_t

from vhostrt.env.hugepages import size_text

cdef extern from *:
    """
    #ifndef _GNU_SOURCE
    #define _GNU_SOURCE
    #endif
    #include <fcntl.h>
    #include <stdlib.h>
    #include <sys/file.h>
    #include <sys/mman.h>
    #include <sys/syscall.h>
    #include <unistd.h>
    static long vh_move_pages(unsigned long count, void **pages, int *status)
    {
        return syscall(SYS_move_pages, 0, count, pages, NULL, status, 0);
    }
    """
    enum:
        LOCK_SH
        MADV_DONTFORK
        FALLOC_FL_KEEP_SIZE
        FALLOC_FL_PUNCH_HOLE
    int flock(int fd, int operation) nogil
    int fallocate(int fd, int mode, uint64_t offset, size_t size) nogil
    int madvise(void *at, size_t size, int advice) nogil
    int mincore(void *at, size_t size, unsigned char *present) nogil
    long move_pages "vh_move_pages"(unsigned long count, void **pages, int *status) nogil
    void qsort(void *array, size_t count, size_t size,
               int (*compare)(const void *, const void *) noexcept nogil) nogil

cdef enum:
    PFN_BITS = 55
    HUGE_PAGE = 2 << 20

MIB = 1 << 20


cdef int by_place(const void *a, const void *b) noexcept nogil:
    """Order pages by node, and by address on each."""
    cdef const page_t *first = <const page_t *>a
    cdef const page_t *second = <const page_t *>b
    if first.node != second.node:
        return (first.node > second.node) - (first.node < second.node)
    return (first.address > second.address) - (first.address < second.address)


cdef uint64_t physical_address(int pagemap, const void *at) noexcept nogil:
    """Return the physical address of a page that is present; UINT64_MAX where it is not told."""
    cdef uint64_t entry = 0
    cdef ssize_t n = pread(pagemap, &entry, sizeof(entry), <uintptr_t>at // PAGE * sizeof(entry))
    entry &= (<uint64_t>1 << PFN_BITS) - 1
    # Without CAP_SYS_ADMIN the kernel says 0.
    return entry * PAGE if n == sizeof(entry) and entry else UINT64_MAX


cdef bint addresses(page_t *pages, uint32_t count, char *base, size_t page_size) noexcept nogil:
    """Learn the physical addresses of present pages; False: the kernel does not tell them."""
    cdef uint32_t i = 0
    cdef int pagemap = open(b"/proc/self/pagemap", O_RDONLY | O_CLOEXEC)
    if pagemap < 0:
        return False
    while i < count:
        pages[i].address = physical_address(pagemap, base + pages[i].index * page_size)
        if pages[i].address == UINT64_MAX:
            break
        i += 1
    close(pagemap)
    return i == count


def physical_addresses() -> bool:
    """True when the kernel tells this process where its memory is physically."""
    cdef page_t page
    cdef char *at = <char *>calloc(1, PAGE)
    cdef bint told
    page.index = 0
    if at is NULL:
        return False
    at[0] = 1
    told = addresses(&page, 1, at, PAGE)
    free(at)
    return told


cdef int nodes_of(page_t *pages, uint32_t count, char *base, size_t page_size) noexcept nogil:
    """Learn the NUMA nodes of present pages; 0, or -errno and all are on node 0."""
    cdef void **at = <void **>calloc(count, sizeof(void *))
    cdef int *node = <int *>calloc(count, sizeof(int))
    cdef uint32_t i
    cdef int rc = -ENOMEM
    if at is not NULL and node is not NULL:
        for i in range(count):
            at[i] = base + pages[i].index * page_size
        rc = 0 if move_pages(count, at, node) == 0 else -errno
    for i in range(count):
        pages[i].node = node[i] if rc == 0 and node[i] >= 0 else 0
    free(at)
    free(node)
    return rc


cdef class Pages:
    """All pages of one file, made by new_pages or reserved_pages."""

    def __cinit__(self):
        self.file.fd = -1

    def __dealloc__(self):
        # What the heap has not been given goes, with its file unless that is to stay.
        if self.file.fd >= 0 and self.file.kind == SEGMENT_HUGE_FILE and not self.nameless:
            unlink(self.name)
        segment_unmap(&self.file)
        free(self.list)

    def __len__(self) -> int:
        return self.count

    @property
    def page_size(self) -> int:
        """Bytes of a page."""
        return self.file.page_size

    @property
    def told(self) -> bool:
        """True when the physical addresses are known."""
        return self.physical

    def by_node(self) -> dict:
        """Return NUMA node -> pages."""
        cdef uint32_t i
        found = {}
        for i in range(self.count):
            found[self.list[i].node] = found.get(self.list[i].node, 0) + 1
        return found

    cdef int take(self, uint32_t wanted) except -1:
        """Have the pages present, as many as there are, and list those."""
        cdef populated_t done
        cdef uint32_t i
        cdef unsigned char present
        cdef int rc
        self.list = <page_t *>calloc(max(wanted, <uint32_t>1), sizeof(page_t))
        if self.list is NULL:
            raise MemoryError
        with nogil:
            rc = populate(self.file.base, self.file.size, self.file.page_size, self.file.fd,
                          self.file.offset, &done)
        for i in range(wanted):
            present = 1
            if rc < 0 and mincore(self.file.base + i * self.file.page_size, PAGE, &present) < 0:
                ok(-errno, "pages that are present")
            if present & 1:
                self.list[self.count].index = i
                self.list[self.count].address = i * self.file.page_size
                self.count += 1
        return 0

    cdef int learn(self, bint sort, bint one_node) except -1:
        """Learn where the pages are, and put them in the order they are to be mapped in.

        sort: by physical address, where those are told; else only the nodes are kept apart.
        """
        cdef char *base = self.file.base
        cdef size_t page_size = self.file.page_size
        cdef uint32_t i
        with nogil:
            if not one_node:
                nodes_of(self.list, self.count, base, page_size)
            self.physical = sort and addresses(self.list, self.count, base, page_size)
            if not self.physical:
                for i in range(self.count):
                    self.list[i].address = self.list[i].index * page_size
            qsort(self.list, self.count, sizeof(page_t), by_place)
            # The pages stay in the file.
            munmap(base, self.file.size)
        self.file.base = NULL
        return 0

    def label(self, node: int) -> None:
        """Say which NUMA node all pages count as."""
        cdef uint32_t i
        for i in range(self.count):
            self.list[i].node = node

    def keep(self, wanted: dict) -> None:
        """Keep the first so many pages of each NUMA node, and give the others back."""
        cdef uint32_t i, kept = 0
        left = dict(wanted)
        for i in range(self.count):
            if left.get(self.list[i].node, 0) > 0:
                left[self.list[i].node] -= 1
                self.list[kept] = self.list[i]
                kept += 1
            else:
                fallocate(self.file.fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                          self.list[i].index * self.file.page_size, self.file.page_size)
        self.count = kept

    cdef int map_into(self, env_config_t *c) except -1:
        """Map the pages in their order, and give those of each node to the heap as a region.

        Only an environment that starts may fail here: what has been mapped is the heap's.
        """
        cdef size_t page_size = self.file.page_size
        cdef size_t size = self.count * page_size
        cdef size_t align = max(page_size, <size_t>HUGE_PAGE)
        cdef uint32_t first = c.heap.page_count
        cdef populated_t done
        cdef char *at = NULL
        cdef uint32_t i
        cdef int rc = 0
        what = f"{size // MIB} MiB of huge pages of {size_text(page_size)}"
        if self.count == 0:
            return 0
        if self.count > PAGES_MAX - first:
            ok(-ENOSPC, f"{what}: at most {PAGES_MAX} pages can be kept; take larger ones")
        if c.head.range_size:
            at = range_find(c, size, align)
            rc = -ENOMEM if at is NULL else 0
        else:
            rc = reserve_addresses(&at, size, align)
        ok(rc, f"addresses for {what}")
        for i in range(self.count):
            c.heap.pages[first + i] = self.list[i].index
            c.heap.iovas[first + i] = self.list[i].address if self.physical else UINT64_MAX
        c.heap.page_count += self.count
        with nogil:
            rc = config_map_pages(c, at, page_size, first, self.count, self.file.fd)
            if rc == 0:
                madvise(at, size, MADV_DONTFORK)
                rc = populate(at, size, page_size, -1, 0, &done)
        if rc < 0:
            leave_addresses(at, size, c.head.range_size != 0)
        ok(rc, f"{what}, mapped in order (where they are scattered, vm.max_map_count bounds them)")
        return self.give_nodes(c, at, first)

    cdef int give_nodes(self, env_config_t *c, char *at, uint32_t first) except -1:
        """Give the mapped pages to the heap, those of each node as a region."""
        cdef uint32_t i = 0, n
        cdef int rc = 0
        while i < self.count:
            n = 1
            while i + n < self.count and self.list[i + n].node == self.list[i].node:
                n += 1
            rc = self.give_region(c, at, first, i, n)
            if rc < 0:
                leave_addresses(at + i * self.file.page_size,
                                (self.count - i) * self.file.page_size, c.head.range_size != 0)
                ok(rc, "a memory segment")
            i += n
        return 0

    cdef int give_region(self, env_config_t *c, char *at, uint32_t first, uint32_t i,
                         uint32_t n) noexcept:
        """Give n pages from the i-th on to the heap; 0 or -errno."""
        cdef segment_t segment = self.file
        cdef region_t *region
        cdef int rc = 0
        segment.base = at + i * self.file.page_size
        segment.size = n * self.file.page_size
        segment.node = self.list[i].node
        segment.placed = c.head.range_size != 0
        region = heap_add(&c.heap, &segment, True, &rc)
        if region is NULL:
            return rc
        self.file.fd = -1               # it has gone with the first region
        region.populated = segment.size
        region.first_page = first + i
        if not self.nameless:
            strcpy(region.file, self.name)
        return 0


cdef Pages new_pages(supply_t *supply, const pages_of_t *pages, uint32_t count):
    """Make a file and have up to so many pages present in it; those that are there are listed.

    It is not reserved first: a control group may have fewer than are free.
    """
    cdef place_t place
    cdef char file[REGION_FILE]
    cdef Pages made = Pages.__new__(Pages)
    cdef int rc = -EEXIST
    memset(&place, 0, sizeof(place_t))
    place.page_size = pages.size
    place.fd = -1
    place.node = -1
    place.unreserved = True
    place.unlink = supply.unlink
    place.path = file if pages.directory[0] else NULL
    while rc == -EEXIST or rc == -EAGAIN:
        rc = supply_file(supply, pages, file)
        if rc == 0:
            rc = segment_make(&made.file, count * pages.size, &place)
    path = (<bytes>file).decode("utf-8", "surrogateescape")
    ok(rc, f"{count} huge pages of {size_text(pages.size)} in {path or 'memory'}")
    strcpy(made.name, file)
    made.nameless = supply.unlink
    made.take(count)
    return made


cdef Pages reserved_pages(str path, size_t size, int node, bint shared):
    """Open a file that keeps its pages, made or grown where need be, and have all present.

    size: bytes, 0 for the whole of the file.  node: the NUMA node that new pages prefer; -1: any.
    shared: processes that attach lock it too; another primary process still finds it locked.
    """
    cdef Pages made = Pages.__new__(Pages)
    cdef int rc
    name = os.fsencode(path)
    cdef const char *c_name = name
    what = f"memory file {path if path.isprintable() else ascii(path)}"
    if len(name) >= REGION_FILE:
        ok(-ENAMETOOLONG, what)
    with nogil:
        rc = segment_map_file(&made.file, c_name, size, node)
    if rc == -EOPNOTSUPP:
        ok(rc, f"{what} is not in a hugetlbfs directory")
    if rc == -ELOOP:
        ok(rc, f"{what} is a symbolic link: name the file itself")
    if rc == -EAGAIN:
        ok(rc, f"{what} is another process's")
    if rc == -EINVAL:
        ok(rc, f"{what} is empty, and no size is given")
    if rc == -ENOMEM:
        ok(rc, f"{what} of {size // MIB} MiB: {free_mib(path)} MiB are free")
    ok(rc, what)
    if shared:
        flock(made.file.fd, LOCK_SH)
    strcpy(made.name, c_name)
    made.take(made.file.size // made.file.page_size)
    had = made.count * made.file.page_size
    if had < made.file.size:
        ok(-ENOMEM, f"{what} of {made.file.size // MIB} MiB: {had // MIB} MiB could be had "
                    f"({made.count} of {made.file.size // made.file.page_size} pages)")
    return made


def free_mib(path: str) -> int:
    """Return the MiB of huge pages that files of a file's directory can have."""
    there = os.statvfs(os.path.dirname(path) or ".")
    count = pages_available(there.f_bsize)
    # Without a limit of its own (mount option size) a hugetlbfs has no count of blocks.
    return (min(count, there.f_bavail) if there.f_blocks else count) * there.f_bsize // MIB
