"""The record of an environment: its heap, zones and lists, which other processes may map.

It holds numbers, names and pointers into memory that every process has at the same address; no
pointer to code and no Python object.

Owner:    the primary process makes it and takes it away; secondary processes attach and detach.
Threads:  any, under its lock; the fields that say so are written before others see it.
Fails:    -errno below, OSError with a sentence from the Python face.
"""
from libc.stdint cimport uint32_t, uint64_t
from vhostrt.env.heap cimport heap_t, region_t

cdef extern from "<pthread.h>" nogil:
    ctypedef struct pthread_mutex_t:
        pass

cdef extern from "<errno.h>" nogil:
    enum:
        EOWNERDEAD

cdef enum:
    ZONES = 2560
    ZONE_NAME = 32              # bytes of a name, with its NUL

cdef struct zone_t:
    char name[ZONE_NAME]        # "": the slot is free
    void *addr
    size_t len                  # bytes asked for, in whole cache lines
    uint64_t iova               # where a device sees it; UINT64_MAX: not known, or in pieces
    size_t page_size            # bytes
    int node                    # NUMA node
    uint32_t flags              # 0; none is defined
    uint32_t region             # number of the memory segment it lies in
    uint32_t serial             # of no other zone of this environment, ever

cdef enum:
    TAILQS = 32
    TAILQ_NAME = 32             # bytes of a name, with its NUL
    TAILQ_ENTRIES = 4096        # of all lists together
    TAILQ_END = 0xFFFFFFFF      # no entry

cdef struct tailq_entry_t:
    char name[TAILQ_NAME]       # "": the entry is free
    void *object                # in memory that all processes have at one address
    uint32_t next               # the entry behind it, or TAILQ_END

cdef struct tailq_t:
    char name[TAILQ_NAME]       # "": the list is not registered
    uint32_t first
    uint32_t last
    uint32_t count

cdef struct config_head_t:
    # What a process has to know before it can map the rest.
    uint64_t magic              # 0 until the primary has everything ready, and when it ends
    uint32_t version
    uint32_t pid                # of the primary
    uint64_t size               # bytes of the record, in whole pages
    char *at                    # where every process has it
    uint64_t range_size         # bytes of addresses behind it for all memory; 0: that is anywhere
    uint32_t nameless           # files lose their names at once: no process can attach

cdef struct env_config_t:
    config_head_t head
    uint32_t changing           # the primary is in the tables
    uint32_t broken             # ... and has died there: they may be half changed
    pthread_mutex_t mutex       # robust, of several processes
    uint32_t zone_end           # slots that have ever been used
    uint32_t zone_count
    uint32_t zone_serial        # of the zone reserved last
    uint32_t entry_end
    heap_t heap
    zone_t zones[ZONES]
    tailq_t tailqs[TAILQS]
    tailq_entry_t entries[TAILQ_ENTRIES]

cdef int config_lock(env_config_t *c, bint change) noexcept nogil
cdef void config_unlock(env_config_t *c) noexcept nogil
cdef env_config_t *config_create(int fd, char *at, uint64_t range_size, int *rc) noexcept nogil
cdef env_config_t *config_attach(int fd, int *rc) noexcept nogil
cdef void config_ready(env_config_t *c) noexcept nogil
cdef int config_map_pages(env_config_t *c, char *at, size_t page_size, uint32_t first,
                          uint32_t count, int fd) noexcept nogil
cdef int config_map_region(env_config_t *c, region_t *region) noexcept nogil
cdef bint config_sound(env_config_t *c) noexcept nogil
cdef void config_unmap(env_config_t *c) noexcept nogil
cdef char *range_find(env_config_t *c, size_t size, size_t align) noexcept nogil
