"""What devices behind an IOMMU may reach of our memory: the mappings of a VFIO container.

A mapping can only be undone as a whole, and a container has some ten thousands of them.  So memory
is mapped in pieces that grow with it; what is taken away later seldom cuts one.
"""
from libc.errno cimport ENOMEM, ENXIO, errno
from libc.stdint cimport uint64_t, uintptr_t
from libc.stdlib cimport free, realloc
from libc.string cimport memmove, memset

cdef extern from *:
    """
    #include <linux/vfio.h>
    #include <sys/ioctl.h>
    """
    ctypedef struct vfio_map_t "struct vfio_iommu_type1_dma_map":
        unsigned argsz
        unsigned flags
        unsigned long long vaddr
        unsigned long long iova
        unsigned long long size
    ctypedef struct vfio_unmap_t "struct vfio_iommu_type1_dma_unmap":
        unsigned argsz
        unsigned flags
        unsigned long long iova
        unsigned long long size
    enum:
        VFIO_DMA_MAP_FLAG_READ
        VFIO_DMA_MAP_FLAG_WRITE
    unsigned long VFIO_IOMMU_MAP_DMA
    unsigned long VFIO_IOMMU_UNMAP_DMA
    int ioctl(int fd, unsigned long request, void *argument) nogil

cdef enum:
    PIECE = 2 << 20             # bytes; twice that, and so on, for more than PIECES of them
    PIECES = 1024


cdef int ask_map(int container, uintptr_t at, uint64_t iova, size_t size) noexcept nogil:
    cdef vfio_map_t what
    memset(&what, 0, sizeof(what))
    what.argsz = sizeof(what)
    what.flags = VFIO_DMA_MAP_FLAG_READ | VFIO_DMA_MAP_FLAG_WRITE
    what.vaddr = at
    what.iova = iova
    what.size = size
    return -errno if ioctl(container, VFIO_IOMMU_MAP_DMA, &what) < 0 else 0


cdef int ask_unmap(int container, uint64_t iova, size_t size) noexcept nogil:
    cdef vfio_unmap_t what
    memset(&what, 0, sizeof(what))
    what.argsz = sizeof(what)
    what.iova = iova
    what.size = size
    if ioctl(container, VFIO_IOMMU_UNMAP_DMA, &what) < 0:
        return -errno
    # The kernel says how much there was.
    return 0 if what.size == size else -ENXIO


cdef void dma_open(dma_space_t *s, int container) noexcept nogil:
    """Begin with a container that has no mappings."""
    memset(s, 0, sizeof(dma_space_t))
    s.container = container
    s.map = ask_map
    s.unmap = ask_unmap


cdef int dma_close(dma_space_t *s) noexcept nogil:
    """Take all mappings away; 0, or the -errno of the first that did not go."""
    cdef int first = 0
    cdef int rc
    while s.n:
        s.n -= 1
        rc = s.unmap(s.container, s.maps[s.n].iova, s.maps[s.n].size)
        first = first or rc
    free(s.maps)
    s.maps = NULL
    s.room = 0
    return first


cdef size_t place_of(dma_space_t *s, uintptr_t at) noexcept nogil:
    """Return the index of the first mapping that ends behind an address."""
    cdef size_t low = 0, high = s.n, middle
    while low < high:
        middle = (low + high) // 2
        if s.maps[middle].at + s.maps[middle].size > at:
            high = middle
        else:
            low = middle + 1
    return low


cdef int make_room(dma_space_t *s, size_t more) noexcept nogil:
    """Have space for more entries; 0 or -ENOMEM."""
    cdef dma_t *maps
    cdef size_t room = max(s.n + more, 2 * s.room)
    if s.n + more <= s.room:
        return 0
    maps = <dma_t *>realloc(s.maps, room * sizeof(dma_t))
    if maps is NULL:
        return -ENOMEM
    s.maps = maps
    s.room = room
    return 0


cdef void cut_out(dma_space_t *s, size_t i, size_t n) noexcept nogil:
    """Drop n entries from the list."""
    memmove(&s.maps[i], &s.maps[i + n], (s.n - i - n) * sizeof(dma_t))
    s.n -= n


cdef void undo(dma_space_t *s, size_t i, size_t n) noexcept nogil:
    """Unmap n new mappings."""
    cdef size_t k
    for k in range(i, i + n):
        s.unmap(s.container, s.maps[k].iova, s.maps[k].size)
    cut_out(s, i, n)


cdef int dma_add(dma_space_t *s, uintptr_t at, uint64_t iova, size_t size) noexcept nogil:
    """Let devices reach memory at an address of theirs.

    0
    -EEXIST   something else is mapped at that address
    -ENOMEM   no memory, or more than the process may lock (RLIMIT_MEMLOCK)
    -ENOSPC   the container has no more mappings
    -errno    of the kernel otherwise
    """
    cdef size_t i = place_of(s, at)
    cdef size_t unit = PIECE
    cdef size_t n = 0
    cdef size_t part
    cdef int rc
    while size // unit > PIECES:
        unit *= 2
    rc = make_room(s, size // unit + 2)
    while size and rc == 0:
        part = min(size, unit - at % unit)
        rc = s.map(s.container, at, iova, part)
        if rc == 0:
            memmove(&s.maps[i + n + 1], &s.maps[i + n], (s.n - i - n) * sizeof(dma_t))
            s.maps[i + n] = dma_t(at, iova, part)
            s.n += 1
            n += 1
        at += part
        iova += part
        size -= part
    if rc < 0:
        undo(s, i, n)
    return rc


cdef int keep_part(dma_space_t *s, dma_t *old, uintptr_t low, uintptr_t high) noexcept nogil:
    """Map again what a mapping had of a range; 0 or -errno."""
    cdef dma_t part
    low = max(low, old.at)
    high = min(high, old.at + old.size)
    if low >= high:
        return 0
    part = dma_t(low, old.iova + (low - old.at), high - low)
    return dma_add(s, part.at, part.iova, part.size)


cdef int dma_remove(dma_space_t *s, uintptr_t at, size_t size) noexcept nogil:
    """Take memory away from devices; what of it they cannot reach does not matter.

    The rest of a piece that is cut is out of their reach for a moment.  0, or -errno: what devices
    cannot reach any more is not in the list either.
    """
    cdef size_t i = place_of(s, at)
    cdef uintptr_t end = at + size
    cdef dma_t old
    cdef int rc = make_room(s, 4)
    while rc == 0 and i < s.n and s.maps[i].at < end:
        old = s.maps[i]
        rc = s.unmap(s.container, old.iova, old.size)
        if rc == 0:
            cut_out(s, i, 1)
            rc = keep_part(s, &old, 0, at)
            i = place_of(s, at)
        if rc == 0:
            rc = keep_part(s, &old, end, end + old.size)
    return rc
