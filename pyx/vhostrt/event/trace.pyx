"""Tracing: what happened on each core, in a ring of that core in shared memory.

The file describes itself: whoever reads it (vhostrt-trace) finds the rate of the clock, the names
of the points and of their arguments, and the names of the light threads in it.  trace.h has its
layout.  It is sparse, so that it takes the memory that entries have been written to.

Threads:  Python functions here belong to the control thread.
"""
import os
import re
import time
from collections import namedtuple

from libc.errno cimport EBUSY, errno
from libc.stdint cimport UINT32_MAX, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free
from libc.string cimport memcpy, memset
from posix.mman cimport MAP_FAILED, MAP_SHARED, PROT_READ, PROT_WRITE, mmap, munmap
from posix.unistd cimport getpid
from vhostrt.base.atomics cimport (fence_release, load_acquire_ptr, load_acquire_u64,
                                   load_relaxed_u32, store_relaxed_u16, store_relaxed_u32,
                                   store_relaxed_u64, store_release_ptr, store_release_u32,
                                   store_release_u64, u64_line)
from vhostrt.base.errors cimport ok
from vhostrt.base.sigbus cimport sigbus_add, sigbus_remove
from vhostrt.base.ticks cimport ticks_hz, ticks_now
from vhostrt.env.lcore cimport LCORE_MAX, LCORE_RUNNING, lcore_current, lcore_state

from vhostrt.base import sigbus

cdef extern from *:
    """
    #include <stdlib.h>
    #include <string.h>
    #include <sys/mman.h>
    #include "vhostrt/event/trace.h"
    static __thread int vh_trace_control;       /* 1 on the thread that has the control ring */
    """
    bint t_control "vh_trace_control"
    enum:
        MADV_DONTFORK
    int madvise(void *at, size_t size, int advice) nogil
    size_t strnlen(const char *text, size_t most) nogil
    void *aligned_alloc(size_t align, size_t size) nogil

cdef extern from "vhostrt/event/trace.h" nogil:
    const char *MAGIC "VH_TRACE_MAGIC"
    enum:
        VERSION "VH_TRACE_VERSION"
        ARGS "VH_TRACE_ARGS"
        OWNERS "VH_TRACE_OWNERS"
        TEXT "VH_TRACE_TEXT"
        PAGE "VH_TRACE_PAGE"
    ctypedef struct entry_t "struct vh_trace_entry":
        uint32_t stamp
        uint16_t tpoint
        uint64_t tsc
        uint64_t object
        uint32_t owner
        uint32_t size
        uint64_t args[4]
    ctypedef struct ring_t "struct vh_trace_ring":
        uint32_t lcore
        uint64_t cleared
        uint64_t next
    ctypedef struct owner_t "struct vh_trace_owner":
        uint64_t id
        char name[56]
    ctypedef struct header_t "struct vh_trace_header":
        char magic[8]
        uint32_t version
        uint32_t header_bytes
        uint32_t pid
        uint32_t rings
        uint32_t entries
        uint32_t entry_bytes
        uint64_t tsc_hz
        uint64_t start_tsc
        uint64_t start_unix_ns
        uint64_t owners_at
        uint64_t text_at
        uint64_t rings_at
        uint32_t text_copy
        uint32_t text_bytes[2]
        char program[32]
        uint64_t masks[32]

# What a writer needs of its ring.  It trusts nothing that lies in the file: others can write there.
cdef struct writer_t:
    u64_line next               # of the entry to be written next; the writer's own
    uint32_t mask               # entries - 1
    uint32_t shift              # entries == 1 << shift
    entry_t *entries
    ring_t *ring

cdef enum:
    CONTROL = LCORE_MAX         # index of the control thread's writer

# Written by create and close, of the control thread.
cdef writer_t *g_writers[LCORE_MAX + 1]
cdef writer_t *g_block = NULL           # where they lie, one behind the other
cdef uint32_t g_count = 0               # of them
cdef header_t *g_file = NULL            # the mapping; NULL without a file
cdef size_t g_bytes = 0
cdef int g_slot = -1                    # of the mapping in the table of sigbus
cdef uint32_t g_cut = 0                 # 1: a page of the file was not there any more
cdef bint g_fork_seen = False           # forget is registered
cdef trace_owner_fn g_owner_fn = NULL   # written once, by who knows the light threads

