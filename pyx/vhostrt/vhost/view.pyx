"""A client's memory as this process sees it: mapped regions, immutable, reference-counted.

A view with one region more or less is made beside the old one and shares its mappings.

Owner:    a View keeps its Mappings alive; a Mapping is unmapped, on a helper thread, when the last
          View that holds it has gone.
Threads:  Mapping.create on a helper thread (mmap may take long); the rest on the control thread.
          Reactors use the regions_t, which does not change.
Fails:    ValueError names what is wrong with a region; OSError when it cannot be mapped.
"""
import os
import stat
from bisect import bisect_right
from concurrent.futures import ThreadPoolExecutor

from libc.stdint cimport UINT32_MAX, UINT64_MAX, uint8_t, uint32_t, uint64_t, uintptr_t
from libc.stdlib cimport calloc, free
from posix.mman cimport MAP_FAILED, MAP_SHARED, PROT_READ, PROT_WRITE, mmap, munmap
from vhostrt.base.errors cimport ok, os_error
from vhostrt.base.sigbus cimport sigbus_add, sigbus_remove
from vhostrt.virtio.regions cimport region_t, regions_t

cdef extern from *:
    """
    #include <errno.h>
    #include <linux/magic.h>
    #include <stdint.h>
    #include <sys/mman.h>
    #include <sys/vfs.h>
    #include <unistd.h>
    /* What is behind a descriptor: its page size for memory that may be shared, else 0. */
    static long vh_memory_page(int fd)
    {
        struct statfs s;
        if (fstatfs(fd, &s) < 0)
            return -errno;
        if ((uint32_t)s.f_type == HUGETLBFS_MAGIC)
            return s.f_bsize;
        return (uint32_t)s.f_type == TMPFS_MAGIC ? sysconf(_SC_PAGESIZE) : 0;
    }
    static inline void vh_dont_fork(void *p, size_t n) { (void)madvise(p, n, MADV_DONTFORK); }
    """
    long memory_page "vh_memory_page"(int fd) nogil
    void dont_fork "vh_dont_fork"(void *p, size_t n) nogil

MEMORY_KINDS = "a memfd, or a file on tmpfs or hugetlbfs"

cdef object g_helper = None             # one thread, made when first needed


def helper():
    """Return the executor (one thread) on which client memory is mapped and unmapped."""
    global g_helper
    if g_helper is None:
        g_helper = ThreadPoolExecutor(1, thread_name_prefix="vhost-memory")
    return g_helper


def fini() -> None:
    """Wait for what is being unmapped and end the helper thread."""
    global g_helper
    if g_helper is not None:
        g_helper.shutdown()
        g_helper = None


cdef class Poison:
    """Whether memory of a session was found missing.  Shared by its mappings and views."""

    def __cinit__(self):
        self.flag = <uint32_t *>calloc(1, sizeof(uint32_t))
        if self.flag is NULL:
            raise MemoryError

    def __dealloc__(self):
        free(self.flag)

    def __bool__(self) -> bool:
        return self.flag[0] != 0


cdef class Allowance:
    """How many mappings some clients may have together, and how many bytes of our addresses."""
    cdef readonly uint64_t most
    cdef readonly uint64_t used
    cdef readonly uint32_t regions_most
    cdef readonly uint32_t regions

    def __cinit__(self, uint64_t most=UINT64_MAX, uint32_t regions_most=UINT32_MAX):
        self.most = most
        self.regions_most = regions_most

    cdef int take(self, uint64_t length) except -1:
        """Count one mapping more; ValueError when there would be too much."""
        if length > self.most - self.used:
            raise ValueError(f"{length} bytes more than the {self.used} that are mapped: there "
                             f"may be {self.most}")
        if self.regions == self.regions_most:
            raise ValueError(f"{self.regions} regions are mapped: there may be no more")
        self.used += length
        self.regions += 1
        return 0

    cdef void give(self, uint64_t length) noexcept:
        """Count one mapping less."""
        self.used -= length
        self.regions -= 1


def unmap(uintptr_t base, size_t length, int slot, Allowance allowance not None) -> None:
    """Forget and unmap one mapping; runs on the helper thread."""
    with nogil:
        sigbus_remove(slot)
        munmap(<void *>base, length)
    allowance.give(length)


