"""Logical cores: one pthread for each, given work over a pipe.

Owner:    the control thread, by init and fini; they may be repeated in one process.
Threads:  the Python face from the control thread; the C face as told in lcore.pxd.
Fails:    ValueError or OSError with a sentence that names the lcore or the CPU.
"""
import os

from libc.errno cimport EALREADY, EBUSY, EINTR, EINVAL, EPIPE, ESRCH, errno
from libc.stdint cimport uint8_t, uint32_t
from libc.stdio cimport snprintf
from libc.stdlib cimport calloc, free
from posix.fcntl cimport O_CLOEXEC
from posix.types cimport pid_t
from posix.unistd cimport close, getpid, read, write
from vhostrt.base.atomics cimport load_acquire_u32, store_release_u32
from vhostrt.base.errors cimport ok
from vhostrt.base.pthreads cimport (
    EDEADLK, pthread_cond_broadcast, pthread_cond_destroy, pthread_cond_init, pthread_cond_t,
    pthread_cond_wait, pthread_join, pthread_mutex_destroy, pthread_mutex_init, pthread_mutex_lock,
    pthread_mutex_t, pthread_mutex_unlock, pthread_self, pthread_setname_np, pthread_t,
    thread_start)
from vhostrt.env.affinity cimport (CPU_ISSET, CPU_MAX, CPU_OR, CPU_SET, CPU_ZERO, affinity_learn,
                                   affinity_node, affinity_set, cpu_set_t)

from vhostrt.env.cpus import cpu_list, detect
from vhostrt.env.roots import SYSTEM, Roots

cdef extern from *:
    """
    #include <fcntl.h>
    #include <stdint.h>
    #include <sys/syscall.h>
    #include <unistd.h>
    /* The one copy of it in the process: other modules ask lcore_current(). */
    static __thread uint32_t vh_lcore_id = UINT32_MAX;
    #define vh_gettid() ((int)syscall(SYS_gettid))
    """
    uint32_t t_lcore "vh_lcore_id"
    int gettid "vh_gettid"() nogil
    int pipe2(int *fds, int flags) nogil

cdef enum:
    READY = 1                   # from the lcore: it has started, or has taken its work
    RUN = 2                     # to the lcore
    QUIT = 3

cdef struct lcore_t:
    uint32_t id
    uint32_t state              # LCORE_*; stored with release, read with acquire
    uint32_t role               # LCORE_ROLE_*; changed in WAIT alone, under launching
    int to_lcore[2]             # pipes: reading end, writing end; -1 when not made
    int from_lcore[2]
    int node                    # of all its CPUs; -1 when they are mixed
    int rc                      # of its start
    int tid
    int ret                     # of fn
    lcore_fn fn
    void *arg
    bint started                # thread is to be joined
    pthread_t thread
    pthread_mutex_t launching   # one launcher at a time
    pthread_mutex_t finishing   # ret, and the step out of RUNNING and from FINISHED
    pthread_cond_t finished
    cpu_set_t cpus

# Written by init and fini, of the control thread.
cdef lcore_t *g_lcores[LCORE_MAX]
cdef uint32_t g_count = 0       # of every role
cdef uint32_t g_main = LCORE_NONE
cdef pid_t g_pid = 0
cdef object g_control = None    # (thread id, its CPUs before control_affinity)

STATES = {LCORE_OFF: "OFF", LCORE_WAIT: "WAIT", LCORE_RUNNING: "RUNNING",
          LCORE_FINISHED: "FINISHED"}
ROLES = {LCORE_ROLE_RTE: "RTE", LCORE_ROLE_OFF: "OFF", LCORE_ROLE_SERVICE: "SERVICE"}


# The two pipes of an lcore carry single bytes.

cdef int pipe_send(int fd, uint8_t byte) noexcept nogil:
    """Write one byte; 0 or -errno."""
    while write(fd, &byte, 1) != 1:
        if errno != EINTR:
            return -errno
    return 0


