"""vhostrt.env.service and service_lcore at the C level: who runs what when, and what is refused."""
import errno
import os
import threading
import time

import pytest

from libc.stdint cimport uint32_t, uint64_t, uintptr_t
from libc.string cimport memset
from vhostrt.base.atomics cimport (fetch_add_u32, fetch_sub_u32, load_acquire_u32,
                                   store_release_u32)
from vhostrt.env.lcore cimport LCORE_NONE, lcore_current, lcore_launch, lcore_wait
from vhostrt.env.service cimport (
    SERVICE_MAX, SERVICE_MT_SAFE, service_by_name, service_component_runstate_set, service_count,
    service_map_get, service_map_set, service_mapped_check_set, service_register,
    service_run_iter, service_runstate_get, service_runstate_set, service_stats_get,
    service_stats_reset, service_stats_set, service_stats_t, service_unregister)
from vhostrt.env.service_lcore cimport (
    service_fini, service_init, service_lcore_add, service_lcore_del, service_lcore_loops,
    service_lcore_start, service_lcore_stop, service_start_with_defaults)

from vhostrt.env import lcore

cdef extern from "<unistd.h>" nogil:
    int usleep(unsigned usec)

ALL = sorted(os.sched_getaffinity(0))
MAIN, ONE, TWO, PLAIN = 1, 2, 3, 40     # lcores; ONE and TWO run services

ctypedef struct work_t:
    uint32_t calls
    uint32_t hold               # a call lasts until this is 0
    uint32_t inside             # calls that last at this moment
    uint32_t most               # of them at once
    uint32_t lcore              # of the last call
    uint32_t id
    int rc
    int found                   # what it returns

# Services go on until the fixture ends them: what they work on outlives a test.
cdef work_t g_work[4]


@pytest.fixture(autouse=True)
def services():
    lcore.init({MAIN: ALL, ONE: ALL, TWO: ALL, PLAIN: ALL}, service=[ONE, TWO])
    assert service_init(False) == 0
    yield
    service_fini()
    lcore.fini()


cdef int work(void *arg) noexcept nogil:
    cdef work_t *w = <work_t *>arg
    cdef uint32_t inside = fetch_add_u32(&w.inside, 1) + 1
    if inside > load_acquire_u32(&w.most):
        store_release_u32(&w.most, inside)
    store_release_u32(&w.lcore, lcore_current())
    fetch_add_u32(&w.calls, 1)
    while load_acquire_u32(&w.hold):
        usleep(50)
    fetch_sub_u32(&w.inside, 1)
    return w.found


cdef int unregister_self(void *arg) noexcept nogil:
    cdef work_t *w = <work_t *>arg
    w.rc = service_unregister(w.id)
    fetch_add_u32(&w.calls, 1)
    return 0


cdef int stop_own_lcore(void *arg) noexcept nogil:
    cdef work_t *w = <work_t *>arg
    service_runstate_set(w.id, False)
    w.rc = service_lcore_stop(lcore_current())
    fetch_add_u32(&w.calls, 1)
    return 0


cdef uint32_t registered(work_t *w, name=b"work", uint32_t capabilities=0) except 0xFFFFFFFF:
    """Register work on w, able to run; return its number."""
    cdef uint32_t id_ = 77
    memset(w, 0, sizeof(work_t))
    assert service_register(name, work, w, capabilities, &id_) == 0
    assert service_component_runstate_set(id_, True) == 0
    w.id = id_
    return id_


def until(condition):
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_registration_takes_the_lowest_free_number():
    cdef work_t *w = g_work
    cdef uint32_t id_ = 77
    assert [registered(&w[i], n) for i, n in enumerate([b"a", b"b", b"c"])] == [0, 1, 2]
    assert service_count() == 3
    assert service_unregister(1) == 0
    assert service_count() == 2
    assert service_unregister(1) == -errno.EINVAL
    assert service_by_name(b"c", &id_) == 0 and id_ == 2
    assert service_by_name(b"b", &id_) == -errno.ENOENT
    assert service_by_name(NULL, &id_) == -errno.EINVAL
    assert registered(&w[1], b"d") == 1


