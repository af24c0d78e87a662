"""Notes to the control thread: an intrusive stack that any thread pushes on.

Owner:    a control_node_t belongs to who posts it until its run() has been called; it is embedded
          in what it tells about, so posting never allocates and never fails.
Threads:  control_post from any thread, and from a signal handler; run() is called on the control
          thread with the GIL, in the order of posting.
"""

cdef struct control_node_t:
    control_node_t *next
    void (*run)(void *arg) noexcept     # with the GIL; may free the node
    void *arg

cdef void control_post(control_node_t *node) noexcept nogil
cdef int post_run() noexcept
cdef void post_listen(int fd) noexcept
