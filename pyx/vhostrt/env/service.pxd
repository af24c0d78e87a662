"""Services: functions that lcores of services call over and over.

Owner:    whoever registers one, until service_unregister or service.fini.
Threads:  registration, states and lcores from any that is not running the service; the functions
          run on service lcores, and on whoever calls service_run_iter.
Fails:    -errno, as told at each function; -EINVAL where there is no such service.
"""
from libc.stdint cimport uint32_t, uint64_t

cdef enum:
    SERVICE_MAX = 64
    SERVICE_NAME_MAX = 31       # bytes
    SERVICE_MT_SAFE = 1         # capability: several lcores may be in it at once

# Returns more than 0 when it found work: lcores that find none give their CPU away at times.
ctypedef int (*service_fn)(void *arg) noexcept nogil

ctypedef struct service_stats_t:
    uint64_t calls
    uint64_t cycles             # ticks of the clock

cdef int service_register(const char *name, service_fn fn, void *arg, uint32_t capabilities,
                          uint32_t *id_) noexcept nogil
cdef int service_unregister(uint32_t id_) noexcept nogil
cdef int service_by_name(const char *name, uint32_t *id_) noexcept nogil
cdef uint32_t service_count() noexcept nogil
cdef int service_component_runstate_set(uint32_t id_, bint on) noexcept nogil
cdef int service_runstate_set(uint32_t id_, bint on) noexcept nogil
cdef int service_runstate_get(uint32_t id_) noexcept nogil
cdef int service_mapped_check_set(uint32_t id_, bint on) noexcept nogil
cdef int service_stats_set(uint32_t id_, bint on) noexcept nogil
cdef int service_stats_get(uint32_t id_, uint32_t lcore, service_stats_t *stats) noexcept nogil
cdef int service_stats_reset(uint32_t id_) noexcept nogil
cdef int service_map_set(uint32_t id_, uint32_t lcore, bint on) noexcept nogil
cdef int service_map_get(uint32_t id_, uint32_t lcore) noexcept nogil
cdef int service_run_iter(uint32_t id_, bint serialize) noexcept nogil

# For service_lcore.pyx.

ctypedef struct core_t:
    uint32_t lcore
    uint32_t running            # it is to go on looping
    uint32_t looping            # it is in service_loop
    bint added                  # by service_lcore_add: no service lcore before
    uint64_t mask               # of services mapped to it; written under the lock
    uint64_t loops              # that have begun
    service_stats_t stats[SERVICE_MAX]  # written by the lcore alone

cdef void services_lock() noexcept nogil
cdef void services_unlock() noexcept nogil
cdef void services_forget(bint spin) noexcept nogil
cdef int service_loop(void *arg) noexcept nogil
cdef core_t *core_at(uint32_t lcore) noexcept nogil
cdef core_t *service_core_at(uint32_t lcore) noexcept nogil
cdef int core_make(uint32_t lcore) noexcept nogil
cdef bint core_is_needed(core_t *core) noexcept nogil
cdef void core_clear(core_t *core) noexcept nogil
