"""Messages to light threads: functions that run where the thread is, in the order of sending.

The queue is an intrusive list with one consumer, the reactor that the thread is on: senders
exchange its end, and a stub takes the place of a message while there is none.

Threads:  senders: any.
"""
from libc.errno cimport EBUSY, ENODEV, ENOMEM
from libc.stdint cimport uint32_t
from vhostrt.base.atomics cimport cas_ptr, load_acquire_ptr
from vhostrt.env.lcore cimport lcore_current
from vhostrt.env.mempool cimport mempool_cache, mempool_get_one, mempool_t
from vhostrt.event.pools cimport pool_low
from vhostrt.event.post cimport control_post
from vhostrt.event.reactor cimport (msg_fn, msg_t, reactor_msg_pool, reactor_t, reactor_wake,
                                    thread_t)

cdef void wake_thread(thread_t *thread) noexcept nogil:
    """Have somebody look at the thread's messages."""
    cdef reactor_t *r = <reactor_t *>load_acquire_ptr(&thread.reactor)
    # A thread that is on no reactor is looked at when it comes to one.
    if r is not NULL:
        reactor_wake(r)
    elif thread.control is not NULL and cas_ptr(&thread.control.arg, NULL, thread):
        control_post(thread.control)


cdef void thread_send_node(thread_t *thread, msg_t *msg) noexcept nogil:
    """Run msg.fn(msg.ctx) on a thread.  msg: the caller's own (pooled 0), until it has run."""
    msg_push(thread, msg)
    wake_thread(thread)


cdef int thread_send_msg(thread_t *thread, msg_fn fn, void *ctx) noexcept nogil:
    """Run fn(ctx) on a thread.

    0        it will run when the thread is polled next, also after a move
    -ENODEV  there are no reactors
    -ENOMEM  the pool of messages is empty; more are made, so try again later
    """
    cdef mempool_t *pool = reactor_msg_pool()
    cdef uint32_t here = lcore_current()
    cdef msg_t *msg
    if pool is NULL:
        return -ENODEV
    if mempool_cache(pool, here) is NULL or mempool_cache(pool, here).len == 0:
        pool_low(pool)
    msg = <msg_t *>mempool_get_one(pool, here)
    if msg is NULL:
        return -ENOMEM
    msg.fn = fn
    msg.ctx = ctx
    msg.pooled = 1
    thread_send_node(thread, msg)
    return 0


cdef int thread_send_critical(thread_t *thread, msg_fn fn) noexcept nogil:
    """Run fn(NULL) on a thread before its other messages.  Also from a signal handler.

    0, or -EBUSY: the one before it has not run yet.
    """
    if not cas_ptr(&thread.critical, NULL, <void *>fn):
        return -EBUSY
    wake_thread(thread)
    return 0
