/* SPDX-License-Identifier: BSD-3-Clause */
/* The SIGBUS handler and its table of regions; included by sigbus.pyx alone, which owns them. */
#ifndef VHOSTRT_BASE_SIGBUS_H
#define VHOSTRT_BASE_SIGBUS_H
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/mman.h>
#include "vhostrt/base/atomics.h"

/* Half of the mappings that Linux gives a process (vm.max_map_count). */
#define VH_SIGBUS_SLOTS 32768

/* A slot is free while start is 0.  Writers hold a lock; the handler reads on any thread at any
 * time. */
struct vh_sigbus_region {
    uintptr_t start;
    uintptr_t end;
    uintptr_t page_size;
    uint32_t *flag;
};

struct vh_sigbus_table {
    uint32_t used; /* slots ever used: where a search ends */
    uint32_t taken; /* slots before this are not free; writers only */
    struct vh_sigbus_region slots[VH_SIGBUS_SLOTS];
    struct sigaction before; /* what was installed before us */
};

/* Copy the slot that holds the address.  1: there is one. */
static int vh_sigbus_find(struct vh_sigbus_table *t, uintptr_t address,
                          struct vh_sigbus_region *found)
{
    uint32_t used = __atomic_load_n(&t->used, __ATOMIC_ACQUIRE);
    for (uint32_t i = 0; i < used; i++) {
        struct vh_sigbus_region *r = &t->slots[i];
        found->start = __atomic_load_n(&r->start, __ATOMIC_ACQUIRE);
        found->end = __atomic_load_n(&r->end, __ATOMIC_RELAXED);
        found->page_size = __atomic_load_n(&r->page_size, __ATOMIC_RELAXED);
        found->flag = __atomic_load_n(&r->flag, __ATOMIC_RELAXED);
        if (!found->start || address < found->start || address >= found->end)
            continue;
        /* The slot may have got another region between the reads: memory that is in use keeps
         * its slot, so then this was not the one. */
        vh_fence_acquire();
        if (__atomic_load_n(&r->start, __ATOMIC_RELAXED) == found->start)
            return 1;
    }
    return 0;
}

/* Put zero memory where the client's has gone.  1: done, the access may be tried again. */
static int vh_sigbus_mend(struct vh_sigbus_table *t, uintptr_t address)
{
    struct vh_sigbus_region r;
    if (!vh_sigbus_find(t, address, &r))
        return 0;
    /* First, so that no other thread sees the zeros and not the flag. */
    __atomic_store_n(r.flag, 1, __ATOMIC_SEQ_CST);
    return mmap((void *)(address & ~(r.page_size - 1)), r.page_size, PROT_READ | PROT_WRITE,
                MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) != MAP_FAILED;
}

static void vh_sigbus_chain(const struct sigaction *before, int sig, siginfo_t *info, void *context)
{
    int sent = info->si_code <= 0; /* by kill() and the like, not by an access to memory */
    if (before->sa_flags & SA_SIGINFO) {
        before->sa_sigaction(sig, info, context);
    } else if (before->sa_handler == SIG_DFL || before->sa_handler == SIG_IGN) {
        if (sent && before->sa_handler == SIG_IGN)
            return;
        signal(sig, SIG_DFL); /* the access is tried again, and kills us as it should */
        if (sent)
            raise(sig);
    } else {
        before->sa_handler(sig);
    }
}
#endif
