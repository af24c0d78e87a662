"""C functions for tests of vhostrt.app; each is in __pyx_capi__ as a capsule."""
from libc.stdint cimport int64_t, uint32_t, uint64_t, uintptr_t
from vhostrt.base.atomics cimport (cpu_pause, fetch_add_u64, load_acquire_u32, load_relaxed_u64,
                                   store_release_u32)
from vhostrt.env.lcore cimport lcore_current
from vhostrt.event.app cimport app_function, app_stop
from vhostrt.event.reactor cimport reactor_current

cdef extern from "<pthread.h>" nogil:
    ctypedef unsigned long pthread_t
    int pthread_create(pthread_t *thread, const void *attr, void *(*fn)(void *), void *arg)
    int pthread_join(pthread_t thread, void **result)

cdef extern from "<signal.h>" nogil:
    ctypedef void (*handler_fn "__sighandler_t")(int number)
    handler_fn signal(int number, handler_fn handler)
    int raise_ "raise"(int number)
    int SIGUSR2

cdef uint64_t g_order = 0
cdef uint32_t g_flag = 0


cdef int give_int(void *arg) noexcept nogil:
    return <int><int64_t>arg


cdef void give_nothing(void *arg) noexcept nogil:
    pass


cdef int64_t give_i64(void *arg) noexcept nogil:
    return <int64_t>arg


cdef uint64_t give_u64(void *arg) noexcept nogil:
    return <uint64_t>arg


cdef uint32_t give_u32(const void *arg) noexcept nogil:
    return <uint32_t><uint64_t>arg


cdef double give_double(void *arg) noexcept nogil:
    return 1


cdef int give_sum(void *a, void *b) noexcept nogil:
    return 1


cdef int fill_pair(pair_t *pair) noexcept nogil:
    """Say where it ran, and when among its calls; return whether what came was 7."""
    cdef bint seven = pair.given == 7
    pair.lcore = lcore_current()
    pair.order = fetch_add_u64(&g_order, 1)
    return seven


cdef int stop_with(void *arg) noexcept nogil:
    app_stop(<int><int64_t>arg)
    return 0


cdef int wait_for_flag(void *arg) noexcept nogil:
    """Hold the reactor until open_flag."""
    while not load_acquire_u32(&g_flag):
        cpu_pause()
    return 0


cdef uint64_t count_iterations(void *arg) noexcept nogil:
    return load_relaxed_u64(<uint64_t *>&reactor_current().iterations)


def set_flag(uint32_t value):
    store_release_u32(&g_flag, value)


def address(str name not None):
    """Return the address of one of these functions that returns int."""
    return {"give_int": <uintptr_t>&give_int, "stop_with": <uintptr_t>&stop_with}[name]


def made():
    """Return the capsule that app_function makes."""
    return app_function(give_int)


cdef void *stop_from_thread(void *arg) noexcept nogil:
    app_stop(<int><int64_t>arg)
    return NULL


def stop_on_own_thread(int64_t rc):
    """Call app_stop on a thread that Python does not know."""
    cdef pthread_t thread
    assert pthread_create(&thread, NULL, stop_from_thread, <void *>rc) == 0
    with nogil:
        pthread_join(thread, NULL)


cdef void stop_on_signal(int number) noexcept nogil:
    app_stop(number)


def stop_in_signal_handler():
    """Call app_stop(SIGUSR2) in the handler of that signal; return its number."""
    cdef handler_fn before = signal(SIGUSR2, stop_on_signal)
    raise_(SIGUSR2)
    signal(SIGUSR2, before)
    return SIGUSR2
