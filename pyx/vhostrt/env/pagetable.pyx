"""A value of 64 bits for each page of 4 KiB of the address space, read without a lock.

An entry of 2 MiB has a table of its pages only once they differ.
"""
from libc.errno cimport EINVAL, ENOMEM
from libc.stdint cimport uint64_t, uintptr_t
from libc.stdlib cimport calloc, free, malloc
from vhostrt.base.atomics cimport load_acquire_ptr, store_relaxed_u64, store_release_ptr

cdef extern from "<pthread.h>" nogil:
    int pthread_mutex_init(pthread_mutex_t *mutex, const void *attr)
    int pthread_mutex_destroy(pthread_mutex_t *mutex)
    int pthread_mutex_lock(pthread_mutex_t *mutex)
    int pthread_mutex_unlock(pthread_mutex_t *mutex)


cdef void table_init(table_t *t, uint64_t none, bint linear) noexcept nogil:
    """Make zeroed memory a table in which every address has the value `none`."""
    t.none = none
    t.big_mask = BIG_PAGE - 1 if linear else 0
    t.page_mask = PAGE - 1 if linear else 0
    pthread_mutex_init(&t.mutex, NULL)


cdef void table_close(table_t *t) noexcept nogil:
    """Free what a table holds.  Nobody reads it any more."""
    cdef int i, way
    for i in range(TABLE_GIBS):
        if t.gibs[i] is not NULL:
            for way in range(TABLE_WAYS):
                free(t.gibs[i].small[way])
            free(t.gibs[i])
    pthread_mutex_destroy(&t.mutex)


cdef int table_check(uintptr_t at, size_t size) noexcept nogil:
    """Return 0, or -EINVAL: not whole pages, none, or beyond 2^48."""
    if (at | size) % PAGE or size == 0 or size > 1ULL << 48 or at > (1ULL << 48) - size:
        return -EINVAL
    return 0


cdef table_gib_t *gib_of(table_t *t, uintptr_t at) noexcept nogil:
    """Return the table of the GiB around at, made when there is none; NULL without memory."""
    cdef table_gib_t *gib = t.gibs[at >> 30]
    cdef int i
    if gib is NULL:
        gib = <table_gib_t *>calloc(1, sizeof(table_gib_t))
        if gib is NULL:
            return NULL
        for i in range(TABLE_WAYS):
            gib.big[i] = t.none
        # With the acquire in table_translate.
        store_release_ptr(&t.gibs[at >> 30], gib)
    return gib


cdef uint64_t *pages_of(table_t *t, table_gib_t *gib, uintptr_t at) noexcept nogil:
    """Return the pages of the 2 MiB around at, split when they are one; NULL without memory."""
    cdef uint64_t **small = &gib.small[(at >> 21) & (TABLE_WAYS - 1)]
    cdef uint64_t value = gib.big[(at >> 21) & (TABLE_WAYS - 1)]
    cdef uint64_t step = PAGE if t.big_mask and value != t.none else 0
    cdef uint64_t *pages = small[0]
    cdef int i
    if pages is NULL:
        pages = <uint64_t *>malloc(TABLE_WAYS * sizeof(uint64_t))
        if pages is NULL:
            return NULL
        for i in range(TABLE_WAYS):
            pages[i] = value + i * step
        # With the acquire in table_translate.
        store_release_ptr(small, pages)
    return pages


cdef inline size_t part_of(uintptr_t at, size_t size) noexcept nogil:
    """Return the bytes from at on that lie in its 2 MiB."""
    return min(size, BIG_PAGE - at % BIG_PAGE)


cdef int make_tables(table_t *t, uintptr_t at, size_t size, bint clear) noexcept nogil:
    """Make the tables that fill of a range needs; 0 or -ENOMEM, and no value has changed."""
    cdef table_gib_t *gib
    cdef size_t part, way
    while size:
        part = part_of(at, size)
        way = (at >> 21) & (TABLE_WAYS - 1)
        gib = t.gibs[at >> 30] if clear else gib_of(t, at)
        if gib is NULL:
            if not clear:
                return -ENOMEM
        elif part < BIG_PAGE and (not clear or gib.small[way] is NULL and gib.big[way] != t.none):
            if pages_of(t, gib, at) is NULL:
                return -ENOMEM
        at += part
        size -= part
    return 0


