"""Tail queues: lists of named objects, in the record of the environment, for all its processes.

Owner:    an entry is there until tailq_remove; what it points to belongs to who added it.
Threads:  any, under the lock of the record: set-up time only.
Fails:    -errno, as told at each function.
Source:   eal_common_tailqs.c of DPDK.
"""
from vhostrt.env.shared cimport (TAILQ_END, TAILQ_ENTRIES, TAILQ_NAME, TAILQS, env_config_t,
                                 tailq_entry_t, tailq_t)

# The lists RTE_RING and RTE_MEMPOOL are there from the start.
cdef int tailq_register(const char *name) noexcept nogil
cdef int tailq_lookup(const char *name) noexcept nogil
cdef int tailq_add(const char *list_, const char *name, void *object) noexcept nogil
cdef void *tailq_find(const char *list_, const char *name) noexcept nogil
cdef int tailq_remove(const char *list_, const char *name) noexcept nogil
cdef int new_list(env_config_t *c, const char *name) noexcept nogil
