"""Logical cores: detection of CPUs, and one pthread for each lcore, given work over a pipe.

Owner:    the control thread, by init and fini; they may be repeated in one process.
Threads:  the Python face from the control thread; the C face as told in lcore.pxd.
Fails:    ValueError or OSError with a sentence that names the lcore or the CPU.
"""
import os
import re
from collections import namedtuple

from libc.errno cimport EALREADY, EBUSY, EINTR, EINVAL, EPIPE, ESRCH, errno
from libc.signal cimport SIGABRT, SIGFPE, SIGILL, SIGSEGV
from libc.stdint cimport uint8_t, uint32_t
from libc.stdio cimport snprintf
from libc.stdlib cimport calloc, free
from posix.fcntl cimport O_CLOEXEC
from posix.signal cimport sigdelset, sigfillset, sigset_t
from posix.types cimport pid_t
from posix.unistd cimport close, getpid, read, write
from vhostrt.base.atomics cimport load_acquire_u32, store_release_u32
from vhostrt.base.errors cimport ok

cdef extern from *:
    """
    #ifndef _GNU_SOURCE
    #define _GNU_SOURCE
    #endif
    #include <errno.h>
    #include <pthread.h>
    #include <sched.h>
    #include <signal.h>
    #include <stdint.h>
    #include <sys/syscall.h>
    #include <unistd.h>
    /* The one copy of it in the process: other modules ask lcore_current(). */
    static __thread uint32_t vh_lcore_id = UINT32_MAX;
    #define vh_gettid() ((int)syscall(SYS_gettid))
    """
    ctypedef unsigned long pthread_t
    ctypedef struct pthread_attr_t:
        pass
    ctypedef struct pthread_mutex_t:
        pass
    ctypedef struct pthread_cond_t:
        pass
    ctypedef struct cpu_set_t:
        pass
    uint32_t t_lcore "vh_lcore_id"
    enum:
        EDEADLK
        SIGBUS
        SIGTRAP
        SIG_SETMASK
    int gettid "vh_gettid"() nogil
    int pipe2(int *fds, int flags) nogil
    int pthread_attr_init(pthread_attr_t *attr) nogil
    int pthread_attr_setstacksize(pthread_attr_t *attr, size_t size) nogil
    int pthread_attr_destroy(pthread_attr_t *attr) nogil
    int pthread_create(pthread_t *thread, const pthread_attr_t *attr,
                       void *(*fn)(void *) noexcept nogil, void *arg) nogil
    int pthread_join(pthread_t thread, void **result) nogil
    pthread_t pthread_self() nogil
    int pthread_setname_np(pthread_t thread, const char *name) nogil
    int pthread_sigmask(int how, const sigset_t *new, sigset_t *old) nogil
    int pthread_mutex_init(pthread_mutex_t *mutex, const void *attr) nogil
    int pthread_mutex_destroy(pthread_mutex_t *mutex) nogil
    int pthread_mutex_lock(pthread_mutex_t *mutex) nogil
    int pthread_mutex_unlock(pthread_mutex_t *mutex) nogil
    int pthread_cond_init(pthread_cond_t *cond, const void *attr) nogil
    int pthread_cond_destroy(pthread_cond_t *cond) nogil
    int pthread_cond_wait(pthread_cond_t *cond, pthread_mutex_t *mutex) nogil
    int pthread_cond_broadcast(pthread_cond_t *cond) nogil
    int sched_setaffinity(int pid, size_t size, const cpu_set_t *cpus) nogil
    void CPU_SET(int cpu, cpu_set_t *cpus) nogil

cdef enum:
    STACK = 1 << 20             # bytes
    READY = 1                   # from the lcore: it has started, or has taken its work
    RUN = 2                     # to the lcore
    QUIT = 3

cdef struct lcore_t:
    uint32_t id
    uint32_t state              # LCORE_*; stored with release, read with acquire
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
    pthread_mutex_t finishing   # ret, and the step to FINISHED and from it
    pthread_cond_t finished
    cpu_set_t cpus

# Written by init and fini, of the control thread.
cdef lcore_t *g_lcores[LCORE_MAX]
cdef uint32_t g_count = 0
cdef uint32_t g_main = LCORE_NONE
cdef pid_t g_pid = 0
cdef dict g_cpus = {}           # lcore -> frozenset of CPUs
cdef object g_control = None    # (thread id, its CPUs before control_affinity)

