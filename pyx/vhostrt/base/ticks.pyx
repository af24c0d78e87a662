"""The clock of the data path: ticks of the processor's time stamp counter.

Threads:  any.
"""
from libc.stdint cimport uint64_t
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec

cdef extern from *:
    """
    #if defined(__x86_64__) || defined(__i386__)
    #include <cpuid.h>
    /* CPUID leaf 0x15: crystal frequency times the ratio; 0 where it is not told. */
    static uint64_t vh_cpuid_hz(void)
    {
        unsigned a, b, c, d;
        if (__get_cpuid_max(0, 0) < 0x15)
            return 0;
        __cpuid(0x15, a, b, c, d);
        (void)d;
        return a && c ? (uint64_t)c * (b / a) : 0;
    }
    #elif defined(__aarch64__)
    static uint64_t vh_cpuid_hz(void)
    {
        uint64_t v;
        __asm__ volatile("mrs %0, cntfrq_el0" : "=r"(v));
        return v;
    }
    #else
    static uint64_t vh_cpuid_hz(void) { return 1000000000u; }
    #endif
    """
    uint64_t cpuid_hz "vh_cpuid_hz"() nogil

cdef enum:
    MEASURE_NS = 10_000_000             # long enough that two clock reads of 50 ns do not matter
    ROUND_HZ = 100_000                  # what is left of the error after that

cdef uint64_t g_hz = 0                  # written once, by the import of this module


cdef uint64_t clock_ns() noexcept nogil:
    cdef timespec t
    clock_gettime(CLOCK_MONOTONIC, &t)
    return <uint64_t>t.tv_sec * 1_000_000_000 + <uint64_t>t.tv_nsec


cdef uint64_t measure_hz() noexcept nogil:
    """Count ticks over 10 ms of the monotonic clock."""
    cdef uint64_t start_ns = clock_ns()
    cdef uint64_t start = ticks_now()
    cdef uint64_t now_ns = start_ns
    while now_ns - start_ns < MEASURE_NS:
        now_ns = clock_ns()
    cdef uint64_t hz = (ticks_now() - start) * 1_000_000_000 // (now_ns - start_ns)
    return (hz + ROUND_HZ // 2) // ROUND_HZ * ROUND_HZ


cdef uint64_t ticks_hz() noexcept nogil:
    """Return the ticks of one second."""
    return g_hz


cdef uint64_t ticks_from_us(uint64_t us) noexcept nogil:
    """Return the ticks of `us` microseconds; split so that no product overflows."""
    return us // 1_000_000 * g_hz + us % 1_000_000 * g_hz // 1_000_000


def hz() -> int:
    """Return the rate of `now`, in ticks per second."""
    return g_hz


def now() -> int:
    """Return the tick counter."""
    return ticks_now()


g_hz = cpuid_hz() or measure_hz()
