"""vhostrt.env.lcore at the C level: the launch protocol."""
import errno
import os
import time

import pytest
from tests.lib.cpu_tree import cpu_tree

from libc.stdint cimport uint32_t
from vhostrt.base.atomics cimport fetch_add_u32, load_acquire_u32, store_release_u32
from vhostrt.env.affinity cimport CPU_SET, CPU_ZERO, affinity_node, cpu_set_t
from vhostrt.env.lcore cimport (
    LCORE_FINISHED, LCORE_NONE, LCORE_OFF, LCORE_ROLE_OFF, LCORE_ROLE_RTE, LCORE_ROLE_SERVICE,
    LCORE_RUNNING, LCORE_WAIT, lcore_count, lcore_current, lcore_index, lcore_launch,
    lcore_launch_all, lcore_main, lcore_next, lcore_next_service, lcore_role, lcore_set_cpus,
    lcore_set_role, lcore_socket, lcore_state, lcore_wait, lcore_wait_all)

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


def test_check_15_launch_wait_and_the_states_between(lcores):
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


# All at once.

ctypedef struct order_t:
    uint32_t n
    uint32_t seen[8]


cdef int note_order(void *arg) noexcept nogil:
    cdef order_t *order = <order_t *>arg
    order.seen[fetch_add_u32(&order.n, 1)] = lcore_current()
    return lcore_current()


cdef int give_role_inside(void *arg) noexcept nogil:
    return lcore_set_role(lcore_current(), LCORE_ROLE_SERVICE)


@pytest.mark.parametrize(("main_too", "expected"), [(True, [2, 3, 40]), (False, [3, 40])])
def test_launch_on_all_in_ascending_order(lcores, main_too, expected):
    cdef order_t order
    order.n = 0
    cdef int ret = 0
    assert lcore_launch_all(note_order, &order, main_too) == 0
    assert [lcore_wait(n, &ret) or ret for n in expected] == expected, "each told its value"
    assert sorted([order.seen[i] for i in range(order.n)]) == expected
    # One at a time, in that order: each has begun, and here ended, before the next is told.
    order.n = 0
    lcore.fini()
    lcore.init({2: ALL[:1], 3: ALL[:1], 40: ALL[:1]})
    assert lcore_launch_all(note_order, &order, main_too) == 0
    lcore_wait_all()
    assert order.n == len(expected)
    assert [lcore_state(n) for n in (2, 3, 40)] == [LCORE_WAIT] * 3


@pytest.mark.parametrize("busy", [2, 3, 40])
def test_launch_on_all_is_refused_when_one_is_not_waiting(lcores, busy):
    cdef work_t w = work_t(1, 0, 0, 0, 0, 0)
    cdef order_t order
    order.n = 0
    assert lcore_launch(busy, work, &w) == 0
    assert lcore_launch_all(note_order, &order, True) == -errno.EBUSY, "running"
    store_release_u32(&w.hold, 0)
    while lcore_state(busy) == LCORE_RUNNING:
        time.sleep(0.001)
    assert lcore_launch_all(note_order, &order, True) == -errno.EBUSY, "nobody has waited"
    assert order.n == 0, "nothing was launched"
    assert [lcore_state(n) for n in (2, 3, 40) if n != busy] == [LCORE_WAIT] * 2
    if busy == 2:
        assert lcore_launch_all(note_order, &order, False) == 0, "without the main lcore"
    lcore_wait_all()
    assert lcore_launch_all(note_order, &order, True) == 0
    lcore_wait_all()                                            # before `order` goes


def test_launch_on_all_refused(lcores):
    assert lcore_launch_all(NULL, NULL, True) == -errno.EINVAL
    lcore.fini()
    assert lcore_launch_all(return_seven, NULL, True) == -errno.EINVAL
    lcore_wait_all()


# Roles.

def test_an_lcore_of_services_goes_back_to_wait(lcores):
    cdef work_t w = work_t(1, 0, 0, 0, 0, 5)
    cdef int ret = 0
    assert lcore_set_role(3, LCORE_ROLE_SERVICE) == 0
    assert lcore_launch(3, work, &w) == 0
    assert lcore_launch(3, work, &w) == -errno.EBUSY
    store_release_u32(&w.hold, 0)
    while lcore_state(3) == LCORE_RUNNING:
        time.sleep(0.001)
    assert lcore_state(3) == LCORE_WAIT
    assert lcore_wait(3, &ret) == 0 and ret == 0, "a wait on WAIT"
    assert lcore_launch(3, return_seven, NULL) == 0, "nobody needed to wait"
    assert lcore_wait(3, &ret) == 0 and ret in (0, 7)


