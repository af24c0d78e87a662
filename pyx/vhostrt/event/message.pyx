"""Messages to light threads: functions that run where the thread is, in the order of sending.

The queue is an intrusive list with one consumer, the reactor that the thread is on: senders
exchange its end, and a stub takes the place of a message while there is none.

Threads:  senders: any.
"""
from cython cimport unlikely
from libc.errno cimport EBUSY, EIO, ENODEV, ENOMEM
from libc.stdint cimport uint32_t
from vhostrt.base.atomics cimport cas_ptr, load_acquire_ptr, load_relaxed_u32
from vhostrt.env.lcore cimport lcore_current
from vhostrt.env.mempool cimport (mempool_cache, mempool_get_one, mempool_put,
                                  mempool_t)
from vhostrt.event.pools cimport pool_low
from vhostrt.event.post cimport control_post
from vhostrt.event.reactor cimport (msg_fn, msg_t, reactor_current, reactor_msg_pool, reactor_t,
                                    reactor_wake, thread_t)

cdef void wake_thread(thread_t *thread) noexcept nogil:
    """Have somebody look at the thread's messages."""
    cdef reactor_t *r = <reactor_t *>load_acquire_ptr(&thread.reactor)
    # A thread that is on no reactor is looked at when it comes to one.
    if r is not NULL:
        reactor_wake(r)
    elif thread.control is not NULL and cas_ptr(&thread.control.arg, NULL, thread):
        control_post(thread.control)


cdef bint refuses(thread_t *thread) noexcept nogil:
    """Whether a thread that ends takes nothing from the caller: it does take from itself, as what
    it has to undo may need messages."""
    cdef reactor_t *r = reactor_current()
    return r is NULL or r.thread is not thread


cdef void thread_deliver(thread_t *thread, msg_t *msg) noexcept nogil:
    """As thread_send_node, also to a thread that is ending: by who keeps it from its end."""
    msg_push(thread, msg)
    wake_thread(thread)


cdef int thread_send_node(thread_t *thread, msg_t *msg) noexcept nogil:
    """Run msg.fn(msg.ctx) on a thread.  msg: the caller's own (pooled 0), until it has run.

    0, or -EIO: the thread is ending, and msg is the caller's still.
    """
    if unlikely(load_relaxed_u32(&thread.exiting) and refuses(thread)):
        return -EIO
    thread_deliver(thread, msg)
    return 0


cdef int thread_send_msg(thread_t *thread, msg_fn fn, void *ctx) noexcept nogil:
    """Run fn(ctx) on a thread.

    0        it will run when the thread is polled next, also after a move
    -EIO     the thread is ending
    -ENODEV  there are no reactors
    -ENOMEM  the pool of messages is empty; more are made, so try again later
    """
    cdef mempool_t *pool = reactor_msg_pool()
    cdef uint32_t here = lcore_current()
    cdef msg_t *msg
    if pool is NULL:
        return -ENODEV
    if unlikely(load_relaxed_u32(&thread.exiting) and refuses(thread)):
        return -EIO
    if mempool_cache(pool, here) is NULL or mempool_cache(pool, here).len == 0:
        pool_low(pool)
    msg = <msg_t *>mempool_get_one(pool, here)
    if msg is NULL:
        return -ENOMEM
    msg.fn = fn
    msg.ctx = ctx
    msg.pooled = 1
    thread_deliver(thread, msg)
    return 0


cdef int thread_send_critical(thread_t *thread, msg_fn fn) noexcept nogil:
    """Run fn(NULL) on a thread before its other messages.  Also from a signal handler.

    0, -EBUSY: the one before it has not run yet.  -EIO: the thread is ending.
    """
    if load_relaxed_u32(&thread.exiting):
        return -EIO
    if not cas_ptr(&thread.critical, NULL, <void *>fn):
        return -EBUSY
    wake_thread(thread)
    return 0


cdef bint thread_drain(reactor_t *r, thread_t *thread) noexcept nogil:
    """Run a batch of messages; False when there was none, and none is on its way.

    As run_messages, which is inline, for who has no hurry.
    """
    return run_messages(r, thread, False) > 0 or has_messages(thread)


cdef uint32_t thread_drop(thread_t *thread) noexcept nogil:
    """Give the messages of a thread that will never run them back; return how many there were."""
    cdef uint32_t dropped = 0
    cdef msg_t *msg = msg_pop(thread)
    while msg is not NULL:
        dropped += 1
        if msg.pooled:
            mempool_put(reactor_msg_pool(), lcore_current(), <void **>&msg, 1)
        msg = msg_pop(thread)
    return dropped
