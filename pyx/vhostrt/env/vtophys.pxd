"""The addresses under which devices find our memory.

In the mode "va" they are the virtual ones, through an IOMMU that VFIO has set up; in the mode "pa"
the physical ones, as far as they have been learnt.

Owner:    vtophys.init and fini, by the control thread.
Threads:  vtophys and vtophys_run: any, no lock, no system call.  The rest: any but a reactor; they
          ask the kernel.
Fails:    VTOPHYS_ERROR, -errno
"""
from libc.stdint cimport UINT64_MAX, uint64_t, uintptr_t
from vhostrt.env.memmap cimport map_t, map_translate
from vhostrt.env.pagetable cimport table_run

cdef map_t *g_vtophys           # linear; NULL unless initialised.  Written by init and fini

cdef inline uint64_t vtophys_error() noexcept nogil:
    """Return the answer for memory whose address no device can be told."""
    return UINT64_MAX


cdef inline uint64_t vtophys(const void *at) noexcept nogil:
    """Return where devices find the byte at an address, or vtophys_error(); a few ns.

    What follows it in memory may be elsewhere for them: see vtophys_run.
    """
    if g_vtophys is NULL:
        return UINT64_MAX
    return map_translate(g_vtophys, <uintptr_t>at)


cdef inline uint64_t vtophys_run(const void *at, size_t *size) noexcept nogil:
    """Return what vtophys does; *size, the bytes wanted, is cut to those that follow in one piece.

    With vtophys_error() they are those that devices find nowhere.
    """
    if g_vtophys is NULL:
        return UINT64_MAX
    return table_run(&g_vtophys.table, <uintptr_t>at, size)


cdef int vtophys_learn(const void *at, size_t size) noexcept nogil
cdef int vtophys_add(void *at, size_t size) noexcept nogil
cdef int vtophys_remove(void *at, size_t size) noexcept nogil
