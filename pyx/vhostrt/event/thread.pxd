"""Light threads: made, moved and ended by the control thread.

Owner:    a Thread is kept from its attach to the end of its exit, whoever else holds it.
Threads:  the control thread.
Fails:    OSError.
"""
from vhostrt.event.reactor cimport thread_t

ctypedef int (*thread_call_fn)(void *arg) noexcept nogil

cdef class Thread:
    cdef thread_t *t                    # 64-aligned; owned, but for app_thread's
    cdef bint owned
    cdef readonly str name
    cdef readonly int lcore             # where it runs, or -1
    cdef readonly int first_lcore       # where it ran first, or -1
    cdef readonly object cpumask        # frozenset of lcores it may run on, or None for all
    cdef readonly object created        # ticks
    cdef readonly bint bound            # it stays on its lcore
    cdef public object mover            # async (lcore): moves it with all it holds; None: go
    cdef bytes c_name                   # what t.name points to
    cdef dict held                      # {name: how often}: channels that are not of iochannel
    cdef object lock                    # asyncio.Lock of moves and the end
    cdef object ending                  # asyncio.Task of exit, once it has been asked for
    cdef object __weakref__

cdef object thread_call(Thread light, thread_call_fn fn, void *arg, object keep)
