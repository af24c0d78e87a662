"""The memory of the environment: a heap over segments that grows when asked.

Owner:    memory.init and memory.fini, by the control thread; a block belongs to its caller.
Threads:  any, under a mutex: set-up time only, never the data path.
Fails:    NULL or -errno; OSError with a sentence from the Python face.
"""
import os
import re

from cpython.buffer cimport PyBuffer_FillInfo
from libc.errno cimport EALREADY, EINVAL, ENOMEM, EOPNOTSUPP, ESRCH
from libc.stdint cimport SIZE_MAX, uintptr_t
from posix.types cimport pid_t
from posix.unistd cimport getpid
from vhostrt.base.errors cimport ok
from vhostrt.env.heap cimport (heap_add, heap_close, heap_free, heap_init, heap_owns, heap_stats,
                               heap_stats_t, heap_t, heap_zalloc)
from vhostrt.env.segment cimport (huge_pages_free, segment_map, segment_map_file,
                                  segment_populate, segment_t, segment_unmap)

from vhostrt.env.segment import array_over, check_node

MIB = 1 << 20
HUGE_PAGE = 2 * MIB
FILE_DEFAULT = 1024 * MIB       # bytes a node of a reserved file that is new, when none are told

# Written by init and fini, of the control thread.
cdef heap_t g_heap
cdef pid_t g_pid = 0            # 0: not initialised


cdef bint env_ready() noexcept nogil:
    """True between memory.init and memory.fini, and not in a forked child."""
    return g_pid != 0 and g_pid == getpid()


cdef void *env_zalloc(size_t size, size_t align, int node) noexcept nogil:
    """Return size zeroed bytes that are in memory, or NULL.

    align: a power of two; at least 64, also for 0.  node: a NUMA node, and then no other; -1 for
    any.  NULL: size 0, align no power of two, the limit (-s) is reached, the system has no memory,
    or not between memory.init and memory.fini.
    """
    return heap_zalloc(&g_heap, size, align, node) if env_ready() else NULL


cdef int env_free(void *block) noexcept nogil:
    """Give a block back; NULL is allowed.

    0
    -EINVAL  not a block that is handed out: freed before, or foreign
    -ESRCH   a forked child, where the memory is not, or not initialised
    """
    if block is NULL:
        return 0
    return heap_free(&g_heap, block) if env_ready() else -ESRCH


cdef bint env_owns(const void *at) noexcept nogil:
    """True when an address lies in the heap; also in a forked child, without touching it."""
    return g_pid != 0 and heap_owns(&g_heap, at)


# Where the memory comes from.

def nodes() -> list:
    """Return the NUMA nodes of the machine, at least node 0."""
    try:
        names = os.listdir("/sys/devices/system/node")
    except OSError:
        names = []
    return sorted(int(name[4:]) for name in names if re.fullmatch(r"node\d+", name)) or [0]


def read_number(path: str) -> int | None:
    """Return the number in a file; None when there is none."""
    try:
        with open(path) as file:
            return int(file.read())
    except (OSError, ValueError):
        return None


def available() -> int:
    """Return the bytes that ordinary memory has for us: what is free, within the control group."""
    with open("/proc/meminfo") as file:
        least = int(re.search(r"^MemAvailable:\s*(\d+) kB", file.read(), re.M)[1]) * 1024
    try:
        with open("/proc/self/cgroup") as file:
            group = re.search(r"^0::(.*)$", file.read(), re.M)
    except OSError:
        group = None
    # Up to the root, which inside a container is a group with limits of its own.
    path = group[1] if group else ""
    while group:
        most = read_number(f"/sys/fs/cgroup{path}/memory.max")
        used = read_number(f"/sys/fs/cgroup{path}/memory.current")
        if most is not None and used is not None:
            least = min(least, max(most - used, 0))
        if path in ("", "/"):
            break
        path = path.rpartition("/")[0]
    return least


