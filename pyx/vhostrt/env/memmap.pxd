"""What memory is registered, and the maps that are told of it.

Memory is registered in whole pages of 4 KiB, and each page counts how often.  A map keeps a value
for each page, and may be told what becomes registered and what ceases to be.

Owner:    a map belongs to whoever called map_create, a registration to whoever made it.
Threads:  any.  Registrations, and the calls of notify that they make, go one by one under a mutex.
          map_translate and table_run of a map's table take no lock.
Fails:    -errno
"""
from libc.stdint cimport uint64_t, uintptr_t
from vhostrt.env.pagetable cimport table_t, table_translate

# added: the memory is registered from now on, else it is no longer.  0, or -errno: it shall not be
# so.  It calls neither this module's registrations nor the heap, which may be calling it.
ctypedef int (*map_notify_fn)(void *ctx, uintptr_t at, size_t size, bint added) noexcept nogil

cdef struct map_t:
    map_notify_fn notify        # or NULL
    void *ctx
    map_t *next                 # in the list of those that are told, by age
    map_t *prev
    table_t table

cdef int map_create(map_t **m, uint64_t none, bint linear, map_notify_fn notify,
                    void *ctx) noexcept nogil
cdef int map_free(map_t *m) noexcept nogil

cdef int memmap_register(uintptr_t at, size_t size) noexcept nogil
cdef int memmap_unregister(uintptr_t at, size_t size) noexcept nogil
cdef bint memmap_registered(uintptr_t at, size_t size) noexcept nogil


cdef inline uint64_t map_translate(map_t *m, uintptr_t at) noexcept nogil:
    """Return the value of an address, or the map's `none`; a few ns."""
    return table_translate(&m.table, at)
