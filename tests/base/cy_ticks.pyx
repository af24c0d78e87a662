"""vhostrt.base.ticks at the C level."""
import time

import pytest
from libc.stdint cimport uint32_t, uint64_t
from vhostrt.base.ticks cimport (bus_hz, msr_hz, ticks_delay_us, ticks_from_us, ticks_hz,
                                 ticks_now)


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


@pytest.mark.parametrize("us", [2**54, 2**63, 2**64 - 1])
def test_a_time_that_never_comes_does_not_overflow(us):
    assert 100 * 365 * 86400 * ticks_hz() < ticks_from_us(us) <= <uint64_t>1 << 63


def test_delay_lasts():
    cdef uint64_t start = ticks_now()
    ticks_delay_us(2000)
    assert ticks_now() - start >= ticks_from_us(2000)


@pytest.mark.parametrize(("signature", "avx", "hz"), [
    pytest.param(0x106A5, False, 133_333_333, id="Nehalem"),
    pytest.param(0x206C2, False, 133_333_333, id="Westmere"),
    pytest.param(0x206A7, True, 100_000_000, id="Sandy Bridge"),
    pytest.param(0x50654, True, 100_000_000, id="Skylake"),
    pytest.param(0x506F1, False, 100_000_000, id="Goldmont"),
    pytest.param(0x1067A, False, 0, id="Core 2"),
    pytest.param(0x00F49, True, 0, id="family 15"),
    pytest.param(0, False, 0, id="not of Intel"),
])
def test_bus_of_a_processor(uint32_t signature, bint avx, uint64_t hz):
    assert bus_hz(signature, avx) == hz


@pytest.mark.parametrize(("value", "bus", "hz"), [
    (0x1A00, 100_000_000, 2_600_000_000), (0xFFFF_0000_0000_1AFF, 100_000_000, 2_600_000_000),
    (0x1400, 133_333_333, 2_666_666_660), (0, 100_000_000, 0), (0x1A00, 0, 0),
])
def test_rate_of_a_register(tmp_path, value, uint64_t bus, uint64_t hz):
    file = tmp_path / "msr"
    file.write_bytes(bytes(0xCE) + value.to_bytes(8, "little"))
    path = bytes(file)
    assert msr_hz(path, bus) == hz
    file.write_bytes(bytes(0xCE + 7))
    assert msr_hz(path, bus) == 0, "too short"
    file.unlink()
    assert msr_hz(path, bus) == 0, "not there"


def test_fixtures_reach_compiled_tests(tmp_path):
    assert tmp_path.is_dir()
