"""vhostrt.env.alarm from Python: callbacks on the interrupt thread or in a loop."""
import asyncio
import errno
import subprocess
import sys
import threading

import pytest

from vhostrt.env import alarm, interrupt


@pytest.fixture(autouse=True)
def ended():
    yield
    alarm.fini()
    interrupt.fini()


def test_callback_on_the_interrupt_thread():
    called, seen = threading.Event(), []

    def callback():
        seen.append(threading.get_native_id())
        called.set()
    handle = alarm.set_alarm(1000, callback)
    assert called.wait(10)
    assert seen != [threading.get_native_id()]
    assert handle.cancel() is False, "it has been called"


def test_callback_in_a_loop():
    async def run():
        called, seen = asyncio.Event(), []

        def callback():
            seen.append(threading.get_native_id())
            called.set()
        alarm.set_alarm(1000, callback, loop=asyncio.get_running_loop())
        await asyncio.wait_for(called.wait(), 10)
        return seen
    assert asyncio.run(run()) == [threading.get_native_id()]


def test_cancel_before_it_comes():
    handles = [alarm.set_alarm(60_000_000, print) for _ in range(3)]
    assert alarm.pending() == 3
    assert handles[1].cancel() is True
    assert handles[1].cancel() is False
    assert alarm.pending() == 2
    del handles
    assert alarm.pending() == 2, "an alarm does not need its handle"
    alarm.fini()
    assert alarm.pending() == 0


def test_cancel_in_its_own_call():
    refused, done = [], threading.Event()

    def callback():
        for forbidden in (handle.cancel, alarm.fini):
            try:
                forbidden()
            except OSError as error:
                refused.append(error.errno)
        done.set()
    handle = alarm.set_alarm(50_000, callback)
    assert done.wait(10)
    assert refused == [errno.EINPROGRESS, errno.EDEADLK]


def test_what_a_callback_raises_is_told_and_alarms_go_on(monkeypatch):
    told, called = [], threading.Event()
    monkeypatch.setattr(sys, "unraisablehook", lambda u: told.append(u.exc_value))
    alarm.set_alarm(1, lambda: 1 // 0)
    alarm.set_alarm(20_000, called.set)
    assert called.wait(10)
    assert [type(error) for error in told] == [ZeroDivisionError]


@pytest.mark.parametrize("us", [0, -1, 2**64 - 1_000_000, 2**70])
def test_time_refused(us):
    with pytest.raises(OSError, match=f"alarm in {us} us") as refused:
        alarm.set_alarm(us, print)
    assert refused.value.errno == errno.EINVAL
    assert alarm.pending() == 0


def test_callback_refused():
    with pytest.raises(TypeError, match="None cannot be called"):
        alarm.set_alarm(1, None)


def test_python_ends_with_alarms_pending():
    code = """if 1:
        from vhostrt.env import alarm
        def again():
            alarm.set_alarm(1, again)
        again()
        alarm.set_alarm(60_000_000, print)
        print("end")
    """
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (run.returncode, run.stdout, run.stderr) == (0, "end\n", "")
