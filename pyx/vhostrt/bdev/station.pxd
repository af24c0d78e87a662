"""What the channels of one module share on one reactor: a light thread with one active poller.

Owner:    the module's table of stations, from the first channel of a reactor to the last.
Threads:  Station objects belong to the control thread; station_t to its reactor while attached.
"""
from libc.stdint cimport uint32_t
from vhostrt.event.reactor cimport poller_t, reactor_t, thread_t
from vhostrt.event.thread cimport Thread

cdef struct station_t:
    # First in the module's own struct, so that channel.ctx is both.
    poller_t poller             # its functions, arg and name are set by the module
    thread_t *thread
    reactor_t *reactor          # written by the reactor when it attaches
    uint32_t inflight           # requests taken and not yet done, of all channels here

cdef class Station:
    cdef station_t *s           # owned by the subclass; 64-aligned
    cdef Thread thread
    cdef str device             # what its channels are shown as
    cdef int users              # channels
    cdef object attached        # asyncio.Future of the attach event

cdef void *station_alloc(size_t size) except NULL