def shares(limit: int | None, directory: str, on: list) -> dict:
    """Return path -> (bytes, node) of the reserved files; 0 bytes is the whole of the file.

    A limit is split over the nodes in whole MiB, the remainder to the first of them.
    """
    wanted = {}
    for n, node in enumerate(on):
        path = os.path.join(directory, f"vhost_spdk_reserved_{node}")
        if limit is not None:
            mib = limit // MIB
            size = (mib // len(on) + (n < mib % len(on))) * MIB
        else:
            size = 0 if os.path.exists(path) and os.path.getsize(path) else FILE_DEFAULT
        if size or limit is None:
            wanted[path] = (size, node)
    return wanted


cdef int add_file(str path, size_t size, int node) except -1:
    """Map and populate a reserved file as a part of the heap."""
    cdef segment_t segment
    cdef size_t had = 0
    name = os.fsencode(path)
    cdef const char *c_name = name
    cdef int rc
    what = f"memory file {path}"
    before = huge_pages_free()
    with nogil:
        rc = segment_map_file(&segment, c_name, size, node)
    if rc == -EOPNOTSUPP:
        ok(rc, f"{what} is not in a hugetlbfs directory")
    if rc == -ENOMEM:
        ok(rc, f"{what} of {size // MIB} MiB: {before * HUGE_PAGE // MIB} MiB are free")
    ok(rc, what)
    with nogil:
        rc = segment_populate(&segment, 0, segment.size, &had)
    if rc < 0:
        size = segment.size
        segment_unmap(&segment)
        ok(rc, f"{what} of {size // MIB} MiB: {had // MIB} MiB could be had")
    return ok(heap_add(&g_heap, &segment, True), what)


cdef int add_whole(size_t limit, bint huge) noexcept nogil:
    """Map all of the limit as one segment, untouched; 0, or -ENOMEM: not so many huge pages."""
    cdef segment_t segment
    cdef int rc = segment_map(&segment, limit, -1, huge)
    return heap_add(&g_heap, &segment, True) if rc == 0 else rc


cdef str start_heap(limit, huge_dir, bint no_huge):
    """Fill the new heap with what is to be there from the start; return the sentence about it."""
    if huge_dir is not None:
        files = shares(limit, huge_dir, nodes())
        for path, (size, node) in files.items():
            add_file(path, size, node)
        return f"Memory: {g_heap.total // MIB} MiB of huge pages in {', '.join(files)}"
    free = huge_pages_free() * HUGE_PAGE
    if limit is None and free and not no_huge:
        return "Memory: huge pages of 2 MiB as long as there are any, taken when needed"
    if limit is not None and not no_huge and add_whole(limit, True) == 0:
        return f"Memory: {g_heap.total // MIB} MiB of huge pages of 2 MiB, reserved"
    if limit is not None:
        if limit > available():
            ok(-ENOMEM, f"memory of {limit // MIB} MiB: {available() // MIB} MiB can be had")
        ok(add_whole(limit, False), f"memory of {limit // MIB} MiB")
    reason = "as asked" if no_huge else f"{free // MIB} MiB of huge pages are free"
    return f"Memory: ordinary pages, transparent huge pages asked for ({reason})"


def init(limit: int | None = None, *, huge_dir: str | None = None, no_huge: bool = False) -> str:
    """Start the heap; return one sentence about where its memory comes from, to be said once.

    limit: bytes it may have at most, all of which must be there to be had; None: no limit, and
    nothing is taken before it is needed.  huge_dir: a hugetlbfs directory; the memory is files
    vhost_spdk_reserved_<node> in it, made or grown when need be, that keep their pages when the
    process ends; without a limit each is as large as it is, or 1 GiB.  no_huge: ordinary pages.
    OSError with a sentence when it cannot be; then there is no heap.  Control thread.
    """
    global g_pid
    if env_ready():
        ok(-EALREADY, "memory is already initialised")
    if limit is not None and not 0 < limit <= SIZE_MAX // 4:
        ok(-EINVAL, f"memory of {limit} bytes")
    on = nodes()
    heap_init(&g_heap, SIZE_MAX // 2, not no_huge and huge_dir is None, len(on) == 1)
    try:
        sentence = start_heap(limit, huge_dir, no_huge)
    except BaseException:
        heap_close(&g_heap)
        raise
    if g_heap.total:
        g_heap.limit = g_heap.total
    g_pid = getpid()
    return sentence


def fini() -> None:
    """Give the heap back.  Nothing is done before init or in a forked child.

    OSError EBUSY while blocks are handed out; then it stays, and fini may be called again.
    """
    global g_pid
    if not env_ready():
        g_pid = 0
        return
    what = f"memory: {g_heap.blocks} blocks of {g_heap.used} bytes in all are still in use"
    ok(heap_close(&g_heap), what)
    g_pid = 0


def ready() -> bool:
    """True between init and fini."""
    return env_ready()


def stats() -> dict:
    """Return byte counts: total, used, free, free_max, populated, huge; and blocks, segments.

    limit is None without one.  All zeroes before init.
    """
    cdef heap_stats_t now
    if not env_ready():
        return dict.fromkeys(("total", "used", "free", "free_max", "populated", "huge", "blocks",
                              "segments"), 0) | {"limit": None}
    heap_stats(&g_heap, &now)
    return {"total": now.total, "used": now.used, "free": now.free, "free_max": now.free_max,
            "populated": now.populated, "huge": now.huge, "blocks": now.blocks,
            "segments": now.regions,
            "limit": None if g_heap.limit == SIZE_MAX // 2 else g_heap.limit}


cdef class Allocation:
    """A block of the heap, made by zalloc; given back by free or with the last reference.

    It is a buffer: memoryview, numpy.frombuffer and .array share its memory and keep it.
    """
    cdef void *block            # NULL after free
    cdef Py_ssize_t size
    cdef Py_ssize_t exports

    def __dealloc__(self):
        env_free(self.block)

    @property
    def address(self) -> int:
        """Where it begins; 0 once freed."""
        return <uintptr_t>self.block

    def __len__(self) -> int:
        return self.size

    def __getbuffer__(self, Py_buffer *view, int flags):
        if self.block is NULL:
            raise ValueError("the block has been freed")
        PyBuffer_FillInfo(view, self, self.block, self.size, 0, flags)
        self.exports += 1

    def __releasebuffer__(self, Py_buffer *view):
        self.exports -= 1

    def array(self, dtype="uint8", shape=-1):
        """Return a NumPy array over the first bytes, or with shape -1 over all; it is a view."""
        return array_over(self, dtype, shape)

    def free(self) -> None:
        """Give the block back; BufferError while a view into it lives.  Again: nothing."""
        if self.exports:
            raise BufferError(f"the block is in use: {self.exports} views of it live")
        ok(env_free(self.block), "free of a block")
        self.block = NULL
        self.size = 0


def zalloc(size: int, align: int = 64, node: int = -1) -> Allocation:
    """Return a block of zeroed bytes that are in memory.

    align: bytes, a power of two.  node: a NUMA node, and then no other; -1 for any.  OSError
    ENOMEM when it cannot be had, EINVAL for a size or alignment that makes no sense.
    """
    what = f"block of {size} bytes"
    if not env_ready():
        ok(-ESRCH, f"{what}: memory is not initialised")
    if not 0 < size <= SIZE_MAX // 4:
        ok(-EINVAL, what)
    if not 0 < align <= SIZE_MAX // 4 or align & (align - 1):
        ok(-EINVAL, f"{what} aligned to {align}")
    check_node(node, what)
    cdef Allocation allocation = Allocation.__new__(Allocation)
    cdef size_t c_size = size, c_align = align
    cdef int c_node = node
    with nogil:
        allocation.block = env_zalloc(c_size, c_align, c_node)
    if allocation.block is NULL:
        ok(-ENOMEM, what)
    allocation.size = size
    return allocation
