"""Registers of devices: mapped BARs, read and written with exactly the width that is said.

Owner:    a Bar has its mapping; whoever uses a pointer into it keeps the Bar.
Threads:  any; a register is what its device makes of concurrent access.
Fails:    ValueError from the methods of Bar, for what lies outside or is not aligned.
"""
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

cdef extern from *:
    """
    #include <stdint.h>
    /* A write to a device comes after all that was written to memory before, and what is read from
     * memory after a read of a device is not older.  On x86 registers are so ordered by themselves,
     * and only the compiler is to be told. */
    #if defined(__aarch64__)
    #define vh_mmio_before() __asm__ volatile("dmb oshst" ::: "memory")
    #define vh_mmio_after() __asm__ volatile("dmb oshld" ::: "memory")
    #elif defined(__x86_64__) || defined(__i386__)
    #define vh_mmio_before() __asm__ volatile("" ::: "memory")
    #define vh_mmio_after() __asm__ volatile("" ::: "memory")
    #else
    #define vh_mmio_before() __sync_synchronize()
    #define vh_mmio_after() __sync_synchronize()
    #endif
    #define VH_MMIO(bits)                                                                  \
        static inline uint##bits##_t vh_mmio_read##bits(const volatile void *at)           \
        {                                                                                  \
            uint##bits##_t value = *(const volatile uint##bits##_t *)at;                   \
            vh_mmio_after();                                                               \
            return value;                                                                  \
        }                                                                                  \
        static inline void vh_mmio_write##bits(volatile void *at, uint##bits##_t value)    \
        {                                                                                  \
            vh_mmio_before();                                                              \
            *(volatile uint##bits##_t *)at = value;                                        \
        }
    VH_MMIO(8)
    VH_MMIO(16)
    VH_MMIO(32)
    VH_MMIO(64)
    """
    uint8_t mmio_read8 "vh_mmio_read8"(const void *at) nogil
    uint16_t mmio_read16 "vh_mmio_read16"(const void *at) nogil
    uint32_t mmio_read32 "vh_mmio_read32"(const void *at) nogil
    uint64_t mmio_read64 "vh_mmio_read64"(const void *at) nogil
    void mmio_write8 "vh_mmio_write8"(void *at, uint8_t value) nogil
    void mmio_write16 "vh_mmio_write16"(void *at, uint16_t value) nogil
    void mmio_write32 "vh_mmio_write32"(void *at, uint32_t value) nogil
    void mmio_write64 "vh_mmio_write64"(void *at, uint64_t value) nogil

cdef struct bar_t:
    char *base                  # NULL once released
    size_t size
    size_t skip                 # bytes of the mapping in front of base
    uint64_t physical           # UINT64_MAX when it is not known
    bar_t *next                 # in the list of those that are mapped

cdef class Bar:
    cdef bar_t b
    cdef char *place(self, offset, size_t width) except NULL

cdef uint64_t mmio_physical(const void *at) noexcept nogil