def test_registration_refuses():
    cdef uint32_t id_
    assert service_register(NULL, work, NULL, 0, &id_) == -errno.EINVAL
    assert service_register(b"", work, NULL, 0, &id_) == -errno.EINVAL
    assert service_register(b"x", NULL, NULL, 0, &id_) == -errno.EINVAL
    assert service_register(b"x", work, NULL, 2, &id_) == -errno.EINVAL
    assert service_register(b"x" * 32, work, NULL, 0, &id_) == -errno.ENAMETOOLONG
    assert service_register(b"x" * 31, work, NULL, 0, &id_) == 0
    for _ in range(SERVICE_MAX - 1):
        assert service_register(b"x", work, NULL, 0, &id_) == 0
    assert id_ == SERVICE_MAX - 1
    assert service_register(b"x", work, NULL, 0, &id_) == -errno.ENOSPC


@pytest.mark.parametrize("id_", [0, 63, 64, 0xFFFFFFFF])
def test_no_such_service(uint32_t id_):
    cdef service_stats_t stats
    assert service_unregister(id_) == -errno.EINVAL
    assert service_component_runstate_set(id_, True) == -errno.EINVAL
    assert service_runstate_set(id_, True) == -errno.EINVAL
    assert service_runstate_get(id_) == -errno.EINVAL
    assert service_mapped_check_set(id_, True) == -errno.EINVAL
    assert service_stats_set(id_, True) == -errno.EINVAL
    assert service_stats_reset(id_) == -errno.EINVAL
    assert service_stats_get(id_, LCORE_NONE, &stats) == -errno.EINVAL
    assert service_map_set(id_, ONE, True) == -errno.EINVAL
    assert service_map_get(id_, ONE) == -errno.EINVAL
    assert service_run_iter(id_, True) == -errno.EINVAL


@pytest.mark.parametrize("component", [False, True])
@pytest.mark.parametrize("application", [False, True])
@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize("check", [False, True])
def test_run_state_is_component_and_application_and_an_lcore(component, application, mapped, check):
    cdef work_t *w = g_work
    cdef uint32_t id_ = registered(w)
    service_component_runstate_set(id_, component)
    service_runstate_set(id_, application)
    service_mapped_check_set(id_, check)
    assert service_map_set(id_, ONE, mapped) == 0
    assert service_runstate_get(id_) == (component and application and (mapped or not check))
    # Called directly it needs no lcore.
    expected = 0 if component and application else -errno.ENOEXEC
    assert service_run_iter(id_, True) == expected
    assert w.calls == (expected == 0)


def test_a_service_runs_on_the_lcores_it_is_mapped_to():
    cdef work_t *w = g_work
    cdef uint32_t id_ = registered(w)
    cdef uint64_t loops = 0
    assert service_runstate_set(id_, True) == 0
    assert service_lcore_start(ONE) == 0 and service_lcore_start(TWO) == 0
    until(lambda: service_lcore_loops(ONE, &loops) == 0 and loops > 10)
    assert w.calls == 0, "it is mapped to none"
    assert service_map_set(id_, TWO, True) == 0
    until(lambda: w.calls > 10)
    assert w.lcore == TWO
    assert [service_map_get(id_, n) for n in (ONE, TWO)] == [0, 1]
    assert service_map_set(id_, TWO, False) == 0
    calls = w.calls
    assert service_lcore_loops(TWO, &loops) == 0
    seen = loops
    until(lambda: service_lcore_loops(TWO, &loops) == 0 and loops > seen + 10)
    assert w.calls == calls, "taken off, it is called no more"
    assert service_runstate_get(id_) == 0


def test_states_are_seen_by_the_lcores():
    cdef work_t *w = g_work
    cdef uint32_t id_ = registered(w)
    cdef uint64_t loops = 0
    service_map_set(id_, ONE, True)
    assert service_lcore_start(ONE) == 0
    for on in (True, False, True):
        for set_state in (service_runstate_set(id_, on), service_component_runstate_set(id_, on)):
            assert set_state == 0
        assert service_lcore_loops(ONE, &loops) == 0
        seen = loops
        until(lambda: service_lcore_loops(ONE, &loops) == 0 and loops > seen + 3)
        calls = w.calls
        seen = loops
        until(lambda: service_lcore_loops(ONE, &loops) == 0 and loops > seen + 100)
        assert (w.calls > calls) == on
    service_runstate_set(id_, False)


