"""Light threads as the control thread holds them: a name, an id, and the reactor they run on.

Threads:  all of it belongs to the control thread.
Source:   thread_get_stats, framework_get_reactors.
"""
import itertools
import weakref

from libc.stdlib cimport free
from libc.string cimport memset
from vhostrt.base.atomics cimport load_relaxed_u64
from vhostrt.base.ticks cimport ticks_now
from vhostrt.event.control cimport call_on, call_t
from vhostrt.event.reactor cimport thread_attach, thread_detach, thread_init, thread_t

from vhostrt.event import trace as tracing

cdef extern from "<stdlib.h>" nogil:
    void *aligned_alloc(size_t align, size_t size)

g_ids = itertools.count(2)              # 1 is app_thread, the control thread's own
g_threads = weakref.WeakValueDictionary()


cdef int attach(call_t *call) noexcept nogil:
    cdef thread_t *thread = <thread_t *>call.arg
    thread_attach(call.event.reactor, thread)
    return 0


cdef int detach(call_t *call) noexcept nogil:
    thread_detach(<thread_t *>call.arg)
    return 0


cdef class Thread:
    """A light thread.  Pollers are registered on its thread_t, by events to its reactor.

    name: str, for people.  cpumask: lcores (iterable of int) it may run on; None for all.
    """

    def __cinit__(self, str name not None, cpumask=None):
        self.t = <thread_t *>aligned_alloc(64, (sizeof(thread_t) + 63) & ~<size_t>63)
        if self.t is NULL:
            raise MemoryError
        memset(self.t, 0, sizeof(thread_t))
        thread_init(self.t)
        self.name = name
        self.c_name = name.encode()
        self.t.name = self.c_name
        self.t.id = next(g_ids)
        self.lcore = -1
        self.cpumask = None if cpumask is None else frozenset(cpumask)
        self.created = ticks_now()
        g_threads[self.t.id] = self
        tracing.name_owner(self.t.id, name)

    def __dealloc__(self):
        free(self.t)

    @property
    def id(self) -> int:
        return self.t.id

    @property
    def busy(self) -> int:
        """Ticks in polls that did work."""
        return load_relaxed_u64(&self.t.busy_ticks)

    @property
    def elapsed(self) -> int:
        """Ticks since it was made."""
        return ticks_now() - self.created

    def note_lcore(self, int lcore):
        """Remember where it runs; by who attaches and detaches it in calls of its own."""
        self.lcore = lcore

    async def attach(self, int lcore):
        """Be polled by the reactor on `lcore` from now on.  OSError when there is none."""
        await call_on(lcore, attach, self.t, self)
        self.lcore = lcore

    async def detach(self):
        """Be polled no more; every poller has been unregistered before."""
        await call_on(self.lcore, detach, self.t, self)
        self.lcore = -1


def threads() -> list:
    """Return the Thread objects there are, by id."""
    return [t for _, t in sorted(g_threads.items())]
