"""On which CPUs a thread runs, and on which NUMA node that puts it.

A thread that sets its CPUs here also keeps, for itself, the node that they have in common: memory
that is asked for without a node is taken there first.  Helper threads stay off the CPUs of the
lcores, whoever started them.
"""
import os

from libc.errno cimport EINVAL, errno
from libc.stdint cimport int16_t
from vhostrt.base.errors cimport ok

cdef extern from *:
    """
    #include <sched.h>
    #include <unistd.h>
    /* The one copy of them in the process. */
    static __thread int vh_node = -1;
    """
    int t_node "vh_node"
    int sched_setaffinity(int pid, size_t size, const cpu_set_t *cpus) nogil
    int sched_getaffinity(int pid, size_t size, cpu_set_t *cpus) nogil
    int CPU_COUNT(const cpu_set_t *cpus) nogil
    void CPU_XOR(cpu_set_t *to, const cpu_set_t *a, const cpu_set_t *b) nogil
    void CPU_AND(cpu_set_t *to, const cpu_set_t *a, const cpu_set_t *b) nogil
    long sysconf(int name) nogil
    enum:
        _SC_NPROCESSORS_CONF

# Written by affinity_learn, of the control thread, while no helper starts.
cdef int16_t g_nodes[CPU_MAX]
cdef cpu_set_t g_home           # of the process when the lcores started
cdef cpu_set_t g_taken          # by the lcores


cdef int affinity_node_of(const cpu_set_t *cpus) noexcept nogil:
    """Return the NUMA node that all these CPUs are on, or NODE_ANY."""
    cdef int node = NODE_ANY
    cdef int cpu
    for cpu in range(CPU_MAX):
        if CPU_ISSET(cpu, cpus):
            if node != NODE_ANY and g_nodes[cpu] != node:
                return NODE_ANY
            node = g_nodes[cpu]
    return node


cdef int affinity_set(const cpu_set_t *cpus) noexcept nogil:
    """Move the calling thread to these CPUs; 0 or -errno, and then nothing has changed."""
    global t_node
    if sched_setaffinity(0, sizeof(cpu_set_t), cpus) < 0:
        return -errno
    t_node = affinity_node_of(cpus)
    return 0


cdef int affinity_node() noexcept nogil:
    """Return the node of the CPUs that the calling thread has set, or NODE_ANY."""
    return t_node


cdef void affinity_leave() noexcept nogil:
    """Move the calling thread, a helper, off the CPUs of the lcores, where any other remains.

    It inherited the CPUs of its creator, which may be an lcore.
    """
    cdef cpu_set_t both, rest
    if CPU_COUNT(&g_home) == 0:
        return                                                  # no lcore has ever been started
    CPU_AND(&both, &g_home, &g_taken)
    CPU_XOR(&rest, &g_home, &both)
    affinity_set(&rest if CPU_COUNT(&rest) else &g_home)


cdef void *call_unaffinitized(void *(*fn)(void *arg) noexcept nogil, void *arg) noexcept nogil:
    """Return fn(arg), run by the calling thread on any CPU there is; then it has its own again.

    As spdk_call_unaffinitized: for what starts threads of its own, which inherit the CPUs.
    """
    cdef cpu_set_t own, every
    cdef void *result
    cdef bint known = sched_getaffinity(0, sizeof(cpu_set_t), &own) == 0
    cdef int cpu
    CPU_ZERO(&every)
    for cpu in range(min(<int>sysconf(_SC_NPROCESSORS_CONF), <int>CPU_MAX)):
        CPU_SET(cpu, &every)
    # Where either is refused the function is run all the same.
    sched_setaffinity(0, sizeof(cpu_set_t), &every)
    result = fn(arg)
    if known:
        sched_setaffinity(0, sizeof(cpu_set_t), &own)
    return result


cdef void affinity_learn(dict nodes, const cpu_set_t *taken) noexcept:
    """Note CPU -> node, the CPUs of the lcores, and the process's own from the calling thread."""
    global g_taken
    cdef int i
    for i in range(CPU_MAX):
        g_nodes[i] = nodes.get(i, NODE_ANY)
    g_taken = taken[0]
    sched_getaffinity(0, sizeof(cpu_set_t), &g_home)


# The Python face.

cdef int fill(cpu_set_t *into, cpus) except -1:
    """Write CPU numbers into a set."""
    CPU_ZERO(into)
    for cpu in cpus:
        if not 0 <= cpu < CPU_MAX:
            ok(-EINVAL, f"CPU {cpu}: the numbers are 0 to {CPU_MAX - 1}")
        CPU_SET(cpu, into)
    return 0


def set_cpus(cpus) -> None:
    """Move the calling thread to these CPUs.  OSError EINVAL when it may use none of them."""
    cdef cpu_set_t wanted
    cpus = sorted(cpus)
    fill(&wanted, cpus)
    ok(affinity_set(&wanted), f"a thread on CPUs {cpus}")


def node() -> int:
    """Return the NUMA node of the CPUs that the calling thread has set; -1: several, or none."""
    return affinity_node()


def call_on_any_cpu(function, *args):
    """Return function(*args), run on any CPU there is; then the calling thread has its own again.

    It is spdk_call_unaffinitized: for what starts threads of its own, which inherit the CPUs.
    """
    own = os.sched_getaffinity(0)
    os.sched_setaffinity(0, range(min(os.sysconf("SC_NPROCESSORS_CONF"), CPU_MAX)))
    try:
        return function(*args)
    finally:
        os.sched_setaffinity(0, own)
