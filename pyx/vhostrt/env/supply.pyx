"""Where new segments of the heap come from: sizes of pages, directories, names of files."""
from libc.errno cimport EAGAIN, EEXIST, ENAMETOOLONG, ENODEV, ENOMEM
from libc.stdint cimport UINT64_MAX, uint32_t, uint64_t
from libc.stdio cimport snprintf
from libc.stdlib cimport strtoull
from libc.string cimport memset, strstr
from posix.fcntl cimport O_CLOEXEC, O_RDONLY, open
from posix.unistd cimport close, read
from vhostrt.env.heap cimport REGION_FILE, region_t, want_t
from vhostrt.env.region cimport region_next
from vhostrt.env.segment cimport (PAGE, SEGMENT_HUGE_FILE, SEGMENT_HUGETLB, SEGMENT_MEMFD,
                                  SEGMENT_SHM, pages_available, place_t, segment_make, segment_t)
from vhostrt.env.shared cimport env_config_t, range_find

cdef enum:
    GROWTH = 2 << 20            # segments of ordinary pages are multiples of it
    GROWTH_MAX = 64 << 20       # what an untouched segment of ordinary pages may be ahead
    HEADROOM = 128              # a header, and the smallest space that alignment leaves in front
    SPARED = 8                  # the part of a node's free memory that is left to it
    NODE_SPARED = 32 << 20      # and below it, all
    FILES_MAX = 1 << 20         # names tried before giving up


cdef int supply_file(supply_t *supply, const pages_of_t *pages, char *file) noexcept nogil:
    """Write the name of the next new file, of REGION_FILE bytes; "" where there is to be none.

    0, or -ENAMETOOLONG.
    """
    cdef int n
    file[0] = 0
    if pages.directory[0] == 0:
        return 0
    n = snprintf(file, REGION_FILE, b"%s/%smap_%u", pages.directory, supply.prefix,
                 supply.next_file)
    supply.next_file += 1
    return -ENAMETOOLONG if n >= REGION_FILE else 0


cdef region_t *last_of_file(env_config_t *c, const place_t *place, int node) noexcept nogil:
    """Return the region that ends furthest in the one file of a page size and node, or NULL."""
    cdef region_t *region = region_next(&c.heap, NULL)
    cdef region_t *last = NULL
    cdef bint named = place.path is not NULL
    cdef uint32_t kind = SEGMENT_SHM if named else SEGMENT_MEMFD
    if place.page_size > PAGE:
        kind = SEGMENT_HUGE_FILE if named else SEGMENT_HUGETLB
    while region is not NULL:
        if (region.segment.kind == kind and region.segment.page_size == place.page_size
                and region.segment.node == node
                and (last is NULL or region.segment.offset > last.segment.offset)):
            last = region
        region = region_next(&c.heap, region)
    return last


cdef int new_segment(supply_t *supply, env_config_t *c, pages_of_t *pages, size_t size,
                     place_t *place, int node, segment_t *segment, char *file) noexcept nogil:
    """Make the file and map it, or take more of the one there is; 0 or -errno."""
    cdef region_t *last = last_of_file(c, place, node) if supply.single else NULL
    cdef int tries = 0
    cdef int rc = -EEXIST
    if last is not NULL:
        place.fd = last.segment.fd
        place.offset = last.segment.offset + last.segment.size
        snprintf(file, REGION_FILE, b"%s", last.file)
        return segment_make(segment, size, place)
    # Others may have files of this name, or take a new one for a dead one's.
    while (rc == -EEXIST or rc == -EAGAIN) and tries < FILES_MAX:
        rc = supply_file(supply, pages, file)
        if rc == 0:
            rc = segment_make(segment, size, place)
        tries += 1
    return rc


