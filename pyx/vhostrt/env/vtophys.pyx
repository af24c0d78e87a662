"""The addresses under which devices find our memory.

Nothing is looked up before it is asked for: a start does not pay for memory that no device sees.
"""
import os

from libc.errno cimport EALREADY, EBUSY, EFAULT, EINTR, EINVAL, errno
from libc.stdint cimport UINT64_MAX, uint64_t, uintptr_t
from libc.string cimport memset
from posix.fcntl cimport O_RDONLY, open
from posix.unistd cimport close, pread
from vhostrt.base.errors cimport ok
from vhostrt.env.memmap cimport (map_create, map_free, memmap_register, memmap_registered,
                                 memmap_unregister)
from vhostrt.env.memory cimport env_iova
from vhostrt.env.mmio cimport mmio_physical
from vhostrt.env.pagetable cimport (BIG_PAGE, PAGE, table_check, table_clear, table_next, table_run,
                                    table_set, table_translate)
from vhostrt.env.vfio cimport dma_add, dma_close, dma_open, dma_remove, dma_space_t

from vhostrt.env.roots import SYSTEM

cdef extern from *:
    """
    #include <fcntl.h>
    #include <pthread.h>
    #include <sys/mman.h>
    #ifndef MADV_POPULATE_WRITE
    #define MADV_POPULATE_WRITE 23
    #endif
    static pthread_mutex_t vh_vtophys_mutex = PTHREAD_MUTEX_INITIALIZER;
    """
    ctypedef struct pthread_mutex_t:
        pass
    pthread_mutex_t g_mutex "vh_vtophys_mutex"
    int pthread_mutex_lock(pthread_mutex_t *mutex) nogil
    int pthread_mutex_unlock(pthread_mutex_t *mutex) nogil
    int madvise(void *at, size_t size, int advice) nogil
    enum:
        MADV_POPULATE_WRITE
        O_CLOEXEC

cdef enum:
    ENTRIES = 512               # of the page map, read at once
    ADVICE_STEP = 64 << 20      # bytes of guest memory populated by one call

cdef uint64_t PRESENT = 1ULL << 63
cdef uint64_t FRAME = (1ULL << 55) - 1

# Written by init and fini.
cdef int g_pagemap = -1         # /proc/self/pagemap; what may be seen was settled at its opening
cdef bint g_virtual = False     # mode "va"
cdef str g_why = ""             # there are no physical addresses; "" when there are

# Under g_mutex, which is taken after that of the memory map and before that of a table.
cdef dma_space_t g_space
cdef bint g_space_open = False


# What is known.

cdef int know(uintptr_t at, size_t size, uint64_t address) noexcept nogil:
    """Enter where devices find pages, once they can reach them; under g_mutex.  0 or -errno."""
    cdef int rc = 0
    if g_space_open:
        rc = dma_add(&g_space, at, address, size)
    if rc == 0:
        rc = table_set(&g_vtophys.table, at, size, address)
        if rc < 0 and g_space_open:
            dma_remove(&g_space, at, size)
    return rc


cdef int forget(uintptr_t at, size_t size) noexcept nogil:
    """Take back what is known of pages; under g_mutex.  0 or -errno."""
    cdef int rc = table_clear(&g_vtophys.table, at, size)
    if rc == 0 and g_space_open:
        rc = dma_remove(&g_space, at, size)
    return rc


cdef int on_memory(void *ctx, uintptr_t at, size_t size, bint added) noexcept nogil:
    """Follow what is registered.  Physical addresses are learnt when they are asked for."""
    cdef int rc = 0
    pthread_mutex_lock(&g_mutex)
    if not added:
        rc = forget(at, size)
    elif g_virtual:
        rc = know(at, size, at)
    pthread_mutex_unlock(&g_mutex)
    return rc


# Learning.