@pytest.mark.parametrize("mt_safe", [False, True])
def test_only_one_that_is_mt_safe_runs_on_two_lcores_at_once(mt_safe):
    cdef work_t *w = g_work
    cdef uint64_t loops = 0
    cdef uint32_t id_ = registered(w, b"work", SERVICE_MT_SAFE if mt_safe else 0)
    w.hold = 1
    for which in (ONE, TWO):
        assert service_map_set(id_, which, True) == 0
        assert service_lcore_start(which) == 0
    assert service_runstate_set(id_, True) == 0
    until(lambda: w.calls >= 1)
    if mt_safe:
        until(lambda: w.inside == 2)
        store_release_u32(&w.hold, 0)
        return
    # The other lcore goes through its loop, and leaves it out.
    other = ONE if w.lcore == TWO else TWO
    assert service_lcore_loops(other, &loops) == 0
    seen = loops
    until(lambda: service_lcore_loops(other, &loops) == 0 and loops > seen + 10)
    assert w.calls == 1
    assert service_run_iter(id_, True) == -errno.EBUSY, "nor is it called directly"
    store_release_u32(&w.hold, 0)
    until(lambda: w.calls > 10)
    assert w.most == 1
    service_runstate_set(id_, False)


def test_a_direct_call_without_serialising_does_not_look_at_the_lock():
    cdef work_t *w = g_work
    cdef uint32_t id_ = registered(w)
    cdef int rc
    w.hold = 1
    service_runstate_set(id_, True)
    assert service_map_set(id_, ONE, True) == 0
    assert service_lcore_start(ONE) == 0
    until(lambda: w.inside == 1)
    release = threading.Timer(0.05, lambda: let_go(<uintptr_t>w))
    release.start()
    with nogil:
        rc = service_run_iter(id_, False)
    release.join()
    assert rc == 0 and w.most == 2
    service_runstate_set(id_, False)


def let_go(uintptr_t at):
    store_release_u32(&(<work_t *>at).hold, 0)


cdef int run_here(void *arg) noexcept nogil:
    return service_run_iter((<work_t *>arg).id, True)


def test_direct_calls_on_an_lcore_of_the_application_count_there():
    cdef work_t *w = g_work
    cdef uint32_t id_ = registered(w)
    cdef service_stats_t stats
    cdef int ret = -1
    service_runstate_set(id_, True)
    assert service_run_iter(id_, True) == 0
    assert service_stats_get(id_, LCORE_NONE, &stats) == 0
    assert stats.calls == 0, "nothing is counted before that is asked for"
    assert service_stats_set(id_, True) == 0
    for _ in range(3):
        assert lcore_launch(PLAIN, run_here, w) == 0
        assert lcore_wait(PLAIN, &ret) == 0 and ret == 0
    assert w.lcore == PLAIN
    assert service_run_iter(id_, True) == 0                     # this thread is no lcore
    assert service_stats_get(id_, PLAIN, &stats) == 0
    assert stats.calls == 3 and stats.cycles > 0
    assert service_stats_get(id_, ONE, &stats) == 0 and stats.calls == 0
    assert service_stats_get(id_, LCORE_NONE, &stats) == 0 and stats.calls == 4
    assert service_stats_get(id_, 7, &stats) == -errno.EINVAL, "no lcore"
    assert service_stats_reset(id_) == 0
    assert service_stats_get(id_, LCORE_NONE, &stats) == 0
    assert (stats.calls, stats.cycles) == (0, 0)
    assert service_stats_set(id_, False) == 0
    assert service_run_iter(id_, True) == 0
    assert service_stats_get(id_, LCORE_NONE, &stats) == 0 and stats.calls == 0


def test_calls_are_counted_by_lcore():
    cdef work_t *w = g_work
    cdef uint32_t id_ = registered(w)
    cdef service_stats_t one, every
    service_stats_set(id_, True)
    service_runstate_set(id_, True)
    for which in (ONE, TWO):
        service_map_set(id_, which, True)
        assert service_lcore_start(which) == 0
    until(lambda: w.calls > 100)
    assert service_map_set(id_, TWO, False) == 0
    until(lambda: w.calls > 200)
    service_runstate_set(id_, False)
    service_map_set(id_, ONE, False)
    calls = 0
    for which in (ONE, TWO):
        assert service_stats_get(id_, which, &one) == 0
        calls += one.calls
    assert service_stats_get(id_, LCORE_NONE, &every) == 0
    assert every.calls == calls == w.calls


# Leaving.

def test_unregister_waits_for_the_lcore_in_it():
    cdef work_t *w = g_work
    cdef uint32_t id_ = registered(w)
    w.hold = 1
    service_runstate_set(id_, True)
    service_map_set(id_, ONE, True)
    assert service_lcore_start(ONE) == 0
    until(lambda: w.inside == 1)
    got = []
    leaver = threading.Thread(target=lambda: got.append(unregister(id_)))
    leaver.start()
    leaver.join(0.05)
    assert leaver.is_alive() and got == []
    assert service_count() == 0, "nobody finds it any more"
    store_release_u32(&w.hold, 0)
    leaver.join()
    assert got == [0] and w.inside == 0
    assert registered(w) == id_


