"""vhostrt.env.timer: the clock's rate, a busy wait, and the warning about a counter that varies."""
import errno
import threading
import time

import pytest

from vhostrt.base import ticks
from vhostrt.env import timer
from vhostrt.env.roots import Roots


def test_is_the_clock_of_the_data_path():
    assert timer.hz() == ticks.hz() > 1_000_000
    assert ticks.now() <= timer.ticks() <= ticks.now()


@pytest.mark.parametrize("us", [0, 1, 1000, 20_000])
def test_delay_is_no_shorter(us):
    start = time.monotonic_ns()
    timer.delay_us(us)
    # The two clocks differ by a thousandth at most.
    assert time.monotonic_ns() - start >= us * 1000 * 0.998


def test_delay_runs_without_the_gil():
    seen = []
    other = threading.Thread(target=lambda: seen.append(time.monotonic()))
    start = time.monotonic()
    other.start()
    timer.delay_us(300_000)
    assert seen and seen[0] < start + 0.3, "the other thread had to wait"


@pytest.mark.parametrize("us", [-1, 10**15 + 1, 2**64])
def test_delay_refused(us):
    with pytest.raises(OSError, match=f"delay of {us} us") as refused:
        timer.delay_us(us)
    assert refused.value.errno == errno.EINVAL


def cpuinfo(tmp_path, text):
    (tmp_path / "cpuinfo").write_text(text)
    return Roots(proc=str(tmp_path))


@pytest.mark.parametrize(("flags", "told"), [
    ("fpu vme", "constant_tsc=no nonstop_tsc=no"),
    ("fpu constant_tsc", "constant_tsc=yes nonstop_tsc=no"),
    ("nonstop_tsc xtopology", "constant_tsc=no nonstop_tsc=yes"),
    ("nonstop_tsc2 constant_tsc", "constant_tsc=yes nonstop_tsc=no"),
])
def test_warning_is_given_once(tmp_path, flags, told):
    roots = cpuinfo(tmp_path, f"processor\t: 0\nflags\t\t: {flags}\n\n"
                              "processor\t: 1\nflags\t\t: constant_tsc nonstop_tsc\n")
    assert timer.warning(roots) == f"cpu flags {told} -> using unreliable clock cycles !"
    assert timer.warning(roots) is None


@pytest.mark.parametrize("text", [
    "processor: 0\nflags\t\t: tsc constant_tsc rep_good nonstop_tsc cpuid\n",
    "processor: 0\nFeatures\t: fp asimd\n", "",
])
def test_no_warning(tmp_path, text):
    assert timer.warning(cpuinfo(tmp_path, text)) is None


def test_no_warning_without_cpuinfo(tmp_path):
    assert timer.warning(Roots(proc=str(tmp_path))) is None
