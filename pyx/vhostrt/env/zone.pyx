"""Memory zones: named blocks of the heap, which other parts and other processes find by name."""
from cpython.buffer cimport PyBuffer_FillInfo
from libc.errno cimport (EBUSY, EEXIST, EINVAL, ENAMETOOLONG, ENOENT, ENOMEM, ENOSPC, EPERM,
                         ESRCH)
from libc.stdint cimport SIZE_MAX, UINT64_MAX, uint32_t, uintptr_t
from libc.string cimport memcpy, memset, strncmp, strlen
from vhostrt.base.atomics cimport fetch_add_u32, load_acquire_u32
from vhostrt.base.errors cimport ok
from vhostrt.env.growth cimport growth_give, growth_take
from vhostrt.env.heap cimport (WHOLE_NEEDED, WHOLE_NO, WHOLE_WANTED, heap_free_max, region_t,
                               want_init, want_t)
from vhostrt.env.memory cimport env_lock, env_look, env_looked, env_sentence, env_unlock, env_view
from vhostrt.env.region cimport iova_at, region_at, region_shortage
from vhostrt.env.shared cimport EOWNERDEAD, ZONE_NAME, ZONES, env_config_t, zone_t

from vhostrt.env import memory
from vhostrt.env.hugepages import size_text
from vhostrt.env.segment import array_over

# The flags of reserve.
PAGES_2MB, PAGES_1GB = ZONE_2MB, ZONE_1GB
SIZE_HINT_ONLY, IOVA_CONTIG = ZONE_SIZE_HINT_ONLY, ZONE_IOVA_CONTIG

cdef enum:
    CACHE_LINE = 64
    NODES = 1024                # numbers that a node can have
    ZONE_FLAGS = ZONE_2MB | ZONE_1GB | ZONE_SIZE_HINT_ONLY | ZONE_IOVA_CONTIG
    MIB_2 = 2 << 20
    GIB = 1 << 30

# Views that Python has into each zone, by slot: of this process alone.
cdef uint32_t g_views[ZONES]


cdef zone_t *find(env_config_t *c, const char *name) noexcept nogil:
    """Return the zone of a name, or NULL."""
    cdef uint32_t i
    for i in range(c.zone_end):
        if name[0] and strncmp(c.zones[i].name, name, ZONE_NAME) == 0:
            return &c.zones[i]
    return NULL


cdef int check(env_config_t *c, const char *name, size_t size, int node, uint32_t flags,
               size_t align, size_t bound) noexcept nogil:
    """Return 0, or why there can be no such zone, in the order that DPDK looks."""
    if c.zone_count == ZONES:
        return -ENOSPC
    if strlen(name) >= ZONE_NAME:
        return -ENAMETOOLONG
    if find(c, name) is not NULL:
        return -EEXIST
    if name[0] == 0 or align & (align - 1) or align > SIZE_MAX // 4 or size > SIZE_MAX // 4:
        return -EINVAL
    if bound & (bound - 1) or bound and size > bound or bound > SIZE_MAX // 4:
        return -EINVAL
    if node < -1 or node >= NODES or flags & ~<uint32_t>ZONE_FLAGS:
        return -EINVAL
    return 0


cdef void *take(env_config_t *c, want_t *want, size_t *size, int node, size_t align,
                size_t bound) noexcept nogil:
    """Return a block for a zone, or NULL; *size 0: the largest there is, and then how large."""
    cdef size_t page_sizes = want.page_sizes
    cdef uint32_t whole = want.whole
    if size[0] == 0 and bound:
        size[0] = bound
    if size[0] == 0:
        want_init(want, 1, align)
        want.page_sizes = page_sizes
        want.whole = whole
        size[0] = heap_free_max(&c.heap, node, want)
    if not want_init(want, size[0], align):
        return NULL
    want.page_sizes = page_sizes
    want.whole = whole
    want.bound = bound
    return growth_take(c, want, node)


