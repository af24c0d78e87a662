"""The way between reactors and the control thread.

Notes are those of vhostrt.event.post, run by the asyncio loop.  A call is an event with a note for
its answer in it.

Threads:  call_done: any.  start, stop and call_on: the control thread.
"""
import asyncio
import os

from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.stdlib cimport calloc, free
from vhostrt.base.errors cimport os_error
from vhostrt.event.events cimport event_send
from vhostrt.event.post cimport post_listen, post_run

cdef int g_fd = -1                      # eventfd; written by start and stop only
cdef object g_loop = None


def drain() -> int:
    """Run what reactors have posted; return how many notes there were."""
    try:
        os.eventfd_read(g_fd)
    except BlockingIOError:
        pass                            # posted before start, or taken by the drain before
    return post_run()


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
    post_listen(g_fd)
    post_run()


def stop() -> None:
    """Stop watching.  The reactors have ended before, so nothing is posted afterwards."""
    global g_fd, g_loop
    if g_fd < 0:
        return
    drain()
    post_listen(-1)
    g_loop.remove_reader(g_fd)
    os.close(g_fd)
    g_fd = -1
    g_loop = None