Cpu = namedtuple("Cpu", "id core node")
STATES = {LCORE_OFF: "OFF", LCORE_WAIT: "WAIT", LCORE_RUNNING: "RUNNING",
          LCORE_FINISHED: "FINISHED"}


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
    core.rc = -errno if sched_setaffinity(0, sizeof(cpu_set_t), &core.cpus) < 0 else 0
    pipe_send(core.from_lcore[1], READY)
    if core.rc < 0:
        return NULL
    while pipe_receive(core.to_lcore[0]) == RUN:
        store_release_u32(&core.state, LCORE_RUNNING)
        pipe_send(core.from_lcore[1], READY)
        ret = core.fn(core.arg)
        pthread_mutex_lock(&core.finishing)
        core.ret = ret
        store_release_u32(&core.state, LCORE_FINISHED)
        pthread_cond_broadcast(&core.finished)
        pthread_mutex_unlock(&core.finishing)
    return NULL


cdef void block_signals(sigset_t *old) noexcept nogil:
    """Block what a process is sent; what a thread raises itself still ends or is handled there."""
    cdef sigset_t blocked
    sigfillset(&blocked)
    sigdelset(&blocked, SIGBUS)
    sigdelset(&blocked, SIGSEGV)
    sigdelset(&blocked, SIGFPE)
    sigdelset(&blocked, SIGILL)
    sigdelset(&blocked, SIGTRAP)
    sigdelset(&blocked, SIGABRT)
    pthread_sigmask(SIG_SETMASK, &blocked, old)


cdef int lcore_start(lcore_t *core) noexcept nogil:
    """Make pipes and thread; it is not ready before its READY has been received."""
    cdef pthread_attr_t attr
    cdef sigset_t old
    cdef int rc
    if pipe2(core.to_lcore, O_CLOEXEC) < 0 or pipe2(core.from_lcore, O_CLOEXEC) < 0:
        return -errno
    pthread_attr_init(&attr)
    pthread_attr_setstacksize(&attr, STACK)
    # The new thread inherits the mask, so that no signal finds it before it could block it.
    block_signals(&old)
    rc = -pthread_create(&core.thread, &attr, lcore_loop, core)
    pthread_sigmask(SIG_SETMASK, &old, NULL)
    pthread_attr_destroy(&attr)
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
        core.fn = fn
        core.arg = arg
        rc = pipe_send(core.to_lcore[1], RUN)
        if rc == 0:
            rc = min(pipe_receive(core.from_lcore[0]), 0)
    pthread_mutex_unlock(&core.launching)
    return rc


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
    if load_acquire_u32(&core.state) == LCORE_FINISHED:
        ret[0] = core.ret
        store_release_u32(&core.state, LCORE_WAIT)
    pthread_mutex_unlock(&core.finishing)
    return 0


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


cdef uint32_t lcore_count() noexcept nogil:
    """Return the number of enabled lcores."""
    return g_count


cdef uint32_t lcore_main() noexcept nogil:
    """Return the main lcore; LCORE_NONE before init."""
    return g_main


cdef uint32_t lcore_next(uint32_t lcore) noexcept nogil:
    """Return the enabled lcore after this one (the first after LCORE_NONE), or LCORE_NONE."""
    cdef uint32_t i
    for i in range(lcore + 1, <uint32_t>LCORE_MAX):                      # LCORE_NONE + 1 wraps to 0
        if g_lcores[i] is not NULL:
            return i
    return LCORE_NONE


# CPUs.

def ids_in(directory: str, pattern: str) -> list:
    """Return the sorted numbers of a directory's entries that match a pattern with one group."""
    try:
        found = (re.fullmatch(pattern, name) for name in os.listdir(directory))
    except OSError:
        return []
    return sorted(int(match[1]) for match in found if match)


def core_of(path: str) -> int | None:
    """Return the core id in a CPU's directory: None when it is absent, 0 when it is unreadable."""
    try:
        with open(f"{path}/topology/core_id") as file:
            return int(file.read())
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        return 0


