"""The way between reactors and the control thread.

Notes are those of vhostrt.event.post, run by the asyncio loop.  A call is an event with a note for
its answer in it.  The messages of app_thread, the control thread's own light thread, are a note as
well: the first of them posts it.

Threads:  call_done, control_thread, thread_current: any.  The rest: the control thread.
"""
import asyncio
import os

from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset
from vhostrt.base.atomics cimport (cas_ptr, exchange_ptr, load_acquire_ptr, load_relaxed_ptr,
                                   store_release_ptr)
from vhostrt.base.errors cimport os_error
from vhostrt.base.ticks cimport ticks_now
from vhostrt.env.lcore cimport LCORE_NONE
from vhostrt.env.mempool cimport mempool_put
from vhostrt.event.events cimport event_send
from vhostrt.event.message cimport has_messages, msg_pop
from vhostrt.event.post cimport post_listen, post_run
from vhostrt.event.reactor cimport (msg_fn, msg_t, reactor_current, reactor_msg_pool, reactor_t,
                                    thread_init)

cdef extern from *:
    """
    #include <stdlib.h>
    static __thread int vh_is_control;          /* 1 on the thread whose loop listens */
    """
    bint t_control "vh_is_control"
    void *aligned_alloc(size_t align, size_t size) nogil

cdef enum:
    APP_BATCH = 64                      # messages of app_thread in one turn of the loop

cdef int g_fd = -1                      # eventfd; written by start and stop only
cdef object g_loop = None
cdef thread_t *g_app = NULL             # made by the first start; late senders may still look at it
cdef thread_t *g_listening = NULL       # g_app from start to stop
cdef control_node_t g_app_note          # arg: NULL while it is not posted


def drain() -> int:
    """Run what reactors have posted; return how many notes there were."""
    try:
        os.eventfd_read(g_fd)
    except BlockingIOError:
        pass                            # posted before start, or taken by the drain before
    return post_run()


cdef void call_done(call_t *call, int rc) noexcept nogil:
    """Answer a call that returned CALL_PENDING.  The call is gone afterwards."""
    call.awaited.rc = rc
    control_post(&call.awaited.node)


cdef void call_run(void *arg1, void *arg2) noexcept nogil:
    cdef call_t *call = <call_t *>arg1
    cdef int rc = call.fn(call)
    if rc != CALL_PENDING:
        call_done(call, rc)


cdef awaited_t *awaited_new(size_t size, object keep) except NULL:
    """Return a zeroed struct of `size` bytes, its first member begun: `keep` is kept, and posting
    the node answers the future and frees the struct.

    Fails: RuntimeError without a running loop, or in that of another thread; MemoryError.
    """
    require_control()
    future = asyncio.get_running_loop().create_future()
    cdef awaited_t *awaited = <awaited_t *>calloc(1, size)
    if awaited is NULL:
        raise MemoryError
    awaited.node.run = awaited_answer
    awaited.node.arg = awaited
    awaited.future = <void *>future
    awaited.keep = <void *>keep
    Py_INCREF(future)
    Py_INCREF(keep)
    return awaited


cdef int require_control() except -1:
    """Refuse who would wait in a loop that the answer does not come to."""
    if g_fd >= 0 and not t_control:
        raise RuntimeError("what asks a reactor belongs to the control thread: hand it over with "
                           "vhostrt.app.call_soon()")
    return 0


cdef void awaited_drop(awaited_t *awaited):
    """Free it and what it keeps: when it is answered, or will not be."""
    Py_DECREF(<object>awaited.future)
    Py_DECREF(<object>awaited.keep)
    free(awaited)


cdef void awaited_answer(void *arg) noexcept:
    """Set the future's result.  A wait that was cancelled no longer wants it."""
    cdef awaited_t *awaited = <awaited_t *>arg
    cdef int rc = awaited.rc
    future = <object>awaited.future
    awaited_drop(awaited)
    if not future.done():
        future.set_result(rc)


