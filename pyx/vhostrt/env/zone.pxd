"""Memory zones: named blocks of the heap, which other parts and other processes find by name.

Owner:    a zone is there until zone_free; the record of the environment holds it.
Threads:  any, under the lock of the record: set-up time only.
Fails:    -errno, as told at each function.
Source:   eal_common_memzone.c of DPDK; runtime.md calls it memzone.
"""
from libc.stdint cimport uint32_t
from vhostrt.env.shared cimport ZONE_NAME, ZONES, zone_t

cdef enum:
    ZONE_2MB = 0x1              # on pages of 2 MiB
    ZONE_1GB = 0x2              # on pages of 1 GiB; both: either
    ZONE_SIZE_HINT_ONLY = 0x4   # on others when there are none of those
    ZONE_IOVA_CONTIG = 0x100000     # one piece for a device, or not at all

ctypedef int (*zone_fn)(void *ctx, const zone_t *zone) noexcept nogil

cdef zone_t *zone_reserve(const char *name, size_t size, int node, uint32_t flags, size_t align,
                          size_t bound, int *rc) noexcept nogil
cdef zone_t *zone_lookup(const char *name) noexcept nogil
cdef int zone_free(zone_t *zone) noexcept nogil
cdef int zone_free_name(const char *name) noexcept nogil
cdef int zone_walk(zone_fn fn, void *ctx) noexcept nogil
