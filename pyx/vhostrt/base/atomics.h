/* SPDX-License-Identifier: BSD-3-Clause */
/* Atomic operations on plain fields and on memory that another party writes. */
#ifndef VHOSTRT_BASE_ATOMICS_H
#define VHOSTRT_BASE_ATOMICS_H
#include <stdint.h>

typedef uint32_t vh_u32_line __attribute__((aligned(64)));
typedef uint64_t vh_u64_line __attribute__((aligned(64)));

#define vh_load_acquire(p) __atomic_load_n((p), __ATOMIC_ACQUIRE)
#define vh_load_relaxed(p) __atomic_load_n((p), __ATOMIC_RELAXED)
#define vh_store_release(p, v) __atomic_store_n((p), (v), __ATOMIC_RELEASE)
#define vh_store_relaxed(p, v) __atomic_store_n((p), (v), __ATOMIC_RELAXED)
#define vh_store_release_ptr(p, v) __atomic_store_n((void **)(p), (void *)(v), __ATOMIC_RELEASE)
#define vh_fetch_add(p, v) __atomic_fetch_add((p), (v), __ATOMIC_ACQ_REL)
#define vh_fetch_sub(p, v) __atomic_fetch_sub((p), (v), __ATOMIC_ACQ_REL)
#define vh_exchange(p, v) __atomic_exchange_n((p), (v), __ATOMIC_ACQ_REL)
#define vh_exchange_ptr(p, v) __atomic_exchange_n((void **)(p), (void *)(v), __ATOMIC_ACQ_REL)

static inline int vh_cas_u32(uint32_t *p, uint32_t old, uint32_t new_)
{
    return __atomic_compare_exchange_n(p, &old, new_, 0, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE);
}

static inline int vh_cas_u64(uint64_t *p, uint64_t old, uint64_t new_)
{
    return __atomic_compare_exchange_n(p, &old, new_, 0, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE);
}

static inline int vh_cas_ptr(void *p, void *old, void *new_)
{
    return __atomic_compare_exchange_n((void **)p, &old, new_, 0, __ATOMIC_ACQ_REL,
                                       __ATOMIC_ACQUIRE);
}

#ifdef __SANITIZE_THREAD__ /* gcc 12 has no atomic_thread_fence under tsan */
static inline void vh_fence_full(void)
{
    int dummy = 0;
    (void)__atomic_exchange_n(&dummy, 1, __ATOMIC_SEQ_CST);
}
#define vh_fence_acquire() vh_fence_full()
#define vh_fence_release() vh_fence_full()
#else
#define vh_fence_full() __atomic_thread_fence(__ATOMIC_SEQ_CST)
#define vh_fence_acquire() __atomic_thread_fence(__ATOMIC_ACQUIRE)
#define vh_fence_release() __atomic_thread_fence(__ATOMIC_RELEASE)
#endif

/* Orders what the compiler emits; the processor is ordered by the other side. */
#define vh_fence_signal() __atomic_signal_fence(__ATOMIC_SEQ_CST)

#if defined(__x86_64__) || defined(__i386__)
#define vh_cpu_pause() __builtin_ia32_pause()
#elif defined(__aarch64__)
#define vh_cpu_pause() __asm__ volatile("yield")
#else
#define vh_cpu_pause() ((void)0)
#endif
#define vh_prefetch_read(p) __builtin_prefetch((p), 0, 3)
#define vh_prefetch_write(p) __builtin_prefetch((p), 1, 3)

/* One read of memory that another party may be writing: never re-read by the compiler.  `from`
 * may have any alignment. */
struct vh_word {
    uint64_t v;
} __attribute__((packed, may_alias));

static inline void vh_read_once_16(void *to, const volatile void *from)
{
    const volatile struct vh_word *f = from;
    uint64_t v[2] = {f[0].v, f[1].v};
    __builtin_memcpy(to, v, 16);
}
#endif