cdef object call_on(int lcore, call_fn fn, void *arg, object keep):
    """Run fn on a reactor and return an asyncio.Future of its answer (int).

    `keep` is held until the answer is there: the object that arg points into.
    OSError when the event cannot be sent.
    """
    cdef call_t *call = <call_t *>awaited_new(sizeof(call_t), keep)
    cdef int rc
    future = <object>call.awaited.future
    call.fn = fn
    call.arg = arg
    call.event.fn = call_run
    call.event.arg1 = call
    rc = event_send(lcore, &call.event)
    if rc < 0:
        awaited_drop(&call.awaited)
        raise os_error(rc, f"event to the reactor on core {lcore}")
    return future


# app_thread

cdef thread_t *control_thread() noexcept nogil:
    """Return app_thread, or NULL while the control thread's loop does not listen."""
    return <thread_t *>load_acquire_ptr(&g_listening)


cdef thread_t *thread_current() noexcept nogil:
    """Return the light thread that the caller runs as: app_thread on the control thread.

    NULL: it is neither that nor in a poll of a light thread, but in an event, say.
    """
    cdef reactor_t *r = reactor_current()
    if r is not NULL:
        return r.thread
    return control_thread() if t_control else NULL


cdef void app_run(void *arg) noexcept:
    """Run messages of app_thread: a batch, and the rest in the loop's next turn."""
    cdef thread_t *app = g_app
    cdef void *critical
    cdef msg_t *msg
    cdef int left = APP_BATCH
    cdef uint64_t before = ticks_now()
    # Who sends from here on posts again.
    exchange_ptr(&g_app_note.arg, NULL)
    if load_relaxed_ptr(&app.critical) is not NULL:
        critical = exchange_ptr(&app.critical, NULL)
        (<msg_fn>critical)(NULL)
        app.messages += 1
    while left:
        left -= 1
        msg = msg_pop(app)
        if msg is NULL:
            break
        app_message(msg)
    if has_messages(app) and cas_ptr(&g_app_note.arg, NULL, app):
        control_post(&g_app_note)
    app.busy_ticks += ticks_now() - before


cdef void app_message(msg_t *msg) noexcept:
    """Run one message.  One of the sender's own may be freed by that."""
    cdef bint pooled = msg.pooled
    msg.fn(msg.ctx)
    if pooled:
        mempool_put(reactor_msg_pool(), <uint32_t>LCORE_NONE, <void **>&msg, 1)
    g_app.messages += 1


def account(uint64_t busy) -> None:
    """Count ticks in which a Python poller has worked as app_thread's, whose poller it is."""
    if g_app is not NULL:
        g_app.busy_ticks += busy


cdef int app_start() except -1:
    """Make app_thread anew, with id 1; nobody sends to it yet."""
    global g_app
    if g_app is NULL:
        g_app = <thread_t *>aligned_alloc(64, (sizeof(thread_t) + 63) & ~<size_t>63)
    if g_app is NULL:
        raise MemoryError
    memset(g_app, 0, sizeof(thread_t))
    thread_init(g_app)
    g_app.id = 1
    g_app.name = b"app_thread"
    g_app.since = ticks_now()
    g_app.control = &g_app_note
    g_app_note.run = app_run
    g_app_note.arg = NULL
    store_release_ptr(&g_listening, g_app)
    return 0


def start() -> None:
    """Watch for notes of reactors, and for messages to app_thread, with the running asyncio loop,
    on what is the control thread from now on.  Once until stop."""
    global g_fd, g_loop, t_control
    if g_fd >= 0:
        raise RuntimeError("the control thread is already listening to the reactors")
    app_start()
    t_control = True
    g_loop = asyncio.get_running_loop()
    g_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
    g_loop.add_reader(g_fd, drain)
    post_listen(g_fd)
    post_run()


def stop() -> None:
    """Stop watching.  The reactors have ended before, so nothing is posted afterwards; what has
    been is run, and what that sends."""
    global g_fd, g_loop, t_control
    if g_fd < 0:
        return
    while drain():
        pass
    store_release_ptr(&g_listening, NULL)
    t_control = False
    post_listen(-1)
    g_loop.remove_reader(g_fd)
    os.close(g_fd)
    g_fd = -1
    g_loop = None
