"""vhostrt.env.services: the Python face, with C functions in capsules."""
import errno
import os
import time

import pytest

from cpython.pycapsule cimport PyCapsule_New
from libc.stdint cimport uint32_t, uintptr_t
from vhostrt.base.atomics cimport fetch_add_u32, load_acquire_u32

from vhostrt.env import lcore, services

ALL = sorted(os.sched_getaffinity(0))

cdef uint32_t g_calls = 0


cdef int work(void *arg) noexcept nogil:
    if arg is not NULL:
        fetch_add_u32(<uint32_t *>arg, 1)
    return 0


WORK = PyCapsule_New(<void *>work, "int (void *)", NULL)
OTHER = PyCapsule_New(<void *>work, "void (int)", NULL)


@pytest.fixture(autouse=True)
def running():
    global g_calls
    g_calls = 0
    lcore.init({1: ALL, 2: ALL, 3: ALL}, service=[2])
    services.init()
    yield
    services.fini()
    lcore.fini()


def counted():
    return services.register("count", WORK, <uintptr_t>&g_calls)


def until(condition):
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_a_service_from_registration_to_its_end():
    one = counted()
    assert (one.name, one.id, one.runs, one.lcores()) == ("count", 0, False, [])
    one.component(True)
    one.count(True)
    services.start_with_defaults()
    assert one.runs and one.lcores() == [2]
    until(lambda: load_acquire_u32(&g_calls) > 10)
    with pytest.raises(OSError, match="stop of service lcore 2") as refused:
        services.lcore_stop(2)
    assert refused.value.errno == errno.EBUSY
    assert services.loops(2) > 10
    one.run(False)
    services.lcore_stop(2)
    assert one.counted()["calls"] == one.counted(2)["calls"] == load_acquire_u32(&g_calls)
    assert one.counted(2)["cycles"] > 0
    one.reset()
    assert one.counted() == {"calls": 0, "cycles": 0}
    assert services.registered() == [one]
    one.unregister()
    one.unregister()
    assert services.registered() == []


def test_called_here():
    one = counted()
    with pytest.raises(OSError, match="service count is not run here") as refused:
        one.run_iter()
    assert refused.value.errno == errno.ENOEXEC
    one.component(True)
    one.run(True)
    one.run_iter()
    one.run_iter(serialize=False)
    assert g_calls == 2
    assert not one.runs
    one.mapped_check(False)
    assert one.runs


def test_lcores():
    one = counted()
    services.lcore_add(3)
    services.lcore_start(3)
    one.map(3)
    assert one.lcores() == [3]
    one.map(3, False)
    services.lcore_stop(3)
    services.lcore_del(3)
    assert lcore.services() == [2]


@pytest.mark.parametrize(("call", "number", "why"), [
    (lambda: services.lcore_add(1), errno.EINVAL, "lcore 1 as one of services"),
    (lambda: services.lcore_add(2), errno.EALREADY, "lcore 2 as one of services"),
    (lambda: services.lcore_del(3), errno.EINVAL, "service lcore 3 back to the application"),
    (lambda: services.lcore_start(3), errno.EINVAL, "start of service lcore 3"),
    (lambda: services.lcore_stop(2), errno.EALREADY, "stop of service lcore 2"),
    (lambda: services.loops(9), errno.EINVAL, "loops of lcore 9, which runs no services"),
    (lambda: counted().map(3), errno.EINVAL, "service count on lcore 3, which runs no services"),
    (lambda: counted().counted(9), errno.EINVAL, "service count on lcore 9"),
    (lambda: services.register("", WORK), errno.EINVAL, "service '': a name of 1 to 31 bytes"),
    (lambda: services.register("a\0", WORK), errno.EINVAL, "a name of 1 to 31 bytes"),
    (lambda: services.register("x" * 32, WORK), errno.ENAMETOOLONG, "a name of 1 to 31 bytes"),
    (lambda: [services.register("x", WORK) for _ in range(65)], errno.ENOSPC,
     "service x: 64 are registered"),
    (services.init, errno.EALREADY, "services"),
])
def test_refused(call, number, why):
    with pytest.raises(OSError, match=why) as refused:
        call()
    assert refused.value.errno == number


@pytest.mark.parametrize(("function", "why"), [
    (print, r"function of service x is a builtin_function_or_method, not a capsule of a C function "
            r"int \(void \*\)"),
    (OTHER, r"function of service x is a C function void \(int\), not int \(void \*\)"),
])
def test_what_is_no_such_function_is_refused(function, why):
    with pytest.raises(TypeError, match=why):
        services.register("x", function)
    assert services.registered() == []


def test_no_service_lcores_and_idle_policies():
    services.fini()
    with pytest.raises(ValueError, match="'sleep' of services: yield, spin"):
        services.init("sleep")
    lcore.fini()
    lcore.init({1: ALL})
    services.init("spin")
    with pytest.raises(OSError, match="start of the services") as refused:
        services.start_with_defaults()
    assert refused.value.errno == errno.ENOTSUP


def test_dump():
    one = counted()
    one.component(True)
    one.map(2)
    assert services.dump() == ("service 0 count: stopped, lcores [2], 0 calls, 0 cycles\n"
                               "service lcore 2: WAIT, 0 loops")