cdef int pipe_receive(int fd) noexcept nogil:
    """Wait for one byte and return it; -EPIPE when the other end is gone, or -errno."""
    cdef uint8_t byte = 0
    cdef ssize_t n
    while True:
        n = read(fd, &byte, 1)
        if n == 1:
            return byte
        if n == 0:
            return -EPIPE
        if errno != EINTR:
            return -errno


cdef void name_thread(uint32_t lcore) noexcept nogil:
    """Name the calling thread after its lcore, within the 15 characters there are."""
    cdef char name[16]
    snprintf(name, sizeof(name), b"lcore-worker-%u" if lcore < 100 else b"lcore-%u", lcore)
    pthread_setname_np(pthread_self(), name)


cdef void *lcore_loop(void *arg) noexcept nogil:
    """Run what comes over the pipe; ends on QUIT, or when the pin cannot be had."""
    global t_lcore
    cdef lcore_t *core = <lcore_t *>arg
    cdef int ret
    t_lcore = core.id
    core.tid = gettid()
    name_thread(core.id)
    # By the thread itself, before anything else of it runs: it inherited its creator's CPUs.
    core.rc = affinity_set(&core.cpus)
    pipe_send(core.from_lcore[1], READY)
    if core.rc < 0:
        return NULL
    while pipe_receive(core.to_lcore[0]) == RUN:
        store_release_u32(&core.state, LCORE_RUNNING)
        pipe_send(core.from_lcore[1], READY)
        ret = core.fn(core.arg)
        pthread_mutex_lock(&core.finishing)
        core.ret = ret
        store_release_u32(&core.state, LCORE_WAIT if core.role == <uint32_t>LCORE_ROLE_SERVICE
                          else LCORE_FINISHED)
        pthread_cond_broadcast(&core.finished)
        pthread_mutex_unlock(&core.finishing)
    return NULL


cdef int lcore_start(lcore_t *core) noexcept nogil:
    """Make pipes and thread; it is not ready before its READY has been received."""
    cdef int rc
    if pipe2(core.to_lcore, O_CLOEXEC) < 0 or pipe2(core.from_lcore, O_CLOEXEC) < 0:
        return -errno
    rc = thread_start(&core.thread, lcore_loop, core)
    core.started = rc == 0
    return rc


cdef void lcore_end(lcore_t *core) noexcept nogil:
    """Let the thread end, join it and free everything; it is not running a function."""
    cdef int i
    if core.started:
        pipe_send(core.to_lcore[1], QUIT)
        pthread_join(core.thread, NULL)
    for i in range(2):
        if core.to_lcore[i] >= 0:
            close(core.to_lcore[i])
        if core.from_lcore[i] >= 0:
            close(core.from_lcore[i])
    pthread_cond_destroy(&core.finished)
    pthread_mutex_destroy(&core.finishing)
    pthread_mutex_destroy(&core.launching)
    free(core)


cdef lcore_t *lcore_at(uint32_t lcore) noexcept nogil:
    return g_lcores[lcore] if lcore < LCORE_MAX else NULL


cdef int hand_over(lcore_t *core, lcore_fn fn, void *arg) noexcept nogil:
    """Have fn(arg) run on an lcore in WAIT, under its launching; 0 or -errno."""
    cdef int rc
    core.fn = fn
    core.arg = arg
    rc = pipe_send(core.to_lcore[1], RUN)
    return min(pipe_receive(core.from_lcore[0]), 0) if rc == 0 else rc


cdef int lcore_launch(uint32_t lcore, lcore_fn fn, void *arg) noexcept nogil:
    """Have fn(arg) run on an lcore; return when it has begun.

    0        running, or already finished
    -EBUSY   the lcore is running, or nobody has waited for its last function; nothing was sent
    -EINVAL  not enabled, or fn is NULL
    -ESRCH   a forked child: the threads are the parent's
    """
    cdef lcore_t *core = lcore_at(lcore)
    cdef int rc = -EBUSY
    if core is NULL or fn is NULL:
        return -EINVAL
    if getpid() != g_pid:
        return -ESRCH
    if core.id == lcore_current():
        return -EBUSY
    pthread_mutex_lock(&core.launching)
    if load_acquire_u32(&core.state) == LCORE_WAIT:
        rc = hand_over(core, fn, arg)
    pthread_mutex_unlock(&core.launching)
    return rc


