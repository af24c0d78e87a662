"""The clock of the data path: ticks of the processor's time stamp counter.

The rate is what the processor tells by CPUID; else what an Intel one of a known kind has in its
model-specific register, where that can be read; else it is measured, from the import of this module
to the first use of the rate.

Threads:  any.
"""
from libc.stdint cimport UINT64_MAX, uint32_t, uint64_t
from posix.fcntl cimport O_CLOEXEC, O_RDONLY, open
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec
from posix.unistd cimport close, pread
from vhostrt.base.atomics cimport cas_u64, cpu_pause, load_relaxed_u64

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
    static unsigned vh_cpu_signature(int *avx)
    {
        unsigned a, b, c, d;
        __cpuid(0, a, b, c, d);
        if (b != signature_INTEL_ebx || c != signature_INTEL_ecx || d != signature_INTEL_edx)
            return 0;
        __cpuid(1, a, b, c, d);
        *avx = !!(c & bit_AVX);
        return a;
    }
    #elif defined(__aarch64__)
    static uint64_t vh_cpuid_hz(void)
    {
        uint64_t v;
        __asm__ volatile("mrs %0, cntfrq_el0" : "=r"(v));
        return v;
    }
    static unsigned vh_cpu_signature(int *avx) { return 0; }
    #else
    static uint64_t vh_cpuid_hz(void) { return 1000000000u; }
    static unsigned vh_cpu_signature(int *avx) { return 0; }
    #endif
    """
    uint64_t cpuid_hz "vh_cpuid_hz"() nogil
    # Leaf 1 of CPUID, EAX; 0 where the processor is not Intel's.
    uint32_t cpu_signature "vh_cpu_signature"(int *avx) nogil

cdef enum:
    MEASURE_NS = 10_000_000             # long enough that two clock reads of 50 ns do not matter
    ROUND_HZ = 100_000                  # what is left of the error after that
    LOOKS = 8
    MSR_PLATFORM_INFO = 0xCE            # bits 15 to 8: the rate, as a multiple of the bus's

cdef const char *MSR = b"/dev/cpu/0/msr"

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


cdef uint64_t bus_hz(uint32_t signature, bint avx) noexcept nogil:
    """Return the rate of which a register has the multiple, by the processor's kind; 0: unknown.

    signature: leaf 1 of CPUID, EAX, of an Intel processor.  avx: whether it has that.
    """
    cdef uint32_t family = signature >> 8 & 0xF
    cdef uint32_t model = signature >> 4 & 0xF | signature >> 12 & 0xF0
    if family != 6:
        return 0
    if model in (0x1A, 0x1E, 0x1F, 0x2E, 0x25, 0x2C, 0x2F):     # Nehalem, Westmere
        return 133_333_333
    # From Sandy Bridge on all have AVX; of those without it Goldmont has that bus too.
    return 100_000_000 if avx or model in (0x5C, 0x5F) else 0


cdef uint64_t msr_hz(const char *path, uint64_t bus) noexcept nogil:
    """Return what the register of a processor tells; 0 when it cannot be read or tells nothing."""
    cdef uint64_t value = 0
    cdef int fd = open(path, O_RDONLY | O_CLOEXEC) if bus else -1
    if fd < 0:
        return 0
    if pread(fd, &value, sizeof(value), MSR_PLATFORM_INFO) != sizeof(value):
        value = 0
    close(fd)
    return (value >> 8 & 0xFF) * bus


cdef uint64_t measure_hz() noexcept nogil:
    """Return the rate by the ticks since the import of this module; wait until 10 ms are over."""
    cdef moment_t now = look()
    while now.ns - g_start.ns < MEASURE_NS:
        now = look()
    cdef double hz = <double>(now.ticks - g_start.ticks) * 1e9 / <double>(now.ns - g_start.ns)
    return (<uint64_t>hz + ROUND_HZ // 2) // ROUND_HZ * ROUND_HZ


cdef uint64_t find_hz() noexcept nogil:
    """Set the rate, which CPUID has not told."""
    cdef int avx = 0
    cdef uint32_t signature = cpu_signature(&avx)
    cdef uint64_t hz = msr_hz(MSR, bus_hz(signature, avx))
    # Of two threads that come here at once, the first one's value is everybody's.
    cas_u64(&g_hz, 0, hz if hz else measure_hz())
    return load_relaxed_u64(&g_hz)


cdef uint64_t ticks_hz() noexcept nogil:
    """Return the ticks of one second.  The first call may take 10 ms."""
    cdef uint64_t hz = load_relaxed_u64(&g_hz)
    return hz if hz else find_hz()


cdef uint64_t ticks_from_us(uint64_t us) noexcept nogil:
    """Return the ticks of `us` microseconds, 2^63 at most: no machine lives until then, and added
    to the present they do not overflow."""
    cdef uint64_t most = <uint64_t>1 << 63
    cdef uint64_t hz = ticks_hz()
    cdef uint64_t seconds = us // 1_000_000
    if seconds >= most // hz:
        return most
    return seconds * hz + us % 1_000_000 * hz // 1_000_000      # split: no product overflows


cdef void ticks_delay_us(uint64_t us) noexcept nogil:
    """Wait that many microseconds at least, without giving up the CPU."""
    cdef uint64_t start = ticks_now()
    cdef uint64_t wait = ticks_from_us(us)
    while ticks_now() - start < wait:
        cpu_pause()


def hz() -> int:
    """Return the rate of `now`, in ticks per second."""
    return ticks_hz()


def now() -> int:
    """Return the tick counter."""
    return ticks_now()


g_start = look()
g_hz = cpuid_hz()