cdef class Mapping:
    """One region of a client, mapped.  guest, user: its address for guest and client."""
    cdef uint8_t *base                  # owned, of whole pages
    cdef size_t length
    cdef int slot                       # in the SIGBUS table; -1: not mapped
    cdef readonly uint64_t guest
    cdef readonly uint64_t user
    cdef readonly uint64_t size
    cdef readonly uint64_t offset       # of the region in its file
    cdef uint64_t device, inode         # of the file, which cannot be another while it is mapped
    cdef uint8_t *host                  # where the region begins
    cdef readonly Poison poison         # kept alive: the handler sets its flag
    cdef Allowance allowance            # that it counts against until it is unmapped

    def __cinit__(self):
        self.slot = -1

    def __dealloc__(self):
        if self.slot < 0:
            return
        if g_helper is not None:
            g_helper.submit(unmap, <uintptr_t>self.base, self.length, self.slot, self.allowance)
        else:
            unmap(<uintptr_t>self.base, self.length, self.slot, self.allowance)

    @staticmethod
    def create(int fd, uint64_t guest, uint64_t size, uint64_t user, uint64_t offset,
               Poison poison not None, Allowance allowance not None):
        """Map `size` bytes at `offset` of fd, which stays the caller's.

        ValueError: the numbers, or what fd is, are impossible, or the allowance is used up.
        OSError: mmap refused.
        """
        cdef Mapping m = Mapping.__new__(Mapping)
        cdef uint64_t page = check_region(fd, guest, size, user, offset, m)
        cdef uint64_t start = offset & ~(page - 1)
        cdef uint64_t length = (offset - start + size + page - 1) & ~(page - 1)
        cdef void *base
        allowance.take(length)
        with nogil:
            base = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_SHARED, fd, start)
        if base == MAP_FAILED:
            error = OSError(*last_error(f"mapping of {size} bytes of client memory"))
            allowance.give(length)
            raise error
        dont_fork(base, length)
        slot = sigbus_add(base, length, page, poison.flag)
        if slot < 0:
            munmap(base, length)
            allowance.give(length)
            ok(slot, "too many regions of client memory")
        m.base, m.length, m.slot = <uint8_t *>base, length, slot
        m.guest, m.user, m.size, m.offset = guest, user, size, offset
        m.poison = poison
        m.allowance = allowance
        m.host = m.base + (offset - start)
        return m

    def shows(self, int fd, uint64_t guest, uint64_t size, uint64_t user, uint64_t offset) -> bool:
        """Whether create() with these numbers would map the same memory once more."""
        if (guest, size, user, offset) != (self.guest, self.size, self.user, self.offset):
            return False
        status = os.fstat(fd)
        return (status.st_dev, status.st_ino) == (self.device, self.inode) \
            and offset + size <= status.st_size


cdef tuple last_error(str what):
    cdef int number = errno
    return number, f"{what}: {os.strerror(number)}"


cdef extern from "<errno.h>":
    int errno


cdef uint64_t check_region(int fd, uint64_t guest, uint64_t size, uint64_t user, uint64_t offset,
                           Mapping m) except 0:
    """Return the page size of fd when the region can be, and note in m what file it is; ValueError
    says why it cannot."""
    cdef long page
    if size == 0:
        raise ValueError(f"the region at guest address {guest:#x} is empty")
    for name, value in (("guest address", guest), ("user address", user), ("offset", offset)):
        if size > UINT64_MAX - <uint64_t>value:
            raise ValueError(f"a region of {size:#x} bytes at {name} {value:#x} passes 2^64")
    page = memory_page(fd)
    if page < 0:
        raise os_error(<int>page, "the descriptor of a memory region")
    if page == 0:
        raise ValueError(f"the descriptor of the region at guest address {guest:#x} is not "
                         f"{MEMORY_KINDS}")
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode) or offset + size > status.st_size:
        raise ValueError(f"the region at guest address {guest:#x} needs {offset + size} bytes of "
                         f"its file, which has {status.st_size}")
    m.device, m.inode = status.st_dev, status.st_ino
    return page


