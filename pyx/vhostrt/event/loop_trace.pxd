"""The trace points of reactors and light threads, away from the code of those who do not trace.

Threads:  the reactor that they are on.
"""
from libc.stdint cimport uint32_t, uint64_t
from vhostrt.event.reactor cimport event_t, msg_t, reactor_t, thread_t
from vhostrt.event.trace cimport TRACE_POINTS, TRACE_REACTOR, TRACE_THREAD

cdef enum:
    REACTOR_EVENT = TRACE_REACTOR * TRACE_POINTS
    REACTOR_EVENT_DONE
    REACTOR_SLEEP
    REACTOR_WAKE
    REACTOR_ATTACH
    REACTOR_DETACH

cdef enum:
    THREAD_IOCH_GET = TRACE_THREAD * TRACE_POINTS
    THREAD_IOCH_PUT
    THREAD_MSG
    THREAD_MSG_DONE
    THREAD_BUSY

cdef uint32_t run_events_traced(reactor_t *r) noexcept nogil
cdef uint32_t run_messages_traced(reactor_t *r, thread_t *thread) noexcept nogil
cdef void traced_event(event_t *event) noexcept nogil
cdef void traced_message(msg_t *msg) noexcept nogil
cdef void trace_channel(uint32_t point, thread_t *thread, const char *device, const void *channel,
                        uint32_t refs) noexcept nogil
cdef void trace_busy(reactor_t *r, thread_t *thread, uint64_t ticks) noexcept nogil
