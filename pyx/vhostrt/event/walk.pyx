"""Walks over the light threads: a function runs on each of them, one after the other.

The control thread alone knows the threads, so it is asked for the next one after each.

Threads:  for_each_thread: light threads.  for_each: the control thread.
"""
from libc.errno cimport EINVAL, ENODEV, ENOMEM
from libc.stdint cimport uint64_t
from libc.stdlib cimport calloc, free
from vhostrt.event.control cimport control_thread, thread_current
from vhostrt.event.message cimport thread_deliver, thread_send_node
from vhostrt.event.post cimport control_node_t, control_post
from vhostrt.event.reactor cimport msg_t, thread_t
from vhostrt.event.thread cimport Thread

from vhostrt.event.call import on_thread
from vhostrt.event.thread import threads

cdef struct walk_t:
    control_node_t node         # first: on the control thread, go on to the next thread
    msg_t msg
    msg_fn fn
    void *ctx
    msg_fn cpl
    thread_t *origin
    uint64_t at                 # id of the thread that was visited last


cdef void walk_visit(void *arg) noexcept nogil:
    cdef walk_t *walk = <walk_t *>arg
    walk.fn(walk.ctx)
    control_post(&walk.node)


cdef void walk_end(void *arg) noexcept nogil:
    cdef walk_t *walk = <walk_t *>arg
    walk.origin.holds -= 1
    if walk.cpl is not NULL:
        walk.cpl(walk.ctx)
    free(walk)


cdef void walk_on(void *arg) noexcept:
    """On the control thread.  The next thread runs, so it does not end before it has had the
    message."""
    cdef walk_t *walk = <walk_t *>arg
    cdef Thread light
    for light in threads():
        if light.t.id > walk.at and light.running:
            walk.at = light.t.id
            walk.msg.fn = walk_visit
            if thread_send_node(light.t, &walk.msg) == 0:
                return
    walk.msg.fn = walk_end
    thread_deliver(walk.origin, &walk.msg)


cdef int for_each_thread(msg_fn fn, void *ctx, msg_fn cpl) noexcept nogil:
    """Run fn(ctx) on every light thread that runs, one after the other by id, then cpl(ctx), which
    may be NULL, on the caller's.

    0; or -EINVAL: the caller is no light thread.  -ENODEV: the control thread's loop does not run.
    -ENOMEM.
    """
    cdef thread_t *origin = thread_current()
    cdef walk_t *walk
    if origin is NULL:
        return -EINVAL
    if control_thread() is NULL:
        return -ENODEV
    walk = <walk_t *>calloc(1, sizeof(walk_t))
    if walk is NULL:
        return -ENOMEM
    walk.node.run = walk_on
    walk.node.arg = walk
    walk.msg.ctx = walk
    walk.fn = fn
    walk.ctx = ctx
    walk.cpl = cpl
    walk.origin = origin
    origin.holds += 1
    control_post(&walk.node)
    return 0


async def for_each(fn, arg=None) -> list:
    """Run a C function on every thread that runs, one after the other by id, and return the
    results.  fn, arg: as for vhostrt.event.call.on_thread."""
    visited, results = 0, []
    while True:
        light = next((t for t in threads() if t.id > visited and t.running), None)
        if light is None:
            return results
        visited = light.id
        results.append(await on_thread(light, fn, arg))
