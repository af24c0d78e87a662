"""The record of an environment: its heap, zones and lists, which other processes may map.

A private record is memory of this process alone; one that others may attach to is a file.  It is
mapped at one address by all of them, with a range of addresses behind it where every segment of
memory is mapped at one address too.
"""
from libc.errno cimport EEXIST, ENODATA, ENOENT, EPROTO, errno
from libc.stdint cimport SIZE_MAX, uint32_t, uint64_t, uintptr_t
from libc.string cimport memset
from posix.fcntl cimport O_CLOEXEC, O_RDWR, open
from posix.mman cimport (MAP_ANONYMOUS, MAP_FAILED, MAP_FIXED, MAP_NORESERVE, MAP_PRIVATE,
                         MAP_SHARED, PROT_NONE, PROT_READ, PROT_WRITE, mmap, munmap)
from posix.stat cimport fstat, struct_stat
from posix.unistd cimport close, ftruncate, getpid, pread
from vhostrt.base.atomics cimport store_release_u64
from vhostrt.env.heap cimport (HEAP_LISTS, HEAP_NODES, NO_PAGES, PAGES_MAX, REGIONS, REGION_FILE,
                               heap_node_t, region_t)
from vhostrt.env.region cimport region_at, region_next
from vhostrt.env.segment cimport PAGE, SEGMENT_HUGE_FILE, SEGMENT_SHM, segment_t

cdef extern from *:
    """
    #ifndef _GNU_SOURCE
    #define _GNU_SOURCE
    #endif
    #include <errno.h>
    #include <fcntl.h>
    #include <pthread.h>
    #include <sys/file.h>
    #include <sys/mman.h>
    #include <time.h>
    #ifndef MAP_FIXED_NOREPLACE
    #define MAP_FIXED_NOREPLACE 0x100000
    #endif
    static int vh_shared_mutex(pthread_mutex_t *m)
    {
        pthread_mutexattr_t attr;
        int rc = pthread_mutexattr_init(&attr);
        if (rc)
            return -rc;
        pthread_mutexattr_setpshared(&attr, PTHREAD_PROCESS_SHARED);
        pthread_mutexattr_setrobust(&attr, PTHREAD_MUTEX_ROBUST);
        rc = pthread_mutex_init(m, &attr);
        pthread_mutexattr_destroy(&attr);
        return -rc;
    }
    /* Who is woken and is killed before it has the mutex takes the wake-up of the others along: the
       kernel passes it on only while the mutex is free. So nobody sleeps without looking again. */
    static int vh_shared_mutex_take(pthread_mutex_t *m)
    {
        struct timespec until;
        int rc = pthread_mutex_trylock(m);
        while (rc == EBUSY || rc == ETIMEDOUT) {
            clock_gettime(CLOCK_REALTIME, &until);
            until.tv_nsec += 50 * 1000 * 1000;
            if (until.tv_nsec >= 1000 * 1000 * 1000) {
                until.tv_nsec -= 1000 * 1000 * 1000;
                until.tv_sec++;
            }
            rc = pthread_mutex_timedlock(m, &until);
        }
        return rc;
    }
    """
    enum:
        MAP_FIXED_NOREPLACE
        MADV_DONTFORK
        LOCK_SH
        LOCK_NB
        O_NOFOLLOW
    int shared_mutex "vh_shared_mutex"(pthread_mutex_t *m) nogil
    int shared_mutex_take "vh_shared_mutex_take"(pthread_mutex_t *m) nogil
    int pthread_mutex_unlock(pthread_mutex_t *m) nogil
    int pthread_mutex_consistent(pthread_mutex_t *m) nogil
    int madvise(void *at, size_t size, int advice) nogil
    int flock(int fd, int operation) nogil

cdef uint64_t MAGIC = 19820526
cdef uint32_t VERSION = 1
cdef uint64_t BASE = 0x200000000000     # where records are by default; SPDK's --base-virtaddr


cdef uint64_t config_size() noexcept nogil:
    """Return the bytes of a record, in whole pages of any size that a machine has."""
    return (sizeof(env_config_t) + (2 << 20) - 1) & ~<uint64_t>((2 << 20) - 1)


# Its lock.

