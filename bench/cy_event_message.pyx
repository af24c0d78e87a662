"""Loops over messages to light threads, for bench_event_message."""
import time

from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from vhostrt.base.atomics cimport load_acquire_u32, store_release_u32
from vhostrt.base.ticks cimport ticks_hz, ticks_now
from vhostrt.event.events cimport event_call_on
from vhostrt.event.message cimport thread_send_msg, thread_send_node
from vhostrt.event.reactor cimport (msg_t, reactor_current, thread_attach, thread_detach,
                                    thread_init, thread_t)


cdef struct messages_t:
    thread_t thread             # first
    uint32_t depth
    uint32_t in_flight
    uint64_t left
    uint64_t started
    uint64_t took
    uint32_t done


cdef bint ended(messages_t *m) noexcept nogil:
    """Count a message; whether it was the last of a chain."""
    if m.left == 0:
        m.in_flight -= 1
        if m.in_flight == 0:
            m.took = ticks_now() - m.started
            store_release_u32(&m.done, 1)
        return True
    m.left -= 1
    return False


cdef void pooled(void *ctx) noexcept nogil:
    if not ended(<messages_t *>ctx):
        thread_send_msg(&(<messages_t *>ctx).thread, pooled, ctx)


cdef struct node_t:
    msg_t msg                   # first
    messages_t *m


cdef void own(void *ctx) noexcept nogil:
    """ctx: a node."""
    cdef node_t *node = <node_t *>ctx
    if not ended(node.m):
        thread_send_node(&node.m.thread, &node.msg)


cdef void begin(void *arg1, void *arg2) noexcept nogil:
    cdef messages_t *m = <messages_t *>arg1
    cdef node_t *nodes = <node_t *>arg2
    cdef uint32_t i
    thread_attach(reactor_current(), &m.thread)
    m.started = ticks_now()
    m.in_flight = m.depth
    for i in range(m.depth):
        if nodes is NULL:
            thread_send_msg(&m.thread, pooled, m)
        else:
            nodes[i].m = m
            nodes[i].msg.fn = own
            nodes[i].msg.ctx = &nodes[i]
            thread_send_node(&m.thread, &nodes[i].msg)


cdef void end(void *arg1, void *arg2) noexcept nogil:
    thread_detach(&(<messages_t *>arg1).thread)
    store_release_u32(&(<messages_t *>arg1).done, 2)


def messages(str kind, uint32_t depth, uint64_t n):
    """Have a light thread on lcore 0 send itself n messages, `depth` at a time, of the pool or of
    its own (kind "pool", "own"); return the seconds."""
    cdef messages_t *m = <messages_t *>calloc(1, sizeof(messages_t))
    cdef node_t *nodes = NULL
    if kind == "own":
        nodes = <node_t *>calloc(depth, sizeof(node_t))
    thread_init(&m.thread)
    m.depth = depth
    m.left = n
    event_call_on(0, begin, m, nodes)
    while load_acquire_u32(&m.done) < 1:
        time.sleep(0.001)
    event_call_on(0, end, m, NULL)
    while load_acquire_u32(&m.done) < 2:
        time.sleep(0.001)
    seconds = m.took / <double>ticks_hz()
    free(nodes)
    free(m)
    return seconds
