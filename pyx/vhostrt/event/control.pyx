"""The way between reactors and the control thread.

Reactors push nodes on one lock-free stack; whoever finds it empty writes the eventfd that the
asyncio loop watches.  The loop reads the eventfd first and then takes the whole stack, so a node
pushed in between is either in what it takes or has written the eventfd again.

Threads:  control_post, call_done: any.  start, stop and call_on: the control thread.
"""
import asyncio
import os

from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.stdint cimport uint64_t
from libc.stdlib cimport calloc, free
from posix.unistd cimport write
from vhostrt.base.atomics cimport cas_ptr, exchange_ptr, load_relaxed_ptr
from vhostrt.base.check cimport check
from vhostrt.base.errors cimport os_error
from vhostrt.event.reactor cimport event_send

cdef control_node_t *g_posted = NULL    # newest first; any thread pushes, the control thread takes
cdef int g_fd = -1                      # eventfd; written by start and stop only
cdef object g_loop = None


cdef void control_post(control_node_t *node) noexcept nogil:
    """Have node.run called on the control thread.  Never fails; allocates nothing."""
    cdef uint64_t one = 1
    cdef void *head = load_relaxed_ptr(&g_posted)
    node.next = <control_node_t *>head
    while not cas_ptr(&g_posted, head, node):   # release, with the exchange in drain
        head = load_relaxed_ptr(&g_posted)
        node.next = <control_node_t *>head
    if head is NULL and g_fd >= 0:
        # Non-blocking; a full counter is as good as one more.
        check(write(g_fd, &one, sizeof(one)) != 0)


cdef int run_posted() noexcept:
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


def drain() -> int:
    """Run what reactors have posted; return how many notes there were."""
    try:
        os.eventfd_read(g_fd)
    except BlockingIOError:
        pass                            # posted before start, or taken by the drain before
    return run_posted()


cdef void call_done(call_t *call, int rc) noexcept nogil:
    """Answer a call that returned CALL_PENDING.  The call is gone afterwards."""
    call.rc = rc
    control_post(&call.node)


cdef void call_run(void *arg1, void *arg2) noexcept nogil:
    cdef call_t *call = <call_t *>arg1
    cdef int rc = call.fn(call)
    if rc != CALL_PENDING:
        call_done(call, rc)


cdef void call_answer(void *arg) noexcept:
    """Set the future's result.  A wait that was cancelled no longer wants it."""
    cdef call_t *call = <call_t *>arg
    future = <object>call.future
    keep = <object>call.keep
    Py_DECREF(future)
    Py_DECREF(keep)
    if not future.done():
        future.set_result(call.rc)
    free(call)


cdef object call_on(int lcore, call_fn fn, void *arg, object keep):
    """Run fn on a reactor and return an asyncio.Future of its answer (int).

    `keep` is held until the answer is there: the object that arg points into.
    OSError when the event cannot be sent.
    """
    future = asyncio.get_running_loop().create_future()
    cdef call_t *call = <call_t *>calloc(1, sizeof(call_t))
    cdef int rc
    if call is NULL:
        raise MemoryError
    call.node.run = call_answer
    call.node.arg = call
    call.fn = fn
    call.arg = arg
    call.future = <void *>future
    call.keep = <void *>keep
    call.event.fn = call_run
    call.event.arg1 = call
    Py_INCREF(future)
    Py_INCREF(keep)
    rc = event_send(lcore, &call.event)
    if rc < 0:
        Py_DECREF(future)
        Py_DECREF(keep)
        free(call)
        raise os_error(rc, f"event to the reactor on core {lcore}")
    return future


def start() -> None:
    """Watch for notes of reactors with the running asyncio loop.  Once until stop."""
    global g_fd, g_loop
    if g_fd >= 0:
        raise RuntimeError("the control thread is already listening to the reactors")
    g_loop = asyncio.get_running_loop()
    g_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
    g_loop.add_reader(g_fd, drain)
    run_posted()


def stop() -> None:
    """Stop watching.  The reactors have ended before, so nothing is posted afterwards."""
    global g_fd, g_loop
    if g_fd < 0:
        return
    drain()
    g_loop.remove_reader(g_fd)
    os.close(g_fd)
    g_fd = -1
    g_loop = None
