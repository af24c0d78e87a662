"""The clock of the data path: ticks of the processor's time stamp counter.

Where the processor does not tell its rate, that is measured from the import of this module to the
first use of the rate.

Threads:  any.
"""
from libc.stdint cimport UINT64_MAX, uint64_t
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec
from vhostrt.base.atomics cimport cas_u64, load_relaxed_u64

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
        return a ? (uint64_t)c * b / a : 0;
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
    LOOKS = 8

cdef struct moment_t:
    uint64_t ns                         # of the monotonic clock
    uint64_t ticks

cdef moment_t g_start                   # written by the import of this module
cdef uint64_t g_hz = 0                  # 0 while nobody has asked; written once


cdef moment_t look() noexcept nogil:
    """Read both clocks at one moment.

    A thread may be kept from running between two reads: the tightest of some tries counts.
    """
    cdef moment_t best
    cdef timespec t
    cdef uint64_t before, after, width
    cdef uint64_t least = UINT64_MAX
    cdef int _i
    best.ns = best.ticks = 0
    for _i in range(LOOKS):
        before = ticks_now()
        clock_gettime(CLOCK_MONOTONIC, &t)
        after = ticks_now()
        width = after - before
        if width < least:
            least = width
            best.ticks = before + width // 2
            best.ns = <uint64_t>t.tv_sec * 1_000_000_000 + <uint64_t>t.tv_nsec
    return best


cdef uint64_t measure_hz() noexcept nogil:
    """Set the rate by the ticks since the import of this module; wait until 10 ms are over."""
    cdef moment_t now = look()
    while now.ns - g_start.ns < MEASURE_NS:
        now = look()
    cdef double hz = <double>(now.ticks - g_start.ticks) * 1e9 / <double>(now.ns - g_start.ns)
    # Of two threads that come here at once, the first one's value is everybody's.
    cas_u64(&g_hz, 0, (<uint64_t>hz + ROUND_HZ // 2) // ROUND_HZ * ROUND_HZ)
    return load_relaxed_u64(&g_hz)


cdef uint64_t ticks_hz() noexcept nogil:
    """Return the ticks of one second.  The first call may take 10 ms."""
    cdef uint64_t hz = load_relaxed_u64(&g_hz)
    return hz if hz else measure_hz()


cdef uint64_t ticks_from_us(uint64_t us) noexcept nogil:
    """Return the ticks of `us` microseconds; split so that no product overflows."""
    cdef uint64_t hz = ticks_hz()
    return us // 1_000_000 * hz + us % 1_000_000 * hz // 1_000_000


def hz() -> int:
    """Return the rate of `now`, in ticks per second."""
    return ticks_hz()


def now() -> int:
    """Return the tick counter."""
    return ticks_now()


g_start = look()
g_hz = cpuid_hz()