cdef int lcore_launch_all(lcore_fn fn, void *arg, bint main_too) noexcept nogil:
    """Have fn(arg) run on each lcore of the application, in ascending order; the main one or not.

    0        each is running, or already finished
    -EBUSY   one of them is not in WAIT; nothing was launched
    -EINVAL  fn is NULL, or there are no lcores
    -ESRCH   a forked child
    """
    cdef uint32_t lcore
    cdef int rc = 0
    if fn is NULL or g_count == 0:
        return -EINVAL
    if getpid() != g_pid:
        return -ESRCH
    # All of them at once, and always in this order: nobody launches on one in between.
    for lcore in range(<uint32_t>LCORE_MAX):
        if takes_part(lcore, main_too):
            pthread_mutex_lock(&g_lcores[lcore].launching)
            if load_acquire_u32(&g_lcores[lcore].state) != LCORE_WAIT:
                rc = -EBUSY
    for lcore in range(<uint32_t>LCORE_MAX):
        if takes_part(lcore, main_too):
            if rc == 0:
                rc = hand_over(g_lcores[lcore], fn, arg)
            pthread_mutex_unlock(&g_lcores[lcore].launching)
    return rc


cdef bint takes_part(uint32_t lcore, bint main_too) noexcept nogil:
    return lcore_role(lcore) == LCORE_ROLE_RTE and (main_too or lcore != g_main)


cdef int lcore_wait(uint32_t lcore, int *ret) noexcept nogil:
    """Sleep until an lcore has finished its function; it then takes work again.

    0         *ret is what the function returned, told once; 0 when there was none to wait for
    -EINVAL   not enabled
    -EDEADLK  called on that lcore
    -ESRCH    a forked child
    """
    cdef lcore_t *core = lcore_at(lcore)
    ret[0] = 0
    if core is NULL:
        return -EINVAL
    if getpid() != g_pid:
        return -ESRCH
    if core.id == lcore_current():
        return -EDEADLK
    pthread_mutex_lock(&core.finishing)
    while load_acquire_u32(&core.state) == LCORE_RUNNING:
        pthread_cond_wait(&core.finished, &core.finishing)
        # One of services is in WAIT again by now.
        ret[0] = core.ret
    if load_acquire_u32(&core.state) == LCORE_FINISHED:
        ret[0] = core.ret
        store_release_u32(&core.state, LCORE_WAIT)
    pthread_mutex_unlock(&core.finishing)
    return 0


cdef void lcore_wait_all() noexcept nogil:
    """Wait for each lcore of the application, in ascending order; results are dropped."""
    cdef int ret
    cdef uint32_t lcore = lcore_next(LCORE_NONE)
    while lcore != LCORE_NONE:
        lcore_wait(lcore, &ret)
        lcore = lcore_next(lcore)


cdef uint32_t lcore_current() noexcept nogil:
    """Return the lcore of the calling thread, or LCORE_NONE."""
    return t_lcore


cdef int lcore_state(uint32_t lcore) noexcept nogil:
    """Return LCORE_OFF, WAIT, RUNNING or FINISHED."""
    cdef lcore_t *core = lcore_at(lcore)
    return LCORE_OFF if core is NULL else <int>load_acquire_u32(&core.state)


cdef int lcore_socket(uint32_t lcore) noexcept nogil:
    """Return the NUMA node of an lcore; -1 when its CPUs are of several, or it is not enabled."""
    cdef lcore_t *core = lcore_at(lcore)
    return -1 if core is NULL else core.node


