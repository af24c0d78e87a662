/* SPDX-License-Identifier: BSD-3-Clause */
/* What a reactor needs of the system: to sleep, to have a name, to be interrupted. */
#ifndef VHOSTRT_EVENT_REACTOR_H
#define VHOSTRT_EVENT_REACTOR_H
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <unistd.h>

/* At most 15 bytes of it are kept. */
static inline void vh_thread_name(const char *name)
{
    (void)pthread_setname_np(pthread_self(), name);
}

static inline uint32_t vh_tid(void) { return (uint32_t)syscall(SYS_gettid); }

static inline void vh_nothing(int sig) { (void)sig; }

/* A system call that blocks against all expectation returns EINTR at this signal. */
static inline int vh_interrupt_install(void)
{
    struct sigaction a = {.sa_handler = vh_nothing};
    return sigaction(SIGURG, &a, NULL) < 0 ? -errno : 0;
}

/* By every reactor: lcores have all but the synchronous signals blocked. */
static inline void vh_interrupt_admit(void)
{
    sigset_t s;
    sigemptyset(&s);
    sigaddset(&s, SIGURG);
    (void)pthread_sigmask(SIG_UNBLOCK, &s, NULL);
}

static inline int vh_interrupt(uint32_t tid)
{
    return syscall(SYS_tgkill, getpid(), tid, SIGURG) < 0 ? -errno : 0;
}
#endif
