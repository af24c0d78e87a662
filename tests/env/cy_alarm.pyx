"""vhostrt.env.alarm at the C level: order, cancelling, and what is refused."""
import errno
import os
import threading
import time

import pytest

from libc.stdint cimport UINT64_MAX, uint32_t, uint64_t, uintptr_t
from vhostrt.base.atomics cimport fetch_add_u32, load_acquire_u32, store_release_u32
from vhostrt.env.alarm cimport alarm_cancel, alarm_set
from vhostrt.env.interrupt cimport ANY_ARG, interrupt_is_here
from vhostrt.env.lcore cimport LCORE_NONE, lcore_current

from vhostrt.env import alarm, interrupt, lcore

cdef extern from "<unistd.h>" nogil:
    int usleep(unsigned usec)

cdef enum:
    MOST = 400                  # alarms of a test

ctypedef struct log_t:
    uint32_t n
    uint32_t order[MOST]

ctypedef struct shot_t:
    log_t *log
    uint32_t number


@pytest.fixture(autouse=True)
def ended():
    yield
    alarm.fini()
    interrupt.fini()


cdef void note(void *arg) noexcept nogil:
    cdef shot_t *shot = <shot_t *>arg
    shot.log.order[shot.log.n] = shot.number
    fetch_add_u32(&shot.log.n, 1)


cdef bint reaches(uint32_t *value, uint32_t n):
    """Wait until *value is n; False when that does not come."""
    deadline = time.monotonic() + 20
    while load_acquire_u32(value) < n and time.monotonic() < deadline:
        time.sleep(0.001)
    return load_acquire_u32(value) >= n


def test_check_16_equal_times_in_the_order_of_setting():
    cdef log_t log
    cdef shot_t shots[MOST]
    cdef uint32_t i
    cdef int bad = 0
    log.n = 0
    # Several are set within one microsecond.
    with nogil:
        for i in range(<uint32_t>MOST):
            shots[i] = shot_t(&log, i)
            bad += alarm_set(50_000, note, &shots[i]) != 0
    assert bad == 0
    assert reaches(&log.n, MOST)
    assert [log.order[i] for i in range(<uint32_t>MOST)] == list(range(MOST))


def test_earlier_ones_first_whenever_they_are_set():
    cdef log_t log
    cdef shot_t shots[6]
    log.n = 0
    delays = [400_000, 200_000, 300_000, 100_000, 2**63, 250_000]
    for i, us in enumerate(delays):
        shots[i] = shot_t(&log, i)
        assert alarm_set(us, note, &shots[i]) == 0
    assert reaches(&log.n, 5)
    assert [log.order[i] for i in range(5)] == [3, 1, 5, 2, 0]
    assert alarm.pending() == 1


def test_not_before_its_time():
    cdef log_t log
    cdef shot_t shot = shot_t(&log, 7)
    log.n = 0
    for n, us in enumerate((1, 999, 30_000), 1):
        start = time.clock_gettime_ns(time.CLOCK_MONOTONIC_RAW)
        assert alarm_set(us, note, &shot) == 0
        assert reaches(&log.n, n)
        # The alarm's time is in whole microseconds.
        assert time.clock_gettime_ns(time.CLOCK_MONOTONIC_RAW) - start >= us * 1000 - 1000


@pytest.mark.parametrize(("us", "rc"), [
    (0, -errno.EINVAL), (UINT64_MAX, -errno.EINVAL), (UINT64_MAX - 999_999, -errno.EINVAL),
    (UINT64_MAX - 1_000_000, 0), (1, 0),
])
def test_check_16_times_refused(uint64_t us, int rc):
    cdef log_t log
    cdef shot_t shot = shot_t(&log, 0)
    log.n = 0
    assert alarm_set(us, note, &shot) == rc
    alarm.fini()                                                # before `log` goes
    assert rc < 0 or us > 1 or log.n <= 1


def test_no_function_refused():
    cdef int count
    assert alarm_set(1, NULL, NULL) == -errno.EINVAL
    assert alarm_cancel(NULL, NULL, &count) == -errno.EINVAL
    assert not interrupt.running(), "what is refused starts no thread"


# What is executing.

ctypedef struct inside_t:
    uint32_t calls
    uint32_t hold               # a call lasts until this is 0
    int rc
    int count
    uint32_t again              # how often the call sets itself again
    uint32_t lcore
    bint here


cdef void inside(void *arg) noexcept nogil:
    cdef inside_t *w = <inside_t *>arg
    w.lcore = lcore_current()
    w.here = interrupt_is_here()
    w.rc = alarm_cancel(inside, arg, &w.count)
    if w.again:
        w.again -= 1
        alarm_set(1, inside, arg)
    fetch_add_u32(&w.calls, 1)
    while load_acquire_u32(&w.hold):
        usleep(100)


# The thread goes on until the fixture ends it: what it works on outlives a test.
cdef inside_t g_inside


