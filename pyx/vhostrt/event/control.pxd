"""The way between reactors and the control thread: calls with an answer, and notes without one.

Owner:    a control_node_t belongs to who posts it until its run() has been called; it is embedded
          in what it tells about, so posting never allocates and never fails.
Threads:  control_post and call_done from any thread; run() is called on the control thread with
          the GIL, in the order of posting.
"""
from vhostrt.event.post cimport control_node_t, control_post
from vhostrt.event.reactor cimport event_t

cdef enum:
    CALL_PENDING = 1 << 20          # the function will call call_done itself, exactly once

cdef struct call_t:
    control_node_t node             # first: the node is the call
    event_t event
    int (*fn)(call_t *call) noexcept nogil  # on the reactor; the answer, or CALL_PENDING
    void *arg
    int rc
    void *future                    # owned reference: asyncio.Future of the answer
    void *keep                      # owned reference: what arg points into

ctypedef int (*call_fn)(call_t *call) noexcept nogil

cdef void call_done(call_t *call, int rc) noexcept nogil
cdef object call_on(int lcore, call_fn fn, void *arg, object keep)
