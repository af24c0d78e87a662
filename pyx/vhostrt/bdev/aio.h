/* Sleeping and waking of helper threads, and a thread that takes no signals. */
#ifndef VHOSTRT_BDEV_AIO_H
#define VHOSTRT_BDEV_AIO_H

#include <linux/futex.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <unistd.h>

/* Returns when *word is not `seen` any more, or for no reason. */
static inline void vh_futex_wait(uint32_t *word, uint32_t seen)
{
    (void)syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, seen, NULL, NULL, 0);
}

static inline void vh_futex_wake(uint32_t *word, int threads)
{
    (void)syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, threads, NULL, NULL, 0);
}

/* As pthread_create, with every signal blocked in the thread but those a fault raises. */
static inline int vh_thread_start(pthread_t *thread, void *(*fn)(void *), void *arg)
{
    static const int faults[] = {SIGBUS, SIGSEGV, SIGFPE, SIGILL, SIGTRAP, SIGABRT};
    sigset_t blocked, old;
    unsigned i;
    int rc;
    sigfillset(&blocked);
    for (i = 0; i < sizeof(faults) / sizeof(faults[0]); i++)
        sigdelset(&blocked, faults[i]);
    pthread_sigmask(SIG_SETMASK, &blocked, &old);
    rc = pthread_create(thread, NULL, fn, arg);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    if (rc == 0)
        (void)pthread_setname_np(*thread, "bdev_aio");
    return rc;
}

#endif