g_groups = {}                           # name -> Group; written by register

ENTRIES = 32768                         # of a ring, when nobody says how many
ENTRIES_MAX = 1 << 24                   # 1 GiB
ROLES = ("", "begin", "end", "enter", "leave", "span")

Group = namedtuple("Group", "name number points")       # points: list of Point
Point = namedtuple("Point", "number name args object role size", defaults=((), "", "", ""))
Point.__doc__ = """A trace point: `number` in its group (int), `name` (str), and what it tells.

args: up to 4 pairs (name, kind); kind is "int", "signed", "hex", "text" (8 characters in a word) or
names by value, "READ|WRITE||FLUSH".  size: name of the size, "" without.  object: kind of the
object (str).
role: "begin" and "end" of what is under way between two points of the same kind of object;
"enter" and "leave" the same, where nothing of it can overlap on a core; "span" for what is told
when it is over, with its duration in the first argument, of the kind "ticks"; "" for a moment.
"""


# The writers.

cdef void trace_record(uint32_t point, uint64_t object, uint32_t size, uint64_t a, uint64_t b,
                       uint64_t c, uint64_t d) noexcept nogil:
    """Write an entry into the ring of the calling thread, if it has one."""
    cdef uint32_t lcore = lcore_current()
    cdef writer_t *w
    cdef entry_t *entry
    cdef uint64_t next
    if lcore >= LCORE_MAX:
        if not t_control:
            return
        lcore = CONTROL
    w = <writer_t *>load_acquire_ptr(&g_writers[lcore])
    if w is NULL:
        return
    next = <uint64_t>w.next
    entry = &w.entries[next & w.mask]
    store_relaxed_u32(&entry.stamp, 0)
    # Pairs with the reader's second look at the stamp: who has seen one of the new words sees the
    # 0, or the stamp of a later lap.
    fence_release()
    store_relaxed_u16(&entry.tpoint, <uint16_t>point)
    store_relaxed_u64(&entry.tsc, ticks_now())
    store_relaxed_u64(&entry.object, object)
    store_relaxed_u32(&entry.owner, g_owner_fn() if g_owner_fn is not NULL else 0)
    store_relaxed_u32(&entry.size, size)
    store_relaxed_u64(&entry.args[0], a)
    store_relaxed_u64(&entry.args[1], b)
    store_relaxed_u64(&entry.args[2], c)
    store_relaxed_u64(&entry.args[3], d)
    store_release_u32(&entry.stamp, <uint32_t>(next >> w.shift) + 1)
    w.next = next + 1
    store_release_u64(&w.ring.next, next + 1)


cdef uint64_t trace_text(const char *text) noexcept nogil:
    """Return the first 8 bytes of a text, as an argument of the kind "text"."""
    cdef uint64_t word = 0
    memcpy(&word, text, strnlen(text, sizeof(word)))
    return word


cdef void trace_owner_by(trace_owner_fn fn) noexcept nogil:
    """Have fn() tell which light thread the calling reactor runs: its id, or 0.  Before reactors
    run."""
    global g_owner_fn
    g_owner_fn = fn


# The registry.

def register(str group not None, int number, points) -> None:
    """Declare points (Point) of a group; by the modules that have them, when they are imported.

    ValueError for a group or point that cannot be, or is there already.
    """
    if not 0 <= number < TRACE_GROUPS or not re.fullmatch("[a-z][a-z0-9_]*", group):
        raise ValueError(f"trace group {group!r} cannot have the number {number}")
    known = g_groups.get(group, Group(group, number, []))
    others = {other.number: name for name, other in g_groups.items() if name != group}
    if known.number != number or number in others:
        raise ValueError(f"trace group {group}: number {number} is "
                         f"{others.get(number, 'not the one that it has')}")
    for point in points:
        taken = {p.number for p in known.points} | {p.name for p in known.points}
        if not 0 <= point.number < TRACE_POINTS or taken & {point.number, point.name}:
            raise ValueError(f"trace point {point.name}: number or name is taken in {group}")
        if len(point.args) > ARGS or point.role not in ROLES:
            raise ValueError(f"trace point {point.name}: too many arguments, or an unknown role")
        if point.role == "span" and [kind for _, kind in point.args[:1]] != ["ticks"]:
            raise ValueError(f"trace point {point.name}: its first argument is no duration")
        known.points.append(point)
    known.points.sort()
    g_groups[group] = known
    if g_file is not NULL:
        describe()


