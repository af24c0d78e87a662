"""vhostrt.event.cpus and monitor: what the kernel says, on paper and of this machine."""
import asyncio
import os
import threading

import pytest

from tests.lib.apps import in_app
from vhostrt import log, pollers
from vhostrt.env.roots import Roots
from vhostrt.event import cpus, reactor
from vhostrt.event.monitor import read_counts

STAT = """cpu  30 0 60 90 0 12 18 0 0 0
cpu0 10 1 20 1000 2 4 6 7 8 9
cpu12 20 1 40 1000 2 8 12 7 8 9
intr 5 cpu3
"""


@pytest.fixture
def roots(tmp_path):
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/stat").write_text(STAT)
    freq = tmp_path / "sys/devices/system/cpu/cpu0/cpufreq"
    freq.mkdir(parents=True)
    (freq / "scaling_cur_freq").write_text("2595123\n")
    return Roots(sys=str(tmp_path / "sys"), proc=str(tmp_path / "proc"), dev="/nowhere")


def test_times_are_those_of_interrupts_the_kernel_and_programs(roots):
    assert cpus.read_times(roots) == {0: (10, 20, 10), 12: (20, 40, 20)}


def test_times_of_several_cpus_since_the_start(roots):
    now = cpus.read_times(roots)
    assert cpus.times_since({}, (0, 12), now) == {"irq": 30, "sys": 60, "usr": 30}
    assert cpus.times_since({0: (4, 20, 1)}, (0,), now) == {"irq": 6, "sys": 0, "usr": 9}
    assert cpus.times_since({0: (40, 50, 60)}, (0, 5), now) == {"irq": 0, "sys": 0, "usr": 0}


def test_frequency(roots, tmp_path):
    assert cpus.frequency(0, roots) == 2595
    assert cpus.frequency(1, roots) is None
    (tmp_path / "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq").write_text("<unknown>\n")
    assert cpus.frequency(0, roots) is None


def test_nothing_is_told(tmp_path):
    nowhere = Roots(sys=str(tmp_path), proc=str(tmp_path), dev=str(tmp_path))
    assert cpus.read_times(nowhere) == {} and cpus.frequency(0, nowhere) is None
    assert cpus.times_since({}, (0,), {}) == {"irq": 0, "sys": 0, "usr": 0}


def test_this_machine():
    assert set(os.sched_getaffinity(0)) <= set(cpus.read_times())


def test_context_switches_of_a_thread():
    tid = threading.get_native_id()
    before = read_counts(tid)
    wait = threading.Event()
    for _ in range(3):
        wait.wait(0.001)
    after = read_counts(tid)
    assert after[0] > before[0] and after[1] >= before[1]
    assert read_counts(2**22 + 1) == (0, 0)


def test_what_happened_while_nobody_looked_is_not_told_of(capsys):
    """A line is about one second."""
    async def main(running):
        async def switched():
            tid = reactor.stats(0)["tid"]
            before = read_counts(tid)
            while read_counts(tid) == before:
                await asyncio.sleep(0.001)
        for poller in pollers.registered.values():
            poller.pause()              # it is we who look
        monitor, told = running.monitor, []
        for enabled, flags in ((True, ("reactor",)), (True, ("reactor",)), (False, ("reactor",)),
                               (True, ("reactor",)), (True, ("reactor",)), (True, ()),
                               (True, ("reactor",)), (True, ("reactor",))):
            monitor.enabled, log.settings.flags = enabled, set(flags)
            told.append(monitor.look())
            await switched()
        return told
    told = in_app(main, idle="sleep")
    log.set_up(log.INFO)
    assert told == [False, True, False, False, True, False, False, True]
    assert capsys.readouterr().err.count("voluntary context switches and") == 3