cdef int config_lock(env_config_t *c, bint change) noexcept nogil:
    """Take the lock of a record.  change: the caller may change the tables.

    0
    -EOWNERDEAD  the primary has died while it changed them: they are not to be trusted
    """
    cdef int rc = shared_mutex_take(&c.mutex)
    if rc == EOWNERDEAD:
        if c.changing:
            c.broken = True
        pthread_mutex_consistent(&c.mutex)
        rc = 0
    if rc:
        return -rc
    if c.broken:
        pthread_mutex_unlock(&c.mutex)
        return -EOWNERDEAD
    if change:
        c.changing = True
    return 0


cdef void config_unlock(env_config_t *c) noexcept nogil:
    """Give the lock back; the tables are as they should be."""
    c.changing = False
    pthread_mutex_unlock(&c.mutex)


# Mapping it.

cdef int take_range(char **at, uint64_t size, bint exactly) noexcept nogil:
    """Reserve addresses, at *at when that is free and not NULL, else elsewhere unless exactly.

    0
    -EEXIST  they are in use
    -errno   of mmap otherwise
    """
    cdef int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE
    cdef int rc = -EEXIST
    cdef char *got
    if at[0] is not NULL:
        got = <char *>mmap(at[0], size, PROT_NONE, flags | MAP_FIXED_NOREPLACE, -1, 0)
        if got == at[0]:
            return 0
        # Kernels before 4.17 take the flag for a hint.
        if got != MAP_FAILED:
            munmap(got, size)
        else:
            rc = -errno
    if exactly:
        return rc
    got = <char *>mmap(NULL, size, PROT_NONE, flags, -1, 0)
    if got == MAP_FAILED:
        return -errno
    at[0] = got
    return 0


cdef env_config_t *map_record(int fd, char *at, uint64_t size) noexcept nogil:
    """Map a record: its file, or memory of our own with fd -1, at a reserved address or anywhere.

    NULL and errno when it cannot be.
    """
    cdef int flags = MAP_SHARED if fd >= 0 else MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE
    cdef void *c = mmap(at, size, PROT_READ | PROT_WRITE,
                        flags | (MAP_FIXED if at is not NULL else 0), fd, 0)
    return NULL if c == MAP_FAILED else <env_config_t *>c


cdef env_config_t *config_create(int fd, char *at, uint64_t range_size, int *rc) noexcept nogil:
    """Make an empty record; return it, or NULL and why.

    fd: its file, new and empty; -1: private.  range_size: addresses to keep behind it; 0: none.
    at: where it has to be, -EEXIST when that is taken; NULL: at BASE, or elsewhere.
    """
    cdef uint64_t size = config_size()
    cdef env_config_t *c
    cdef bint exactly = at is not NULL
    rc[0] = 0
    if fd >= 0 and ftruncate(fd, size) < 0:
        rc[0] = -errno
        return NULL
    if range_size:
        at = at if exactly else <char *><uintptr_t>BASE
        rc[0] = take_range(&at, size + range_size, exactly)
        if rc[0] < 0:
            return NULL
    c = map_record(fd, at, size)
    if c is NULL:
        rc[0] = -errno
        if range_size:
            munmap(at, size + range_size)
        return NULL
    c.head.version = VERSION
    c.head.pid = getpid()
    c.head.size = size
    c.head.at = <char *>c
    c.head.range_size = range_size
    rc[0] = shared_mutex(&c.mutex)
    if rc[0] < 0:
        config_unmap(c)
        return NULL
    return c


cdef void config_ready(env_config_t *c) noexcept nogil:
    """Let others attach: all that they look at is there."""
    store_release_u64(&c.head.magic, MAGIC)