def groups() -> list:
    """Return the groups (Group) by number."""
    return sorted(g_groups.values(), key=lambda group: group.number)


def masks() -> dict:
    """Return for each group (str) the points that are on, a bit each (int)."""
    return {group.name: trace_masks[<uint32_t>group.number] for group in groups()}


def set_mask(str group not None, uint64_t mask) -> None:
    """Turn on these points of a group, a bit each, and the rest of it off.  KeyError."""
    cdef uint32_t number = g_groups[group].number
    store_relaxed_u64(&trace_masks[number], mask)
    if g_file is not NULL:
        store_relaxed_u64(&g_file.masks[number], mask)


# The file.

cdef size_t pages(size_t size) noexcept:
    return (size + PAGE - 1) // PAGE * PAGE


def file_bytes(uint32_t rings, uint32_t entries) -> int:
    """Return the size of a file with so many rings."""
    return (PAGE + pages(OWNERS * sizeof(owner_t)) + 2 * TEXT
            + rings * (PAGE + pages(entries * sizeof(entry_t))))


def is_open() -> bool:
    """Return whether there is a file to write to."""
    return g_file is not NULL


def create(int fd, lcores, uint32_t entries, owners=()) -> None:
    """Make this empty file a trace, with a ring of `entries` (a power of two) for each lcore (int)
    and one for the calling thread, and have entries written to it.

    owners: pairs (id, name) of the light threads there are.  The descriptor stays the caller's.
    RuntimeError when there is a file already; ValueError; OSError; MemoryError.
    """
    global g_file, g_bytes, g_slot, g_cut
    if g_file is not NULL:
        raise RuntimeError("there is a trace already")
    lcores = sorted(lcores)
    if not 0 < entries <= <uint32_t>ENTRIES_MAX or entries & (entries - 1):
        raise ValueError(f"{entries} entries are no power of two up to {ENTRIES_MAX}")
    if any(not 0 <= lcore < LCORE_MAX for lcore in lcores):
        raise ValueError(f"an lcore of {lcores} cannot be")
    size = file_bytes(len(lcores) + 1, entries)
    os.ftruncate(fd, size)
    cdef void *at = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0)
    if at == MAP_FAILED:
        ok(-errno, f"a mapping of {size} bytes for the trace")
    madvise(at, size, MADV_DONTFORK)
    g_cut = 0
    g_bytes = size
    g_file = <header_t *>at
    try:
        sigbus.install()
        # Others may shorten the file, and the file system may be full when a page is first used.
        g_slot = sigbus_add(at, g_bytes, PAGE, &g_cut)
        ok(g_slot, "the trace in the table of SIGBUS regions")
        fill_header(len(lcores) + 1, entries)
        make_writers(lcores, entries)
        describe()
        for owner, name in owners:
            name_owner(owner, name)
    except BaseException:
        close()
        raise
    publish(lcores)


cdef int fill_header(uint32_t rings, uint32_t entries) except -1:
    cdef bytes program = b"vhostrt"
    cdef header_t *h = g_file
    memcpy(h.magic, MAGIC, 8)
    h.version = VERSION
    h.header_bytes = sizeof(header_t)
    h.pid = <uint32_t>getpid()
    h.rings = rings
    h.entries = entries
    h.entry_bytes = sizeof(entry_t)
    h.tsc_hz = ticks_hz()
    h.start_unix_ns = time.time_ns()
    h.start_tsc = ticks_now()
    h.owners_at = PAGE
    h.text_at = h.owners_at + pages(OWNERS * sizeof(owner_t))
    h.rings_at = h.text_at + 2 * TEXT
    memcpy(h.program, <const char *>program, len(program))
    memcpy(h.masks, trace_masks, sizeof(trace_masks))
    return 0


