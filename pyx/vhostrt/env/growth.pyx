"""The heap of a record as it grows and shrinks, and those who are told of its segments.

Owner:    the primary process grows and shrinks it; each process has watches of its own.
Threads:  any, under the lock of the record.
Fails:    NULL or -errno.
"""
from libc.errno cimport ENOSPC
from libc.stdint cimport uint32_t
from libc.string cimport strcmp, strcpy
from posix.unistd cimport unlink
from vhostrt.env.heap cimport (REGION_FILE, heap_add, heap_drop, heap_give, heap_take, region_t,
                               want_t)
from vhostrt.env.region cimport region_next
from vhostrt.env.segment cimport segment_t, segment_unmap
from vhostrt.env.shared cimport env_config_t
from vhostrt.env.supply cimport supply_growth, supply_has, supply_t

cdef extern from *:
    """
    #ifndef _GNU_SOURCE
    #define _GNU_SOURCE
    #endif
    #include <sys/syscall.h>
    #include <unistd.h>
    static int vh_node(void)
    {
        unsigned cpu, node = 0;
        return syscall(SYS_getcpu, &cpu, &node, NULL) ? 0 : (int)node;
    }
    """
    int node_of_caller "vh_node"() nogil

cdef enum:
    WATCHES = 8

cdef struct watch_t:
    segment_fn fn
    void *ctx

cdef supply_t g_supply                  # written while a primary process starts
cdef bint g_shared = False              # written by growth_share, then
cdef watch_t g_watches[WATCHES]
cdef int g_watch_count = 0


cdef supply_t *growth_supply() noexcept nogil:
    """Return where new segments come from; written while the environment starts."""
    return &g_supply


cdef void growth_share(bint shared) noexcept nogil:
    """Say whether other processes map segments: then those stay where they are."""
    global g_shared
    g_shared = shared


# Who is told of segments.

cdef void tell_first(int watches, region_t *region) noexcept nogil:
    """Tell the first so many watches that a segment goes."""
    while watches:
        watches -= 1
        g_watches[watches].fn(g_watches[watches].ctx, region.segment.base, region.segment.size,
                              False)


cdef void tell_gone(region_t *region) noexcept nogil:
    """Tell all watches that a segment goes."""
    tell_first(g_watch_count, region)


cdef int tell_come(region_t *region) noexcept nogil:
    """Tell all watches that a segment has come; when one refuses, none has it, and -errno."""
    cdef int i, rc
    for i in range(g_watch_count):
        rc = g_watches[i].fn(g_watches[i].ctx, region.segment.base, region.segment.size, True)
        if rc < 0:
            tell_first(i, region)
            return rc
    return 0


cdef int tell_all_come(env_config_t *c) noexcept nogil:
    """Tell all watches of all segments; when one refuses any, nobody has any, and -errno."""
    cdef region_t *region = region_next(&c.heap, NULL)
    cdef region_t *told
    cdef int rc = 0
    while region is not NULL and rc == 0:
        rc = tell_come(region)
        if rc < 0:
            told = region_next(&c.heap, NULL)
            while told != region:
                tell_gone(told)
                told = region_next(&c.heap, told)
        region = region_next(&c.heap, region)
    return rc


cdef int watch_add(env_config_t *c, segment_fn fn, void *ctx) noexcept nogil:
    """Add a watch, told of the segments that a record has; NULL: there is none yet.

    0, -ENOSPC, or -errno of fn, which then has been told that the rest goes.
    """
    global g_watch_count
    cdef region_t *region = NULL if c is NULL else region_next(&c.heap, NULL)
    cdef region_t *told
    cdef int rc = -ENOSPC if g_watch_count == WATCHES else 0
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
    return rc


cdef void watch_remove(segment_fn fn, void *ctx) noexcept nogil:
    """Forget a watch; it is not told that anything goes."""
    global g_watch_count
    cdef int i
    for i in range(g_watch_count):
        if g_watches[i].fn == fn and g_watches[i].ctx == ctx:
            g_watch_count -= 1
            g_watches[i] = g_watches[g_watch_count]
            break


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
            tell_gone(grown)
            shrink(c, grown)
    return block


cdef void *growth_take(env_config_t *c, const want_t *want, int node) noexcept nogil:
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


cdef int growth_give(env_config_t *c, void *block) noexcept nogil:
    """Give a block back, under the lock, for a change; 0 or -EINVAL as heap_give."""
    cdef region_t *empty = NULL
    cdef int rc = heap_give(&c.heap, block, &empty)
    if empty is not NULL:
        tell_gone(empty)
        shrink(c, empty)
    return rc
