"""Where new segments of the heap come from: sizes of pages, directories, names of files.

Owner:    the primary process has one, filled while it starts; nothing of it is shared.
Threads:  any, under the lock of the record.
Fails:    -errno.
"""
from libc.stdint cimport uint32_t
from vhostrt.env.heap cimport HEAP_NODES, want_t
from vhostrt.env.segment cimport segment_t
from vhostrt.env.shared cimport env_config_t

cdef enum:
    SUPPLY_SIZES = 4
    SUPPLY_NAME = 160           # bytes of a directory's name, or of the prefix of files

cdef struct pages_of_t:
    size_t size                 # bytes of a page; PAGE for ordinary ones
    bint unasked                # taken also by who does not ask for this size
    char directory[SUPPLY_NAME]         # where its files are; "": it has none, but memfds

cdef struct supply_t:
    bint fixed                  # there is nothing but what there was at the start
    bint unlink                 # files lose their names at once
    bint single                 # one file for each page size and node
    bint anywhere               # memory of any node will do: it is of ordinary pages
    bint enforce                # ordinary pages, too, come from the node asked for or not at all
    uint32_t next_file
    char prefix[SUPPLY_NAME]
    int huge_count
    pages_of_t huge[SUPPLY_SIZES]       # tried in this order
    pages_of_t ordinary
    int node_count
    int nodes[HEAP_NODES]       # of the machine, ascending

cdef int supply_segment(supply_t *supply, env_config_t *c, pages_of_t *pages, size_t size,
                        int node, char *at, segment_t *segment, char *file) noexcept nogil
cdef int supply_growth(supply_t *supply, env_config_t *c, const want_t *want, int node,
                       int *option, segment_t *segment, char *file) noexcept nogil
cdef bint supply_has(supply_t *supply, int node) noexcept nogil
cdef int supply_file(supply_t *supply, const pages_of_t *pages, char *file) noexcept nogil