cdef int lcore_set_cpus(const cpu_set_t *wanted) noexcept nogil:
    """Move the calling thread to these CPUs; when it is an lcore, they and their node are its own.

    0 or -errno, and then nothing has changed.
    """
    cdef lcore_t *core = lcore_at(lcore_current())
    cdef int rc = affinity_set(wanted)
    if rc == 0 and core is not NULL:
        pthread_mutex_lock(&core.finishing)
        core.cpus = wanted[0]
        core.node = affinity_node()
        pthread_mutex_unlock(&core.finishing)
    return rc


cdef int lcore_role(uint32_t lcore) noexcept nogil:
    """Return LCORE_ROLE_RTE, LCORE_ROLE_SERVICE, or LCORE_ROLE_OFF when it is not enabled."""
    cdef lcore_t *core = lcore_at(lcore)
    return LCORE_ROLE_OFF if core is NULL else <int>load_acquire_u32(&core.role)


cdef int lcore_set_role(uint32_t lcore, int role) noexcept nogil:
    """Give an lcore that waits another role: LCORE_ROLE_RTE or LCORE_ROLE_SERVICE.

    0
    -EBUSY   it is running, or nobody has waited for its last function
    -EINVAL  not enabled, no such role, or the main lcore is to run services
    -ESRCH   a forked child
    """
    cdef lcore_t *core = lcore_at(lcore)
    cdef int rc = -EBUSY
    if core is NULL or role not in (LCORE_ROLE_RTE, LCORE_ROLE_SERVICE):
        return -EINVAL
    if role == LCORE_ROLE_SERVICE and lcore == g_main:
        return -EINVAL
    if getpid() != g_pid:
        return -ESRCH
    pthread_mutex_lock(&core.launching)
    if load_acquire_u32(&core.state) == LCORE_WAIT:
        store_release_u32(&core.role, role)
        rc = 0
    pthread_mutex_unlock(&core.launching)
    return rc


cdef uint32_t next_of(uint32_t lcore, int role) noexcept nogil:
    """Return the lcore of a role after this one, or LCORE_NONE."""
    cdef uint32_t i
    for i in range(lcore + 1, <uint32_t>LCORE_MAX):                      # LCORE_NONE + 1 wraps to 0
        if lcore_role(i) == role:
            return i
    return LCORE_NONE


cdef uint32_t lcore_next(uint32_t lcore) noexcept nogil:
    """Return the application's lcore after this one (the first after LCORE_NONE), or LCORE_NONE."""
    return next_of(lcore, LCORE_ROLE_RTE)


cdef uint32_t lcore_next_service(uint32_t lcore) noexcept nogil:
    """Return the lcore of services after this one (the first after LCORE_NONE), or LCORE_NONE."""
    return next_of(lcore, LCORE_ROLE_SERVICE)


cdef uint32_t lcore_count() noexcept nogil:
    """Return the number of lcores of the application."""
    cdef uint32_t n = 0
    cdef uint32_t lcore = lcore_next(LCORE_NONE)
    while lcore != LCORE_NONE:
        n += 1
        lcore = lcore_next(lcore)
    return n


cdef uint32_t lcore_main() noexcept nogil:
    """Return the main lcore; LCORE_NONE before init."""
    return g_main


cdef uint32_t lcore_index(uint32_t lcore) noexcept nogil:
    """Return how many lcores of the application come before this one of them, or LCORE_NONE."""
    cdef uint32_t n = 0
    cdef uint32_t before = lcore_next(LCORE_NONE)
    if lcore_role(lcore) != LCORE_ROLE_RTE:
        return LCORE_NONE
    while before != lcore:
        n += 1
        before = lcore_next(before)
    return n


# The life of the lcores.

def checked(lcores, cpus: dict) -> dict:
    """Return lcore -> frozenset of CPUs; ValueError names what cannot be."""
    wanted = lcores if isinstance(lcores, dict) else {lcore: (lcore,) for lcore in lcores}
    if not wanted:
        raise ValueError("no lcore is asked for")
    for lcore, of in wanted.items():
        if not 0 <= lcore < LCORE_MAX:
            raise ValueError(f"lcore {lcore}: the ids are 0 to {LCORE_MAX - 1}")
        if not of:
            raise ValueError(f"lcore {lcore} is given no CPU")
        for cpu in of:
            if cpu not in cpus:
                raise ValueError(f"CPU {cpu} of lcore {lcore} does not exist or is offline: "
                                 f"this machine has {cpu_list(cpus)}, choose among them")
    return {lcore: frozenset(wanted[lcore]) for lcore in sorted(wanted)}


