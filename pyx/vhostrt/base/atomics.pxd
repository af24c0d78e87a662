"""The atomic operations in use, one name per width and ordering.

load_acquire pairs with store_release.  There is no plain read of a field that another thread
writes: say load_relaxed when no ordering is meant.
"""
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

cdef extern from "vhostrt/base/atomics.h" nogil:
    ctypedef uint32_t u32_line "vh_u32_line"            # a uint32_t that starts a cache line
    ctypedef uint64_t u64_line "vh_u64_line"            # a uint64_t that starts a cache line

    uint16_t load_acquire_u16 "vh_load_acquire"(const uint16_t *p)
    uint16_t load_relaxed_u16 "vh_load_relaxed"(const uint16_t *p)
    uint32_t load_acquire_u32 "vh_load_acquire"(const uint32_t *p)
    uint32_t load_relaxed_u32 "vh_load_relaxed"(const uint32_t *p)
    uint64_t load_acquire_u64 "vh_load_acquire"(const uint64_t *p)
    uint64_t load_relaxed_u64 "vh_load_relaxed"(const uint64_t *p)
    void *load_acquire_ptr "vh_load_acquire"(void *p)            # p: address of a pointer
    void *load_relaxed_ptr "vh_load_relaxed"(void *p)

    void store_release_u16 "vh_store_release"(uint16_t *p, uint16_t v)
    void store_relaxed_u16 "vh_store_relaxed"(uint16_t *p, uint16_t v)
    void store_release_u32 "vh_store_release"(uint32_t *p, uint32_t v)
    void store_relaxed_u32 "vh_store_relaxed"(uint32_t *p, uint32_t v)
    void store_release_u64 "vh_store_release"(uint64_t *p, uint64_t v)
    void store_relaxed_u64 "vh_store_relaxed"(uint64_t *p, uint64_t v)
    void store_release_ptr "vh_store_release_ptr"(void *p, void *v)

    uint32_t fetch_add_u32 "vh_fetch_add"(uint32_t *p, uint32_t v)         # acq_rel; the old value
    uint64_t fetch_add_u64 "vh_fetch_add"(uint64_t *p, uint64_t v)
    uint32_t fetch_sub_u32 "vh_fetch_sub"(uint32_t *p, uint32_t v)
    uint8_t exchange_u8 "vh_exchange"(uint8_t *p, uint8_t v)               # acq_rel; the old value
    uint32_t exchange_u32 "vh_exchange"(uint32_t *p, uint32_t v)
    void *exchange_ptr "vh_exchange_ptr"(void *p, void *v)
    # 1 when *p was `old` and is now `new` (acq_rel), else 0 (acquire).
    bint cas_u32 "vh_cas_u32"(uint32_t *p, uint32_t old, uint32_t new)
    bint cas_u64 "vh_cas_u64"(uint64_t *p, uint64_t old, uint64_t new)
    bint cas_ptr "vh_cas_ptr"(void *p, void *old, void *new)

    void fence_full "vh_fence_full"()
    void fence_acquire "vh_fence_acquire"()
    void fence_release "vh_fence_release"()
    void fence_signal "vh_fence_signal"()           # of the compiler alone
    void cpu_pause "vh_cpu_pause"()
    void prefetch_read "vh_prefetch_read"(const void *p)
    void prefetch_write "vh_prefetch_write"(const void *p)

    void read_once_16 "vh_read_once_16"(void *to, const void *source)
    uint8_t read_once_u8 "vh_load_relaxed"(const uint8_t *p)
    uint16_t read_once_u16 "vh_load_relaxed"(const uint16_t *p)
    uint32_t read_once_u32 "vh_load_relaxed"(const uint32_t *p)
    uint64_t read_once_u64 "vh_load_relaxed"(const uint64_t *p)
