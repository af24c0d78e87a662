"""The lcores that run services: which they are, and when they run.

Owner:    the control thread, by service_init and service_fini.
Threads:  as told in service.pxd.
Fails:    -errno, as told at each function.
"""
from libc.errno cimport EALREADY, EBUSY, EINVAL
from libc.stdint cimport uint32_t, uint64_t
from posix.unistd cimport getpid
from vhostrt.base.atomics cimport load_acquire_u64, store_release_u32
from vhostrt.env.lcore cimport (LCORE_MAX, LCORE_NONE, LCORE_ROLE_OFF, LCORE_ROLE_RTE,
                                LCORE_ROLE_SERVICE, lcore_launch, lcore_next_service, lcore_role,
                                lcore_set_role, lcore_wait)
from vhostrt.env.service cimport (
    SERVICE_MAX, core_at, core_clear, core_is_needed, core_make, core_t, service_core_at,
    service_loop, service_map_set, service_runstate_set, services_forget, services_lock,
    services_unlock)

cdef extern from "<errno.h>":
    enum:
        ENOTSUP

cdef uint32_t g_pid = 0         # of the process that did service_init; 0: nobody has


cdef int service_lcore_add(uint32_t lcore) noexcept nogil:
    """Make a waiting lcore of the application one of services; no service is mapped to it.

    0
    -EALREADY  it is one
    -EBUSY     it is running, or nobody has waited for its last function
    -EINVAL    not enabled, or the main lcore
    -ENOMEM
    """
    cdef int rc
    if lcore_role(lcore) == LCORE_ROLE_OFF:
        return -EINVAL
    services_lock()
    if service_core_at(lcore) is not NULL:
        rc = -EALREADY
    else:
        rc = lcore_set_role(lcore, LCORE_ROLE_SERVICE)
        if rc == 0:
            rc = core_make(lcore)
        if rc == 0:
            core_at(lcore).added = True
    services_unlock()
    return rc


cdef int service_lcore_del(uint32_t lcore) noexcept nogil:
    """Make a service lcore that is stopped one of the application; its services are taken off.

    0
    -EBUSY   it is running
    -EINVAL  no service lcore
    """
    cdef core_t *core
    cdef int rc = -EINVAL
    services_lock()
    core = service_core_at(lcore)
    if core is not NULL:
        rc = -EBUSY if core.running else lcore_set_role(lcore, LCORE_ROLE_RTE)
    if rc == 0:
        core_clear(core)
    services_unlock()
    return rc


cdef int service_lcore_start(uint32_t lcore) noexcept nogil:
    """Have a service lcore run what is mapped to it.

    0
    -EALREADY  it does
    -EBUSY     it is doing something else
    -EINVAL    no service lcore
    """
    cdef core_t *core
    cdef int rc = -EINVAL
    services_lock()
    core = service_core_at(lcore)
    if core is not NULL:
        rc = -EALREADY
        if not core.running:
            store_release_u32(&core.running, 1)
            rc = lcore_launch(lcore, service_loop, core)
            if rc < 0:
                store_release_u32(&core.running, 0)
    services_unlock()
    return rc


cdef int service_lcore_stop(uint32_t lcore) noexcept nogil:
    """Have a service lcore end its loop; return when it has, unless it is the caller.

    0
    -EALREADY  it is stopped
    -EBUSY     a service that runs would have no lcore
    -EINVAL    no service lcore
    """
    cdef core_t *core
    cdef int ret, rc = -EINVAL
    services_lock()
    core = service_core_at(lcore)
    if core is not NULL:
        rc = -EALREADY if not core.running else -EBUSY if core_is_needed(core) else 0
        if rc == 0:
            store_release_u32(&core.running, 0)
    services_unlock()
    if rc == 0:
        lcore_wait(lcore, &ret)                                 # the caller itself is refused
    return rc


cdef int service_lcore_loops(uint32_t lcore, uint64_t *loops) noexcept nogil:
    """Write how often a service lcore has been through its services; 0 or -EINVAL."""
    cdef core_t *core = service_core_at(lcore)
    if core is NULL:
        return -EINVAL
    loops[0] = load_acquire_u64(&core.loops)
    return 0


cdef int service_start_with_defaults() noexcept nogil:
    """Map each service to one service lcore, in turn, let it run, and start the lcores.

    0
    -ENOTSUP  there are no service lcores
    another   an lcore cannot be started
    """
    cdef uint32_t lcore = lcore_next_service(LCORE_NONE)
    cdef uint32_t i
    cdef int rc
    if lcore == LCORE_NONE:
        return -ENOTSUP
    for i in range(<uint32_t>SERVICE_MAX):
        if service_map_set(i, lcore, True) == 0:
            service_runstate_set(i, True)
            lcore = lcore_next_service(lcore)
            if lcore == LCORE_NONE:
                lcore = lcore_next_service(LCORE_NONE)
    lcore = lcore_next_service(LCORE_NONE)
    while lcore != LCORE_NONE:
        rc = service_lcore_start(lcore)
        if rc < 0 and rc != -EALREADY:
            return rc
        lcore = lcore_next_service(lcore)
    return 0


cdef int service_init(bint spin) noexcept nogil:
    """Know the lcores there are, so that each counts for itself.  Control thread.

    spin: service lcores never give their CPU away.
    0
    -EALREADY  again, before service_fini
    -ENOMEM
    """
    global g_pid
    cdef uint32_t lcore
    cdef int rc = 0
    if g_pid == <uint32_t>getpid():
        return -EALREADY
    services_forget(spin)                                       # what a fork left of the parent's
    for lcore in range(<uint32_t>LCORE_MAX):
        if rc == 0 and lcore_role(lcore) != LCORE_ROLE_OFF:
            rc = core_make(lcore)
    if rc < 0:
        services_forget(False)
    else:
        g_pid = getpid()
    return rc


cdef void service_fini() noexcept nogil:
    """Stop the service lcores, whatever runs there, and forget all services.  Control thread.

    Lcores that were added are the application's again.  A forked child only forgets.
    """
    global g_pid
    cdef core_t *core
    cdef uint32_t lcore
    cdef int ret
    for lcore in range(<uint32_t>LCORE_MAX):
        core = core_at(lcore)
        if core is NULL or g_pid != <uint32_t>getpid():
            continue
        if core.running:
            store_release_u32(&core.running, 0)
            lcore_wait(lcore, &ret)
        if core.added:
            lcore_set_role(lcore, LCORE_ROLE_RTE)
    services_forget(False)
    g_pid = 0