def unregister(uint32_t id_):
    cdef int rc
    with nogil:
        rc = service_unregister(id_)
    return rc


def run_iter(uint32_t id_):
    cdef int rc
    with nogil:
        rc = service_run_iter(id_, True)
    return rc


def test_unregister_is_refused_while_a_thread_is_in_it():
    cdef work_t *w = g_work
    cdef uint32_t id_ = registered(w)
    w.hold = 1
    service_runstate_set(id_, True)
    caller = threading.Thread(target=lambda: run_iter(id_))
    caller.start()
    until(lambda: w.inside == 1)
    assert service_unregister(id_) == -errno.EBUSY
    assert service_mapped_check_set(id_, False) == 0
    assert service_runstate_get(id_) == 1, "it is as it was"
    store_release_u32(&w.hold, 0)
    caller.join()
    assert service_unregister(id_) == 0


def test_unregister_is_refused_on_its_own_lcore():
    cdef work_t *w = g_work
    cdef uint32_t id_ = 0
    memset(w, 0, sizeof(work_t))
    assert service_register(b"self", unregister_self, w, 0, &id_) == 0
    w.id = id_
    service_component_runstate_set(id_, True)
    service_runstate_set(id_, True)
    service_map_set(id_, ONE, True)
    assert service_lcore_start(ONE) == 0
    until(lambda: load_acquire_u32(&w.calls) > 0)
    assert w.rc == -errno.EBUSY
    assert unregister(id_) == 0


# Lcores.

def test_lcores_refused():
    cdef work_t *w = g_work
    cdef uint64_t loops
    cdef uint32_t id_ = registered(w)
    for which in (MAIN, PLAIN, 7, 5000):
        assert service_lcore_start(which) == -errno.EINVAL
        assert service_lcore_stop(which) == -errno.EINVAL
        assert service_lcore_del(which) == -errno.EINVAL
        assert service_lcore_loops(which, &loops) == -errno.EINVAL
        assert service_map_set(id_, which, True) == -errno.EINVAL
        assert service_map_get(id_, which) == -errno.EINVAL
    assert service_lcore_add(MAIN) == -errno.EINVAL, "the main lcore"
    assert service_lcore_add(7) == service_lcore_add(5000) == -errno.EINVAL
    assert service_lcore_add(ONE) == -errno.EALREADY
    assert service_init(False) == -errno.EALREADY


def test_an_lcore_is_added_and_deleted():
    cdef work_t *w = g_work
    cdef uint32_t id_ = registered(w)
    assert service_lcore_add(PLAIN) == 0
    assert lcore.services() == [ONE, TWO, PLAIN]
    assert service_map_set(id_, PLAIN, True) == 0
    assert service_lcore_start(PLAIN) == 0
    assert service_lcore_start(PLAIN) == -errno.EALREADY
    assert service_lcore_del(PLAIN) == -errno.EBUSY
    assert service_lcore_stop(PLAIN) == 0
    assert service_lcore_stop(PLAIN) == -errno.EALREADY
    assert lcore.state(PLAIN) == "WAIT"
    assert service_lcore_del(PLAIN) == 0
    assert lcore.enabled() == [MAIN, PLAIN]
    assert service_lcore_add(PLAIN) == 0
    assert service_map_get(id_, PLAIN) == 0, "what was mapped is not any more"
    service_fini()
    assert lcore.enabled() == [MAIN, PLAIN], "it was added: it goes back"
    assert lcore.services() == [ONE, TWO]


def test_an_lcore_that_works_is_not_added():
    cdef work_t *w = g_work
    cdef int ret
    memset(w, 0, sizeof(work_t))
    w.hold = 1
    assert lcore_launch(PLAIN, work, w) == 0
    assert service_lcore_add(PLAIN) == -errno.EBUSY
    store_release_u32(&w.hold, 0)
    assert lcore_wait(PLAIN, &ret) == 0
    assert service_lcore_add(PLAIN) == 0


def test_a_service_lcore_that_does_something_else_is_not_started():
    cdef work_t *w = g_work
    cdef int ret
    memset(w, 0, sizeof(work_t))
    w.hold = 1
    assert lcore_launch(ONE, work, w) == 0
    assert service_lcore_start(ONE) == -errno.EBUSY
    store_release_u32(&w.hold, 0)
    assert lcore_wait(ONE, &ret) == 0
    assert service_lcore_start(ONE) == 0


