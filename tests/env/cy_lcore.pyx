"""vhostrt.env.lcore at the C level: the launch protocol."""
import errno
import os
import time

import pytest

from libc.stdint cimport uint32_t
from vhostrt.base.atomics cimport load_acquire_u32, store_release_u32
from vhostrt.env.lcore cimport (
    LCORE_FINISHED, LCORE_NONE, LCORE_OFF, LCORE_RUNNING, LCORE_WAIT, lcore_count, lcore_current,
    lcore_launch, lcore_main, lcore_next, lcore_socket, lcore_state, lcore_wait)

from vhostrt.env import lcore

cdef extern from "<unistd.h>" nogil:
    int usleep(unsigned usec)

ALL = sorted(os.sched_getaffinity(0))

cdef struct work_t:
    uint32_t hold               # the function returns when this is 0
    uint32_t seen               # the lcore it ran on
    int state_inside
    int launch_inside
    int wait_inside
    int answer


@pytest.fixture
def lcores():
    lcore.init({2: ALL, 3: ALL, 40: ALL})
    yield
    lcore.fini()


cdef int return_seven(void *arg) noexcept nogil:
    return 7


cdef int work(void *arg) noexcept nogil:
    cdef work_t *w = <work_t *>arg
    cdef int ret
    w.seen = lcore_current()
    w.state_inside = lcore_state(w.seen)
    w.launch_inside = lcore_launch(w.seen, return_seven, NULL)
    w.wait_inside = lcore_wait(w.seen, &ret)
    while load_acquire_u32(&w.hold):
        usleep(100)
    return w.answer


def test_launch_wait_and_the_states_between(lcores):
    cdef work_t w = work_t(1, 0, 0, 0, 0, -77)
    cdef int ret = 5
    assert lcore_launch(3, work, &w) == 0
    assert lcore_state(3) == LCORE_RUNNING
    assert lcore_launch(3, work, &w) == -errno.EBUSY, "running"
    with pytest.raises(OSError, match="lcore 3 is still running"):
        lcore.fini()
    assert lcore_state(3) == LCORE_RUNNING and lcore_state(2) == LCORE_WAIT
    store_release_u32(&w.hold, 0)
    while lcore_state(3) == LCORE_RUNNING:
        time.sleep(0.001)
    assert lcore_state(3) == LCORE_FINISHED
    assert lcore_launch(3, work, &w) == -errno.EBUSY, "nobody has waited yet"
    assert lcore_wait(3, &ret) == 0 and ret == -77
    assert lcore_state(3) == LCORE_WAIT
    assert lcore_wait(3, &ret) == 0 and ret == 0, "the value is told once"
    assert lcore_launch(3, return_seven, NULL) == 0
    assert lcore.wait(3) == 7


def test_what_the_function_sees(lcores):
    cdef work_t w = work_t(0, 0, 0, 0, 0, 0)
    assert lcore_launch(40, work, &w) == 0
    assert lcore.wait(40) == 0
    assert w.seen == 40
    assert w.state_inside == LCORE_RUNNING
    assert w.launch_inside == -errno.EBUSY
    assert w.wait_inside == -errno.EDEADLK
    assert lcore_current() == LCORE_NONE, "an lcore's id leaked to another thread"


def test_wait_sleeps_until_the_function_returns(lcores):
    cdef work_t w = work_t(1, 0, 0, 0, 0, 9)
    import threading
    assert lcore_launch(2, work, &w) == 0
    got = []
    waiter = threading.Thread(target=lambda: got.append(lcore.wait(2)))
    waiter.start()
    waiter.join(0.05)
    assert waiter.is_alive() and got == []
    store_release_u32(&w.hold, 0)
    waiter.join()
    assert got == [9]


def test_fini_takes_a_finished_lcore(lcores):
    assert lcore_launch(2, return_seven, NULL) == 0
    while lcore_state(2) == LCORE_RUNNING:
        time.sleep(0.001)
    lcore.fini()
    assert lcore_state(2) == LCORE_OFF


def test_iteration(lcores):
    assert lcore_count() == 3
    assert lcore_main() == 2
    assert lcore_next(LCORE_NONE) == 2
    assert [lcore_next(2), lcore_next(3), lcore_next(39)] == [3, 40, 40]
    assert lcore_next(40) == LCORE_NONE
    lcore.fini()
    assert lcore_count() == 0 and lcore_main() == LCORE_NONE
    assert lcore_next(LCORE_NONE) == LCORE_NONE


@pytest.mark.parametrize("which", [0, 41, 1024, 0xFFFFFFFF])
def test_refused(lcores, which):
    cdef int ret
    assert lcore_launch(which, return_seven, NULL) == -errno.EINVAL
    assert lcore_wait(which, &ret) == -errno.EINVAL
    assert lcore_state(which) == LCORE_OFF
    assert lcore_socket(which) == -1


def test_launch_of_nothing_is_refused(lcores):
    assert lcore_launch(2, NULL, NULL) == -errno.EINVAL
    assert lcore_state(2) == LCORE_WAIT


def test_stress_of_launch_and_wait(lcores):
    cdef uint32_t n, i
    cdef uint32_t *which = [2, 3, 40]
    cdef int ret = 0, bad = 0
    cdef uint32_t rounds = 500 * int(os.environ.get("VHOSTRT_STRESS", "1"))
    with nogil:
        for n in range(3 * rounds):
            i = n % 3
            if n >= 3:
                bad += lcore_wait(which[i], &ret) != 0 or ret != 7
            bad += lcore_launch(which[i], return_seven, NULL) != 0
        for i in range(3):
            bad += lcore_wait(which[i], &ret) != 0 or ret != 7
    assert bad == 0