def roles_of(dict wanted, main, service) -> tuple:
    """Return (main lcore, set of those for services); ValueError names what cannot be."""
    services = set(service)
    if missing := services - wanted.keys():
        raise ValueError(f"service lcore {min(missing)} is not one of {cpu_list(wanted)}")
    if main is None:
        main = min(wanted.keys() - services, default=None)
    if main is None:
        raise ValueError(f"no lcore but those for services, {cpu_list(services)}")
    if main not in wanted:
        raise ValueError(f"main lcore {main} is not one of {cpu_list(wanted)}")
    if main in services:
        raise ValueError(f"main lcore {main} cannot be a service lcore")
    return main, services


cdef lcore_t *lcore_new(uint32_t lcore, cpus, int node, bint service) except NULL:
    cdef lcore_t *core = <lcore_t *>calloc(1, sizeof(lcore_t))
    if core is NULL:
        raise MemoryError
    core.id = lcore
    core.node = node
    core.state = LCORE_WAIT
    core.role = LCORE_ROLE_SERVICE if service else LCORE_ROLE_RTE
    core.to_lcore[0] = core.to_lcore[1] = core.from_lcore[0] = core.from_lcore[1] = -1
    pthread_mutex_init(&core.launching, NULL)
    pthread_mutex_init(&core.finishing, NULL)
    pthread_cond_init(&core.finished, NULL)
    for cpu in cpus:
        CPU_SET(cpu, &core.cpus)
    return core


cdef int start_all(dict wanted, dict nodes, set services) except -1:
    """Start every lcore, then wait until each is ready; the first that fails is told."""
    global g_count
    cdef lcore_t *core
    cdef cpu_set_t taken
    CPU_ZERO(&taken)
    for lcore, of in wanted.items():
        on = {nodes[cpu] for cpu in of}
        core = lcore_new(lcore, of, on.pop() if len(on) == 1 else -1, lcore in services)
        CPU_OR(&taken, &taken, &core.cpus)
        g_lcores[<uint32_t>lcore] = core
        g_count += 1
    affinity_learn(nodes, &taken)
    for lcore in wanted:
        ok(lcore_start(g_lcores[<uint32_t>lcore]), f"lcore {lcore} cannot be started")
    for lcore, of in wanted.items():
        core = g_lcores[<uint32_t>lcore]
        with nogil:
            pipe_receive(core.from_lcore[0])
        ok(core.rc, f"lcore {lcore} cannot run on CPU {cpu_list(of)}")
    return 0


cdef void end_all() noexcept:
    global g_count, g_main
    cdef lcore_t *core
    cdef uint32_t i
    for i in range(<uint32_t>LCORE_MAX):
        core = g_lcores[i]
        g_lcores[i] = NULL
        if core is not NULL and getpid() == g_pid:
            with nogil:
                lcore_end(core)
    g_count = 0
    g_main = LCORE_NONE


def init(lcores, main: int | None = None, *, service=(), roots: Roots = SYSTEM) -> None:
    """Start a pinned thread for each lcore; they wait for work.

    lcores is a list of ids, each on the CPU of that number, or a dict from id to CPUs.  main is
    the main lcore, by default the lowest that is not one of service, the ids of those that are to
    run services alone.  ValueError for what does not exist, OSError for what the system refuses;
    no thread is left behind.  Control thread.
    """
    global g_main, g_pid
    if g_count and g_pid == getpid():
        ok(-EALREADY, "lcores are already started")
    cpus = {cpu.id: cpu for cpu in detect(roots=roots)}
    wanted = checked(lcores, cpus)
    main, services = roles_of(wanted, main, service)
    end_all()                                                   # what a fork left of the parent's
    g_pid = getpid()
    try:
        start_all(wanted, {cpu.id: cpu.node for cpu in cpus.values()}, services)
    except BaseException:
        end_all()
        raise
    g_main = main


