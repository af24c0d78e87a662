"""What the memory looks like, for Python: counts, segments, addresses of devices.

vhostrt.env.memory has these names too, and that is where to take them from.

Threads:  any.
Fails:    OSError with a sentence.
"""
from libc.stdint cimport SIZE_MAX, UINT64_MAX, uint32_t, uint64_t, uintptr_t
from vhostrt.base.errors cimport ok
from vhostrt.env.heap cimport WHOLE_WANTED, heap_stats, heap_stats_t, region_t
from vhostrt.env.memory cimport env_iova, env_look, env_looked, env_sentence
from vhostrt.env.region cimport (iova_at, region_break, region_next, region_shortage,
                                 shortage_t)
from vhostrt.env.shared cimport env_config_t

from vhostrt.env.hugepages import size_text
from vhostrt.env.segment import KINDS

COUNTS = ("total", "used", "free", "free_max", "populated", "huge", "blocks", "spaces", "segments")


cdef env_config_t *locked() except NULL:
    """Take the lock of the record, or raise why that cannot be."""
    cdef int rc = 0
    cdef env_config_t *c = env_look(&rc)
    if c is NULL:
        ok(rc, env_sentence(rc))
    return c


cdef dict counts_of(env_config_t *c, int node):
    cdef heap_stats_t now
    heap_stats(&c.heap, node, &now)
    return dict(zip(COUNTS, (now.total, now.used, now.free, now.free_max, now.populated, now.huge,
                             now.blocks, now.spaces, now.regions), strict=True))


def stats() -> dict:
    """Return byte counts: total, used, free, free_max, populated, huge; and blocks, spaces
    (free ones) and segments, those that were mapped at one time.

    limit is None without one.  nodes: the same counts for each NUMA node with memory.  All zeroes
    before init.  A secondary process sees the numbers of its primary one.
    """
    from vhostrt.env import memory
    cdef uint32_t i
    cdef env_config_t *c
    if not memory.ready():
        return dict.fromkeys(COUNTS, 0) | {"limit": None, "nodes": {}}
    c = locked()
    try:
        limit = None if c.heap.limit == SIZE_MAX // 2 else c.heap.limit
        nodes = {c.heap.nodes[i].node: counts_of(c, c.heap.nodes[i].node)
                 for i in range(c.heap.node_count) if c.heap.nodes[i].total}
        return counts_of(c, -1) | {"limit": limit, "nodes": nodes}
    finally:
        env_looked(c)


def segments() -> list:
    """Return the memory segments, by address: each is one piece for a device, where that is known.

    Dicts: address and size in bytes, page_size, node, iova (None where it is not known), kind as
    Segment.kind, and file: its name, or "".
    """
    cdef env_config_t *c = locked()
    cdef region_t *region
    cdef size_t start, end
    found = []
    region = region_next(&c.heap, NULL)
    while region is not NULL:
        start = 0
        while start < region.segment.size:
            end = region_break(&c.heap, region, start, region.segment.size - start, WHOLE_WANTED)
            end = end or region.segment.size
            found.append(one(c, region, start, end - start))
            start = end
        region = region_next(&c.heap, region)
    env_looked(c)
    return found


cdef dict one(env_config_t *c, region_t *region, size_t start, size_t size):
    """Describe a piece of a region."""
    cdef uint64_t iova = iova_at(&c.heap, region.segment.base + start, 1)
    return {"address": <uintptr_t>region.segment.base + start, "size": size,
            "page_size": region.segment.page_size, "node": region.segment.node,
            "iova": None if iova == UINT64_MAX else iova, "kind": KINDS[region.segment.kind],
            "file": region.file.decode("utf-8", "surrogateescape")}


def shortage(node: int) -> str:
    """Say what there was for the call of this thread that has just found too little memory.

    Pages that the system did not give are told, and then forgotten; else there is no space that is
    large enough, on a NUMA node or, with -1, on any.
    """
    from vhostrt.env import memory
    cdef shortage_t met = region_shortage()
    if met.page_size:
        return f"{met.had} of {met.wanted} pages of {size_text(met.page_size)} could be had"
    now = memory.stats()
    there = now["nodes"].get(node, {"free_max": 0}) if node >= 0 else now
    more = "" if now["limit"] is not None else ", and there is no room for more"
    return f"the largest free space has {there['free_max']} bytes{more}"


def virt2iova(address: int) -> int | None:
    """Return where a device sees a byte of the heap; None when that is not known.

    It is known where pages were sorted by physical address, and with --iova-mode=va.
    """
    cdef uint64_t iova = env_iova(<void *><uintptr_t>address)
    return None if iova == UINT64_MAX else iova


def primary_pid() -> int:
    """Return the process id of the primary process; OSError ESRCH before init."""
    cdef env_config_t *c = locked()
    pid = c.head.pid
    env_looked(c)
    return pid
