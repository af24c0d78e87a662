"""vhostrt.env.interrupt from Python: callbacks on the interrupt thread or a loop's, its life."""
import asyncio
import errno
import os
import subprocess
import sys
import threading
import time

import pytest

from vhostrt.env import interrupt, lcore

ALL = sorted(os.sched_getaffinity(0))


@pytest.fixture
def event():
    fd = os.eventfd(0, os.EFD_NONBLOCK)
    yield fd
    interrupt.fini()
    os.close(fd)


def native_threads():
    """Return name -> thread id of this process."""
    found = {}
    for tid in os.listdir("/proc/self/task"):
        with open(f"/proc/self/task/{tid}/comm") as file:
            found[file.read().strip()] = int(tid)
    return found


def test_callback_on_the_interrupt_thread_until_it_is_removed(event):
    called = threading.Semaphore(0)
    seen = []

    def callback():
        seen.append(threading.get_native_id())
        called.release()
    handle = interrupt.register(event, callback, kind="vfio")
    assert handle.fd == event
    for _ in range(3):
        os.eventfd_write(event, 1)
        assert called.acquire(timeout=10)
    assert set(seen) == {native_threads()["eal-intr-thread"]}
    handle.remove()
    handle.remove()
    os.eventfd_write(event, 1)
    interrupt.fini()
    assert len(seen) == 3
    assert os.eventfd_read(event) == 1, "nobody reads it any more"


def test_callback_in_a_loop(event):
    async def run():
        called, seen = asyncio.Event(), []

        def callback():
            seen.append(threading.get_native_id())
            called.set()
        handle = interrupt.register(event, callback, kind="vfio", loop=asyncio.get_running_loop())
        os.eventfd_write(event, 1)
        await asyncio.wait_for(called.wait(), 10)
        handle.remove()
        return seen
    assert asyncio.run(run()) == [threading.get_native_id()]


@pytest.mark.parametrize("how", ["raises", "loop is closed"])
def test_what_a_callback_raises_is_told_and_the_thread_goes_on(event, how, monkeypatch):
    told, calls = [], threading.Semaphore(0)
    monkeypatch.setattr(sys, "unraisablehook", lambda u: told.append(u.exc_value))

    def callback():
        calls.release()
        raise KeyError("x")
    loop = None
    if how != "raises":
        loop = asyncio.new_event_loop()
        loop.close()
    first = interrupt.register(event, callback, kind="vfio", loop=loop)
    second = interrupt.register(event, calls.release, kind="vfio")
    os.eventfd_write(event, 1)
    for _ in range(2 if how == "raises" else 1):
        assert calls.acquire(timeout=10)
    first.remove()
    second.remove()
    assert [type(error) for error in told] == [KeyError if how == "raises" else RuntimeError]


def test_a_callback_cannot_remove_itself_on_the_thread(event):
    refused, done = [], threading.Event()

    def callback():
        try:
            handle.remove()
        except OSError as error:
            refused.append(error.errno)
        try:
            interrupt.fini()
        except OSError as error:
            refused.append(error.errno)
        done.set()
    handle = interrupt.register(event, callback, kind="vfio")
    os.eventfd_write(event, 1)
    assert done.wait(10)
    assert refused == [errno.EAGAIN, errno.EDEADLK]


def test_remove_waits_for_the_callback_that_runs(event):
    entered, seen = threading.Event(), []

    def callback():
        entered.set()
        time.sleep(0.05)
        seen.append("over")
    handle = interrupt.register(event, callback, kind="vfio")
    os.eventfd_write(event, 1)
    assert entered.wait(10)
    handle.remove()
    assert seen == ["over"]


@pytest.mark.parametrize(("words", "error", "why"), [
    (dict(kind="disk"), ValueError, "'disk': the kinds are other, uio, vfio, alarm, ext"),
    (dict(kind="ext", loop=1), ValueError, "use loop.add_reader"),
    (dict(kind="vfio", callback=3), TypeError, "3 cannot be called"),
    (dict(kind="vfio", fd=-1), OSError, "descriptor -1 of kind vfio"),
    (dict(kind="vfio", fd=99_999), OSError, "descriptor 99999 of kind vfio"),
])
def test_refused(event, words, error, why):
    given = {"fd": event, "callback": print} | words
    with pytest.raises(error, match=why):
        interrupt.register(given.pop("fd"), given.pop("callback"), **given)
    assert interrupt.sources() == {}


def test_thread_starts_with_use_and_ends_with_fini(event):
    assert not interrupt.running() and "eal-intr-thread" not in native_threads()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(10):
        handle = interrupt.register(event, print, kind="vfio")
        assert interrupt.running() and "eal-intr-thread" in native_threads()
        interrupt.fini()
        interrupt.fini()
        assert not interrupt.running() and interrupt.sources() == {}
        handle.remove()
    assert len(os.listdir("/proc/self/fd")) == before


def test_the_thread_keeps_off_the_lcores():
    lcore.init(ALL[:1])
    try:
        interrupt.init()
        deadline = time.monotonic() + 10
        rest = set(ALL[1:] or ALL)
        while os.sched_getaffinity(native_threads()["eal-intr-thread"]) != rest:
            assert time.monotonic() < deadline
            time.sleep(0.001)
    finally:
        interrupt.fini()
        lcore.fini()


def test_python_ends_with_a_callback_registered_and_events_coming():
    code = """if 1:
        import os, sys, threading
        from vhostrt.env import interrupt
        fd = os.eventfd(1)
        called = threading.Event()
        def callback():
            called.set()
            os.eventfd_write(fd, 1)
        interrupt.register(fd, callback, kind="vfio")
        called.wait(10)
        print("end")
    """
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (run.returncode, run.stdout, run.stderr) == (0, "end\n", "")