cdef int config_check(int fd, config_head_t *head) noexcept nogil:
    """Read the head of a record, and say whether it can be attached to.

    0
    -ENODATA  not ready: the primary is starting, or ends
    -ENOENT   its files have no names
    -EPROTO   another version of it, or no record at all
    """
    cdef struct_stat st
    memset(head, 0, sizeof(config_head_t))
    if fstat(fd, &st) < 0 or pread(fd, head, sizeof(config_head_t), 0) < 0:
        return -errno
    if head.version == 0 or head.magic == 0 and head.version == VERSION:
        return -ENODATA
    if head.magic != MAGIC or head.version != VERSION or head.size != config_size():
        return -EPROTO
    if (<uint64_t>st.st_size < head.size or <uintptr_t>head.at % PAGE
            or head.range_size > SIZE_MAX // 4):
        return -EPROTO
    return -ENOENT if head.nameless else 0


cdef env_config_t *config_attach(int fd, int *rc) noexcept nogil:
    """Map the record of another process where that has it; return it, or NULL and why.

    -EEXIST   something else is mapped there; and the errors of config_check
    """
    cdef config_head_t head
    cdef env_config_t *c
    rc[0] = config_check(fd, &head)
    if rc[0] == 0:
        rc[0] = take_range(&head.at, head.size + head.range_size, True)
    if rc[0] < 0:
        return NULL
    c = map_record(fd, head.at, head.size)
    if c is NULL:
        rc[0] = -errno
        munmap(head.at, head.size + head.range_size)
    return c


cdef bint zone_sound(env_config_t *c, zone_t *zone) noexcept nogil:
    """True when all of a zone is in one region of the heap."""
    cdef region_t *region = region_at(&c.heap, zone.addr)
    if region is NULL or zone.name[ZONE_NAME - 1]:
        return False
    return zone.len <= region.segment.size - (<uintptr_t>zone.addr
                                              - <uintptr_t>region.segment.base)


cdef bint node_sound(env_config_t *c, heap_node_t *node) noexcept nogil:
    """True when the lists of free space of a node begin in the heap."""
    cdef int i
    for i in range(HEAP_LISTS):
        if node.free[i] is not NULL and region_at(&c.heap, node.free[i]) is NULL:
            return False
    return True


cdef bint list_sound(env_config_t *c, tailq_t *q) noexcept nogil:
    """True when a list ends, and all of it is in the table."""
    cdef uint32_t at = q.first
    cdef uint32_t left = TAILQ_ENTRIES
    while at < TAILQ_ENTRIES and left:
        at = c.entries[at].next
        left -= 1
    return at == TAILQ_END


cdef bint config_sound(env_config_t *c) noexcept nogil:
    """True when what the tables of another process's record count and number is in them.

    Under its lock: nothing that it says leads a look out of the tables, or a zone out of memory.
    """
    cdef uint32_t i
    if (c.heap.region_count > REGIONS or c.heap.slot_end > REGIONS or c.zone_end > ZONES
            or c.entry_end > TAILQ_ENTRIES or c.heap.node_count > HEAP_NODES):
        return False
    for i in range(c.heap.region_count):
        if c.heap.order[i] >= REGIONS:
            return False
    for i in range(c.heap.node_count):
        if not node_sound(c, &c.heap.nodes[i]):
            return False
    for i in range(c.zone_end):
        if c.zones[i].name[0] and not zone_sound(c, &c.zones[i]):
            return False
    for i in range(<uint32_t>TAILQS):
        if c.tailqs[i].name[0] and not list_sound(c, &c.tailqs[i]):
            return False
    return True


cdef void config_unmap(env_config_t *c) noexcept nogil:
    """Give the addresses of a record and of its range back."""
    munmap(c, c.head.size + c.head.range_size)


# Where segments go.

cdef char *range_find(env_config_t *c, size_t size, size_t align) noexcept nogil:
    """Return a free place in the range, the lowest; NULL: there is none, or no range."""
    cdef uintptr_t at = <uintptr_t>c + c.head.size
    cdef uintptr_t end = at + c.head.range_size
    cdef region_t *region = region_next(&c.heap, NULL)
    at = (at + align - 1) & ~(align - 1)
    # The sums stay below 2^63: addresses of the process, and sizes that the heap has limited.
    while region is not NULL and <uintptr_t>region.segment.base < at + size:
        at = max(at, <uintptr_t>region.segment.base + region.segment.size)
        at = (at + align - 1) & ~(align - 1)
        region = region_next(&c.heap, region)
    return <char *>at if at + size <= end else NULL


cdef int config_map_pages(env_config_t *c, char *at, size_t page_size, uint32_t first,
                          uint32_t count, int fd) noexcept nogil:
    """Map count pages of a file at a reserved address, each where the table has it; 0 or -errno."""
    cdef uint32_t *pages = &c.heap.pages[first]
    cdef uint32_t i = 0, n
    while i < count:
        n = 1
        while i + n < count and pages[i + n] == pages[i] + n:
            n += 1
        if mmap(at + i * page_size, n * page_size, PROT_READ | PROT_WRITE,
                MAP_SHARED | MAP_FIXED | MAP_NORESERVE, fd, pages[i] * page_size) == MAP_FAILED:
            return -errno
        i += n
    return 0


cdef int map_region(env_config_t *c, region_t *region, int fd) noexcept nogil:
    """Map a region of a file at its address; 0 or -errno."""
    cdef segment_t *s = &region.segment
    cdef int rc = 0
    if region.first_page != NO_PAGES:
        rc = config_map_pages(c, s.base, s.page_size, region.first_page, s.size // s.page_size, fd)
    elif mmap(s.base, s.size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED | MAP_NORESERVE, fd,
              s.offset) == MAP_FAILED:
        rc = -errno
    if rc == 0:
        madvise(s.base, s.size, MADV_DONTFORK)
    return rc


cdef bint region_sound(env_config_t *c, region_t *region, uint64_t file_size) noexcept nogil:
    """True when a region of another process lies in the range, and all of it in its file."""
    cdef uintptr_t start = <uintptr_t>c + c.head.size
    cdef uintptr_t base = <uintptr_t>region.segment.base
    cdef size_t size = region.segment.size
    cdef size_t page = region.segment.page_size
    cdef size_t i
    if base < start or base - start > c.head.range_size or base % PAGE:
        return False
    if size > c.head.range_size - (base - start) or page < PAGE or size % page:
        return False
    if region.first_page == NO_PAGES:
        return region.segment.offset + size <= file_size
    if region.first_page > PAGES_MAX or size // page > PAGES_MAX - region.first_page:
        return False
    for i in range(size // page):
        if (c.heap.pages[region.first_page + i] + <uint64_t>1) * page > file_size:
            return False
    return True


cdef int config_map_region(env_config_t *c, region_t *region) noexcept nogil:
    """Map a region of the primary in a secondary process, under the lock; 0 or -errno.

    Its file stays locked, shared, as long as it is mapped: nobody clears it away.
    """
    cdef struct_stat st
    cdef int rc
    cdef int fd
    region.file[REGION_FILE - 1] = 0
    fd = open(region.file, O_RDWR | O_CLOEXEC | O_NOFOLLOW)
    if fd < 0:
        return -errno
    if fstat(fd, &st) < 0 or flock(fd, LOCK_SH | LOCK_NB) < 0:
        rc = -errno
    elif not region_sound(c, region, st.st_size):
        rc = -EPROTO
    else:
        rc = map_region(c, region, fd)
    close(fd)
    return rc


def files_of(int fd) -> list:
    """Return the names of the memory files in a record, those that go with their process.

    fd: of a record that nobody owns any more; of one that cannot be read there are none.
    """
    cdef env_config_t *c
    cdef struct_stat st
    cdef region_t *region
    cdef uint32_t i
    cdef uint32_t version = 0
    if fstat(fd, &st) < 0 or <uint64_t>st.st_size < config_size():
        return []
    c = <env_config_t *>mmap(NULL, config_size(), PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0)
    if c == MAP_FAILED:
        return []
    names = []
    version = c.head.version
    for i in range(min(c.heap.slot_end, <uint32_t>REGIONS) if version == VERSION else 0):
        region = &c.heap.regions[i]
        region.file[REGION_FILE - 1] = 0
        if region.segment.kind == SEGMENT_HUGE_FILE or region.segment.kind == SEGMENT_SHM:
            names.append(<bytes>region.file)
    munmap(c, config_size())
    return [name.decode("utf-8", "surrogateescape") for name in dict.fromkeys(names) if name]


def pid_of(fd: int) -> int:
    """Return the process id in a record; 0 when there is none yet."""
    cdef config_head_t head
    memset(&head, 0, sizeof(config_head_t))
    pread(fd, &head, sizeof(config_head_t), 0)
    return head.pid
