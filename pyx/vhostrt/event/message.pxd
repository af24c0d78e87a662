"""Messages to light threads: functions that run where the thread is, in the order of sending.

A message waits in the thread, not in a reactor: a thread takes its messages along when it moves.

Owner:    a msg_t that was taken from the sender belongs to the thread until it has run.
Threads:  senders: any; thread_send_critical also from a signal handler.  The thread outlives them.
Fails:    -errno: the message was not taken.  None is lost.
"""
from libc.stdint cimport uint32_t, uint64_t
from vhostrt.base.atomics cimport (exchange_ptr, load_acquire_ptr, load_relaxed_ptr,
                                   store_relaxed_u64, store_release_ptr)
from vhostrt.env.mempool cimport mempool_put
from vhostrt.event.loop_trace cimport traced_message
from vhostrt.event.reactor cimport msg_fn, msg_t, reactor_t, thread_t

cdef enum:
    MSG_BATCH = 8               # messages of a thread that run in one pass

cdef int thread_send_msg(thread_t *thread, msg_fn fn, void *ctx) noexcept nogil
cdef int thread_send_node(thread_t *thread, msg_t *msg) noexcept nogil
cdef void thread_deliver(thread_t *thread, msg_t *msg) noexcept nogil
cdef int thread_send_critical(thread_t *thread, msg_fn fn) noexcept nogil
cdef bint thread_drain(reactor_t *r, thread_t *thread) noexcept nogil
cdef uint32_t thread_drop(thread_t *thread) noexcept nogil


cdef inline void msg_push(thread_t *thread, msg_t *msg) noexcept nogil:
    """Put a message at the end.  Any thread."""
    cdef msg_t *before
    msg.next = NULL
    # Between the two the message is not to be seen yet: has_messages looks at the end as well.
    before = <msg_t *>exchange_ptr(&thread.msg_tail, msg)
    store_release_ptr(&before.next, msg)


cdef inline msg_t *msg_pop(thread_t *thread) noexcept nogil:
    """Take the oldest message; NULL when there is none, or it is not to be seen yet."""
    cdef msg_t *head = thread.msg_head
    cdef msg_t *next_ = <msg_t *>load_acquire_ptr(&head.next)
    if head is &thread.stub:
        if next_ is NULL:
            return NULL
        thread.msg_head = head = next_
        next_ = <msg_t *>load_acquire_ptr(&head.next)
    if next_ is NULL:
        # The last one can be taken only once something is behind it: the stub.
        if <msg_t *>load_relaxed_ptr(&thread.msg_tail) is not head:
            return NULL
        msg_push(thread, &thread.stub)
        next_ = <msg_t *>load_acquire_ptr(&head.next)
        if next_ is NULL:
            return NULL
    thread.msg_head = next_
    return head


cdef inline bint has_messages(thread_t *thread) noexcept nogil:
    """Whether there is a message, or will be at once.  On the thread's reactor."""
    return (thread.msg_head is not &thread.stub
            or <msg_t *>load_relaxed_ptr(&thread.msg_tail) is not &thread.stub
            or load_relaxed_ptr(&thread.critical) is not NULL)


cdef inline uint32_t run_messages(reactor_t *r, thread_t *thread, bint traced) noexcept nogil:
    """Run the critical message and one batch of the others; return how many ran.

    traced: as in run_events.
    """
    cdef void *batch[MSG_BATCH]
    cdef msg_t *msg
    cdef void *critical
    cdef uint32_t n = 0
    cdef uint32_t ran = 0
    cdef uint32_t pooled = 0
    if load_relaxed_ptr(&thread.critical) is not NULL:
        critical = exchange_ptr(&thread.critical, NULL)
        (<msg_fn>critical)(NULL)
        ran += 1
    while n < MSG_BATCH:
        msg = msg_pop(thread)
        if msg is NULL:
            break
        n += 1
        if msg.pooled:
            batch[pooled] = msg
            pooled += 1
        # A message of the sender's own may be freed by this.
        if traced:
            traced_message(msg)
        else:
            msg.fn(msg.ctx)
    if pooled:
        mempool_put(r.msg_pool, r.lcore, batch, pooled)
    ran += n
    if ran:
        store_relaxed_u64(&thread.messages, thread.messages + ran)
    return ran
