"""POSIX threads as the core uses them: declarations, and the start of a thread of its own.

Threads: any.
Fails:   0 or a positive errno from the C library, 0 or -errno from thread_start.
"""
from libc.signal cimport SIGABRT, SIGFPE, SIGILL, SIGSEGV
from libc.stdint cimport uintptr_t
from posix.signal cimport sigdelset, sigfillset, sigset_t

cdef extern from *:
    """
    #include <errno.h>
    #include <pthread.h>
    #include <signal.h>
    #include <stdint.h>

    /* Tells a thread apart from all others that live, without a call where that can be. */
    static inline uintptr_t vh_thread_mark(void)
    {
    #if defined(__aarch64__) || defined(__x86_64__) && defined(__GNUC__) && __GNUC__ >= 11
        return (uintptr_t)__builtin_thread_pointer();
    #else
        return (uintptr_t)pthread_self();
    #endif
    }
    """
    uintptr_t thread_mark "vh_thread_mark"() nogil
    ctypedef unsigned long pthread_t
    ctypedef struct pthread_attr_t:
        pass
    ctypedef struct pthread_mutex_t:
        pass
    ctypedef struct pthread_cond_t:
        pass
    enum:
        EDEADLK
        SIGBUS
        SIGTRAP
        SIG_SETMASK
    int pthread_attr_init(pthread_attr_t *attr) nogil
    int pthread_attr_setstacksize(pthread_attr_t *attr, size_t size) nogil
    int pthread_attr_destroy(pthread_attr_t *attr) nogil
    int pthread_create(pthread_t *thread, const pthread_attr_t *attr,
                       void *(*fn)(void *) noexcept nogil, void *arg) nogil
    int pthread_join(pthread_t thread, void **result) nogil
    bint pthread_equal(pthread_t a, pthread_t b) nogil
    pthread_t pthread_self() nogil
    int pthread_setname_np(pthread_t thread, const char *name) nogil
    int pthread_sigmask(int how, const sigset_t *new, sigset_t *old) nogil
    int pthread_mutex_init(pthread_mutex_t *mutex, const void *attr) nogil
    int pthread_mutex_destroy(pthread_mutex_t *mutex) nogil
    int pthread_mutex_lock(pthread_mutex_t *mutex) nogil
    int pthread_mutex_unlock(pthread_mutex_t *mutex) nogil
    int pthread_cond_init(pthread_cond_t *cond, const void *attr) nogil
    int pthread_cond_destroy(pthread_cond_t *cond) nogil
    int pthread_cond_wait(pthread_cond_t *cond, pthread_mutex_t *mutex) nogil
    int pthread_cond_broadcast(pthread_cond_t *cond) nogil

cdef enum:
    THREAD_STACK = 1 << 20      # bytes


cdef inline void block_signals(sigset_t *old) noexcept nogil:
    """Block what a process is sent; what a thread raises itself still ends or is handled there."""
    cdef sigset_t blocked
    sigfillset(&blocked)
    sigdelset(&blocked, SIGBUS)
    sigdelset(&blocked, SIGSEGV)
    sigdelset(&blocked, SIGFPE)
    sigdelset(&blocked, SIGILL)
    sigdelset(&blocked, SIGTRAP)
    sigdelset(&blocked, SIGABRT)
    pthread_sigmask(SIG_SETMASK, &blocked, old)


cdef inline int thread_start(pthread_t *thread, void *(*fn)(void *) noexcept nogil,
                             void *arg) noexcept nogil:
    """Start a thread that hears no signal but its own faults; 0 or -errno."""
    cdef pthread_attr_t attr
    cdef sigset_t old
    cdef int rc
    pthread_attr_init(&attr)
    pthread_attr_setstacksize(&attr, THREAD_STACK)
    # The new thread inherits the mask, so that no signal finds it before it could block it.
    block_signals(&old)
    rc = -pthread_create(thread, &attr, fn, arg)
    pthread_sigmask(SIG_SETMASK, &old, NULL)
    pthread_attr_destroy(&attr)
    return rc
