"""Services: functions that lcores of services call over and over.

A service runs where it is mapped to, while both its component and the application say so.  A
function that is not MT-safe is guarded by a lock that is only ever tried: who finds it taken goes
on with the next service.

An lcore counts the loops it begins by a read-modify-write, and whoever takes something away from it
does one on the same counter: the loops after that see the change, and the one before is waited for.

Owner:    whoever registers one, until unregister or fini.
Threads:  as told in service.pxd.
Fails:    -errno.  service_lcore.pyx has the lcores, services.pyx is the Python face.
"""
from libc.errno cimport (EBUSY, EINVAL, ENAMETOOLONG, ENOENT, ENOEXEC, ENOMEM, ENOSPC)
from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset, strcmp, strcpy, strlen
from vhostrt.base.atomics cimport (exchange_u32, fetch_add_u32, fetch_add_u64, fetch_sub_u32,
                                   load_acquire_u32, load_acquire_u64, load_relaxed_u64,
                                   store_relaxed_u64, store_release_u32, store_release_u64,
                                   u32_line)
from vhostrt.base.check cimport static_check
from vhostrt.base.pthreads cimport (pthread_mutex_init, pthread_mutex_lock, pthread_mutex_t,
                                    pthread_mutex_unlock)
from vhostrt.base.ticks cimport ticks_now
from vhostrt.env.lcore cimport (LCORE_MAX, LCORE_NONE, LCORE_ROLE_SERVICE, lcore_current,
                                lcore_role)

cdef extern from * nogil:
    int ctz "__builtin_ctzll"(uint64_t)

cdef extern from "<sched.h>" nogil:
    int sched_yield()

cdef enum:
    IDLE_LOOPS = 64             # without work, between two yields
    LCORE_WORDS = 16            # of 64 bits, one for each lcore
    # The state of a service; 0: its place is free.
    USED = 1
    COMPONENT = 2               # its component lets it run
    APPLICATION = 4             # the application does
    UNCHECKED = 8               # it counts as able to run without an lcore
    STATS = 16
    MT_SAFE = 32
    LEAVING = 64                # it is unregistered, but somebody may be in it
    BOTH = COMPONENT | APPLICATION

ctypedef struct service_t:
    char name[32]
    service_fn fn
    void *arg
    uint32_t state              # written under g_lock, stored with release
    uint32_t mapped             # lcores it is mapped to
    u32_line lock               # 1 while somebody is in one that is not MT-safe
    uint32_t inside             # threads in service_run_iter

# Under g_lock, unless told otherwise above.
cdef pthread_mutex_t g_lock
cdef service_t g_services[SERVICE_MAX]
cdef core_t *g_cores[LCORE_MAX]         # of lcores there were at init, or were added
cdef service_stats_t g_others[SERVICE_MAX]      # of threads that have no core_t
cdef bint g_spin = False        # written while no lcore loops

pthread_mutex_init(&g_lock, NULL)


cdef service_t *service_at(uint32_t id_) noexcept nogil:
    """Return a registered service, or NULL."""
    if id_ >= <uint32_t>SERVICE_MAX or not load_acquire_u32(&g_services[id_].state) & USED:
        return NULL
    return &g_services[id_]


cdef core_t *core_at(uint32_t lcore) noexcept nogil:
    """Return what there is of an lcore; NULL when there was none at service_init, nor added."""
    return g_cores[lcore] if lcore < <uint32_t>LCORE_MAX else NULL


cdef core_t *service_core_at(uint32_t lcore) noexcept nogil:
    """Return the state of a service lcore, or NULL."""
    return core_at(lcore) if lcore_role(lcore) == LCORE_ROLE_SERVICE else NULL


# Running.

cdef void count(core_t *core, uint32_t id_, uint64_t cycles) noexcept nogil:
    cdef service_stats_t *stats
    if core is NULL:
        fetch_add_u64(&g_others[id_].calls, 1)
        fetch_add_u64(&g_others[id_].cycles, cycles)
        return
    stats = &core.stats[id_]
    store_relaxed_u64(&stats.calls, load_relaxed_u64(&stats.calls) + 1)
    store_relaxed_u64(&stats.cycles, load_relaxed_u64(&stats.cycles) + cycles)


cdef int call_now(service_t *service, uint32_t state, core_t *core) noexcept nogil:
    """Call the function; return what it does."""
    cdef uint64_t start
    cdef int rc
    if not state & STATS:
        return service.fn(service.arg)
    start = ticks_now()
    rc = service.fn(service.arg)
    count(core, <uint32_t>(service - g_services), ticks_now() - start)
    return rc