def test_wait_for_an_lcore_of_services_that_runs_tells_its_value(lcores):
    import threading
    cdef work_t w = work_t(1, 0, 0, 0, 0, 5)
    assert lcore_set_role(3, LCORE_ROLE_SERVICE) == 0
    assert lcore_launch(3, work, &w) == 0
    got = []
    waiter = threading.Thread(target=lambda: got.append(lcore.wait(3)))
    waiter.start()
    waiter.join(0.05)
    store_release_u32(&w.hold, 0)
    waiter.join()
    assert got == [5] or got == [0], "0 when it came too late to wait"


def test_roles(lcores):
    cdef int ret = 0
    assert [lcore_role(n) for n in (2, 3, 40, 41)] == [LCORE_ROLE_RTE] * 3 + [LCORE_ROLE_OFF]
    assert lcore_set_role(3, LCORE_ROLE_SERVICE) == 0
    assert lcore_role(3) == LCORE_ROLE_SERVICE
    assert lcore_count() == 2 and lcore_next(2) == 40
    assert lcore_next_service(LCORE_NONE) == 3 and lcore_next_service(3) == LCORE_NONE
    assert [lcore_index(2), lcore_index(40)] == [0, 1]
    assert lcore_index(3) == lcore_index(41) == lcore_index(5000) == LCORE_NONE
    assert lcore_set_role(3, LCORE_ROLE_RTE) == 0
    assert lcore_count() == 3 and lcore_index(40) == 2
    assert lcore_launch(3, give_role_inside, NULL) == 0
    assert lcore_wait(3, &ret) == 0 and ret == -errno.EBUSY, "while it runs"
    assert lcore_launch(3, return_seven, NULL) == 0
    while lcore_state(3) == LCORE_RUNNING:
        time.sleep(0.001)
    assert lcore_set_role(3, LCORE_ROLE_SERVICE) == -errno.EBUSY, "nobody has waited"


@pytest.mark.parametrize(("which", "role"), [(2, LCORE_ROLE_SERVICE), (41, LCORE_ROLE_SERVICE),
                                             (3, LCORE_ROLE_OFF), (3, 7), (5000, LCORE_ROLE_RTE)])
def test_roles_refused(lcores, uint32_t which, int role):
    assert lcore_set_role(which, role) == -errno.EINVAL


# Affinity.

ctypedef struct move_t:
    cpu_set_t to
    int rc
    int node


cdef int move(void *arg) noexcept nogil:
    cdef move_t *m = <move_t *>arg
    m.rc = lcore_set_cpus(&m.to)
    m.node = affinity_node()
    return 0


def test_an_lcore_that_moves_has_other_cpus_and_node(tmp_path):
    cdef move_t m
    nodes = {cpu: ("0", cpu + 2) for cpu in ALL}
    lcore.init({7: ALL}, roots=cpu_tree(tmp_path, nodes))
    try:
        assert lcore_socket(7) == (-1 if len(ALL) > 1 else ALL[0] + 2)
        CPU_ZERO(&m.to)
        CPU_SET(ALL[0], &m.to)
        assert lcore_launch(7, move, &m) == 0
        assert lcore.wait(7) == 0
        assert (m.rc, m.node, lcore_socket(7)) == (0, ALL[0] + 2, ALL[0] + 2)
        assert lcore.cpus(7) == {ALL[0]} == os.sched_getaffinity(lcore.thread_id(7))
        CPU_ZERO(&m.to)
        assert lcore_launch(7, move, &m) == 0
        assert lcore.wait(7) == 0
        assert m.rc == -errno.EINVAL
        assert (lcore_socket(7), lcore.cpus(7)) == (ALL[0] + 2, {ALL[0]}), "nothing has changed"
    finally:
        lcore.fini()


def test_stress_of_launch_on_all(lcores):
    cdef order_t order
    order.n = 0
    cdef uint32_t _n, bad = 0
    cdef uint32_t rounds = 200 * int(os.environ.get("VHOSTRT_STRESS", "1"))
    with nogil:
        for _n in range(rounds):
            order.n = 0
            bad += lcore_launch_all(note_order, &order, True) != 0
            lcore_wait_all()
            bad += order.n != 3
    assert bad == 0


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
