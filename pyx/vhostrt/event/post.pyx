"""Notes to the control thread: an intrusive stack that any thread pushes on.

Whoever finds the stack empty writes the eventfd that the control thread's loop watches.  The loop
reads the eventfd first and then takes the whole stack, so a node that is pushed in between is
either in what it takes or has written the eventfd again.

Threads:  control_post: any.  The rest: the control thread.
"""
from libc.stdint cimport uint64_t
from posix.unistd cimport write
from vhostrt.base.atomics cimport cas_ptr, exchange_ptr, load_relaxed_ptr
from vhostrt.base.check cimport check

cdef control_node_t *g_posted = NULL    # newest first; any thread pushes, the control thread takes
cdef int g_fd = -1                      # eventfd of the control thread's loop; -1 without one


cdef void control_post(control_node_t *node) noexcept nogil:
    """Have node.run called on the control thread.  Never fails; allocates nothing."""
    cdef uint64_t one = 1
    cdef void *head = load_relaxed_ptr(&g_posted)
    node.next = <control_node_t *>head
    while not cas_ptr(&g_posted, head, node):   # release, with the exchange in post_run
        head = load_relaxed_ptr(&g_posted)
        node.next = <control_node_t *>head
    if head is NULL and g_fd >= 0:
        # Non-blocking; a full counter is as good as one more.
        check(write(g_fd, &one, sizeof(one)) != 0)


cdef int post_run() noexcept:
    """Run every posted node in the order of posting; return how many."""
    cdef control_node_t *node = <control_node_t *>exchange_ptr(&g_posted, NULL)
    cdef control_node_t *first = NULL
    cdef control_node_t *rest
    cdef int n = 0
    while node is not NULL:
        rest = node.next
        node.next = first
        first = node
        node = rest
    while first is not NULL:
        rest = first.next               # run may free the node
        first.run(first.arg)
        first = rest
        n += 1
    return n


cdef void post_listen(int fd) noexcept:
    """Write to this eventfd from now on, -1 for none.  No reactor posts meanwhile."""
    global g_fd
    g_fd = fd
