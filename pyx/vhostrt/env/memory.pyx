"""The memory of the environment: a heap over segments that grows when asked.

The heap is in the record of the environment.  The primary process hands memory out; a secondary
one, attached to its record, looks things up there and maps what the primary has added.
"""
from libc.errno cimport EALREADY, EBUSY, EINVAL, ENOMEM, EPERM, EPROTO, ESRCH
from libc.stdint cimport UINT64_MAX, uint32_t, uint64_t
from libc.string cimport memcpy, memset
from vhostrt.base.atomics cimport fetch_add_u32, load_relaxed_u32
from vhostrt.base.errors cimport ok
from vhostrt.env.growth cimport (growth_give, growth_share, growth_take, take_on, tell_all_come,
                                 tell_come, tell_gone, watch_add, watch_remove)
from vhostrt.env.heap cimport (REGIONS, WHOLE_WANTED, heap_close, heap_resize, heap_size, region_t,
                               want_init, want_t)
from vhostrt.env.region cimport iova_at, region_at, region_next
from vhostrt.env.segment cimport SEGMENT_FILE
from vhostrt.env.shared cimport (EOWNERDEAD, config_lock, config_map_region, config_sound,
                                 config_unlock, config_unmap, env_config_t)

cdef extern from "<pthread.h>" nogil:
    int pthread_atfork(void (*prepare)() noexcept nogil, void (*parent)() noexcept nogil,
                       void (*child)() noexcept nogil)

cdef extern from "Python.h":
    bint PyGC_Disable()
    bint PyGC_Enable()

# Written by init and fini, of the control thread.
cdef env_config_t *g_config = NULL      # also in a forked child, which only env_owns looks at
cdef bint g_begun = False               # between init and fini; a forked child begins anew
cdef bint g_told_of_forks = False
cdef bint g_primary = False
cdef object g_end = None                # called without arguments when all has been given back
# Under the lock.
cdef uint32_t g_mapped[REGIONS]         # of a secondary process: serials of what it has mapped
cdef uint32_t g_changes = 0
cdef bint g_collects = False            # what env_looked turns on again
cdef uint32_t g_views = 0               # Python's views of zones; any thread


cdef bint env_ready() noexcept nogil:
    """True when memory can be had: between init and fini, in the primary process itself."""
    return g_begun and g_primary


cdef void in_child() noexcept nogil:
    """The memory is not in a forked child; its record is looked at by env_owns alone."""
    global g_begun
    g_begun = False


# Who is told of segments.

cdef int env_watch_segments(segment_fn fn, void *ctx) noexcept nogil:
    """Have fn called for every segment there is, now, and for each that comes or goes later.

    It runs under the lock and must not call back into this module.
    0
    -ENOSPC  8 are watching
    -errno   what fn has answered: it has been told that the others go, and is not called again;
             or that the record cannot be had, as env_lock
    """
    cdef env_config_t *c = NULL
    cdef int rc = 0
    if g_begun:
        c = env_lock(False, &rc)
        if c is NULL:
            return rc
    rc = watch_add(c, fn, ctx)
    if c is not NULL:
        env_unlock(c)
    return rc


cdef void env_unwatch_segments(segment_fn fn, void *ctx) noexcept nogil:
    """Have fn with this ctx not called any more; it is not told that anything goes."""
    cdef int rc = 0
    cdef env_config_t *c = env_lock(False, &rc)
    watch_remove(fn, ctx)
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
    -EPROTO      what another process has in them makes no sense
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
        rc[0] = catch_up(c) if config_sound(c) else -EPROTO
        if rc[0] < 0:
            config_unlock(c)
            return NULL
    return c


cdef void env_unlock(env_config_t *c) noexcept nogil:
    """Give the lock back."""
    config_unlock(c)


cdef env_config_t *env_look(int *rc):
    """As env_lock(False), for who makes Python objects of what is there; NULL and why.

    No garbage is collected until env_looked: memory of the heap may be in it, and its end takes
    the lock. The lock is waited for with the GIL: who has it never waits for that.
    """
    global g_collects
    cdef bint collects = PyGC_Disable()
    cdef env_config_t *c = env_lock(False, rc)
    if c is not NULL:
        g_collects = collects
    elif collects:
        PyGC_Enable()
    return c


cdef void env_looked(env_config_t *c):
    """Give the lock of env_look back."""
    cdef bint collects = g_collects
    env_unlock(c)
    if collects:
        PyGC_Enable()


cdef void env_view(int more) noexcept nogil:
    """Count views into memory of the record that Python has: 1 or -1 more."""
    fetch_add_u32(&g_views, <uint32_t>more)


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
    block = growth_take(c, &want, node)
    env_unlock(c)
    return block


cdef void *move(env_config_t *c, void *block, const want_t *want) noexcept nogil:
    """Return a new block with the contents of another that goes, or NULL."""
    cdef size_t size = heap_size(&c.heap, block)
    cdef region_t *region = region_at(&c.heap, block)
    cdef void *moved = take_on(c, want, region.segment.node)
    if moved is NULL:
        moved = growth_take(c, want, -1)
    if moved is not NULL:
        memcpy(moved, block, min(size, heap_size(&c.heap, moved)))
        growth_give(c, block)
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
    rc = growth_give(c, block)
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
    global g_config, g_begun, g_primary, g_changes, g_end, g_told_of_forks
    ok(tell_all_come(c) if primary else 0, "a memory segment is refused by who watches them")
    growth_share(shared)
    g_config = c
    g_primary = primary
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
    # What another process has damaged is not looked at once more.
    region = region_next(&c.heap, NULL) if g_primary or config_sound(c) else NULL
    while region is not NULL:
        if g_primary or g_mapped[region - c.heap.regions] == region.serial:
            tell_gone(region)
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
    if rc == -EPROTO:
        return f"the record of the primary process {g_config.head.pid} is damaged"
    return "memory is not initialised" if rc == -ESRCH else "memory of the primary process"


def ready() -> bool:
    """True between init and fini, in a secondary process too."""
    return g_begun


# What else Python finds here; a program that does without does not load it.

PLACES = {**dict.fromkeys(("Allocation", "malloc", "zalloc", "realloc", "free"), "allocation"),
          **dict.fromkeys(("stats", "segments", "shortage", "virt2iova", "primary_pid"),
                          "overview")}


def __getattr__(name: str):
    """Return what a module beside this one has under a name."""
    if name not in PLACES:
        raise AttributeError(f"module 'vhostrt.env.memory' has no attribute {name!r}")
    from vhostrt.env import allocation, overview
    found = getattr(allocation if PLACES[name] == "allocation" else overview, name)
    globals()[name] = found
    return found