def fini() -> None:
    """End and join the threads, and give the control thread its CPUs back.

    OSError EBUSY names an lcore that is still running; then nothing has ended.  Nothing is done
    before init, and a forked child only forgets the parent's.  Control thread.
    """
    global g_control
    cdef uint32_t lcore
    if g_pid == getpid():
        for lcore in range(<uint32_t>LCORE_MAX):
            if lcore_state(lcore) == LCORE_RUNNING:
                ok(-EBUSY, f"lcore {lcore} is still running")
    end_all()
    if g_control is not None:
        (tid, cpus), g_control = g_control, None
        if os.path.exists(f"/proc/self/task/{tid}"):
            os.sched_setaffinity(tid, cpus)


def control_affinity(lcores) -> set:
    """Move the calling thread off the CPUs of these lcores, where any CPU of it remains.

    lcores is a list of ids: of enabled ones the CPUs are known, another stands for the CPU of
    that number.  Return the CPUs that the thread now has.  fini undoes it.
    """
    global g_control
    tid = gettid()
    if g_control is None or g_control[0] != tid:
        g_control = (tid, os.sched_getaffinity(0))
    taken = set().union(*(cpus(n) if lcore_role(n) != LCORE_ROLE_OFF else (n,) for n in lcores))
    os.sched_setaffinity(0, g_control[1] - taken or g_control[1])
    return os.sched_getaffinity(0)


def enabled() -> list:
    """Return the lcores of the application in ascending order."""
    return [lcore for lcore in range(LCORE_MAX) if lcore_role(lcore) == LCORE_ROLE_RTE]


def services() -> list:
    """Return the lcores that run services alone, in ascending order."""
    return [lcore for lcore in range(LCORE_MAX) if lcore_role(lcore) == LCORE_ROLE_SERVICE]


def main() -> int | None:
    """Return the main lcore; None before init."""
    return g_main if g_count else None


def cpus(lcore: int) -> frozenset:
    """Return the CPUs of an enabled lcore; KeyError of another."""
    cdef lcore_t *core = lcore_at(lcore)
    cdef cpu_set_t own
    if core is NULL:
        raise KeyError(lcore)
    pthread_mutex_lock(&core.finishing)
    own = core.cpus
    pthread_mutex_unlock(&core.finishing)
    return frozenset(cpu for cpu in range(CPU_MAX) if CPU_ISSET(cpu, &own))


def role(lcore: int) -> str:
    """Return "RTE", "SERVICE", or "OFF" when it is not enabled."""
    return ROLES[lcore_role(lcore)]


def socket(lcore: int) -> int:
    """Return the NUMA node of an enabled lcore; -1 when its CPUs are of several."""
    return lcore_socket(lcore)


def state(lcore: int) -> str:
    """Return "OFF", "WAIT", "RUNNING" or "FINISHED"."""
    return STATES[lcore_state(lcore)]


def thread_id(lcore: int) -> int:
    """Return the kernel's id of an enabled lcore's thread."""
    cdef lcore_t *core = lcore_at(lcore)
    if core is NULL:
        ok(-EINVAL, f"lcore {lcore} is not enabled")
    return core.tid


def threads() -> dict:
    """Return lcore -> kernel's thread id, for each enabled lcore."""
    return {lcore: thread_id(lcore) for lcore in sorted(enabled() + services())}


def wait(lcore: int) -> int:
    """Wait, without the GIL, for an lcore's function; return its value, or 0 if there was none."""
    cdef uint32_t id_ = lcore
    cdef int ret, rc
    with nogil:
        rc = lcore_wait(id_, &ret)
    ok(rc, f"wait for lcore {lcore}")
    return ret


def current() -> int | None:
    """Return the lcore of the calling thread; None for Python's own."""
    return None if lcore_current() == LCORE_NONE else lcore_current()