def test_stop_leaves_no_running_service_without_an_lcore():
    cdef work_t *w = g_work
    cdef uint32_t id_ = registered(w)
    service_runstate_set(id_, True)
    for which in (ONE, TWO):
        service_map_set(id_, which, True)
        assert service_lcore_start(which) == 0
    assert service_lcore_stop(ONE) == 0, "there is another"
    service_map_set(id_, ONE, False)
    assert service_lcore_stop(TWO) == -errno.EBUSY
    service_component_runstate_set(id_, False)
    assert service_lcore_stop(TWO) == 0, "it does not run"


def test_an_lcore_that_stops_itself():
    cdef work_t *w = g_work
    cdef uint32_t id_ = 0
    memset(w, 0, sizeof(work_t))
    assert service_register(b"self", stop_own_lcore, w, 0, &id_) == 0
    w.id = id_
    service_component_runstate_set(id_, True)
    service_runstate_set(id_, True)
    service_map_set(id_, ONE, True)
    assert service_lcore_start(ONE) == 0
    until(lambda: load_acquire_u32(&w.calls) == 1)
    assert w.rc == 0
    until(lambda: lcore.state(ONE) == "WAIT")


def test_defaults_deal_the_services_to_the_lcores():
    cdef work_t *w = g_work
    for i in range(3):
        registered(&w[i], b"work")
    assert service_start_with_defaults() == 0
    mapped = [[service_map_get(i, n) for n in (ONE, TWO)] for i in range(3)]
    assert mapped == [[1, 0], [0, 1], [1, 0]]
    for i in range(3):
        until(lambda: load_acquire_u32(&w[i].calls) > 0)
        assert service_runstate_get(i) == 1
    assert [w[i].lcore for i in range(3)] == [ONE, TWO, ONE]
    assert service_start_with_defaults() == 0, "those that run are no error"


def test_defaults_without_service_lcores():
    service_fini()
    lcore.fini()
    lcore.init({MAIN: ALL, PLAIN: ALL})
    assert service_init(False) == 0
    assert service_start_with_defaults() == -errno.ENOTSUP


def test_fini_stops_everything_and_forgets():
    cdef work_t *w = g_work
    cdef uint32_t id_ = registered(w)
    service_runstate_set(id_, True)
    service_map_set(id_, ONE, True)
    assert service_lcore_start(ONE) == 0
    until(lambda: w.calls > 0)
    service_fini()
    service_fini()
    assert lcore.state(ONE) == "WAIT"
    assert service_count() == 0
    assert service_init(True) == 0
    assert registered(w) == 0
    service_runstate_set(0, True)
    assert service_start_with_defaults() == 0
    until(lambda: w.calls > 100)


def test_a_forked_child_only_forgets():
    cdef work_t *w = g_work
    cdef uint32_t id_ = registered(w)
    service_runstate_set(id_, True)
    assert service_start_with_defaults() == 0
    child = os.fork()
    if child == 0:
        service_fini()
        good = service_count() == 0 and service_init(False) == 0
        os._exit(0 if good else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    calls = w.calls
    until(lambda: w.calls > calls)


# Stress: services come and go, and change lcores, while the lcores run.

def test_stress_of_mapping():
    cdef work_t *w = g_work
    cdef uint32_t ids[4]
    cdef uint32_t i, r, rounds = 100 * int(os.environ.get("VHOSTRT_STRESS", "1"))
    cdef uint32_t bad = 0
    memset(w, 0, 4 * sizeof(work_t))
    assert service_lcore_start(ONE) == 0 and service_lcore_start(TWO) == 0
    with nogil:
        for r in range(rounds):
            for i in range(4):
                w[i].most = 0
                bad += service_register(b"work", work, &w[i], i & 1, &ids[i]) != 0
                service_component_runstate_set(ids[i], True)
                service_runstate_set(ids[i], True)
                service_map_set(ids[i], 2 if r & 1 else 3, True)
                service_map_set(ids[i], 3 if r & 2 else 2, True)
            usleep(100)
            for i in range(4):
                service_map_set(ids[i], 2, False)
                bad += service_unregister(ids[i]) != 0
                bad += w[i].inside != 0                         # nobody is in it any more
                bad += not i & 1 and w[i].most > 1
    assert bad == 0
    assert service_count() == 0
