"""The memory of the environment: a heap over segments that grows when asked.

The heap is in the record of the environment.  The primary process hands memory out; a secondary
one, attached to its record, looks things up there and maps what the primary has added.
"""
from libc.errno cimport EALREADY, EBUSY, EINVAL, ENOMEM, ENOSPC, EPERM, ESRCH
from libc.stdint cimport UINT64_MAX, uint32_t, uint64_t
from libc.string cimport memcpy, memset, strcmp, strcpy
from posix.unistd cimport unlink
from vhostrt.base.atomics cimport fetch_add_u32, load_relaxed_u32
from vhostrt.base.errors cimport ok
from vhostrt.env.heap cimport (REGIONS, REGION_FILE, WHOLE_WANTED, heap_add, heap_close, heap_drop,
                               heap_give, heap_resize, heap_size, heap_take, region_t, want_init,
                               want_t)
from vhostrt.env.region cimport iova_at, region_at, region_next
from vhostrt.env.segment cimport SEGMENT_FILE, segment_t, segment_unmap
from vhostrt.env.shared cimport (EOWNERDEAD, config_lock, config_map_region, config_unlock,
                                 config_unmap, env_config_t)
from vhostrt.env.supply cimport supply_growth, supply_has, supply_t

cdef extern from *:
    """
    #ifndef _GNU_SOURCE
    #define _GNU_SOURCE
    #endif
    #include <pthread.h>
    #include <sys/syscall.h>
    #include <unistd.h>
    static int vh_node(void)
    {
        unsigned cpu, node = 0;
        return syscall(SYS_getcpu, &cpu, &node, NULL) ? 0 : (int)node;
    }
    """
    int node_of_caller "vh_node"() nogil
    int pthread_atfork(void (*prepare)() noexcept nogil, void (*parent)() noexcept nogil,
                       void (*child)() noexcept nogil) nogil

cdef enum:
    WATCHES = 8

cdef struct watch_t:
    segment_fn fn
    void *ctx

# Written by init and fini, of the control thread.
cdef env_config_t *g_config = NULL      # also in a forked child, which only env_owns looks at
cdef bint g_begun = False               # between init and fini; a forked child begins anew
cdef bint g_told_of_forks = False
cdef bint g_primary = False
cdef bint g_shared = False
cdef supply_t g_supply                  # of a primary process
cdef object g_end = None                # called without arguments when all has been given back
# Under the lock, or by the control thread before there is a record.
cdef watch_t g_watches[WATCHES]
cdef int g_watch_count = 0
cdef uint32_t g_mapped[REGIONS]         # of a secondary process: serials of what it has mapped
cdef uint32_t g_changes = 0
cdef uint32_t g_views = 0               # Python's views of zones; any thread


cdef bint env_ready() noexcept nogil:
    """True when memory can be had: between init and fini, in the primary process itself."""
    return g_begun and g_primary


cdef void in_child() noexcept nogil:
    """The memory is not in a forked child; its record is looked at by env_owns alone."""
    global g_begun
    g_begun = False


cdef supply_t *env_supply() noexcept nogil:
    """Return where new segments come from; written while the environment starts."""
    return &g_supply


# Who is told of segments.

cdef void tell_gone(int watches, region_t *region) noexcept nogil:
    """Tell the first so many watches that a segment goes."""
    while watches:
        watches -= 1
        g_watches[watches].fn(g_watches[watches].ctx, region.segment.base, region.segment.size,
                              False)


cdef int tell_come(region_t *region) noexcept nogil:
    """Tell all watches that a segment has come; when one refuses, none has it, and -errno."""
    cdef int i, rc
    for i in range(g_watch_count):
        rc = g_watches[i].fn(g_watches[i].ctx, region.segment.base, region.segment.size, True)
        if rc < 0:
            tell_gone(i, region)
            return rc
    return 0