cdef void fill(table_t *t, uintptr_t at, size_t size, uint64_t value, bint linear) noexcept nogil:
    """Write values; where there is no table for them there is nothing to take away."""
    cdef table_gib_t *gib
    cdef uint64_t *pages
    cdef size_t part, way, i
    cdef uint64_t step = PAGE if linear else 0
    while size:
        part = part_of(at, size)
        way = (at >> 21) & (TABLE_WAYS - 1)
        gib = t.gibs[at >> 30]
        pages = NULL if gib is NULL else gib.small[way]
        if pages is not NULL:
            pages += (at // PAGE) & (TABLE_WAYS - 1)
            for i in range(part // PAGE):
                store_relaxed_u64(&pages[i], value + i * step)
        elif gib is not NULL and part == BIG_PAGE:
            store_relaxed_u64(&gib.big[way], value)
        at += part
        size -= part
        value += part // PAGE * step


cdef int write(table_t *t, uintptr_t at, size_t size, uint64_t value, bint clear) noexcept nogil:
    """Give the pages of a range a value, or none; 0 or -errno."""
    cdef int rc = table_check(at, size)
    if rc < 0:
        return rc
    pthread_mutex_lock(&t.mutex)
    rc = make_tables(t, at, size, clear)
    if rc == 0:
        fill(t, at, size, value, t.big_mask != 0 and not clear)
    pthread_mutex_unlock(&t.mutex)
    return rc


cdef int table_set(table_t *t, uintptr_t at, size_t size, uint64_t value) noexcept nogil:
    """Give the pages of a range a value: each the same, or in a linear table one that goes on.

    0
    -EINVAL  not whole pages, none, or beyond 2^48
    -ENOMEM  nothing has changed
    """
    return write(t, at, size, value, value == t.none)


cdef int table_clear(table_t *t, uintptr_t at, size_t size) noexcept nogil:
    """Take the values of a range away; 0, or -EINVAL or -ENOMEM as table_set says."""
    return write(t, at, size, t.none, True)


cdef size_t rest_of(table_t *t, uintptr_t at) noexcept nogil:
    """Return the bytes from an address to the end of its entry, of whichever size that is."""
    cdef table_gib_t *gib = <table_gib_t *>load_acquire_ptr(&t.gibs[at >> 30])
    if gib is NULL:
        return (1 << 30) - at % (1 << 30)
    if load_acquire_ptr(&gib.small[(at >> 21) & (TABLE_WAYS - 1)]) is NULL:
        return BIG_PAGE - at % BIG_PAGE
    return PAGE - at % PAGE


cdef uint64_t table_run(table_t *t, uintptr_t at, size_t *size) noexcept nogil:
    """Return the value of an address, as table_translate does, and how far it goes on.

    *size: bytes asked for, and afterwards those of them, from at on, over which the values are the
    same, or in a linear table go on with the address.
    """
    cdef uint64_t value = table_translate(t, at)
    cdef uint64_t step = 1 if t.big_mask and value != t.none else 0
    cdef size_t most = size[0]
    cdef size_t had = 0
    cdef size_t rest
    if at >> 48:
        return value
    # At least the first entry, even where it is changing now.
    while had == 0 or had < most and table_translate(t, at) == value + had * step:
        rest = rest_of(t, at)
        had += rest
        at += rest
        if at >> 48:
            # Beyond 2^48 nothing has a value, however far.
            had = most if value == t.none else had
            break
    size[0] = min(had, most)
    return value


cdef uint64_t table_next(table_t *t, uintptr_t *at, size_t *size) noexcept nogil:
    """Find the first run of pages that have a value, from the page *at on; return its value.

    *at, *size: the run.  t.none: there is none below 2^48.
    """
    cdef uint64_t value = t.none
    while value == t.none and not at[0] >> 48:
        value = table_translate(t, at[0])
        if value == t.none:
            at[0] += rest_of(t, at[0])
    size[0] = (1ULL << 48) - at[0] if value != t.none else 0
    return table_run(t, at[0], size)