cdef int make_writers(lcores, uint32_t entries) except -1:
    """A writer and the page of its ring for each lcore, and for this thread."""
    global g_block, g_count
    cdef size_t stride = PAGE + pages(entries * sizeof(entry_t))
    cdef char *at = <char *>g_file + g_file.rings_at
    cdef writer_t *w
    g_count = len(lcores) + 1
    g_block = <writer_t *>aligned_alloc(64, g_count * sizeof(writer_t))
    if g_block is NULL:
        raise MemoryError
    memset(g_block, 0, g_count * sizeof(writer_t))
    for i, lcore in enumerate([*lcores, UINT32_MAX]):
        w = &g_block[<size_t>i]
        w.mask = entries - 1
        w.shift = entries.bit_length() - 1
        w.ring = <ring_t *>at
        w.entries = <entry_t *>(at + PAGE)
        w.ring.lcore = lcore
        at += stride
    return 0


cdef int publish(lcores) except -1:
    """From here on entries are written."""
    global t_control, g_fork_seen
    for i, lcore in enumerate([*lcores, CONTROL]):
        store_release_ptr(&g_writers[<uint32_t>lcore], &g_block[<size_t>i])
    t_control = True
    if not g_fork_seen:
        os.register_at_fork(after_in_child=forget)
        g_fork_seen = True
    return 0


cdef int describe() except -1:
    """Write the groups into the copy of the description that does not count, then make it count."""
    import json                         # only when tracing is asked for
    cdef uint32_t other = 1 - g_file.text_copy
    cdef bytes text = json.dumps({"groups": [
        {"name": group.name, "number": group.number,
         "points": [point._asdict() for point in group.points]}
        for group in groups()]}, separators=(",", ":")).encode()
    if len(text) > TEXT:
        raise ValueError(f"a description of the trace of {len(text)} bytes is too long")
    memcpy(<char *>g_file + g_file.text_at + other * TEXT, <const char *>text, len(text))
    g_file.text_bytes[other] = len(text)
    store_release_u32(&g_file.text_copy, other)
    return 0


def name_owner(uint64_t id, str name not None) -> None:
    """Keep the name of a light thread, in the place of one whose id is 4096 less.  Nothing is done
    without a file."""
    cdef owner_t *owner
    cdef bytes text = name.encode()[:sizeof(owner.name) - 1]
    if g_file is NULL:
        return
    owner = <owner_t *>(<char *>g_file + PAGE) + id % OWNERS
    store_release_u64(&owner.id, 0)
    memset(owner.name, 0, sizeof(owner.name))
    memcpy(owner.name, <const char *>text, len(text))
    store_release_u64(&owner.id, id)


def clear() -> None:
    """Have readers forget what was written so far."""
    cdef uint32_t i
    for i in range(g_count):
        store_relaxed_u64(&g_block[i].ring.cleared, load_acquire_u64(&g_block[i].ring.next))


def cut() -> bool:
    """Return whether a page of the file was not there when it was written to: others have shortened
    it, or its file system is full.  What was written there is lost."""
    return load_relaxed_u32(&g_cut) != 0


def close() -> None:
    """Turn all points off and let go of the file.  No lcore runs any more.  Nothing without a file.

    OSError EBUSY when one does; then nothing has changed.
    """
    global g_file, g_slot, g_block, g_count, t_control
    cdef uint32_t lcore
    if g_file is NULL:
        return
    for lcore in range(<uint32_t>LCORE_MAX):
        if g_writers[lcore] is not NULL and lcore_state(lcore) == LCORE_RUNNING:
            ok(-EBUSY, f"the trace of lcore {lcore}, which runs")
    memset(trace_masks, 0, sizeof(trace_masks))
    memset(g_writers, 0, sizeof(g_writers))
    t_control = False
    if g_slot >= 0:
        sigbus_remove(g_slot)
    munmap(g_file, g_bytes)
    free(g_block)
    g_file = NULL
    g_block = NULL
    g_slot = -1
    g_count = 0


def forget() -> None:
    """In a forked child: the mapping was not inherited, and the file is the parent's."""
    global g_file, g_block, g_slot, g_count, t_control
    memset(trace_masks, 0, sizeof(trace_masks))
    memset(g_writers, 0, sizeof(g_writers))
    t_control = False
    g_file = NULL
    g_block = NULL
    g_slot = -1
    g_count = 0