cdef int env_watch_segments(segment_fn fn, void *ctx) noexcept nogil:
    """Have fn called for every segment there is, now, and for each that comes or goes later.

    It runs under the lock and must not call back into this module.
    0
    -ENOSPC  8 are watching
    -errno   what fn has answered: it has been told that the others go, and is not called again;
             or that the record cannot be had, as env_lock
    """
    global g_watch_count
    cdef env_config_t *c = NULL
    cdef region_t *region = NULL
    cdef region_t *told
    cdef int rc = 0
    if g_begun:
        c = env_lock(False, &rc)
        if c is NULL:
            return rc
    if g_watch_count == WATCHES:
        rc = -ENOSPC
    elif c is not NULL:
        region = region_next(&c.heap, NULL)
    while region is not NULL and rc == 0:
        rc = fn(ctx, region.segment.base, region.segment.size, True)
        if rc < 0:
            told = region_next(&c.heap, NULL)
            while told != region:
                fn(ctx, told.segment.base, told.segment.size, False)
                told = region_next(&c.heap, told)
        region = region_next(&c.heap, region)
    if rc == 0:
        g_watches[g_watch_count].fn = fn
        g_watches[g_watch_count].ctx = ctx
        g_watch_count += 1
    if c is not NULL:
        env_unlock(c)
    return rc


cdef void env_unwatch_segments(segment_fn fn, void *ctx) noexcept nogil:
    """Have fn with this ctx not called any more; it is not told that anything goes."""
    global g_watch_count
    cdef int rc = 0, i
    cdef env_config_t *c = env_lock(False, &rc)
    for i in range(g_watch_count):
        if g_watches[i].fn == fn and g_watches[i].ctx == ctx:
            g_watch_count -= 1
            g_watches[i] = g_watches[g_watch_count]
            break
    if c is not NULL:
        env_unlock(c)


# The lock, and what has to be so under it.

cdef int catch_up(env_config_t *c) noexcept nogil:
    """Map what the primary process has added; 0 or -errno."""
    cdef region_t *region = region_next(&c.heap, NULL)
    cdef int rc = 0
    cdef Py_ssize_t slot
    global g_changes
    if c.heap.changes == g_changes:
        return 0
    while region is not NULL and rc == 0:
        slot = region - c.heap.regions
        if g_mapped[slot] != region.serial:
            rc = config_map_region(c, region)
            if rc == 0:
                rc = tell_come(region)
            if rc == 0:
                g_mapped[slot] = region.serial
        region = region_next(&c.heap, region)
    if rc == 0:
        g_changes = c.heap.changes
    return rc


cdef env_config_t *env_lock(bint change, int *rc) noexcept nogil:
    """Take the lock of the record and return it, or NULL and why.  change: to change its tables.

    -ESRCH       not between init and fini, or in a forked child
    -EPERM       only the primary process changes them
    -EOWNERDEAD  the primary process has died while it changed them
    -errno       a segment that the primary process has added cannot be mapped
    """
    cdef env_config_t *c = g_config
    if not g_begun:
        rc[0] = -ESRCH
        return NULL
    if change and not g_primary:
        rc[0] = -EPERM
        return NULL
    rc[0] = config_lock(c, change)
    if rc[0] < 0:
        return NULL
    if not g_primary:
        rc[0] = catch_up(c)
        if rc[0] < 0:
            config_unlock(c)
            return NULL
    return c


cdef void env_unlock(env_config_t *c) noexcept nogil:
    """Give the lock back."""
    config_unlock(c)


cdef void env_view(int more) noexcept nogil:
    """Count views into memory of the record that Python has: 1 or -1 more."""
    fetch_add_u32(&g_views, <uint32_t>more)


# Growing and shrinking.

cdef void remove_file(env_config_t *c, const char *file) noexcept nogil:
    """Remove the file of a segment that is gone, unless another one is of it."""
    cdef region_t *region = region_next(&c.heap, NULL)
    while region is not NULL and strcmp(region.file, file) != 0:
        region = region_next(&c.heap, region)
    if region is NULL and file[0] and not g_supply.unlink:
        unlink(file)


