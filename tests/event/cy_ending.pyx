"""vhostrt.event.ending: a reactor whose events and messages do not come to an end; and a poller
that ends and begins anew in its own run."""
import os
import time

import pytest
from libc.errno cimport ENODEV
from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from vhostrt.base.atomics cimport fetch_add_u32, load_acquire_u32
from vhostrt.base.check cimport check
from vhostrt.event.events cimport event_call_on
from vhostrt.event.message cimport thread_send_msg
from vhostrt.event.poller cimport poller_register, poller_unregister
from vhostrt.event.reactor cimport (POLLER_OFF, poller_t, reactor_current, thread_attach,
                                    thread_detach, thread_init, thread_t)

from vhostrt.env import lcore, memory
from vhostrt.event import reactor

DEADLINE_S = 60


def wait_for(condition):
    """Wait until condition() holds."""
    end = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.0005)


cdef struct endless_t:
    thread_t thread             # first
    uint32_t ended              # events that could not be sent again
    int rc                      # why


cdef void endless_event(void *arg1, void *arg2) noexcept nogil:
    """Send it again: to the same core, or to the other one."""
    cdef endless_t *e = <endless_t *>arg1
    cdef uint32_t core = reactor_current().lcore ^ <uint32_t><uint64_t>arg2
    cdef int rc = event_call_on(core, endless_event, arg1, arg2)
    if rc < 0:
        e.rc = rc
        fetch_add_u32(&e.ended, 1)


cdef void endless_message(void *ctx) noexcept nogil:
    check(thread_send_msg(<thread_t *>ctx, endless_message, ctx) == 0)


cdef void attach_endless(void *arg1, void *arg2) noexcept nogil:
    thread_attach(reactor_current(), <thread_t *>arg1)
    endless_message(arg1)


def test_what_goes_on_for_ever_does_not_keep_a_reactor():
    """Who sends an event is told that there is no reactor any more; a message is counted."""
    cdef endless_t *e = <endless_t *>calloc(1, sizeof(endless_t))
    cpus = sorted(os.sched_getaffinity(0))
    lcore.init({n: (cpus[n % len(cpus)],) for n in range(2)})
    memory.init()
    reactor.init([0, 1])
    try:
        reactor.start()
        thread_init(&e.thread)
        assert event_call_on(0, endless_event, e, NULL) == 0
        assert event_call_on(0, endless_event, e, <void *>1) == 0
        assert event_call_on(0, attach_endless, &e.thread, NULL) == 0
        wait_for(lambda: reactor.stats(0)["threads"] == 1)
        reactor.stop()
        assert e.ended == 2 and e.rc == -ENODEV
        assert e.thread.reactor is NULL
        assert reactor.fini() == 1
    finally:
        lcore.fini()
        memory.fini()
        free(e)


# A poller that is registered anew from inside it.

cdef struct again_t:
    thread_t thread             # first
    poller_t poller
    uint64_t period_us          # of its second life
    uint32_t runs
    uint32_t done


cdef int again_poll(void *arg) noexcept nogil:
    cdef again_t *a = <again_t *>arg
    fetch_add_u32(&a.runs, 1)
    if a.runs == 3:
        poller_unregister(&a.poller)
        poller_register(&a.thread, &a.poller, a.period_us)
    elif a.runs == 6:
        poller_unregister(&a.poller)
    return 1


cdef void again_begin(void *arg1, void *arg2) noexcept nogil:
    cdef again_t *a = <again_t *>arg1
    thread_attach(reactor_current(), &a.thread)
    poller_register(&a.thread, &a.poller, <uint64_t>arg2)


cdef void again_end(void *arg1, void *arg2) noexcept nogil:
    cdef again_t *a = <again_t *>arg1
    check(a.poller.state == POLLER_OFF)
    thread_detach(&a.thread)
    fetch_add_u32(&a.done, 1)


@pytest.mark.parametrize("second", [0, 200, 700])
@pytest.mark.parametrize("first", [0, 200])
def test_a_poller_ends_and_begins_anew_in_its_own_run(one, first, second):
    cdef again_t *a = <again_t *>calloc(1, sizeof(again_t))
    thread_init(&a.thread)
    a.poller.poll = again_poll
    a.poller.arg = a
    a.poller.fd = -1
    a.period_us = second
    assert event_call_on(0, again_begin, a, <void *><uint64_t>first) == 0
    wait_for(lambda: load_acquire_u32(&a.runs) == 6)
    time.sleep(0.01)
    assert event_call_on(0, again_end, a, NULL) == 0
    wait_for(lambda: load_acquire_u32(&a.done))
    assert a.runs == 6 and a.thread.active is NULL and a.thread.timers is NULL
    free(a)
