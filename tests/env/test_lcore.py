"""vhostrt.env.lcore from Python: detection, the life of the threads, where they run."""
import errno
import os
import re
import signal
import subprocess
import sys
import threading
import time

import pytest
from tests.lib.cpu_tree import cpu_tree

from vhostrt.env import lcore

ALL = sorted(os.sched_getaffinity(0))


@pytest.fixture(autouse=True)
def ended():
    before = tasks()
    yield
    lcore.fini()
    ended_since(before)


def tasks():
    return {int(tid) for tid in os.listdir("/proc/self/task")}


def ended_since(before):
    """Wait until every newer thread is gone: the kernel lists one for a moment after its join."""
    deadline = time.monotonic() + 10
    while not tasks() <= before:
        assert time.monotonic() < deadline, "threads are left behind"
        time.sleep(0.001)


def descriptors():
    return len(os.listdir("/proc/self/fd"))


def status(tid, field):
    with open(f"/proc/self/task/{tid}/status") as file:
        return re.search(rf"^{field}:\s*(.*)$", file.read(), re.M)[1]


def test_importing_starts_no_thread():
    code = "import os, vhostrt.env.lcore; print(len(os.listdir('/proc/self/task')))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "1\n"


def test_each_lcore_is_a_pinned_named_thread_deaf_to_signals():
    lcore.init(ALL)
    assert lcore.enabled() == ALL
    assert lcore.main() == ALL[0]
    threads = lcore.threads()
    assert list(threads) == ALL
    assert set(threads.values()) <= tasks() - {os.getpid()}
    for cpu, tid in threads.items():
        assert os.sched_getaffinity(tid) == {cpu} == lcore.cpus(cpu)
        assert status(tid, "Name") == f"lcore-worker-{cpu}"
        blocked = int(status(tid, "SigBlk"), 16)
        heard = {signal.SIGBUS, signal.SIGSEGV, signal.SIGFPE, signal.SIGILL, signal.SIGTRAP,
                 signal.SIGABRT, signal.SIGKILL, signal.SIGSTOP}
        for number in range(1, 32):
            assert bool(blocked >> (number - 1) & 1) == (number not in heard), number
        assert lcore.state(cpu) == "WAIT"
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == set()


def test_several_lcores_may_share_cpus():
    lcore.init({3: ALL, 700: ALL[:1], 31: ALL[:1]}, main=31)
    assert lcore.enabled() == [3, 31, 700]
    assert lcore.main() == 31
    assert os.sched_getaffinity(lcore.thread_id(3)) == set(ALL)
    assert status(lcore.thread_id(700), "Name") == "lcore-700"


def test_nodes_of_lcores(tmp_path):
    nodes = {cpu: ("0", cpu + 2) for cpu in ALL}
    lcore.init({0: ALL[:1], 1: ALL[1:2], 2: ALL[:2]}, roots=cpu_tree(tmp_path, nodes))
    assert [lcore.socket(n) for n in range(4)] == [ALL[0] + 2, ALL[1] + 2, -1, -1]


def test_a_new_thread_has_the_cpus_it_was_given_and_not_its_creators():
    os.sched_setaffinity(0, ALL[:1])
    try:
        lcore.init(ALL[1:2])
        assert os.sched_getaffinity(lcore.thread_id(ALL[1])) == {ALL[1]}
    finally:
        os.sched_setaffinity(0, ALL)


def test_init_and_fini_repeat_and_leave_nothing():
    before, open_before = tasks(), descriptors()
    for _ in range(20):
        lcore.init(ALL)
        lcore.fini()
    lcore.fini()
    ended_since(before)
    assert descriptors() == open_before
    assert (lcore.enabled(), lcore.main(), lcore.state(ALL[0])) == ([], None, "OFF")


def test_init_twice():
    lcore.init(ALL)
    with pytest.raises(OSError, match="lcores are already started") as refused:
        lcore.init(ALL)
    assert refused.value.errno == errno.EALREADY
    assert lcore.state(ALL[0]) == "WAIT"


@pytest.mark.parametrize(("lcores", "main", "why"), [
    pytest.param([], None, "no lcore is asked for", id="none"),
    pytest.param({0: []}, None, "lcore 0 is given no CPU", id="no CPU"),
    pytest.param([1024], None, "lcore 1024: the ids are 0 to 1023", id="id too large"),
    pytest.param([-1], None, "lcore -1: the ids are 0 to 1023", id="id negative"),
    pytest.param([1000], None, "CPU 1000 of lcore 1000 does not exist or is offline: this "
                 f"machine has {lcore.cpu_list(c.id for c in lcore.detect())}", id="no such CPU"),
    pytest.param({5: [ALL[0], 999]}, None, "CPU 999 of lcore 5 does not exist", id="one of two"),
    pytest.param(ALL[:1], 77, f"main lcore 77 is not one of {ALL[0]}$", id="main not enabled"),
])
def test_init_refuses(lcores, main, why):
    with pytest.raises(ValueError, match=why):
        lcore.init(lcores, main)
    assert lcore.enabled() == []


