"""The clock of the data path: ticks of the processor's time stamp counter."""
from libc.stdint cimport uint32_t, uint64_t

cdef extern from *:
    """
    #include <stdint.h>
    #include <time.h>
    #if defined(__x86_64__) || defined(__i386__)
    #define vh_ticks() __builtin_ia32_rdtsc()
    #elif defined(__aarch64__)
    static inline uint64_t vh_ticks(void)
    {
        uint64_t v;
        __asm__ volatile("mrs %0, cntvct_el0" : "=r"(v));
        return v;
    }
    #else
    static inline uint64_t vh_ticks(void)
    {
        struct timespec t;
        clock_gettime(CLOCK_MONOTONIC, &t);
        return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
    }
    #endif
    """
    uint64_t ticks_now "vh_ticks"() nogil

cdef uint64_t ticks_hz() noexcept nogil          # ticks a second; found once
cdef uint64_t ticks_from_us(uint64_t us) noexcept nogil
cdef void ticks_delay_us(uint64_t us) noexcept nogil
# How the rate is found.
cdef uint64_t bus_hz(uint32_t signature, bint avx) noexcept nogil
cdef uint64_t msr_hz(const char *path, uint64_t bus) noexcept nogil