cdef void *take_pages(env_config_t *c, size_t *size, int node, uint32_t flags, size_t align,
                      size_t bound) noexcept nogil:
    """Return a block for a zone on pages of the sizes that the flags say, or NULL."""
    cdef want_t want
    cdef size_t asked = size[0]
    cdef void *block
    want.whole = WHOLE_NEEDED if flags & ZONE_IOVA_CONTIG else WHOLE_WANTED if size[0] else WHOLE_NO
    want.page_sizes = ((MIB_2 if flags & ZONE_2MB else 0)
                       | (<size_t>GIB if flags & ZONE_1GB else 0))
    block = take(c, &want, size, node, align, bound)
    if block is NULL and want.page_sizes and flags & ZONE_SIZE_HINT_ONLY:
        size[0] = asked
        want.page_sizes = 0
        block = take(c, &want, size, node, align, bound)
    return block


cdef zone_t *new_zone(env_config_t *c, const char *name, void *block, size_t size) noexcept nogil:
    """Write the entry of a zone; there is a free slot."""
    cdef region_t *region = region_at(&c.heap, block)
    cdef zone_t *zone
    cdef uint32_t i = 0
    while i < c.zone_end and c.zones[i].name[0]:
        i += 1
    c.zone_end = max(c.zone_end, i + 1)
    c.zone_count += 1
    c.zone_serial += 1
    zone = &c.zones[i]
    memset(zone, 0, sizeof(zone_t))
    memcpy(zone.name, name, strlen(name))
    zone.addr = block
    zone.len = size
    zone.iova = iova_at(&c.heap, block, size)
    zone.page_size = region.segment.page_size
    zone.node = region.segment.node
    zone.region = <uint32_t>(region - c.heap.regions)
    zone.serial = c.zone_serial
    return zone


cdef zone_t *zone_reserve(const char *name, size_t size, int node, uint32_t flags, size_t align,
                          size_t bound, int *rc) noexcept nogil:
    """Reserve a zone of zeroed memory; return it, or NULL and why.

    size: bytes, rounded up to cache lines; 0: bound, or the largest free space.  node: a NUMA
    node, and then no other; -1: the calling thread's first.  flags: ZONE_*.  align: a power of
    two, at least 64 is taken.  bound: a power of two that the zone crosses no multiple of; 0: any.
    -ENOSPC        there are 2560 zones
    -ENAMETOOLONG  the name has more than 31 characters
    -EEXIST        there is a zone of that name
    -EINVAL        no name; align or bound no power of two; size above bound; node or flags
    -ENOMEM        no such memory is free, on that node, of those pages
    -errno         as env_lock: not initialised, or a secondary process
    """
    cdef env_config_t *c = env_lock(True, rc)
    cdef zone_t *zone = NULL
    cdef void *block
    if c is NULL:
        return NULL
    rc[0] = check(c, name, size, node, flags, align, bound)
    if rc[0] == 0:
        size = (size + CACHE_LINE - 1) & ~<size_t>(CACHE_LINE - 1)
        block = take_pages(c, &size, node, flags, align, bound)
        if block is NULL:
            rc[0] = -ENOMEM
        else:
            zone = new_zone(c, name, block, size)
    env_unlock(c)
    return zone


cdef zone_t *zone_lookup(const char *name) noexcept nogil:
    """Return the zone of a name, of any process's, or NULL."""
    cdef int rc = 0
    cdef env_config_t *c = env_lock(False, &rc)
    cdef zone_t *zone
    if c is NULL:
        return NULL
    zone = find(c, name)
    env_unlock(c)
    return zone