def detect(*, within_affinity: bool = False, root: str = "/sys") -> list:
    """Return the CPUs that are online, as tuples (id, core, node) in ascending order.

    within_affinity leaves out those that the calling thread may not use.  root is where sysfs
    is; without one the calling thread's own CPUs are all there are, each its own core on node 0.
    """
    allowed = os.sched_getaffinity(0)
    top = f"{root}/devices/system/cpu"
    cpus = []
    for cpu in ids_in(top, r"cpu(\d+)"):
        core = core_of(f"{top}/cpu{cpu}")
        if core is not None and cpu < LCORE_MAX:
            nodes = ids_in(f"{top}/cpu{cpu}", r"node(\d+)")
            cpus.append(Cpu(cpu, core, nodes[0] if nodes else 0))
    if not cpus:
        cpus = [Cpu(cpu, cpu, 0) for cpu in sorted(allowed)]
    return [cpu for cpu in cpus if not within_affinity or cpu.id in allowed]


def cpu_list(cpus) -> str:
    """Return CPU numbers as the kernel writes them: 0-3,8."""
    runs = {}                                                   # first -> last
    first = last = None
    for cpu in sorted(cpus):
        first = first if last == cpu - 1 else cpu
        runs[first] = last = cpu
    return ",".join(f"{a}" if a == b else f"{a}-{b}" for a, b in runs.items())


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
                                 f"this machine has {cpu_list(cpus)}")
    return {lcore: frozenset(wanted[lcore]) for lcore in sorted(wanted)}


cdef lcore_t *lcore_new(uint32_t lcore, cpus, int node) except NULL:
    cdef lcore_t *core = <lcore_t *>calloc(1, sizeof(lcore_t))
    if core is NULL:
        raise MemoryError
    core.id = lcore
    core.node = node
    core.state = LCORE_WAIT
    core.to_lcore[0] = core.to_lcore[1] = core.from_lcore[0] = core.from_lcore[1] = -1
    pthread_mutex_init(&core.launching, NULL)
    pthread_mutex_init(&core.finishing, NULL)
    pthread_cond_init(&core.finished, NULL)
    for cpu in cpus:
        CPU_SET(cpu, &core.cpus)
    return core


cdef int start_all(dict wanted, dict cpus) except -1:
    """Start every lcore, then wait until each is ready; the first that fails is told."""
    global g_count
    cdef lcore_t *core
    for lcore, of in wanted.items():
        nodes = {cpus[cpu].node for cpu in of}
        core = lcore_new(lcore, of, nodes.pop() if len(nodes) == 1 else -1)
        g_lcores[<uint32_t>lcore] = core
        g_count += 1
        ok(lcore_start(core), f"lcore {lcore} cannot be started")
    for lcore, of in wanted.items():
        core = g_lcores[<uint32_t>lcore]
        with nogil:
            pipe_receive(core.from_lcore[0])
        ok(core.rc, f"lcore {lcore} cannot run on CPU {cpu_list(of)}")
    return 0


cdef void end_all() noexcept:
    global g_count, g_main, g_cpus
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
    g_cpus = {}


def init(lcores, main: int | None = None, *, root: str = "/sys") -> None:
    """Start a pinned thread for each lcore; they wait for work.

    lcores is a list of ids, each on the CPU of that number, or a dict from id to CPUs.  main is
    the main lcore, by default the lowest.  root is where sysfs is.  ValueError for what does not
    exist, OSError for what the system refuses; no thread is left behind.  Control thread.
    """
    global g_main, g_pid, g_cpus
    if g_count and g_pid == getpid():
        ok(-EALREADY, "lcores are already started")
    cpus = {cpu.id: cpu for cpu in detect(root=root)}
    wanted = checked(lcores, cpus)
    if main is None:
        main = min(wanted)
    elif main not in wanted:
        raise ValueError(f"main lcore {main} is not one of {cpu_list(wanted)}")
    end_all()                                                   # what a fork left of the parent's
    g_pid = getpid()
    try:
        start_all(wanted, cpus)
    except BaseException:
        end_all()
        raise
    g_main = main
    g_cpus = wanted


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
    taken = set().union(*(g_cpus.get(lcore, (lcore,)) for lcore in lcores))
    os.sched_setaffinity(0, g_control[1] - taken or g_control[1])
    return os.sched_getaffinity(0)


def enabled() -> list:
    """Return the enabled lcores in ascending order."""
    return list(g_cpus)


def main() -> int | None:
    """Return the main lcore; None before init."""
    return g_main if g_count else None


def cpus(lcore: int) -> frozenset:
    """Return the CPUs of an enabled lcore; KeyError of another."""
    return g_cpus[lcore]


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
    return {lcore: thread_id(lcore) for lcore in g_cpus}


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