cdef void shrink(env_config_t *c, region_t *region) noexcept nogil:
    """Give an empty region back to the system; no other process has mapped it."""
    cdef char file[REGION_FILE]
    strcpy(file, region.file)
    heap_drop(&c.heap, region)
    remove_file(c, file)


cdef int grow(env_config_t *c, const want_t *want, int node, int *option,
              region_t **grown) noexcept nogil:
    """Add a segment of a node with room for what is wanted.  *option: as supply_growth.

    1, and *grown: its region, or NULL when it could not be had, or somebody refuses it; else there
    is nothing more to try.
    """
    cdef segment_t segment
    cdef char file[REGION_FILE]
    cdef int rc
    grown[0] = NULL
    if supply_growth(&g_supply, c, want, node, option, &segment, file) < 0:
        return 0
    # What others may map stays where it is.
    grown[0] = heap_add(&c.heap, &segment, g_shared, &rc)
    if grown[0] is NULL:
        segment_unmap(&segment)
        remove_file(c, file)
        return 1
    if not g_supply.unlink:
        strcpy(grown[0].file, file)
    if tell_come(grown[0]) < 0:
        shrink(c, grown[0])
        grown[0] = NULL
    return 1


cdef int next_node(env_config_t *c, int node) noexcept nogil:
    """Return the next higher node that there is memory of, or may be; -1: there is none."""
    cdef int found = -1
    cdef uint32_t i
    cdef int j
    for i in range(c.heap.node_count):
        if c.heap.nodes[i].node > node and (found < 0 or c.heap.nodes[i].node < found):
            found = c.heap.nodes[i].node
    for j in range(g_supply.node_count):
        if g_supply.nodes[j] > node and (found < 0 or g_supply.nodes[j] < found):
            found = g_supply.nodes[j]
    return found


cdef void *take_on(env_config_t *c, const want_t *want, int node) noexcept nogil:
    """Return a block of this node, or NULL."""
    cdef void *block = heap_take(&c.heap, want, node)
    cdef region_t *grown
    cdef int option = 0
    # A control group may give no pages of one kind, while others can be had.
    while block is NULL and grow(c, want, node, &option, &grown):
        block = heap_take(&c.heap, want, node) if grown is not NULL else NULL
        if grown is not NULL and block is NULL:
            tell_gone(g_watch_count, grown)
            shrink(c, grown)
    return block


cdef void *env_take(env_config_t *c, const want_t *want, int node) noexcept nogil:
    """Return a block as wanted, zeroed and in memory, or NULL; under the lock, for a change.

    node: that one and no other; -1: the calling thread's first, then the others in their order.
    """
    cdef int own, other
    cdef void *block
    if node >= 0:
        block = take_on(c, want, node)
        if block is not NULL or not g_supply.anywhere or not supply_has(&g_supply, node):
            return block
    own = g_supply.nodes[0] if g_supply.node_count == 1 else node_of_caller()
    block = take_on(c, want, own)
    other = next_node(c, -1)
    while block is NULL and other >= 0:
        if other != own:
            block = take_on(c, want, other)
        other = next_node(c, other)
    return block


cdef int env_give(env_config_t *c, void *block) noexcept nogil:
    """Give a block back, under the lock, for a change; 0 or -EINVAL as heap_give."""
    cdef region_t *empty = NULL
    cdef int rc = heap_give(&c.heap, block, &empty)
    if empty is not NULL:
        tell_gone(g_watch_count, empty)
        shrink(c, empty)
    return rc


# What other modules use.

cdef void *env_zalloc(size_t size, size_t align, int node) noexcept nogil:
    """Return size zeroed bytes that are in memory, or NULL.

    align: a power of two; at least 64, also for 0.  node: a NUMA node, and then no other; -1 for
    any, the calling thread's first.  NULL: size 0, align no power of two, the limit (-s) is
    reached, the system has no memory, or not env_ready().
    """
    cdef want_t want
    cdef int rc = 0
    cdef env_config_t *c
    cdef void *block
    if not want_init(&want, size, align):
        return NULL
    want.whole = WHOLE_WANTED
    c = env_lock(True, &rc)
    if c is NULL:
        return NULL
    block = env_take(c, &want, node)
    env_unlock(c)
    return block