cdef int give(env_config_t *c, zone_t *zone) noexcept nogil:
    """Free a zone, under the lock; 0, -EINVAL or -EBUSY."""
    cdef uintptr_t at = <uintptr_t>zone - <uintptr_t>c.zones
    if zone is NULL or at >= sizeof(c.zones) or at % sizeof(zone_t) or zone.name[0] == 0:
        return -EINVAL
    if load_acquire_u32(&g_views[at // sizeof(zone_t)]):
        return -EBUSY
    growth_give(c, zone.addr)
    memset(zone, 0, sizeof(zone_t))
    c.zone_count -= 1
    return 0


cdef int zone_free(zone_t *zone) noexcept nogil:
    """Give a zone back.

    0
    -EINVAL  NULL, or none that is reserved
    -EBUSY   Python has views into it
    -errno   as env_lock: not initialised, or a secondary process
    """
    cdef int rc = 0
    cdef env_config_t *c = env_lock(True, &rc)
    if c is NULL:
        return rc
    rc = give(c, zone)
    env_unlock(c)
    return rc


cdef int zone_free_name(const char *name) noexcept nogil:
    """Give the zone of a name back; -ENOENT: there is none, and as zone_free."""
    cdef int rc = 0
    cdef zone_t *zone
    cdef env_config_t *c = env_lock(True, &rc)
    if c is NULL:
        return rc
    zone = find(c, name)
    rc = -ENOENT if zone is NULL else give(c, zone)
    env_unlock(c)
    return rc


cdef int zone_walk(zone_fn fn, void *ctx) noexcept nogil:
    """Call fn for each zone, in the order of the table, under the lock, until it returns other
    than 0; return what it returned last, or as env_lock.
    """
    cdef int rc = 0
    cdef uint32_t i
    cdef env_config_t *c = env_lock(False, &rc)
    if c is NULL:
        return rc
    for i in range(c.zone_end):
        if c.zones[i].name[0]:
            rc = fn(ctx, &c.zones[i])
        if rc:
            break
    env_unlock(c)
    return rc


# For Python.

cdef class Zone:
    """A zone, made by reserve, lookup or walk; it stays until it is freed, with or without this.

    It is a buffer: memoryview, numpy.frombuffer and .array share its memory, and while such a
    view lives the zone is not freed by this process.
    """
    cdef zone_t *zone           # in the record; another's once its serial has changed
    cdef zone_t copy            # as it was when it was found
    cdef Py_ssize_t shape
    cdef object text

    @staticmethod
    cdef Zone of(zone_t *zone):
        cdef Zone made = Zone.__new__(Zone)
        made.zone = zone
        made.copy = zone[0]
        made.shape = zone.len
        made.text = (<bytes>zone.name).decode(errors="replace")
        return made

    @property
    def name(self) -> str:
        """Its name."""
        return self.text

    @property
    def address(self) -> int:
        """Where it begins, in every process."""
        return <uintptr_t>self.copy.addr

    @property
    def iova(self) -> int | None:
        """Where a device sees it; None when that is not known."""
        return None if self.copy.iova == UINT64_MAX else self.copy.iova

    @property
    def page_size(self) -> int:
        """Bytes of the pages it is on."""
        return self.copy.page_size

    @property
    def node(self) -> int:
        """The NUMA node it is of."""
        return self.copy.node

    @property
    def segment(self) -> int:
        """The number of the memory segment it lies in."""
        return self.copy.region

    def __len__(self) -> int:
        return self.copy.len

    def __repr__(self) -> str:
        return (f"<zone {self.text}: {self.copy.len} bytes at {<uintptr_t>self.copy.addr:#x}, node "
                f"{self.copy.node}, pages of {size_text(self.copy.page_size)}>")

    def __getbuffer__(self, Py_buffer *view, int flags):
        cdef int rc = 0
        cdef env_config_t *c = env_lock(False, &rc)
        if c is NULL:
            raise ValueError(f"zone {self.text}: {env_sentence(rc)}")
        there = self.zone.serial == self.copy.serial
        if there:
            fetch_add_u32(&g_views[self.zone - c.zones], 1)
            env_view(1)
        env_unlock(c)
        if not there:
            raise ValueError(f"zone {self.text} has been freed")
        PyBuffer_FillInfo(view, self, self.copy.addr, self.shape, 0, flags)

    def __releasebuffer__(self, Py_buffer *view):
        cdef int rc = 0
        cdef env_config_t *c = env_lock(False, &rc)
        if c is not NULL:
            fetch_add_u32(&g_views[self.zone - c.zones], <uint32_t>-1)
            env_view(-1)
            env_unlock(c)

    def array(self, dtype="uint8", shape=-1):
        """Return a NumPy array over the first bytes, or with shape -1 over all; it is a view."""
        return array_over(self, dtype, shape)

    def free(self) -> None:
        """Give the zone back; again: nothing.

        BufferError while a view into it lives, whoever made it, in this process; OSError EPERM in
        a secondary process.
        """
        cdef int rc = 0
        cdef env_config_t *c = env_lock(True, &rc)
        if c is NULL:
            ok(rc, f"zone {self.text}: {env_sentence(rc)}")
        if self.zone.serial == self.copy.serial:
            rc = give(c, self.zone)
        env_unlock(c)
        freed(rc, self.text)


cdef int freed(int rc, str name) except -1:
    """Raise what a zone that could not be freed calls for."""
    if rc == -EBUSY:
        raise BufferError(f"zone {name} is in use: views of it live")
    if rc == -ENOENT:
        ok(rc, f"there is no zone {name}")
    return ok(rc, f"zone {name}: {env_sentence(rc)}")


cdef str refusal(int rc, str name, dict asked):
    """Say why there is no such zone."""
    if rc in (-ESRCH, -EPERM, -EOWNERDEAD):
        return env_sentence(rc)
    if rc == -ENAMETOOLONG:
        return f"its name has more than {ZONE_NAME - 1} characters"
    if rc == -ENOSPC:
        return f"there are {ZONES} zones already"
    if rc == -EEXIST:
        return "there is one of that name"
    said = ", ".join(f"{key} {value}" for key, value in asked.items())
    if rc == -EINVAL:
        return f"{said} make no sense"
    if rc != -ENOMEM:
        return said
    more = ", in one piece for a device" if asked["flags"] & ZONE_IOVA_CONTIG else ""
    return f"{said}: {memory.shortage(asked['node'])}{more}"


def reserve(name: str, size: int, node: int = -1, flags: int = 0, align: int = 64,
            bound: int = 0) -> Zone:
    """Reserve a zone of zeroed memory that is there until it is freed.

    size: bytes, rounded up to 64; 0 for bound, or for the largest free space of the heap.  node:
    a NUMA node, and then no other; -1 for any, the calling thread's first.  flags: ZONE_2MB and
    ZONE_1GB, the pages it may be on, and ZONE_SIZE_HINT_ONLY: or on others.  align: bytes, a
    power of two.  bound: a power of two that the zone crosses no multiple of; 0 for any.
    OSError ENOSPC, ENAMETOOLONG, EEXIST, EINVAL, ENOMEM, EPERM as zone_reserve says.
    """
    cdef int rc = -EINVAL
    cdef zone_t *zone = NULL
    cdef const char *c_name
    cdef size_t c_size = 0, c_align = 0, c_bound = 0
    cdef int c_node = 0
    cdef uint32_t c_flags = 0
    cdef bint sane
    text = name.encode()
    c_name = text
    sane = (0 <= size <= SIZE_MAX and 0 <= align <= SIZE_MAX and 0 <= bound <= SIZE_MAX
            and -1 <= node < NODES and 0 <= flags <= ZONE_FLAGS and "\0" not in name)
    if sane:
        c_size, c_align, c_bound, c_node, c_flags = size, align, bound, node, flags
        with nogil:
            region_shortage()                   # an earlier one is none of this call
            zone = zone_reserve(c_name, c_size, c_node, c_flags, c_align, c_bound, &rc)
    if zone is NULL:
        asked = {"size": size, "node": node, "flags": flags, "align": align, "bound": bound}
        ok(rc, f"zone {name!a}: {refusal(rc, name, asked)}")
    return Zone.of(zone)


def lookup(name: str) -> Zone | None:
    """Return the zone of a name, whichever process has reserved it, or None.

    OSError when the tables cannot be looked at: not initialised, or the primary process has died
    while it changed them.
    """
    cdef zone_t *zone
    cdef int rc = 0
    cdef env_config_t *c = env_look(&rc)
    if c is NULL:
        ok(rc, f"zone {name!a}: {env_sentence(rc)}")
    zone = find(c, name.encode()) if "\0" not in name else NULL
    found = None if zone is NULL else Zone.of(zone)
    env_looked(c)
    return found


def free(name: str) -> None:
    """Give the zone of a name back; OSError ENOENT without one, and as Zone.free."""
    freed(zone_free_name(name.encode()) if "\0" not in name else -ENOENT, name)


def walk() -> list:
    """Return all zones, in the order of the table."""
    cdef uint32_t i
    cdef int rc = 0
    cdef env_config_t *c = env_look(&rc)
    if c is NULL:
        ok(rc, f"zones: {env_sentence(rc)}")
    found = [Zone.of(&c.zones[i]) for i in range(c.zone_end) if c.zones[i].name[0]]
    env_looked(c)
    return found


def dump() -> str:
    """Return all zones as text, one a line."""
    return "".join(f"{zone!r}\n" for zone in walk())
