/* SPDX-License-Identifier: BSD-3-Clause */
/* The SIGBUS handler and its table of regions; included by sigbus.pyx alone, which owns them. */
#ifndef VHOSTRT_BASE_SIGBUS_H
#define VHOSTRT_BASE_SIGBUS_H
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/mman.h>

#define VH_SIGBUS_SLOTS 8192

/* A slot is free while start is 0.  Writers take turns (the GIL, or a lock of theirs); the handler
 * reads on any thread at any time. */
struct vh_sigbus_region {
    uintptr_t start;
    uintptr_t end;
    uintptr_t page_size;
    uint32_t *flag;
};

struct vh_sigbus_table {
    uint32_t used; /* slots ever used: where a search ends */
    struct vh_sigbus_region slots[VH_SIGBUS_SLOTS];
    struct sigaction before; /* what was installed before us */
};

/* Put zero memory where the client's has gone.  1: done, the access may be tried again. */
static int vh_sigbus_mend(struct vh_sigbus_table *t, uintptr_t address)
{
    uint32_t used = __atomic_load_n(&t->used, __ATOMIC_ACQUIRE);
    for (uint32_t i = 0; i < used; i++) {
        struct vh_sigbus_region *r = &t->slots[i];
        uintptr_t start = __atomic_load_n(&r->start, __ATOMIC_ACQUIRE);
        uintptr_t page;
        if (!start || address < start || address >= r->end)
            continue;
        page = address & ~(r->page_size - 1);
        if (mmap((void *)page, r->page_size, PROT_READ | PROT_WRITE,
                 MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == MAP_FAILED)
            return 0;
        __atomic_store_n(r->flag, 1, __ATOMIC_RELEASE);
        return 1;
    }
    return 0;
}

static void vh_sigbus_chain(const struct sigaction *before, int sig, siginfo_t *info, void *context)
{
    if (before->sa_flags & SA_SIGINFO) {
        before->sa_sigaction(sig, info, context);
    } else if (before->sa_handler == SIG_DFL || before->sa_handler == SIG_IGN) {
        signal(sig, SIG_DFL); /* the access is tried again, and kills us as it should */
    } else {
        before->sa_handler(sig);
    }
}
#endif
