"""Blocks of the environment's heap for Python: malloc, zalloc, realloc and free.

vhostrt.env.memory has these names too, and that is where to take them from.

Owner:    an Allocation owns its block; free, or its last reference, gives it back.
Threads:  any; an Allocation is used by one at a time.
Fails:    OSError with a sentence; BufferError while views into a block live.
"""
from cpython.buffer cimport PyBuffer_FillInfo
from libc.errno cimport EINVAL, ENOMEM, EPERM, ESRCH
from libc.stdint cimport SIZE_MAX, uintptr_t
from vhostrt.base.errors cimport ok
from vhostrt.env.memory cimport (env_free, env_ready, env_realloc, env_sentence,
                                 env_zalloc)
from vhostrt.env.region cimport region_shortage

from vhostrt.env import memory
from vhostrt.env.segment import array_over, check_node


cdef class Allocation:
    """A block of the heap, made by malloc or zalloc; given back by free or the last reference.

    It is a buffer: memoryview, numpy.frombuffer and .array share its memory and keep it.
    """
    cdef void *block            # NULL after free
    cdef Py_ssize_t size
    cdef Py_ssize_t exports

    def __dealloc__(self):
        if self.block is not NULL:
            env_free(self.block)

    @property
    def address(self) -> int:
        """Where it begins; 0 once freed."""
        return <uintptr_t>self.block

    @property
    def iova(self) -> int | None:
        """Where a device sees it; None when that is not known.  See memory.virt2iova."""
        return memory.virt2iova(<uintptr_t>self.block)

    def __len__(self) -> int:
        return self.size

    def __getbuffer__(self, Py_buffer *view, int flags):
        if self.block is NULL:
            raise ValueError("the block has been freed")
        PyBuffer_FillInfo(view, self, self.block, self.size, 0, flags)
        self.exports += 1

    def __releasebuffer__(self, Py_buffer *view):
        self.exports -= 1

    cdef int require_unused(self) except -1:
        if self.exports:
            raise BufferError(f"the block is in use: {self.exports} views of it live")
        return 0

    def array(self, dtype="uint8", shape=-1):
        """Return a NumPy array over the first bytes, or with shape -1 over all; it is a view."""
        return array_over(self, dtype, shape)

    def resize(self, size: int, align: int = 64) -> None:
        """Make it larger or smaller; what it holds stays, as far as there is room.

        Bytes that are added are zero; its address may change.  BufferError while a view into it
        lives, ValueError once it is freed, OSError as zalloc, and then it is as it was.
        """
        cdef size_t c_size, c_align
        cdef void *block = self.block
        self.require_unused()
        if block is NULL:
            raise ValueError("the block has been freed")
        what = f"block of {self.size} bytes to be of {size}"
        check_block(size, align, what)
        c_size, c_align = size, align
        with nogil:
            region_shortage()                   # an earlier one is none of this call
            block = env_realloc(block, c_size, c_align)
        if block is NULL:
            ok(-ENOMEM, f"{what}: {memory.shortage(-1)}")
        self.block = block
        self.size = size

    def free(self) -> None:
        """Give the block back; BufferError while a view into it lives.  Again: nothing."""
        self.require_unused()
        freed(env_free(self.block), self.block)
        self.block = NULL
        self.size = 0


def check_block(size: int, align: int, what: str) -> None:
    """Raise OSError for a block that there cannot be."""
    if not env_ready():
        rc = -EPERM if memory.ready() else -ESRCH
        ok(rc, f"{what}: {env_sentence(rc)}")
    if not 0 < size <= SIZE_MAX // 4:
        ok(-EINVAL, what)
    if not 0 < align <= SIZE_MAX // 4 or align & (align - 1):
        ok(-EINVAL, f"{what} aligned to {align}")


def zalloc(size: int, align: int = 64, node: int = -1) -> Allocation:
    """Return a block of `size` zeroed bytes that are in memory.

    align: bytes, a power of two.  node: a NUMA node, and then no other; -1 for any, the calling
    thread's first.  OSError ENOMEM when it cannot be had, EINVAL for a size or alignment that
    makes no sense, ENODEV for a node that does not exist, EPERM in a secondary process.
    """
    what = f"block of {size} bytes"
    check_block(size, align, what)
    if node < -1:
        check_node(node, what)
    cdef Allocation allocation = Allocation.__new__(Allocation)
    cdef size_t c_size = size, c_align = align
    cdef int c_node = node
    with nogil:
        region_shortage()                       # an earlier one is none of this call
        allocation.block = env_zalloc(c_size, c_align, c_node)
    if allocation.block is NULL:
        if node not in memory.stats()["nodes"]:
            check_node(node, what)
        where = "" if node < 0 else f" on NUMA node {node}"
        ok(-ENOMEM, f"{what}{where}: {memory.shortage(node)}")
    allocation.size = size
    return allocation


def malloc(size: int, align: int = 64, node: int = -1) -> Allocation:
    """As zalloc: memory of this heap is zero whoever had it before, as rte_malloc's is."""
    return zalloc(size, align, node)


def realloc(block: Allocation | None, size: int, align: int = 64) -> Allocation:
    """Return `block` after block.resize(size, align), or a new one for None."""
    if block is None:
        return zalloc(size, align)
    block.resize(size, align)
    return block


cdef int freed(int rc, void *block) except -1:
    """Raise what a block that could not be given back calls for."""
    what = f"free of a block at {<uintptr_t>block:#x}"
    if rc == -EINVAL:
        ok(rc, f"{what}: none is handed out there, it was freed before or never from this heap")
    return ok(rc, f"{what}: {env_sentence(rc)}")


def free(block: Allocation | int | None) -> None:
    """Give a block back: an Allocation, as its free does, or one that C code has, by its address.

    None and 0: nothing.  OSError EINVAL for an address where no block is handed out: freed
    before, or never from this heap; a debug build stops there.
    """
    if isinstance(block, Allocation):
        block.free()
    elif block is not None:
        freed(env_free(<void *><uintptr_t>block), <void *><uintptr_t>block)
