"""What the channels of one module share on one reactor: a light thread with one active poller.

A module keeps a dict of its stations by lcore.  enter() makes the station with the first channel of
a reactor, off the reactor, and attaches it; leave() ends and frees it with the last.
"""
import asyncio

from libc.stdint cimport uintptr_t
from libc.string cimport memset
from vhostrt.base.check cimport check
from vhostrt.event.control cimport call_on, call_t
from vhostrt.event.poller cimport poller_register, poller_unregister
from vhostrt.event.reactor cimport reactor_current, thread_attach
from vhostrt.event.thread cimport Thread

cdef extern from "<stdlib.h>" nogil:
    void *aligned_alloc(size_t align, size_t size)

cdef enum:
    CACHE_LINE = 64


cdef void *station_alloc(size_t size) except NULL:
    """Return zeroed memory in whole cache lines, for a struct that starts with station_t."""
    cdef size_t whole = (size + CACHE_LINE - 1) & ~<size_t>(CACHE_LINE - 1)
    cdef void *p = aligned_alloc(CACHE_LINE, whole)
    if p is NULL:
        raise MemoryError
    memset(p, 0, whole)
    return p


cdef int station_attach(call_t *call) noexcept nogil:
    cdef station_t *s = <station_t *>call.arg
    s.reactor = reactor_current()
    thread_attach(s.reactor, s.thread)
    poller_register(s.thread, &s.poller, 0)
    return 0


cdef int station_end(call_t *call) noexcept nogil:
    cdef station_t *s = <station_t *>call.arg
    check(s.inflight == 0)              # every channel was idle when it was closed
    poller_unregister(&s.poller)
    return 0


cdef class Station:
    """One reactor's share of a module.  Subclasses allocate and free the struct behind `s`."""

    def start(self, str name not None, int lcore):
        """Send the event that attaches it; OSError when there is no reactor on that lcore."""
        self.device = f"{name}_module"
        self.thread = Thread(f"{name}_{lcore}", {lcore}, bound=True)
        self.s.thread = self.thread.t
        self.attached = call_on(lcore, station_attach, self.s, self)
        self.thread.note_lcore(lcore)

    @property
    def lcore(self) -> int:
        return self.thread.lcore


async def enter(dict stations not None, str name not None, int lcore, kind):
    """Return the station of a reactor, one user more; kind() makes it when there is none.

    name: str, the light thread is called name_lcore.  OSError: no such reactor, or kind() failed.
    """
    cdef Station station = stations.get(lcore)
    if station is None:
        station = kind()
        station.start(name, lcore)
        stations[lcore] = station
    station.users += 1
    station.thread.hold(station.device, <uintptr_t>station.s)
    try:
        # Shielded, since several may wait for the one future and any of them may be cancelled.
        await asyncio.shield(station.attached)
    except BaseException:
        await leave(stations, station)
        raise
    return station


async def leave(dict stations not None, Station station not None):
    """Give a station back; the last user detaches it from its reactor.  It is idle by then."""
    station.users -= 1
    station.thread.let_go(station.device, <uintptr_t>station.s)
    if station.users:
        return
    lcore = station.thread.lcore
    # A channel opened from now on gets a station of its own.
    del stations[lcore]
    # Events of one sender run in order: also a station whose attach is under way may go.
    await call_on(lcore, station_end, station.s, station)
    await station.thread.exit()