cdef class View:
    """A table of mapped regions.

    mappings: list of Mapping of one Poison, at least one.  ValueError when two overlap in guest or
    in user addresses.
    """

    def __cinit__(self, mappings):
        if mappings is None:
            return                      # filled by plus and minus
        if not mappings:
            raise ValueError("a memory table needs at least one region")
        self.mappings = sorted(mappings, key=guest_of)
        self.by_user = sorted(mappings, key=user_of)
        check_overlap(self.mappings, "guest")
        check_overlap(self.by_user, "user")
        self.poison = self.mappings[0].poison
        self.fill()

    cdef int fill(self) except -1:
        """Make the table that reactors read."""
        cdef Mapping m
        cdef uint32_t i
        self.r = <regions_t *>calloc(1, sizeof(regions_t) + len(self.mappings) * sizeof(region_t))
        if self.r is NULL:
            raise MemoryError
        for i, m in enumerate(self.mappings):
            self.r.table[i] = [m.guest, m.size, m.host]
        self.r.poisoned = self.poison.flag
        self.r.count = len(self.mappings)
        return 0

    def __dealloc__(self):
        free(self.r)

    def __len__(self) -> int:
        return len(self.mappings)

    def plus(self, Mapping mapping not None):
        """Return a view with this region too.  ValueError when it overlaps one that is there.

        The mapping has the poison of this view, or, when this one is empty, any.
        """
        cdef View view = View.__new__(View, None)
        view.mappings = with_one(self.mappings, mapping, guest_of)
        view.by_user = with_one(self.by_user, mapping, user_of)
        view.poison = mapping.poison
        view.fill()
        return view

    def minus(self, Mapping mapping not None):
        """Return a view without this region of ours; the last may go as well."""
        cdef View view = View.__new__(View, None)
        view.mappings = self.mappings[:]
        view.mappings.remove(mapping)
        view.by_user = self.by_user[:]
        view.by_user.remove(mapping)
        view.poison = self.poison
        view.fill()
        return view

    def find(self, uint64_t guest, uint64_t size, uint64_t user):
        """Return the Mapping with just these numbers, or None."""
        cdef Mapping m = below(self.by_user, user)
        if m is not None and (m.guest, m.size, m.user) == (guest, size, user):
            return m
        return None

    cdef void *host_of(self, uint64_t user, uint64_t length) except? NULL:
        """Return where `length` bytes at the client's address `user` lie, or NULL when they are
        not all inside one region."""
        cdef Mapping m = below(self.by_user, user)
        if m is not None and user - m.user < m.size and length <= m.size - (user - m.user):
            return m.host + (user - m.user)
        return NULL

    def is_blank(self, uint64_t user, uint64_t length) -> bool:
        """Return whether `length` bytes at the client's address `user` are all zero; False for what
        is not all inside one region."""
        cdef const char *host = <const char *>self.host_of(user, length)
        cdef uint64_t i
        if host is NULL:
            return False
        for i in range(length):
            if host[i]:
                return False
        return True


def guest_of(Mapping mapping not None) -> int:
    return mapping.guest


def user_of(Mapping mapping not None) -> int:
    return mapping.user


cdef Mapping below(list by_user, uint64_t user):
    """Return the last mapping that begins at or below a user address, or None."""
    i = bisect_right(by_user, user, key=user_of)
    return by_user[i - 1] if i else None


cdef list with_one(list ordered, Mapping mapping, kind):
    """Return a list sorted by that address with one mapping more; ValueError: it overlaps."""
    i = bisect_right(ordered, kind(mapping), key=kind)
    check_overlap([*ordered[max(i - 1, 0):i], mapping, *ordered[i:i + 1]],
                  "guest" if kind is guest_of else "user")
    return [*ordered[:i], mapping, *ordered[i:]]


def check_overlap(list ordered, str kind) -> None:
    """ValueError when two neighbours of a list sorted by that address share a byte."""
    for low, high in zip(ordered, ordered[1:]):
        if getattr(high, kind) - getattr(low, kind) < low.size:
            raise ValueError(f"two regions overlap at {kind} address {getattr(high, kind):#x}")