cdef void *move(env_config_t *c, void *block, const want_t *want) noexcept nogil:
    """Return a new block with the contents of another that goes, or NULL."""
    cdef size_t size = heap_size(&c.heap, block)
    cdef region_t *region = region_at(&c.heap, block)
    cdef void *moved = take_on(c, want, region.segment.node)
    if moved is NULL:
        moved = env_take(c, want, -1)
    if moved is not NULL:
        memcpy(moved, block, min(size, heap_size(&c.heap, moved)))
        env_give(c, block)
    return moved


cdef void *env_realloc(void *block, size_t size, size_t align) noexcept nogil:
    """Return a block of size bytes with the contents of another, whose place it takes, or NULL.

    It stays where it is when it becomes smaller or has room behind it; bytes that are added are
    zeroed.  block: NULL for a new one.  NULL: as env_zalloc, or block is none that is handed out;
    then there is no change.
    """
    cdef want_t want
    cdef int rc = 0
    cdef env_config_t *c
    if block is NULL:
        return env_zalloc(size, align, -1)
    if not want_init(&want, size, align):
        return NULL
    want.whole = WHOLE_WANTED
    c = env_lock(True, &rc)
    if c is NULL:
        return NULL
    rc = heap_resize(&c.heap, block, &want)
    if rc == -ENOMEM:
        block = move(c, block, &want)
    env_unlock(c)
    return NULL if rc == -EINVAL else block


cdef int env_free(void *block) noexcept nogil:
    """Give a block back; NULL is allowed.

    0
    -EINVAL  not a block that is handed out: freed before, or foreign; debug builds stop here
    -EPERM   only the primary process gives back
    -ESRCH   a forked child, where the memory is not, or not initialised
    """
    cdef int rc = 0
    cdef env_config_t *c
    if block is NULL:
        return 0
    c = env_lock(True, &rc)
    if c is NULL:
        return rc
    rc = env_give(c, block)
    env_unlock(c)
    return rc


cdef bint env_owns(const void *at) noexcept nogil:
    """True when an address lies in the heap; also in a forked child, without touching it."""
    cdef bint ours
    cdef int rc
    if g_config is NULL:
        return False
    if not g_begun:
        return region_at(&g_config.heap, at) is not NULL        # nobody else is in our copy
    rc = config_lock(g_config, False)
    ours = region_at(&g_config.heap, at) is not NULL
    if rc == 0:
        config_unlock(g_config)
    return ours


cdef uint64_t env_iova(const void *at) noexcept nogil:
    """Return where a device sees a byte of the heap; UINT64_MAX when that is not known.

    It is known where pages were sorted by physical address, and where devices see memory at the
    addresses of the process (--iova-mode=va).
    """
    cdef uint64_t iova
    cdef int rc = 0
    cdef env_config_t *c = env_lock(False, &rc)
    if c is NULL:
        return UINT64_MAX
    iova = iova_at(&c.heap, at, 1)
    env_unlock(c)
    return iova


# Starting and stopping.

cdef int env_begin(env_config_t *c, bint primary, bint shared, object end) except -1:
    """Make a record the one of this process; its segments are there, watches are told of them.

    end: called without arguments, at last, by fini, with the names of the files to remove.
    """
    global g_config, g_begun, g_primary, g_shared, g_changes, g_end, g_told_of_forks
    cdef region_t *region = region_next(&c.heap, NULL)
    cdef region_t *told
    cdef int rc = 0
    while primary and region is not NULL and rc == 0:
        rc = tell_come(region)
        if rc < 0:
            told = region_next(&c.heap, NULL)
            while told != region:
                tell_gone(g_watch_count, told)
                told = region_next(&c.heap, told)
        region = region_next(&c.heap, region)
    ok(rc, "a memory segment is refused by who watches them")
    g_config = c
    g_primary = primary
    g_shared = shared
    g_end = end
    g_changes = 0
    memset(g_mapped, 0, sizeof(g_mapped))
    if not g_told_of_forks:
        ok(-pthread_atfork(NULL, NULL, in_child), "to be told of forks")
        g_told_of_forks = True
    g_begun = True
    return 0