cdef int run(service_t *service, core_t *core, bint serialize, int *found) noexcept nogil:
    """Call a service once; 0, and *found is what it returned, -ENOEXEC, or -EBUSY: it is locked."""
    cdef uint32_t state = load_acquire_u32(&service.state)
    if state & (USED | BOTH) != USED | BOTH:
        return -ENOEXEC
    if state & MT_SAFE or not serialize:
        found[0] = call_now(service, state, core)
        return 0
    if exchange_u32(&service.lock, 1):
        return -EBUSY
    found[0] = call_now(service, state, core)
    store_release_u32(&service.lock, 0)
    return 0


cdef int service_loop(void *arg) noexcept nogil:
    """Call what is mapped to this lcore until it is stopped."""
    cdef core_t *core = <core_t *>arg
    cdef uint64_t mask
    cdef uint32_t idle = 0
    cdef int found
    store_release_u32(&core.looping, 1)
    while load_acquire_u32(&core.running):
        fetch_add_u64(&core.loops, 1)                           # with quiesce
        mask = load_acquire_u64(&core.mask)
        idle += 1
        while mask:
            found = 0
            run(&g_services[ctz(mask)], core, True, &found)
            if found > 0:
                idle = 0
            mask &= mask - 1
        if idle >= <uint32_t>IDLE_LOOPS:
            idle = 0
            if not g_spin:
                sched_yield()
    store_release_u32(&core.looping, 0)
    return 0


cdef int service_run_iter(uint32_t id_, bint serialize) noexcept nogil:
    """Call a service once on the calling thread, which need not be one of its lcores.

    serialize: as on a service lcore; else the caller sees to it that one that is not MT-safe runs
    nowhere else.
    0
    -EBUSY    it is not MT-safe, and running elsewhere
    -ENOEXEC  its component or the application does not let it run
    -EINVAL   no such service
    """
    cdef service_t *service
    cdef int rc, found = 0
    if id_ >= <uint32_t>SERVICE_MAX:
        return -EINVAL
    service = &g_services[id_]
    fetch_add_u32(&service.inside, 1)                           # with quiesce
    if service_at(id_) is NULL:
        rc = -EINVAL
    else:
        rc = run(service, core_at(lcore_current()), serialize, &found)
    fetch_sub_u32(&service.inside, 1)
    return rc


cdef void quiesce(core_t *core) noexcept nogil:
    """Wait until an lcore is out of the loop that it is in: what was changed before, it has seen.

    Without g_lock, which a service in that loop may want.  Not the lcore itself: that would be
    for ever.
    """
    cdef uint64_t loops = fetch_add_u64(&core.loops, 0)         # with service_loop
    if core.lcore == lcore_current():
        return
    while load_acquire_u32(&core.looping) and load_acquire_u64(&core.loops) == loops:
        sched_yield()


# Registration and states.

cdef int service_register(const char *name, service_fn fn, void *arg, uint32_t capabilities,
                          uint32_t *id_) noexcept nogil:
    """Register a service, which runs nowhere yet; *id_ is the lowest number that is free.

    capabilities: 0 or SERVICE_MT_SAFE.
    0
    -EINVAL        no name or no function, or no such capability
    -ENAMETOOLONG  a name of more than SERVICE_NAME_MAX bytes
    -ENOSPC        SERVICE_MAX are registered
    """
    cdef int rc = -ENOSPC
    cdef uint32_t i
    if name is NULL or not name[0] or fn is NULL or capabilities & ~<uint32_t>SERVICE_MT_SAFE:
        return -EINVAL
    if strlen(name) > SERVICE_NAME_MAX:
        return -ENAMETOOLONG
    pthread_mutex_lock(&g_lock)
    for i in range(<uint32_t>SERVICE_MAX):
        if load_acquire_u32(&g_services[i].state) == 0:
            strcpy(g_services[i].name, name)
            g_services[i].fn = fn
            g_services[i].arg = arg
            clear_stats(i)
            store_release_u32(&g_services[i].state,
                              USED | (MT_SAFE if capabilities else 0))
            id_[0] = i
            rc = 0
            break
    pthread_mutex_unlock(&g_lock)
    return rc


