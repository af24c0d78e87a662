"""Loops over a memory map and the addresses for devices, for bench_env_memmap."""
from libc.stdint cimport UINT64_MAX, uint64_t, uintptr_t
from vhostrt.env.memmap cimport map_create, map_free, map_t, map_translate
from vhostrt.env.pagetable cimport table_run, table_set
from vhostrt.env.vtophys cimport vtophys, vtophys_run

cdef enum:
    STEP = 4096 * 37 + 64       # not in the order of the pages


cdef class Values:
    """A linear map of `size` bytes at `base`, of whole entries of 2 MiB or of single pages."""
    cdef map_t *m
    cdef readonly uintptr_t base
    cdef readonly size_t size

    def __cinit__(self, base, size, bint in_pages):
        cdef uintptr_t at
        self.base = base
        self.size = size
        if map_create(&self.m, UINT64_MAX, True, NULL, NULL) < 0:
            raise MemoryError
        if not in_pages:
            table_set(&self.m.table, self.base, self.size, 1 << 40)
            return
        for at in range(self.base, self.base + self.size, 4096):
            table_set(&self.m.table, at, 4096, (1 << 40) + at * 3)

    def __dealloc__(self):
        map_free(self.m)


cdef uint64_t translate_loop(map_t *m, uintptr_t base, size_t mask, uint64_t n) noexcept nogil:
    cdef uint64_t total = 0
    cdef size_t at = 0
    for _ in range(n):
        total += map_translate(m, base + at)
        at = (at + STEP) & mask
    return total


cdef uint64_t run_loop(map_t *m, uintptr_t base, size_t mask, size_t size,
                       uint64_t n) noexcept nogil:
    cdef uint64_t total = 0
    cdef size_t at = 0, wanted
    for _ in range(n):
        wanted = size
        total += table_run(&m.table, base + at, &wanted) + wanted
        at = (at + STEP) & mask
    return total


cdef uint64_t vtophys_loop(uintptr_t base, size_t mask, uint64_t n) noexcept nogil:
    cdef uint64_t total = 0
    cdef size_t at = 0
    for _ in range(n):
        total += vtophys(<void *>(base + at))
        at = (at + STEP) & mask
    return total


cdef uint64_t vtophys_run_loop(uintptr_t base, size_t mask, size_t size, uint64_t n) noexcept nogil:
    cdef uint64_t total = 0
    cdef size_t at = 0, wanted
    for _ in range(n):
        wanted = size
        total += vtophys_run(<void *>(base + at), &wanted) + wanted
        at = (at + STEP) & mask
    return total


def translate(Values values, uint64_t n):
    """Translate n addresses of the map, whose size is a power of two."""
    return translate_loop(values.m, values.base, values.size - 1, n)


def run(Values values, size_t size, uint64_t n):
    """Ask n times how far a value goes on, up to `size` bytes."""
    return run_loop(values.m, values.base, values.size - 1, size, n)


def addresses(uintptr_t base, size_t size, uint64_t n):
    """Ask vtophys for n addresses of memory of a power of two."""
    return vtophys_loop(base, size - 1, n)


def pieces(uintptr_t base, size_t size, size_t wanted, uint64_t n):
    """Ask vtophys_run for n pieces of `wanted` bytes."""
    return vtophys_run_loop(base, size - 1, wanted, n)
