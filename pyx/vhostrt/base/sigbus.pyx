"""Memory that may vanish: what to do when a client truncates the file behind its mapping.

One process-wide SIGBUS handler looks the address up in a table of regions, maps zero memory over
the page that is gone, and sets the region's flag; whoever works there tests the flag before it
acknowledges anything.  Any other SIGBUS goes to the handler that was there before.

Threads:  the handler runs on whichever thread touched the memory; add and remove take a lock.
Fails:    sigbus_add answers -ENOSPC when 32768 regions are registered.
"""
from libc.stdint cimport uint32_t
from vhostrt.base.errors cimport ok

cdef extern from *:
    """
    #include <errno.h>
    #include <pthread.h>
    #include "vhostrt/base/sigbus.h"
    static struct vh_sigbus_table vh_table;
    static pthread_mutex_t vh_table_lock = PTHREAD_MUTEX_INITIALIZER;

    static void vh_on_sigbus(int sig, siginfo_t *info, void *context)
    {
        int saved = errno;
        if (info->si_code <= 0 || !vh_sigbus_mend(&vh_table, (uintptr_t)info->si_addr))
            vh_sigbus_chain(&vh_table.before, sig, info, context);
        errno = saved;
    }

    static int vh_sigbus_install(void)
    {
        struct sigaction now, ours = {.sa_sigaction = vh_on_sigbus,
                                      .sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER};
        if (sigaction(SIGBUS, NULL, &now) < 0)
            return -errno;
        if ((now.sa_flags & SA_SIGINFO) && now.sa_sigaction == vh_on_sigbus)
            return 0;
        vh_table.before = now;
        return sigaction(SIGBUS, &ours, NULL) < 0 ? -errno : 0;
    }

    static int vh_sigbus_add(void *start, size_t size, size_t page_size, uint32_t *flag)
    {
        int slot = -ENOSPC;
        pthread_mutex_lock(&vh_table_lock);
        for (int i = vh_table.taken; i < VH_SIGBUS_SLOTS; i++) {
            struct vh_sigbus_region *r = &vh_table.slots[i];
            if (r->start)
                continue;
            /* Not before the 0 in start: vh_sigbus_find reads it last. */
            vh_fence_release();
            __atomic_store_n(&r->end, (uintptr_t)start + size, __ATOMIC_RELAXED);
            __atomic_store_n(&r->page_size, page_size, __ATOMIC_RELAXED);
            __atomic_store_n(&r->flag, flag, __ATOMIC_RELAXED);
            __atomic_store_n(&r->start, (uintptr_t)start, __ATOMIC_RELEASE);
            if ((uint32_t)i >= vh_table.used)
                __atomic_store_n(&vh_table.used, (uint32_t)i + 1, __ATOMIC_RELEASE);
            vh_table.taken = i + 1;
            slot = i;
            break;
        }
        pthread_mutex_unlock(&vh_table_lock);
        return slot;
    }

    static void vh_sigbus_remove(int slot)
    {
        pthread_mutex_lock(&vh_table_lock);
        __atomic_store_n(&vh_table.slots[slot].start, 0, __ATOMIC_RELEASE);
        if ((uint32_t)slot < vh_table.taken)
            vh_table.taken = slot;
        pthread_mutex_unlock(&vh_table_lock);
    }
    """
    int c_install "vh_sigbus_install"() nogil
    int c_add "vh_sigbus_add"(void *start, size_t size, size_t page_size, uint32_t *flag) nogil
    void c_remove "vh_sigbus_remove"(int slot) nogil


cdef int sigbus_add(void *start, size_t size, size_t page_size, uint32_t *flag) noexcept nogil:
    """Register memory of pages of page_size bytes; return its slot, or -ENOSPC.

    *flag becomes 1 when a page of it was missing; it outlives the registration.
    """
    return c_add(start, size, page_size, flag)


cdef void sigbus_remove(int slot) noexcept nogil:
    """Forget a region, before it is unmapped.  Nobody touches it any more."""
    c_remove(slot)


def install() -> None:
    """Install the handler; again is no harm.  OSError when the system refuses."""
    ok(c_install(), "the SIGBUS handler")
