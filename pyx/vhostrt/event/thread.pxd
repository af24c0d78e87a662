"""Light threads as the control thread holds them: a name, an id, and the reactor they run on."""
from vhostrt.event.reactor cimport thread_t

cdef class Thread:
    cdef thread_t *t                    # owned; 64-aligned
    cdef readonly str name
    cdef readonly int lcore             # where it runs, or -1
    cdef readonly object cpumask        # frozenset of lcores it may run on, or None for all
    cdef readonly object created        # ticks
    cdef bytes c_name                   # what t.name points to
    cdef object __weakref__
