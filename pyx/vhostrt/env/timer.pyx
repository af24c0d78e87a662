"""The clock of the environment: ticks of the time stamp counter, their rate, and a busy wait.

Threads:  any.
"""
import re

from libc.errno cimport EINVAL
from libc.stdint cimport uint64_t
from vhostrt.base.errors cimport ok

from vhostrt.env.roots import SYSTEM, Roots

DELAY_MAX = 10**15              # microseconds, 31 years: in ticks still far below 2^64
FLAGS = ("constant_tsc", "nonstop_tsc")
LOOK = 16384                    # bytes of cpuinfo: the first processor's, and more

cdef set g_told = set()         # of which roots a warning has been given


def ticks() -> int:
    """Return the tick counter."""
    return timer_ticks()


def hz() -> int:
    """Return the ticks of one second.  The first call may take 10 ms."""
    return timer_hz()


def delay_us(us: int) -> None:
    """Wait that many microseconds at least, busy, without the GIL; OSError EINVAL when negative."""
    cdef uint64_t wait
    if not 0 <= us <= DELAY_MAX:
        ok(-EINVAL, f"delay of {us} us, not of 0 to {DELAY_MAX}")
    wait = us
    with nogil:
        timer_delay_us(wait)


def warning(roots: Roots = SYSTEM) -> str | None:
    """Return, once, the sentence about a counter that may change its rate or stand still.

    None: there is nothing to say, or it has been said.  Processors that are not of the x86 family
    have no flags in cpuinfo, and a counter that does neither.
    """
    if roots in g_told:
        return None
    try:
        with open(roots.in_proc("cpuinfo")) as file:
            line = re.search(r"^flags\s*:(.*)$", file.read(LOOK), re.M)
    except OSError:
        return None
    has = {flag: line is None or flag in line[1].split() for flag in FLAGS}
    if all(has.values()):
        return None
    g_told.add(roots)
    told = " ".join(f"{flag}={'yes' if has[flag] else 'no'}" for flag in FLAGS)
    return f"cpu flags {told} -> using unreliable clock cycles !"