@pytest.mark.parametrize(("service", "main", "why"), [
    pytest.param([9], None, "service lcore 9 is not one of 0,2", id="not an lcore"),
    pytest.param([0, 2], None, "no lcore but those for services, 0,2", id="none is left"),
    pytest.param([2], 2, "main lcore 2 cannot be a service lcore", id="the main one"),
])
def test_service_lcores_refused(service, main, why):
    with pytest.raises(ValueError, match=why):
        lcore.init({0: ALL, 2: ALL}, main, service=service)
    assert lcore.enabled() == lcore.services() == []


def test_service_lcores_are_no_lcores_of_the_application():
    lcore.init({0: ALL, 2: ALL, 5: ALL}, service=[0])
    assert (lcore.enabled(), lcore.services(), lcore.main()) == ([2, 5], [0], 2)
    assert [lcore.role(n) for n in (0, 1, 2, 5000)] == ["SERVICE", "OFF", "RTE", "OFF"]
    assert lcore.threads().keys() == {0, 2, 5}
    assert lcore.cpus(0) == frozenset(ALL)


def test_a_pin_that_the_kernel_refuses_names_the_cpu_and_ends_the_others(tmp_path):
    # The recorded tree has a CPU that this machine has not: the kernel refuses the pin.
    roots = cpu_tree(tmp_path, {cpu: ("0", 0) for cpu in (*ALL, 1000)})
    before, open_before = tasks(), descriptors()
    with pytest.raises(OSError, match="lcore 1000 cannot run on CPU 1000: Invalid arg") as refused:
        lcore.init([*ALL, 1000], roots=roots)
    assert refused.value.errno == errno.EINVAL
    ended_since(before)
    assert descriptors() == open_before
    lcore.init(ALL)


def test_pipes_that_cannot_be_had_are_an_error(tmp_path):
    code = """if 1:
        import os, resource
        from vhostrt.env import lcore
        lcore.detect()
        before = len(os.listdir('/proc/self/fd'))
        resource.setrlimit(resource.RLIMIT_NOFILE, (before + 8, before + 8))
        cpu = min(os.sched_getaffinity(0))
        try:
            lcore.init({n: [cpu] for n in range(8)})
        except OSError as refused:
            print(refused)
        print(lcore.enabled(), len(os.listdir('/proc/self/fd')) - before)
    """
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert re.fullmatch(r"\[Errno 24\] lcore \d cannot be started: Too many open files\n\[\] 0\n",
                        run.stdout)


def test_control_thread_leaves_the_lcores_cpus_and_comes_back():
    lcore.init(ALL[:1])
    assert lcore.control_affinity(lcore.enabled()) == set(ALL[1:]) or ALL[1:] == []
    assert lcore.control_affinity(ALL) == set(ALL), "nothing remains: all of them"
    lcore.control_affinity(ALL[:1])
    seen = []
    helper = threading.Thread(target=lambda: seen.append(os.sched_getaffinity(0)))
    helper.start()
    helper.join()
    assert seen == [set(ALL[1:] or ALL)]
    lcore.fini()
    assert os.sched_getaffinity(0) == set(ALL)


def test_control_affinity_knows_the_cpus_of_an_lcore():
    lcore.init({900: ALL[:1]})
    assert lcore.control_affinity([900]) == set(ALL[1:] or ALL)


def test_questions_about_an_lcore_that_is_not_enabled():
    lcore.init(ALL[:1])
    for ask in (lcore.thread_id, lcore.wait):
        with pytest.raises(OSError, match="lcore 9") as refused:
            ask(9)
        assert refused.value.errno == errno.EINVAL
    with pytest.raises(KeyError):
        lcore.cpus(9)
    assert lcore.state(9) == lcore.state(5000) == "OFF"
    assert lcore.wait(ALL[0]) == 0, "nothing to wait for"
    assert lcore.current() is None


def test_a_forked_child_only_forgets():
    lcore.init(ALL)
    child = os.fork()
    if child == 0:
        try:
            lcore.wait(ALL[0])
        except OSError as refused:
            lcore.fini()
            os._exit(0 if refused.errno == errno.ESRCH and not lcore.enabled() else 1)
        os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert lcore.wait(ALL[0]) == 0
    assert lcore.threads().keys() == set(ALL)
