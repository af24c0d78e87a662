"""A value of 64 bits for each page of 4 KiB of the address space, read without a lock.

An entry of 2 MiB has a table of its pages only once they differ.  In a linear table the value goes
on with the address, as a physical one does; else it is the same all over a page.

Owner:    whoever gave table_init its memory.
Threads:  any.  Writers take turns under the table's mutex; table_translate and table_run take no
          lock, and see each page as it was before or after a change.
Fails:    -errno
"""
from libc.stdint cimport uint64_t, uintptr_t
from vhostrt.base.atomics cimport load_acquire_ptr, load_relaxed_u64

cdef extern from "<pthread.h>" nogil:
    ctypedef struct pthread_mutex_t:
        pass

cdef enum:
    PAGE = 4096
    BIG_PAGE = 2 << 20          # bytes of an entry
    TABLE_GIBS = 1 << 18        # of 1 GiB in 48 bits
    TABLE_WAYS = 512            # entries in a GiB, and pages in an entry

cdef struct table_gib_t:
    uint64_t big[TABLE_WAYS]    # the values of entries, where small is NULL
    uint64_t *small[TABLE_WAYS]     # of their pages

cdef struct table_t:
    uint64_t none               # the value of a page that has none
    uint64_t big_mask           # what of an address its entry's value is increased by: in a linear
    uint64_t page_mask          # table the bits below the entry or page, else nothing
    pthread_mutex_t mutex       # of those who write
    table_gib_t *gibs[TABLE_GIBS]   # published with release; they stay until the table is closed

cdef void table_init(table_t *t, uint64_t none, bint linear) noexcept nogil
cdef void table_close(table_t *t) noexcept nogil
cdef int table_check(uintptr_t at, size_t size) noexcept nogil
cdef int table_set(table_t *t, uintptr_t at, size_t size, uint64_t value) noexcept nogil
cdef int table_clear(table_t *t, uintptr_t at, size_t size) noexcept nogil
cdef uint64_t table_run(table_t *t, uintptr_t at, size_t *size) noexcept nogil
cdef uint64_t table_next(table_t *t, uintptr_t *at, size_t *size) noexcept nogil


cdef inline uint64_t table_translate(table_t *t, uintptr_t at) noexcept nogil:
    """Return the value of an address; t.none where there is none, as from 2^48 on."""
    cdef table_gib_t *gib
    cdef uint64_t *small
    cdef uint64_t value, mask = t.big_mask
    if at >> 48:
        return t.none
    # Acquire, with the releases in gib_of and pages_of: what they have filled in is seen.
    gib = <table_gib_t *>load_acquire_ptr(&t.gibs[at >> 30])
    if gib is NULL:
        return t.none
    small = <uint64_t *>load_acquire_ptr(&gib.small[(at >> 21) & (TABLE_WAYS - 1)])
    if small is NULL:
        value = load_relaxed_u64(&gib.big[(at >> 21) & (TABLE_WAYS - 1)])
    else:
        value = load_relaxed_u64(&small[(at >> 12) & (TABLE_WAYS - 1)])
        mask = t.page_mask
    return value if value == t.none else value + (at & mask)
