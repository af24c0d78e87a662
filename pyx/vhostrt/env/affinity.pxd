"""On which CPUs a thread runs, and on which NUMA node that puts it.

Owner:    each thread's own; the table of nodes is written by lcore.init, of the control thread.
Threads:  any, for itself.
Fails:    -errno of the system.
"""
cdef extern from "<sched.h>" nogil:
    ctypedef struct cpu_set_t:
        pass
    void CPU_ZERO(cpu_set_t *cpus)
    void CPU_SET(int cpu, cpu_set_t *cpus)
    void CPU_OR(cpu_set_t *to, const cpu_set_t *a, const cpu_set_t *b)
    bint CPU_ISSET(int cpu, const cpu_set_t *cpus)

cdef enum:
    CPU_MAX = 1024              # CPU numbers are below this
    NODE_ANY = -1               # CPUs of several nodes, or not known

cdef int affinity_set(const cpu_set_t *cpus) noexcept nogil
cdef int affinity_node() noexcept nogil
cdef int affinity_node_of(const cpu_set_t *cpus) noexcept nogil
cdef void affinity_leave() noexcept nogil
cdef void *call_unaffinitized(void *(*fn)(void *arg) noexcept nogil, void *arg) noexcept nogil
cdef void affinity_learn(dict nodes, const cpu_set_t *taken) noexcept
