"""Kicks of a sleeping reactor, for bench_event_wake: when they were given, and when they were seen.
"""
import time

import numpy as np

from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from posix.unistd cimport write
from vhostrt.base.atomics cimport (cpu_pause, fence_full, load_acquire_u32, load_relaxed_u32,
                                   store_relaxed_u32, store_release_u32)
from vhostrt.base.ticks cimport ticks_from_us, ticks_hz, ticks_now
from vhostrt.event.events cimport event_call_on
from vhostrt.event.poller cimport poller_register, poller_unregister
from vhostrt.event.reactor cimport (poller_t, reactor_current, reactor_of, reactor_t, thread_attach,
                                    thread_detach, thread_init, thread_t)

import os

cdef extern from "<time.h>" nogil:
    ctypedef struct timespec "struct timespec":
        long tv_sec
        long tv_nsec
    int nanosleep(const timespec *t, timespec *left)

cdef enum:
    PATIENCE_US = 1_000_000             # for a reactor to fall asleep, or to see a kick

cdef struct wake_t:
    thread_t thread             # first
    poller_t poller
    int fd
    uint32_t armed
    uint32_t kicks              # given
    uint32_t seen
    uint64_t *given_at          # ticks, of each
    uint64_t *seen_at
    uint32_t steps


cdef int wake_poll(void *arg) noexcept nogil:
    cdef wake_t *w = <wake_t *>arg
    cdef uint32_t kicks = load_acquire_u32(&w.kicks)
    if kicks == w.seen:
        return 0
    w.seen_at[kicks - 1] = ticks_now()
    store_release_u32(&w.seen, kicks)
    return 1


cdef int wake_arm(void *arg) noexcept nogil:
    cdef wake_t *w = <wake_t *>arg
    store_relaxed_u32(&w.armed, 1)
    fence_full()                        # with the one in kick
    return 1 if load_relaxed_u32(&w.kicks) != w.seen else 0


cdef void wake_disarm(void *arg) noexcept nogil:
    store_relaxed_u32(&(<wake_t *>arg).armed, 0)


cdef void set_up(void *arg1, void *arg2) noexcept nogil:
    cdef wake_t *w = <wake_t *>arg1
    thread_attach(reactor_current(), &w.thread)
    poller_register(&w.thread, &w.poller, 0)
    store_release_u32(&w.steps, 1)


cdef void take_down(void *arg1, void *arg2) noexcept nogil:
    cdef wake_t *w = <wake_t *>arg1
    poller_unregister(&w.poller)
    thread_detach(&w.thread)
    store_release_u32(&w.steps, 2)


cdef bint wait_until(const uint32_t *word, uint32_t value) noexcept nogil:
    """Spin until a word has a value; False when it does not come to that."""
    cdef uint64_t end = ticks_now() + ticks_from_us(PATIENCE_US)
    while load_acquire_u32(word) != value:
        if ticks_now() > end:
            return False
        cpu_pause()
    return True


cdef bint kick_all(wake_t *w, uint32_t n, uint64_t pause_us, bint asleep) noexcept nogil:
    """Give n kicks, each when the one before was seen, some time ago, and the reactor sleeps."""
    cdef uint64_t one = 1
    cdef reactor_t *r = reactor_of(0)
    cdef timespec pause = timespec(0, <long>(1000 * pause_us))
    cdef uint32_t i
    for i in range(n):
        nanosleep(&pause, NULL)
        if asleep and not wait_until(<const uint32_t *>&r.sleeping, 1):
            return False
        w.given_at[i] = ticks_now()
        store_release_u32(&w.kicks, i + 1)
        fence_full()
        if load_relaxed_u32(&w.armed):
            write(w.fd, &one, sizeof(one))
        if not wait_until(&w.seen, i + 1):
            return False
    return True


def wait_for(condition):
    while not condition():
        time.sleep(0.001)


def latencies(uint32_t n, uint64_t pause_us, bint asleep):
    """Return the microseconds from each of n kicks to the poll that sees it, as a NumPy array.

    asleep: kick the reactor of lcore 0 only when it sleeps in interrupt mode.
    """
    cdef wake_t *w = <wake_t *>calloc(1, sizeof(wake_t))
    cdef bint done
    cdef uint32_t i
    thread_init(&w.thread)
    w.fd = w.poller.fd = os.eventfd(0, os.EFD_NONBLOCK)
    w.poller.poll, w.poller.try_arm, w.poller.disarm = wake_poll, wake_arm, wake_disarm
    w.poller.arg = w
    w.given_at = <uint64_t *>calloc(n, sizeof(uint64_t))
    w.seen_at = <uint64_t *>calloc(n, sizeof(uint64_t))
    event_call_on(0, set_up, w, NULL)
    wait_for(lambda: load_acquire_u32(&w.steps) == 1)
    with nogil:
        done = kick_all(w, n, pause_us, asleep)
    event_call_on(0, take_down, w, NULL)
    wait_for(lambda: load_acquire_u32(&w.steps) == 2)
    found = np.array([w.seen_at[i] - w.given_at[i] for i in range(n)]) * 1e6 / ticks_hz()
    os.close(w.fd)
    free(w.given_at)
    free(w.seen_at)
    free(w)
    assert done, "a kick was not seen, or the reactor did not sleep"
    return found