def init(options: EnvOptions | None = None, lcores_on_node: dict | None = None) -> str:
    """Start the memory; return one sentence about where it comes from, to be said once.

    options: EnvOptions; None: nothing is asked for.  lcores_on_node: NUMA node -> how many lcores
    it has, by which memory is shared out; None: the CPUs that this process may use.  OSError or
    ValueError with a sentence when it cannot be; then there is none.  Control thread.
    """
    from vhostrt.env.modes import start
    from vhostrt.env.options import EnvOptions
    if g_begun:
        ok(-EALREADY, "memory is already initialised")
    return start(options or EnvOptions(), lcores_on_node)


def fini() -> None:
    """Give the memory back, or detach from it.  Nothing is done before init or in a forked child.

    OSError EBUSY while blocks are handed out, or zones of another process are looked into; then
    it stays, and fini may be called again.
    """
    global g_config, g_begun, g_end
    cdef env_config_t *c = g_config
    cdef region_t *region
    if not g_begun:
        return
    if load_relaxed_u32(&g_views):
        ok(-EBUSY, f"memory: {g_views} views of its zones are still in use")
    if g_primary and c.heap.blocks:
        ok(-EBUSY, f"memory: {c.heap.blocks} blocks of {c.heap.used} bytes in all are still in "
                   f"use{names_of_zones(c)}")
    region = region_next(&c.heap, NULL)
    while region is not NULL:
        if g_primary or g_mapped[region - c.heap.regions] == region.serial:
            tell_gone(g_watch_count, region)
        region = region_next(&c.heap, region)
    end, g_end = g_end, None
    files = files_of(c) if g_primary else []
    g_begun = False
    g_config = NULL
    if g_primary:
        c.head.magic = 0
        heap_close(&c.heap)
    config_unmap(c)
    end(files)


def leave() -> None:
    """As fini, for a process that ends: what is in use stays, but no file is left of it."""
    if ready() and g_end is not None:
        if g_primary:
            g_config.head.magic = 0
        g_end(files_of(g_config) if g_primary else [])


cdef list files_of(env_config_t *c):
    """Return the names of the files that go with the process."""
    cdef region_t *region = region_next(&c.heap, NULL)
    names = []
    while region is not NULL:
        if region.file[0] and region.segment.kind != SEGMENT_FILE:
            names.append(region.file.decode("utf-8", "surrogateescape"))
        region = region_next(&c.heap, region)
    return names


cdef str names_of_zones(env_config_t *c):
    """Return the names of the zones there are, for a sentence."""
    cdef uint32_t i
    names = [c.zones[i].name.decode(errors="replace") for i in range(c.zone_end)
             if c.zones[i].name[0]]
    return f"; zones: {', '.join(names)}" if names else ""


cdef str env_sentence(int rc):
    """Say why env_lock has failed."""
    if rc == -EPERM:
        return f"only the primary process {g_config.head.pid} hands memory out"
    if rc == -EOWNERDEAD:
        return f"the primary process {g_config.head.pid} has died while it changed the memory"
    return "memory is not initialised" if rc == -ESRCH else "memory of the primary process"


def ready() -> bool:
    """True between init and fini, in a secondary process too."""
    return g_begun


# What else Python finds here; a program that does without does not load it.

PLACES = {**dict.fromkeys(("Allocation", "malloc", "zalloc", "realloc", "free"), "allocation"),
          **dict.fromkeys(("stats", "segments", "virt2iova", "primary_pid"), "overview")}


def __getattr__(name: str):
    """Return what a module beside this one has under a name."""
    if name not in PLACES:
        raise AttributeError(f"module 'vhostrt.env.memory' has no attribute {name!r}")
    from vhostrt.env import allocation, overview
    found = getattr(allocation if PLACES[name] == "allocation" else overview, name)
    globals()[name] = found
    return found
