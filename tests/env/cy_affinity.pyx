"""vhostrt.env.affinity: the node of a thread's CPUs, helpers off the lcores, any CPU for a call."""
import errno
import os
import threading

import pytest

from vhostrt.env.affinity cimport (CPU_ISSET, CPU_SET, CPU_ZERO, affinity_leave, affinity_learn,
                                   affinity_node, affinity_node_of, affinity_set,
                                   call_unaffinitized, cpu_set_t)

from vhostrt.env import affinity, lcore

cdef extern from "<sched.h>" nogil:
    int sched_getaffinity(int pid, size_t size, cpu_set_t *cpus)

ALL = sorted(os.sched_getaffinity(0))
NODES = {0: 0, 1: 1, 2: 1, 130: 3}


cdef cpu_set_t set_of(cpus):
    cdef cpu_set_t made
    CPU_ZERO(&made)
    for cpu in cpus:
        CPU_SET(cpu, &made)
    return made


cdef void *note_cpus(void *arg) noexcept nogil:
    sched_getaffinity(0, sizeof(cpu_set_t), <cpu_set_t *>arg)
    return arg


def on_a_thread(function):
    """Return function(), run on a thread of its own, whose CPUs end with it."""
    result = []
    thread = threading.Thread(target=lambda: result.append(function()))
    thread.start()
    thread.join()
    return result[0]


@pytest.fixture
def learnt():
    cdef cpu_set_t taken = set_of([])
    affinity_learn(NODES, &taken)
    yield
    affinity_learn({}, &taken)


@pytest.mark.parametrize(("cpus", "node"), [
    ([], -1), ([0], 0), ([1, 2], 1), ([0, 1], -1), ([130], 3), ([77], -1), ([0, 77], -1),
])
def test_node_of_cpus(learnt, cpus, node):
    cdef cpu_set_t wanted = set_of(cpus)
    assert affinity_node_of(&wanted) == node


def test_a_thread_keeps_the_node_of_the_cpus_it_sets():
    cdef cpu_set_t none = set_of([])
    affinity_learn({cpu: cpu + 2 for cpu in ALL}, &none)

    def set_and_ask():
        before = affinity.node()
        affinity.set_cpus(ALL[:1])
        found = affinity.node()
        affinity.set_cpus(ALL)
        return before, found, affinity.node(), affinity_node()
    several = -1 if len(ALL) > 1 else ALL[0] + 2
    assert on_a_thread(set_and_ask) == (-1, ALL[0] + 2, several, several)
    assert affinity_node() == -1, "the node of another thread is its own"
    affinity_learn({}, &none)


def test_refused():
    cdef cpu_set_t none = set_of([])
    assert affinity_set(&none) == -errno.EINVAL
    for cpus in ([], [1000], [-1], [1024]):
        with pytest.raises(OSError) as refused:
            affinity.set_cpus(cpus)
        assert refused.value.errno == errno.EINVAL
    assert sorted(os.sched_getaffinity(0)) == ALL


def test_a_helper_leaves_the_lcores():
    def leave():
        affinity.set_cpus(ALL[:1])
        affinity_leave()
        return os.sched_getaffinity(0)
    lcore.init(ALL[:1])
    try:
        assert on_a_thread(leave) == set(ALL[1:] or ALL)
    finally:
        lcore.fini()
    lcore.init(ALL)
    try:
        assert on_a_thread(leave) == set(ALL), "nothing else remains: all of them"
    finally:
        lcore.fini()


def test_a_call_on_any_cpu_and_back():
    cdef cpu_set_t within

    def call():
        affinity.set_cpus(ALL[:1])
        same = call_unaffinitized(note_cpus, &within) == <void *>&within
        inside = [cpu for cpu in range(1024) if CPU_ISSET(cpu, &within)]
        return same, inside, os.sched_getaffinity(0)
    assert on_a_thread(call) == (True, ALL, set(ALL[:1]))

    def call_from_python():
        affinity.set_cpus(ALL[:1])
        inside = affinity.call_on_any_cpu(lambda n: (n, sorted(os.sched_getaffinity(0))), 7)
        try:
            affinity.call_on_any_cpu(int, "x")
        except ValueError:
            return inside, os.sched_getaffinity(0)
    assert on_a_thread(call_from_python) == ((7, ALL), set(ALL[:1]))