cdef int supply_segment(supply_t *supply, env_config_t *c, pages_of_t *pages, size_t size,
                        int node, char *at, segment_t *segment, char *file) noexcept nogil:
    """Map a new segment of such pages; nothing of it is touched.

    node: of the machine, and for huge pages no other.  at: where in the record's range; NULL: the
    lowest place that is free, or anywhere without a range.  *file: the name of its file, or "".
    Errors: those of segment_make.
    """
    cdef place_t place
    cdef int rc
    memset(&place, 0, sizeof(place_t))
    size = (size + pages.size - 1) // pages.size * pages.size
    place.page_size = pages.size
    place.path = file if pages.directory[0] else NULL
    place.at = at
    place.unlink = supply.unlink
    place.part = supply.single
    place.fd = -1
    # Where there is but one node, the kernel needs not be told.
    place.node = node if supply.node_count > 1 else -1
    place.bind = pages.size > PAGE or supply.enforce
    if place.at is NULL and c.head.range_size:
        place.at = range_find(c, size, max(pages.size, <size_t>GROWTH))
        if place.at is NULL:
            return -ENOMEM
    rc = new_segment(supply, c, pages, size, &place, node, segment, file)
    if rc == 0:
        segment.node = node
    return rc


cdef uint64_t node_free(int node) noexcept nogil:
    """Return the bytes of ordinary memory that a node can give; UINT64_MAX: that is not known.

    Not all that is free: where the last of it goes, the kernel ends processes.
    """
    cdef char path[64]
    cdef char text[512]
    cdef const char *found
    cdef uint64_t there
    cdef ssize_t n
    cdef int fd
    snprintf(path, sizeof(path), b"/sys/devices/system/node/node%d/meminfo", node)
    fd = open(path, O_RDONLY | O_CLOEXEC)
    if fd < 0:
        return UINT64_MAX
    n = read(fd, text, sizeof(text) - 1)
    close(fd)
    text[max(n, 0)] = 0
    found = strstr(text, b"MemFree:")
    if found is NULL:
        return UINT64_MAX
    there = strtoull(found + 8, NULL, 10) * 1024
    return there - there // SPARED if there > NODE_SPARED else 0


cdef bint supply_has(supply_t *supply, int node) noexcept nogil:
    """True for a NUMA node of the machine."""
    cdef int i
    for i in range(supply.node_count):
        if supply.nodes[i] == node:
            return True
    return False


cdef bint allowed(const pages_of_t *pages, size_t page_sizes) noexcept nogil:
    """True when pages may be taken by who asks for these sizes, or for none."""
    if page_sizes:
        return pages.size & page_sizes != 0
    return pages.unasked


cdef int supply_growth(supply_t *supply, env_config_t *c, const want_t *want, int node,
                       int *option, segment_t *segment, char *file) noexcept nogil:
    """Map a new segment with room for what is wanted, of huge pages while there are any.

    *option: 0 at first; where the next call is to go on when what this one found does not do.
    0
    -ENODEV  no such node
    -ENOMEM  the limit is reached, or nothing else can be tried; and the errors of segment_make
    """
    cdef size_t need = want.size + want.align + want.bound + HEADROOM
    cdef size_t room = c.heap.limit - c.heap.total
    cdef size_t size
    cdef pages_of_t *pages
    cdef int rc = -ENOMEM
    if supply.fixed or need > room:
        return -ENOMEM
    if not supply_has(supply, node):
        return -ENODEV
    while rc < 0 and option[0] < supply.huge_count:
        pages = &supply.huge[option[0]]
        option[0] += 1
        size = max(pages.size, <size_t>GROWTH)
        size = (need + size - 1) // size * size
        if (allowed(pages, want.page_sizes) and size <= room
                and pages_available(pages.size) >= size // pages.size):
            rc = supply_segment(supply, c, pages, size, node, NULL, segment, file)
    if rc == 0 or want.page_sizes or option[0] > supply.huge_count:
        return rc
    option[0] += 1
    size = (need + GROWTH - 1) // GROWTH * GROWTH
    if size > room or supply.enforce and node_free(node) < size:
        return -ENOMEM
    # Pages that are never touched cost nothing here, and fewer segments are quicker.
    size = max(size, min(min(c.heap.total, <size_t>GROWTH_MAX), room) // GROWTH * GROWTH)
    return supply_segment(supply, c, &supply.ordinary, size, node, NULL, segment, file)
