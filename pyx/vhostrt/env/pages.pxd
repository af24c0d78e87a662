"""The pages of a file of huge pages: where they are physically, and mapped in that order."""
from libc.stdint cimport uint32_t, uint64_t
from vhostrt.env.heap cimport REGION_FILE
from vhostrt.env.segment cimport segment_t
from vhostrt.env.shared cimport env_config_t
from vhostrt.env.supply cimport pages_of_t, supply_t

cdef struct page_t:
    uint64_t address            # physical; without those, where it is in the file
    uint32_t index              # in the file
    int node


cdef class Pages:
    cdef segment_t file         # the first mapping; base is NULL once it is gone
    cdef page_t *list           # count pages, in the order of the mapping to be
    cdef uint32_t count
    cdef bint physical          # the addresses are physical ones
    cdef bint nameless
    cdef char name[REGION_FILE]         # of the file; "": a memfd
    cdef int take(self, uint32_t wanted) except -1
    cdef int learn(self, bint sort, bint one_node) except -1
    cdef int map_into(self, env_config_t *c) except -1
    cdef int give_nodes(self, env_config_t *c, char *at, uint32_t first) except -1
    cdef int give_region(self, env_config_t *c, char *at, uint32_t first, uint32_t i,
                         uint32_t n) noexcept

cdef Pages new_pages(supply_t *supply, const pages_of_t *pages, uint32_t count)
cdef Pages reserved_pages(str path, size_t size, int node, bint shared)
