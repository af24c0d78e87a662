"""The trace points of reactors and light threads: what runs on a core, and when it sleeps."""
from cython cimport unlikely
from libc.stdint cimport uint32_t, uint64_t
from vhostrt.event.events cimport run_events
from vhostrt.event.message cimport run_messages
from vhostrt.event.reactor cimport event_t, msg_t, reactor_t, thread_t
from vhostrt.event.trace cimport TRACE_REACTOR, TRACE_THREAD, trace, trace_on, trace_text

from vhostrt.event import trace as tracing

Point = tracing.Point

tracing.register("reactor", TRACE_REACTOR, [
    Point(0, "REACTOR_EVENT", (("fn", "hex"), ("arg1", "hex"), ("arg2", "hex")), "event", "enter"),
    Point(1, "REACTOR_EVENT_DONE", (), "event", "leave"),
    Point(2, "REACTOR_SLEEP", (), "sleep", "enter"),
    Point(3, "REACTOR_WAKE", (), "sleep", "leave"),
    Point(4, "REACTOR_ATTACH", (("id", "int"),), "thread"),
    Point(5, "REACTOR_DETACH", (("id", "int"),), "thread"),
])
tracing.register("thread", TRACE_THREAD, [
    Point(0, "THREAD_IOCH_GET", (("device", "text"), ("channel", "hex"), ("refs", "int"),
                                 ("id", "int")), "thread"),
    Point(1, "THREAD_IOCH_PUT", (("device", "text"), ("channel", "hex"), ("refs", "int"),
                                 ("id", "int")), "thread"),
    Point(2, "THREAD_MSG", (("fn", "hex"), ("ctx", "hex")), "message", "enter"),
    Point(3, "THREAD_MSG_DONE", (), "message", "leave"),
    Point(4, "THREAD_BUSY", (("took", "ticks"),), "thread", "span"),
])


cdef uint32_t run_events_traced(reactor_t *r) noexcept nogil:
    """As run_events, with the entries of each event."""
    return run_events(r, True)


cdef uint32_t run_messages_traced(reactor_t *r, thread_t *thread) noexcept nogil:
    """As run_messages, with the entries of each message."""
    return run_messages(r, thread, True)


cdef void traced_event(event_t *event) noexcept nogil:
    """Run an event, with an entry before and after.  It may be gone afterwards."""
    trace(REACTOR_EVENT, event, 0, <uint64_t>event.fn, <uint64_t>event.arg1, <uint64_t>event.arg2)
    event.fn(event.arg1, event.arg2)
    trace(REACTOR_EVENT_DONE, event)


cdef void traced_message(msg_t *msg) noexcept nogil:
    """Run a message, likewise."""
    trace(THREAD_MSG, msg, 0, <uint64_t>msg.fn, <uint64_t>msg.ctx)
    msg.fn(msg.ctx)
    trace(THREAD_MSG_DONE, msg)


cdef void trace_channel(uint32_t point, thread_t *thread, const char *device, const void *channel,
                        uint32_t refs) noexcept nogil:
    """A thread has got (THREAD_IOCH_GET) or given back a reference to a channel; `refs` are left.
    device: its name, or NULL.  channel: NULL where iochannel does not know of it."""
    if unlikely(trace_on(point)):
        trace(point, thread, 0, trace_text(device) if device is not NULL else 0,
              <uint64_t>channel, refs, thread.id)


cdef void trace_busy(reactor_t *r, thread_t *thread, uint64_t ticks) noexcept nogil:
    """A pass over a thread, of so many ticks until now, did work: an entry in its name."""
    r.thread = thread
    trace(THREAD_BUSY, thread, 0, ticks)
    r.thread = NULL
