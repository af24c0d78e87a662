"""How a queue goes from one reactor to another.

It pops nothing more; when the last request is done, and all answers are shown, the thread with its
poller leaves the reactor at the end of an iteration, and an event takes it to the other one, where
it goes on with the channel that was opened there.  Ring positions, view and descriptors lie in the
queue.  Kicks are off meanwhile: what comes is found by the first poll there.
"""
from libc.errno cimport ETIMEDOUT
from vhostrt.event.control cimport CALL_PENDING, call_done, call_t
from vhostrt.event.events cimport event_send
from vhostrt.event.reactor cimport reactor_defer, reactor_t, thread_attach, thread_detach
from vhostrt.vhost.queue cimport QUEUE_MOVING, QUEUE_STARTED, queue_t


cdef int move_call(call_t *call) noexcept nogil:
    """Pop nothing more; go when the last request is done.  The answer comes from the new reactor.
    """
    cdef queue_t *q = (<move_t *>call.arg).q
    q.moving = call
    if q.state == QUEUE_STARTED:
        q.state = QUEUE_MOVING
    reactor_defer(q.reactor, &q.publish)
    return CALL_PENDING


cdef int stay_call(call_t *call) noexcept nogil:
    """On the reactor that the queue was to leave: pop again, if it is here yet."""
    cdef queue_t *q = <queue_t *>call.arg
    cdef call_t *moving = q.moving
    if moving is not NULL:
        q.moving = NULL
        queue_resume(q)
        call_done(moving, -ETIMEDOUT)
    return 0


cdef void queue_leave(queue_t *q) noexcept nogil:
    """Go, or stay when that cannot be."""
    cdef call_t *call = q.moving
    cdef move_t *move = <move_t *>call.arg
    cdef reactor_t *here = q.reactor
    cdef int rc
    q.moving = NULL
    thread_detach(q.poller.thread)
    call.event.fn = queue_arrive
    rc = event_send(move.lcore, &call.event)
    if rc < 0:
        thread_attach(here, q.poller.thread)
        queue_resume(q)
        call_done(call, rc)


cdef void queue_resume(queue_t *q) noexcept nogil:
    if q.state == QUEUE_MOVING:
        q.state = QUEUE_STARTED


cdef void queue_arrive(void *arg1, void *arg2) noexcept nogil:
    """On the new reactor."""
    cdef call_t *call = <call_t *>arg1
    cdef move_t *move = <move_t *>call.arg
    cdef queue_t *q = move.q
    q.reactor = call.event.reactor
    q.channel = move.channel
    thread_attach(q.reactor, q.poller.thread)
    queue_resume(q)
    call_done(call, 0)
