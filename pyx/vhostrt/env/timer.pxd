"""The clock of the environment: ticks of the time stamp counter, their rate, and a busy wait.

Threads:  any.
"""
from libc.stdint cimport uint64_t
from vhostrt.base.ticks cimport ticks_delay_us, ticks_hz, ticks_now


cdef inline uint64_t timer_ticks() noexcept nogil:
    """Return the tick counter."""
    return ticks_now()


cdef inline uint64_t timer_hz() noexcept nogil:
    """Return the ticks of one second.  The first call may take 10 ms."""
    return ticks_hz()


cdef inline void timer_delay_us(uint64_t us) noexcept nogil:
    """Wait that many microseconds at least, without giving up the CPU."""
    ticks_delay_us(us)
