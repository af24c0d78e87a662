"""Loops over events and pollers, for bench_event_perf.

The shapes are those of SPDK's event_perf, reactor_perf and poller_perf: the same work, so that both
can be run side by side.
"""
import time

from libc.stdint cimport UINT64_MAX, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from vhostrt.base.atomics cimport load_acquire_u32, store_release_u32
from vhostrt.base.ticks cimport ticks_hz, ticks_now
from vhostrt.env.lcore cimport lcore_current
from vhostrt.event.events cimport event_allocate, event_call, event_call_on
from vhostrt.event.poller cimport poller_register, poller_unregister
from vhostrt.event.reactor cimport (poller_t, reactor_current, thread_attach, thread_detach,
                                    thread_init, thread_t)


def wait_for(condition):
    while not condition():
        time.sleep(0.001)


cdef struct events_t:
    uint64_t left
    uint64_t end                # ticks; event_perf's handler looks at the clock, reactor_perf's not
    uint64_t started
    uint64_t took
    uint32_t next_lcore
    uint32_t in_flight
    uint32_t done


cdef void finish(events_t *e) noexcept nogil:
    e.in_flight -= 1
    if e.in_flight == 0:
        e.took = ticks_now() - e.started
        store_release_u32(&e.done, 1)


cdef void event_perf(void *arg1, void *arg2) noexcept nogil:
    """As event_perf's submit_new_event: look at the clock, count, send on."""
    cdef events_t *e = <events_t *>arg1
    if ticks_now() > e.end or e.left == 0:
        finish(e)
        return
    e.left -= 1
    event_call(event_allocate(e.next_lcore, event_perf, e, NULL))


cdef void reactor_perf(void *arg1, void *arg2) noexcept nogil:
    """As reactor_perf's __submit_next: count, send to this core again."""
    cdef events_t *e = <events_t *>arg1
    if e.left == 0:
        finish(e)
        return
    e.left -= 1
    event_call(event_allocate(lcore_current(), reactor_perf, e, NULL))


cdef void begin(void *arg1, void *arg2) noexcept nogil:
    cdef events_t *e = <events_t *>arg1
    e.started = ticks_now()
    for _ in range(e.in_flight):
        if arg2 is NULL:
            event_perf(e, NULL)
        else:
            reactor_perf(e, NULL)


def events(str kind, uint32_t in_flight, uint64_t n):
    """Send n events, in_flight at a time, on lcore 0; return the seconds."""
    cdef events_t e
    e.left = n
    e.end = UINT64_MAX
    e.next_lcore = 0
    e.in_flight = in_flight
    e.done = 0
    event_call_on(0, begin, &e, NULL if kind == "event_perf" else <void *>1)
    wait_for(lambda: load_acquire_u32(&e.done))
    return e.took / <double>ticks_hz()


cdef struct pollers_t:
    thread_t thread             # first
    poller_t *pollers
    uint32_t count
    uint64_t period_us
    uint64_t runs
    uint64_t runs_max
    uint64_t busy
    uint64_t started
    uint64_t took
    uint32_t done


cdef int poller_run(void *arg) noexcept nogil:
    cdef pollers_t *p = <pollers_t *>arg
    p.runs += 1
    if p.runs == p.runs_max:
        p.took = ticks_now() - p.started
        p.busy = p.thread.busy_ticks
        store_release_u32(&p.done, 1)
    return 1


cdef void pollers_begin(void *arg1, void *arg2) noexcept nogil:
    cdef pollers_t *p = <pollers_t *>arg1
    cdef uint32_t i
    thread_attach(reactor_current(), &p.thread)
    for i in range(p.count):
        poller_register(&p.thread, &p.pollers[i], p.period_us)
    p.started = ticks_now()


cdef void pollers_end(void *arg1, void *arg2) noexcept nogil:
    cdef pollers_t *p = <pollers_t *>arg1
    cdef uint32_t i
    for i in range(p.count):
        poller_unregister(&p.pollers[i])
    thread_detach(&p.thread)
    store_release_u32(&p.done, 2)


def pollers(uint32_t count, uint64_t period_us, uint64_t runs):
    """Run `count` pollers with this period (0: active) until they have run `runs` times in all;
    return the seconds that it took, and those in which the thread was busy."""
    cdef pollers_t *p = <pollers_t *>calloc(1, sizeof(pollers_t))
    cdef uint32_t i
    thread_init(&p.thread)
    p.pollers = <poller_t *>calloc(count, sizeof(poller_t))
    p.count = count
    p.period_us = period_us
    p.runs_max = runs
    for i in range(count):
        p.pollers[i].poll = poller_run
        p.pollers[i].arg = p
        p.pollers[i].fd = -1
    event_call_on(0, pollers_begin, p, NULL)
    wait_for(lambda: load_acquire_u32(&p.done) >= 1)
    event_call_on(0, pollers_end, p, NULL)
    wait_for(lambda: load_acquire_u32(&p.done) == 2)
    seconds = p.took / <double>ticks_hz(), p.busy / <double>ticks_hz()
    free(p.pollers)
    free(p)
    return seconds
