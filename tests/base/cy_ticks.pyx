"""vhostrt.base.ticks at the C level."""
import time

import pytest
from libc.stdint cimport uint64_t
from vhostrt.base.ticks cimport ticks_from_us, ticks_hz, ticks_now


def test_clock_runs_at_its_rate():
    # Each interval lies inside the next, however long this thread is kept from running.
    outer = time.monotonic()
    cdef uint64_t start = ticks_now()
    inner = time.monotonic()
    time.sleep(0.05)
    inner = time.monotonic() - inner
    cdef uint64_t ticks = ticks_now() - start
    outer = time.monotonic() - outer
    assert inner * 0.99 <= ticks / <double>ticks_hz() <= outer * 1.01


@pytest.mark.parametrize("us", [0, 1, 1_000_000, 2_500_000])
def test_ticks_of_microseconds(us):
    assert ticks_from_us(us) == us * ticks_hz() // 1_000_000


def test_ticks_of_a_century_do_not_overflow():
    assert ticks_from_us(100 * 365 * 86400 * 1_000_000) == 100 * 365 * 86400 * ticks_hz()


def test_fixtures_reach_compiled_tests(tmp_path):
    assert tmp_path.is_dir()