cdef inside_t *fresh():
    cdef inside_t *w = &g_inside
    w.calls = w.hold = w.again = w.lcore = 0
    w.rc = w.count = -1
    w.here = False
    return w


def test_check_16_off_the_lcores_and_cancelled_by_itself():
    cdef inside_t *w = fresh()
    lcore.init(sorted(os.sched_getaffinity(0))[:1])
    try:
        assert alarm_set(100_000, inside, w) == 0
        assert alarm_set(10_000_000, inside, w) == 0
        assert reaches(&w.calls, 1)
        assert w.lcore == LCORE_NONE and w.here
        assert w.rc == -errno.EINPROGRESS
        assert w.count == 1, "the one to come is removed all the same"
    finally:
        lcore.fini()


def cancel(uintptr_t arg):
    cdef int count = 0
    cdef int rc
    with nogil:
        rc = alarm_cancel(inside, <void *>arg, &count)
    return rc, count


def test_cancel_waits_for_the_one_that_executes():
    cdef inside_t *w = fresh()
    w.hold = 1
    assert alarm_set(1, inside, w) == 0
    assert reaches(&w.calls, 1)
    got = []
    canceller = threading.Thread(target=lambda: got.append(cancel(<uintptr_t>w)))
    canceller.start()
    canceller.join(0.05)
    assert canceller.is_alive() and got == []
    store_release_u32(&w.hold, 0)
    canceller.join()
    assert got == [(0, 0)]
    assert alarm.pending() == 0


def test_cancel_ends_one_that_sets_itself_again():
    cdef inside_t *w = fresh()
    w.again = 1_000_000
    assert alarm_set(1, inside, w) == 0
    assert reaches(&w.calls, 3)
    assert cancel(<uintptr_t>w)[0] == 0
    calls = w.calls
    assert alarm.pending() == 0
    time.sleep(0.02)
    assert w.calls == calls


def test_an_alarm_may_set_alarms():
    cdef inside_t *w = fresh()
    w.again = 5
    assert alarm_set(1, inside, w) == 0
    assert reaches(&w.calls, 6)
    assert alarm.pending() <= 1


def test_cancel_takes_what_is_meant():
    cdef log_t log
    cdef shot_t shots[3]
    cdef int count = -1
    log.n = 0
    for i in (0, 0, 1, 2, 2):
        shots[i] = shot_t(&log, i)
        assert alarm_set(10**9, note, &shots[i]) == 0
    assert alarm_cancel(inside, ANY_ARG, &count) == -errno.ENOENT and count == 0
    assert alarm_cancel(note, NULL, &count) == -errno.ENOENT and count == 0
    assert alarm_cancel(note, &shots[0], &count) == 0 and count == 2
    assert alarm_cancel(note, &shots[0], &count) == -errno.ENOENT
    assert alarm.pending() == 3
    assert alarm_cancel(note, ANY_ARG, &count) == 0 and count == 3
    assert alarm.pending() == 0 and log.n == 0


def test_a_new_interrupt_thread_knows_the_timer():
    cdef log_t log
    cdef shot_t shot = shot_t(&log, 0)
    log.n = 0
    assert alarm_set(1, note, &shot) == 0
    assert reaches(&log.n, 1)
    interrupt.fini()
    assert alarm_set(1, note, &shot) == 0
    assert reaches(&log.n, 2)


def test_a_forked_child_only_forgets():
    cdef log_t log
    cdef shot_t shot = shot_t(&log, 0)
    cdef int count
    log.n = 0
    assert alarm_set(500_000, note, &shot) == 0
    child = os.fork()
    if child == 0:
        good = (alarm_set(1, note, &shot) == -errno.ESRCH and alarm.pending() == 0
                and alarm_cancel(note, &shot, &count) == -errno.ESRCH)
        alarm.fini()
        interrupt.fini()
        good = good and alarm_set(1, note, &shot) == 0 and reaches(&log.n, 1)
        alarm.fini()
        interrupt.fini()
        os._exit(0 if good else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert reaches(&log.n, 1), "the parent's comes"


# Stress: threads set alarms and cancel some of them; each is called or cancelled, once.

cdef void count_one(void *arg) noexcept nogil:
    fetch_add_u32(<uint32_t *>arg, 1)


def set_and_cancel(uint32_t rounds, list sums):
    cdef uint32_t fired[16]
    cdef uint32_t i, r, total = 0
    cdef int count, bad = 0
    with nogil:
        for r in range(rounds):
            for i in range(16):
                fired[i] = 0
                bad += alarm_set(1 + (i * 7 + r) % 50, count_one, &fired[i]) != 0
            for i in range(16):
                alarm_cancel(count_one, &fired[i], &count)
                total += count + load_acquire_u32(&fired[i])
    sums.append((bad, total - rounds * 16))


def test_stress_of_set_and_cancel():
    sums = []
    rounds = 100 * int(os.environ.get("VHOSTRT_STRESS", "1"))
    threads = [threading.Thread(target=set_and_cancel, args=(rounds, sums)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sums == [(0, 0)] * 4
    assert alarm.pending() == 0