cdef int read_frames(uintptr_t at, int n, uint64_t *entries) noexcept nogil:
    """Read the page map's entries of n pages, zeroes where there is none; 0 or -errno."""
    cdef size_t wanted = n * sizeof(uint64_t)
    cdef size_t had = 0
    cdef ssize_t got
    memset(entries, 0, wanted)
    while g_pagemap >= 0 and had < wanted:
        got = pread(g_pagemap, <char *>entries + had, wanted - had,
                    at // PAGE * sizeof(uint64_t) + had)
        if got == 0 or got < 0 and errno != EINTR:
            return -errno if got < 0 else -EFAULT
        had += max(got, 0)
    return 0


cdef int look_up(uintptr_t at, int n, uint64_t *addresses) noexcept nogil:
    """Write where devices find n pages of one 2 MiB, UINT64_MAX for none; 0 or -errno.

    Without g_mutex: the heap has a lock of its own, under which it calls on_memory.
    """
    cdef uint64_t entries[ENTRIES]
    cdef uintptr_t page
    cdef int i
    # What the heap knows it knows of huge pages, so of all of this or of none.
    cdef bint known = env_iova(<void *>at) != UINT64_MAX
    cdef int rc = read_frames(at, n, entries)
    for i in range(n if rc == 0 else 0):
        page = at + <uintptr_t>i * PAGE
        if known:
            addresses[i] = env_iova(<void *>page)
        elif entries[i] & PRESENT and entries[i] & FRAME:
            addresses[i] = (entries[i] & FRAME) * PAGE
        else:
            addresses[i] = mmio_physical(<void *>page)
    return rc


cdef int enter(uintptr_t at, int n, const uint64_t *addresses) noexcept nogil:
    """Enter n pages that are not known yet, in runs; under g_mutex.

    0, -EFAULT: devices find some nowhere, or -errno.
    """
    cdef uint64_t address, run = UINT64_MAX
    cdef uintptr_t page = at, run_at = at
    cdef int missing = 0
    cdef int rc = 0
    cdef int i
    for i in range(n):
        page = at + <uintptr_t>i * PAGE
        address = UINT64_MAX
        if table_translate(&g_vtophys.table, page) == UINT64_MAX:
            address = addresses[i]
            missing |= address == UINT64_MAX
        if run != UINT64_MAX and address != run + (page - run_at):
            rc = know(run_at, page - run_at, run)
            run = UINT64_MAX
            if rc < 0:
                return rc
        if run == UINT64_MAX:
            run = address
            run_at = page
    if run != UINT64_MAX:
        rc = know(run_at, page + PAGE - run_at, run)
    return rc if rc < 0 else -EFAULT if missing else 0


cdef bint all_known(uintptr_t at, size_t size) noexcept nogil:
    """True when devices find every page of a range."""
    cdef size_t had = size
    while size and table_run(&g_vtophys.table, at, &had) != UINT64_MAX:
        at += had
        size -= had
        had = size
    return size == 0


cdef int vtophys_learn(const void *at, size_t size) noexcept nogil:
    """Look up where devices find registered memory, so that vtophys knows it.

    The memory has to be in memory: what the heap hands out is.  In the mode "pa" the kernel may
    move an ordinary page later, to another physical address; huge pages stay where they are.
    0
    -EINVAL  not initialised, or not all of it is registered
    -EFAULT  of some pages it is not known: they are not in memory, or the process may not know
    -errno   VFIO does not let devices reach them
    """
    cdef uint64_t addresses[ENTRIES]
    cdef uintptr_t page = <uintptr_t>at & ~<uintptr_t>(PAGE - 1)
    cdef uintptr_t end = <uintptr_t>at + size
    cdef int missing = 0
    cdef int rc = 0
    cdef int n
    if g_vtophys is NULL or end < <uintptr_t>at or not memmap_registered(page, end - page):
        return -EINVAL
    if all_known(page, end - page):
        return 0
    while page < end and rc == 0:
        # One entry of the table at a time, so that 2 MiB in one piece become one.
        n = <int>((min(end - page, BIG_PAGE - page % BIG_PAGE) + PAGE - 1) // PAGE)
        rc = look_up(page, n, addresses)
        if rc == 0:
            pthread_mutex_lock(&g_mutex)
            rc = enter(page, n, addresses)
            pthread_mutex_unlock(&g_mutex)
        if rc == -EFAULT:
            missing = rc
            rc = 0
        page += <uintptr_t>n * PAGE
    return rc or missing


# Memory that is not the heap's.

cdef int populate(void *at, size_t size) noexcept nogil:
    """Have memory in memory; 0 or -errno.  Kernels before 5.14 cannot: there it has to be so."""
    cdef size_t step
    while size:
        step = min(size, <size_t>ADVICE_STEP)
        if madvise(at, step, MADV_POPULATE_WRITE) < 0:
            if errno == EINTR:
                continue
            return 0 if errno == EINVAL else -errno
        at = <char *>at + step
        size -= step
    return 0


cdef int vtophys_add(void *at, size_t size) noexcept nogil:
    """Register memory for devices: that of a guest, say, and all of it is taken into memory.

    Until vtophys_remove.  In the mode "pa" it should be huge pages: nothing keeps the kernel from
    moving ordinary ones to other physical addresses.  May take long.
    0
    -EINVAL  not whole pages of 4 KiB below 2^48, or not initialised
    -EFAULT  no device can be told where it is
    -errno   the system has no memory for it, or VFIO does not let devices reach it
    """
    cdef int rc = table_check(<uintptr_t>at, size)
    if rc == 0 and g_vtophys is NULL:
        rc = -EINVAL
    # VFIO takes what it maps into memory by itself.
    if rc == 0 and not g_virtual:
        rc = populate(at, size)
    if rc == 0:
        rc = memmap_register(<uintptr_t>at, size)
    if rc < 0:
        return rc
    rc = vtophys_learn(at, size)
    if rc < 0:
        memmap_unregister(<uintptr_t>at, size)
    return rc


cdef int vtophys_remove(void *at, size_t size) noexcept nogil:
    """Undo vtophys_add, while no device uses the memory; 0 or -errno of memmap_unregister."""
    return memmap_unregister(<uintptr_t>at, size)


# Devices behind an IOMMU.

cdef int require() except -1:
    if g_vtophys is NULL:
        ok(-EINVAL, "addresses for devices are not initialised")
    return 0


cdef int open_space(int container) noexcept nogil:
    """Let devices of a container reach all that is known; under g_mutex.  0 or -errno."""
    global g_space_open
    cdef uintptr_t at = 0
    cdef size_t size = 0
    cdef uint64_t address
    cdef int rc = 0
    dma_open(&g_space, container)
    while rc == 0:
        address = table_next(&g_vtophys.table, &at, &size)
        if address == UINT64_MAX:
            break
        rc = dma_add(&g_space, at, address, size)
        at += size
    g_space_open = rc == 0
    if rc < 0:
        dma_close(&g_space)
    return rc


cdef int close_space() noexcept nogil:
    """Take everything away from the devices of the container; 0 or -errno."""
    global g_space_open
    cdef int rc = 0
    pthread_mutex_lock(&g_mutex)
    if g_space_open:
        g_space_open = False
        rc = dma_close(&g_space)
    pthread_mutex_unlock(&g_mutex)
    return rc


def start_dma(container: int) -> None:
    """Let the devices of a VFIO container reach our memory, from now on.

    What is registered and known is mapped, and then what becomes so.  container: a descriptor with
    an IOMMU set, the caller's; it stays open until stop_dma.  OSError: EBUSY, there is one
    already; ENOMEM, the process may not lock so much memory; and what else the kernel says.
    Control thread.
    """
    cdef int fd = container
    cdef int rc
    require()
    if g_space_open:
        ok(-EBUSY, "mappings for devices: there is a container already")
    with nogil:
        pthread_mutex_lock(&g_mutex)
        rc = open_space(fd)
        pthread_mutex_unlock(&g_mutex)
    ok(rc, "mappings for devices: memory that is registered")


def stop_dma() -> None:
    """Take our memory away from the devices of the container.  Again: nothing.  Control thread."""
    cdef int rc
    with nogil:
        rc = close_space()
    ok(rc, "mappings for devices: taking them away")


def mappings() -> list:
    """Return what devices of the container reach: (address, where they find it, bytes)."""
    cdef size_t i
    if not g_space_open:
        return []
    return [(g_space.maps[i].at, g_space.maps[i].iova, g_space.maps[i].size)
            for i in range(g_space.n)]


# The Python face.

ERROR = UINT64_MAX


cdef str why_no_physical(path):
    """Open the page map; return why it tells nothing, or ""."""
    global g_pagemap
    cdef uint64_t entry = 0
    cdef const char *name
    encoded = os.fsencode(path)
    name = encoded
    g_pagemap = open(name, O_RDONLY | O_CLOEXEC)
    if g_pagemap < 0:
        return f"{path} cannot be opened ({os.strerror(errno)})"
    # That of this very variable, which is in memory.
    if read_frames(<uintptr_t>&entry & ~<uintptr_t>(PAGE - 1), 1, &entry) < 0:
        return f"{path} cannot be read"
    if not entry & FRAME:
        return f"{path} shows them only to a process with CAP_SYS_ADMIN"
    return ""


cdef int close_pagemap() except -1:
    global g_pagemap
    if g_pagemap >= 0:
        close(g_pagemap)
    g_pagemap = -1
    return 0


def init(mode: str = "pa", roots=SYSTEM) -> str:
    """Start to answer; return one sentence about it, to be said once.

    mode: "pa", devices take physical addresses, or "va", virtual ones, through the IOMMU that VFIO
    has set up.  roots: where /proc is.  OSError EALREADY; ValueError for another mode.  Without
    physical addresses that is said, and vtophys answers ERROR.  Control thread.
    """
    global g_virtual, g_why
    cdef int rc
    if mode not in ("pa", "va"):
        raise ValueError(f"addresses for devices {mode!r}: pa or va")
    if g_vtophys is not NULL:
        ok(-EALREADY, "addresses for devices are already initialised")
    g_virtual = mode == "va"
    g_why = why_no_physical(roots.in_proc("self/pagemap"))
    with nogil:
        rc = map_create(&g_vtophys, UINT64_MAX, True, on_memory, NULL)
    if rc < 0:
        close_pagemap()
    ok(rc, "addresses for devices")
    if g_virtual:
        return "Addresses for devices: virtual ones, through the IOMMU"
    return f"no physical addresses: {g_why}" if g_why else "Addresses for devices: physical ones"


def fini() -> None:
    """Stop to answer.  Again: nothing.  Control thread, when no device uses our memory any more."""
    global g_vtophys, g_why
    if g_vtophys is NULL:
        return
    stop_dma()
    with nogil:
        map_free(g_vtophys)
    g_vtophys = NULL
    g_why = ""
    close_pagemap()


cdef str reason(int rc):
    """Return what to add to a sentence about memory that devices cannot be told of."""
    if rc == -EFAULT and not g_virtual:
        return f": no physical addresses: {g_why}" if g_why else ": not all of it is in memory"
    return ": not registered, or not whole pages of 4 KiB" if rc == -EINVAL else ""


def mode() -> str | None:
    """Return "pa" or "va"; None unless initialised."""
    return None if g_vtophys is NULL else "va" if g_virtual else "pa"


def why() -> str:
    """Return why there are no physical addresses; "" when there are."""
    return g_why


def learn(address: int, size: int) -> None:
    """Look up where devices find registered memory, which is in memory.

    OSError: EINVAL, it is not registered; EFAULT, that cannot be found out; and what VFIO says.
    Any thread but a reactor's.
    """
    cdef uintptr_t at = address
    cdef size_t length = size
    cdef int rc
    require()
    with nogil:
        rc = vtophys_learn(<void *>at, length)
    ok(rc, f"memory of {size} bytes at {address:#x} for devices{reason(rc)}")


def translate(address: int) -> int:
    """Return where devices find the byte at an address, looked up when need be; else ERROR.

    Any thread but a reactor's.
    """
    cdef uintptr_t at = address
    if vtophys(<void *>at) == UINT64_MAX:
        with nogil:
            vtophys_learn(<void *>at, 1)
    return vtophys(<void *>at)


def run(address: int, size: int) -> tuple:
    """Return what is known of an address (or ERROR), and the bytes, of `size`, in one piece."""
    cdef size_t length = size
    found = vtophys_run(<void *><uintptr_t>address, &length)
    return found, length


def add(address: int, size: int) -> None:
    """Register memory for devices: that of a guest, say; all of it is taken into memory.

    Whole pages of 4 KiB.  In the mode "pa" it should be huge pages: the kernel moves others as it
    likes.  OSError as learn, and ENOMEM when there is not so much.  Any thread but
    a reactor's; it may take long.
    """
    cdef uintptr_t at = address
    cdef size_t length = size
    cdef int rc
    require()
    with nogil:
        rc = vtophys_add(<void *>at, length)
    ok(rc, f"memory of {size} bytes at {address:#x} for devices{reason(rc)}")


def remove(address: int, size: int) -> None:
    """Undo add, while no device uses the memory.  OSError EINVAL when it was not added."""
    cdef uintptr_t at = address
    cdef size_t length = size
    cdef int rc
    with nogil:
        rc = vtophys_remove(<void *>at, length)
    ok(rc, f"memory of {size} bytes at {address:#x} for devices{reason(rc)}")
