"""The way between reactors and the control thread: calls with an answer, and notes without one;
and app_thread, the light thread that the control thread is.

Owner:    a control_node_t belongs to who posts it until its run() has been called; it is embedded
          in what it tells about, so posting never allocates and never fails.
Threads:  control_post, call_done, control_thread and thread_current from any thread; run() is
          called on the control thread with the GIL, in the order of posting.
"""
from vhostrt.event.post cimport control_node_t, control_post
from vhostrt.event.reactor cimport event_t, thread_t

cdef enum:
    CALL_PENDING = 1 << 20          # the function will call call_done itself, exactly once

cdef struct awaited_t:
    # What somebody waits for: the first member of a struct that awaited_new allocates.
    control_node_t node             # posted when rc is there
    int rc                          # the answer
    void *future                    # owned reference: asyncio.Future of the answer
    void *keep                      # owned reference: what has to live until then

cdef struct call_t:
    awaited_t awaited               # first
    event_t event
    int (*fn)(call_t *call) noexcept nogil  # on the reactor; the answer, or CALL_PENDING
    void *arg

ctypedef int (*call_fn)(call_t *call) noexcept nogil

cdef awaited_t *awaited_new(size_t size, object keep) except NULL
cdef void awaited_drop(awaited_t *awaited)
cdef void call_done(call_t *call, int rc) noexcept nogil
cdef object call_on(int lcore, call_fn fn, void *arg, object keep)
cdef thread_t *control_thread() noexcept nogil      # app_thread; NULL while the loop does not run
cdef thread_t *thread_current() noexcept nogil      # whom the caller runs as; NULL: nobody