cdef int begin_leaving(uint32_t id_, uint64_t *lcores) noexcept nogil:
    """Take a service off all lcores, which are noted; 0, -EBUSY or -EINVAL."""
    cdef service_t *service = service_at(id_)
    cdef uint32_t state, lcore
    if service is NULL:
        return -EINVAL
    if is_mapped(core_at(lcore_current()), id_):
        return -EBUSY
    state = service.state
    store_release_u32(&service.state, LEAVING)
    if fetch_add_u32(&service.inside, 0):                       # with service_run_iter
        store_release_u32(&service.state, state)
        return -EBUSY
    for lcore in range(<uint32_t>LCORE_MAX):
        if is_mapped(g_cores[lcore], id_):
            map_core(g_cores[lcore], id_, False)
            lcores[lcore // 64] |= <uint64_t>1 << lcore % 64
    return 0


cdef int service_unregister(uint32_t id_) noexcept nogil:
    """Take a service off its lcores and forget it; return when no lcore is in it any more.

    0
    -EBUSY   called on one of its lcores, or a thread is in service_run_iter of it
    -EINVAL  no such service
    """
    cdef uint64_t lcores[LCORE_WORDS]
    cdef uint32_t lcore
    cdef int rc
    static_check(LCORE_WORDS * 64 == LCORE_MAX)
    memset(lcores, 0, sizeof(lcores))
    pthread_mutex_lock(&g_lock)
    rc = begin_leaving(id_, lcores)
    pthread_mutex_unlock(&g_lock)
    if rc < 0:
        return rc
    for lcore in range(<uint32_t>LCORE_MAX):
        if lcores[lcore // 64] >> lcore % 64 & 1:
            quiesce(g_cores[lcore])
    store_release_u32(&g_services[id_].state, 0)
    return 0


cdef int service_by_name(const char *name, uint32_t *id_) noexcept nogil:
    """Find the lowest service of a name; 0, -ENOENT, or -EINVAL: no name."""
    cdef uint32_t i
    cdef int rc = -ENOENT
    if name is NULL:
        return -EINVAL
    pthread_mutex_lock(&g_lock)
    for i in range(<uint32_t>SERVICE_MAX):
        if service_at(i) is not NULL and strcmp(g_services[i].name, name) == 0:
            id_[0] = i
            rc = 0
            break
    pthread_mutex_unlock(&g_lock)
    return rc


cdef uint32_t service_count() noexcept nogil:
    """Return how many services are registered."""
    cdef uint32_t i, n = 0
    for i in range(<uint32_t>SERVICE_MAX):
        n += service_at(i) is not NULL
    return n


cdef int set_state(uint32_t id_, uint32_t bit, bint on) noexcept nogil:
    """Set or clear a bit of a service's state; 0, or -EINVAL: no such service."""
    cdef service_t *service
    pthread_mutex_lock(&g_lock)
    service = service_at(id_)
    if service is not NULL:
        store_release_u32(&service.state, service.state | bit if on else service.state & ~bit)
    pthread_mutex_unlock(&g_lock)
    return -EINVAL if service is NULL else 0


cdef int service_component_runstate_set(uint32_t id_, bint on) noexcept nogil:
    """Say, as the component, whether a service is able to run; 0 or -EINVAL.

    It may be running still when it has been switched off; service_unregister waits.
    """
    return set_state(id_, COMPONENT, on)


cdef int service_runstate_set(uint32_t id_, bint on) noexcept nogil:
    """Say, as the application, whether a service is to run; 0 or -EINVAL."""
    return set_state(id_, APPLICATION, on)


cdef int service_runstate_get(uint32_t id_) noexcept nogil:
    """1: it runs, as both say so and it has an lcore or needs none; 0: it does not; -EINVAL."""
    cdef service_t *service = service_at(id_)
    cdef uint32_t state
    if service is NULL:
        return -EINVAL
    state = load_acquire_u32(&service.state)
    return (state & BOTH) == BOTH and ((state & UNCHECKED) != 0
                                       or load_acquire_u32(&service.mapped) > 0)


cdef int service_mapped_check_set(uint32_t id_, bint on) noexcept nogil:
    """Say whether service_runstate_get asks for an lcore too, as it does at first; 0 or -EINVAL."""
    return set_state(id_, UNCHECKED, not on)


# Statistics.

cdef void clear_stats(uint32_t id_) noexcept nogil:
    cdef uint32_t lcore
    memset(&g_others[id_], 0, sizeof(service_stats_t))
    for lcore in range(<uint32_t>LCORE_MAX):
        if g_cores[lcore] is not NULL:
            # An lcore in it may count one call more from what there was.
            store_relaxed_u64(&g_cores[lcore].stats[id_].calls, 0)
            store_relaxed_u64(&g_cores[lcore].stats[id_].cycles, 0)


cdef int service_stats_set(uint32_t id_, bint on) noexcept nogil:
    """Count calls and cycles of a service from now on, or no more; 0 or -EINVAL."""
    return set_state(id_, STATS, on)


cdef void add_stats(service_stats_t *total, service_stats_t *part) noexcept nogil:
    total.calls += load_relaxed_u64(&part.calls)
    total.cycles += load_relaxed_u64(&part.cycles)


cdef int service_stats_get(uint32_t id_, uint32_t lcore, service_stats_t *stats) noexcept nogil:
    """Write what has been counted on an lcore, or with LCORE_NONE everywhere; 0 or -EINVAL."""
    cdef core_t *core
    cdef uint32_t i
    cdef int rc = 0
    memset(stats, 0, sizeof(service_stats_t))
    pthread_mutex_lock(&g_lock)
    core = core_at(lcore)
    if service_at(id_) is NULL or lcore != LCORE_NONE and core is NULL:
        rc = -EINVAL
    elif core is not NULL:
        add_stats(stats, &core.stats[id_])
    else:
        add_stats(stats, &g_others[id_])
        for i in range(<uint32_t>LCORE_MAX):
            if g_cores[i] is not NULL:
                add_stats(stats, &g_cores[i].stats[id_])
    pthread_mutex_unlock(&g_lock)
    return rc


cdef int service_stats_reset(uint32_t id_) noexcept nogil:
    """Begin to count from 0; 0 or -EINVAL."""
    cdef int rc = -EINVAL
    pthread_mutex_lock(&g_lock)
    if service_at(id_) is not NULL:
        clear_stats(id_)
        rc = 0
    pthread_mutex_unlock(&g_lock)
    return rc


# What is mapped where.

cdef bint is_mapped(core_t *core, uint32_t id_) noexcept nogil:
    return core is not NULL and (core.mask >> id_ & 1) != 0


cdef void map_core(core_t *core, uint32_t id_, bint on) noexcept nogil:
    """Map a service to an lcore, or take it off: quiesce says when the lcore is out of it."""
    cdef uint64_t bit = <uint64_t>1 << id_
    if is_mapped(core, id_) == on:
        return
    if on:
        store_release_u64(&core.mask, core.mask | bit)
        fetch_add_u32(&g_services[id_].mapped, 1)
        return
    store_release_u64(&core.mask, core.mask & ~bit)
    fetch_sub_u32(&g_services[id_].mapped, 1)


cdef int service_map_set(uint32_t id_, uint32_t lcore, bint on) noexcept nogil:
    """Have a service run on a service lcore, or no more, and then return when it is out of it.

    0, or -EINVAL: no such service or lcore.
    """
    cdef core_t *core
    cdef int rc = -EINVAL
    pthread_mutex_lock(&g_lock)
    core = service_core_at(lcore)
    if service_at(id_) is not NULL and core is not NULL:
        map_core(core, id_, on)
        rc = 0
    pthread_mutex_unlock(&g_lock)
    if rc == 0 and not on:
        quiesce(core)
    return rc


cdef int service_map_get(uint32_t id_, uint32_t lcore) noexcept nogil:
    """1: a service is mapped to a service lcore, 0: not, -EINVAL: no such service or lcore."""
    cdef core_t *core
    cdef int rc = -EINVAL
    pthread_mutex_lock(&g_lock)
    core = service_core_at(lcore)
    if service_at(id_) is not NULL and core is not NULL:
        rc = is_mapped(core, id_)
    pthread_mutex_unlock(&g_lock)
    return rc


# For service_lcore.pyx.

cdef void services_lock() noexcept nogil:
    """Keep the table and what is mapped as it is; not for long."""
    pthread_mutex_lock(&g_lock)


cdef void services_unlock() noexcept nogil:
    pthread_mutex_unlock(&g_lock)


cdef int core_make(uint32_t lcore) noexcept nogil:
    """Have what there is of an lcore; 0 or -ENOMEM."""
    if g_cores[lcore] is NULL:
        g_cores[lcore] = <core_t *>calloc(1, sizeof(core_t))
        if g_cores[lcore] is NULL:
            return -ENOMEM
        g_cores[lcore].lcore = lcore
    return 0


cdef bint core_is_needed(core_t *core) noexcept nogil:
    """True when a service that runs has no other lcore."""
    cdef uint32_t i
    for i in range(<uint32_t>SERVICE_MAX):
        if is_mapped(core, i) and g_services[i].mapped == 1 and service_runstate_get(i) == 1:
            return True
    return False


cdef void core_clear(core_t *core) noexcept nogil:
    """Take all services off an lcore that does not loop."""
    cdef uint32_t i
    for i in range(<uint32_t>SERVICE_MAX):
        map_core(core, i, False)


cdef void services_forget(bint spin) noexcept nogil:
    """Begin anew, while no lcore loops; the lock is free again whoever had it.

    spin: service lcores are never to give their CPU away.
    """
    global g_spin
    cdef uint32_t lcore
    pthread_mutex_init(&g_lock, NULL)
    for lcore in range(<uint32_t>LCORE_MAX):
        free(g_cores[lcore])
        g_cores[lcore] = NULL
    memset(g_services, 0, sizeof(g_services))
    memset(g_others, 0, sizeof(g_others))
    g_spin = spin
