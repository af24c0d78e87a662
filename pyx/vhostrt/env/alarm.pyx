"""Alarms: one call of a function after a time, on the interrupt thread.

A list in the order of their times, of CLOCK_MONOTONIC_RAW, those of one time in the order of
setting; one timerfd is armed for the first of them.

Owner:    whoever sets one; it is gone when it has been called, or cancelled, or at fini.
Threads:  any may set and cancel; the calls come on the interrupt thread, one at a time.
Fails:    -errno below, OSError with a sentence above.
"""
import atexit

from libc.errno cimport EINPROGRESS, EINVAL, ENOENT, ENOMEM, ESRCH, errno
from libc.stdint cimport UINT64_MAX, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, itimerspec, timespec
from posix.unistd cimport close, getpid
from vhostrt.base.atomics cimport load_acquire_u32, store_release_u32
from vhostrt.base.errors cimport ok
from vhostrt.base.pthreads cimport (
    EDEADLK, pthread_cond_broadcast, pthread_cond_init, pthread_cond_t, pthread_cond_wait,
    pthread_mutex_init, pthread_mutex_lock, pthread_mutex_t, pthread_mutex_unlock)
from vhostrt.env.interrupt cimport (ANY_ARG, INTERRUPT_ALARM, deliver, interrupt_epoch,
                                    interrupt_is_here, interrupt_register, interrupt_start,
                                    interrupt_unregister_sync)

from vhostrt.env import interrupt

cdef extern from *:
    """
    #include <sys/timerfd.h>
    """
    enum:
        CLOCK_MONOTONIC_RAW
        TFD_CLOEXEC
        TFD_NONBLOCK
    int timerfd_create(int clock, int flags) nogil
    int timerfd_settime(int fd, int flags, const itimerspec *new, itimerspec *old) nogil

cdef enum:
    SECOND_US = 1000000
    ARM_MAX = 365 * 86400       # seconds; a later alarm is looked at then, and armed again

cdef struct alarm_t:
    uint64_t s                  # when, of CLOCK_MONOTONIC_RAW
    uint64_t us                 # less than a second
    alarm_fn fn
    void *arg
    bint executing              # fn is running: it stays in the list until that is over
    alarm_t *next

# Under g_lock.
cdef pthread_mutex_t g_lock
cdef pthread_cond_t g_done      # an alarm is executing no more
cdef alarm_t *g_alarms = NULL   # the first to come first
cdef int g_timer = -1           # timerfd
cdef uint32_t g_epoch = 0       # of the interrupt thread that knows it
cdef uint32_t g_pid = 0         # of the process that set one first; 0: nobody has

pthread_mutex_init(&g_lock, NULL)
pthread_cond_init(&g_done, NULL)


cdef bint is_ours() noexcept nogil:
    """True once an alarm has been set, and not in a forked child."""
    return load_acquire_u32(&g_pid) == <uint32_t>getpid()


cdef bint is_inherited() noexcept nogil:
    """True in a forked child whose parent has set one."""
    return load_acquire_u32(&g_pid) != 0 and not is_ours()


cdef void now(uint64_t *s, uint64_t *us) noexcept nogil:
    cdef timespec t
    clock_gettime(CLOCK_MONOTONIC_RAW, &t)
    s[0] = t.tv_sec
    us[0] = t.tv_nsec // 1000


cdef bint before(uint64_t s, uint64_t us, const alarm_t *alarm) noexcept nogil:
    """True when that time is before the alarm's."""
    return s < alarm.s or s == alarm.s and us < alarm.us


cdef void arm() noexcept nogil:
    """Set the timer for the first alarm; without one it is left alone."""
    cdef itimerspec when
    cdef uint64_t s, us, wait
    if g_alarms is NULL:
        return
    now(&s, &us)
    memset(&when, 0, sizeof(when))
    when.it_value.tv_nsec = 1000                                # due already: 0 would be never
    if before(s, us, g_alarms):
        # The difference of the whole seconds first: those of an alarm may be near 2^64 / 10^6.
        wait = min(g_alarms.s - s, <uint64_t>ARM_MAX) * SECOND_US + g_alarms.us - us
        when.it_value.tv_sec = wait // SECOND_US
        when.it_value.tv_nsec = wait % SECOND_US * 1000
    timerfd_settime(g_timer, 0, &when, NULL)


cdef void unlink_alarm(alarm_t *alarm) noexcept nogil:
    cdef alarm_t **link = &g_alarms
    while link[0] != alarm:
        link = &link[0].next
    link[0] = alarm.next
    free(alarm)


cdef void fire(void *arg) noexcept nogil:
    """Call the alarms that are due by now, the lock dropped around each call.

    Those that become due meanwhile wait for the next turn: an alarm that sets itself again at once
    keeps no other interrupt from being served.
    """
    cdef alarm_t *alarm
    cdef uint64_t s, us
    now(&s, &us)
    pthread_mutex_lock(&g_lock)
    while g_alarms is not NULL and not before(s, us, g_alarms):
        alarm = g_alarms
        alarm.executing = True
        pthread_mutex_unlock(&g_lock)
        alarm.fn(alarm.arg)
        pthread_mutex_lock(&g_lock)
        unlink_alarm(alarm)
        pthread_cond_broadcast(&g_done)
    arm()
    pthread_mutex_unlock(&g_lock)


cdef int have_timer() noexcept nogil:
    """Have the timer, known to the interrupt thread that is there now; 0 or -errno."""
    global g_timer, g_epoch
    cdef int rc = interrupt_start()
    if rc < 0 or g_epoch == interrupt_epoch():
        return rc
    if g_timer < 0:
        g_timer = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK)
    if g_timer < 0:
        return -errno
    rc = interrupt_register(g_timer, INTERRUPT_ALARM, fire, NULL)
    if rc == 0:
        g_epoch = interrupt_epoch()
        store_release_u32(&g_pid, getpid())
    return rc


cdef void insert(alarm_t *alarm) noexcept nogil:
    """Put an alarm behind those of its time and before later ones; arm when it is the first."""
    cdef alarm_t **link = &g_alarms
    while link[0] is not NULL and not before(alarm.s, alarm.us, link[0]):
        link = &link[0].next
    alarm.next = link[0]
    link[0] = alarm
    if g_alarms == alarm:
        arm()


cdef int alarm_set(uint64_t us, alarm_fn fn, void *arg) noexcept nogil:
    """Have fn(arg) called once, in so many microseconds, on the interrupt thread.

    0
    -EINVAL  us is 0 or more than UINT64_MAX - 1000000, or fn NULL
    -ENOMEM
    -ESRCH   a forked child
    another: the timer or the interrupt thread cannot be had
    """
    cdef alarm_t *alarm
    cdef uint64_t s, now_us
    cdef int rc
    if us < 1 or us > UINT64_MAX - SECOND_US or fn is NULL:
        return -EINVAL
    if is_inherited():
        return -ESRCH
    alarm = <alarm_t *>calloc(1, sizeof(alarm_t))
    if alarm is NULL:
        return -ENOMEM
    alarm.fn = fn
    alarm.arg = arg
    pthread_mutex_lock(&g_lock)
    rc = have_timer()
    if rc == 0:
        now(&s, &now_us)
        alarm.s = s + us // SECOND_US + (now_us + us % SECOND_US) // SECOND_US
        alarm.us = (now_us + us % SECOND_US) % SECOND_US
        insert(alarm)
    pthread_mutex_unlock(&g_lock)
    if rc < 0:
        free(alarm)
    return rc


cdef bint is_meant(const alarm_t *alarm, alarm_fn fn, void *arg) noexcept nogil:
    return alarm.fn == fn and (arg == ANY_ARG or alarm.arg == arg)


cdef int remove_waiting(alarm_fn fn, void *arg, bint *executing) noexcept nogil:
    """Remove what is meant and not executing; return how many, and whether one is executing."""
    cdef alarm_t **link = &g_alarms
    cdef alarm_t *alarm
    cdef int n = 0
    executing[0] = False
    while link[0] is not NULL:
        alarm = link[0]
        if not is_meant(alarm, fn, arg):
            link = &alarm.next
        elif alarm.executing:
            executing[0] = True
            link = &alarm.next
        else:
            link[0] = alarm.next
            free(alarm)
            n += 1
    return n


cdef int alarm_cancel(alarm_fn fn, void *arg, int *count) noexcept nogil:
    """Remove the alarms of fn and arg, arg ANY_ARG: whatever their argument; *count is how many.

    One that is executing is waited for.
    0             none of them will be called any more
    -EINPROGRESS  one of them is executing, and it is the caller; the others were removed
    -ENOENT       there was none
    -EINVAL       fn is NULL
    -ESRCH        a forked child
    """
    cdef bint executing = True
    cdef bint waited = False
    count[0] = 0
    if fn is NULL:
        return -EINVAL
    if is_inherited():
        return -ESRCH
    pthread_mutex_lock(&g_lock)
    while True:
        count[0] += remove_waiting(fn, arg, &executing)
        if not executing or interrupt_is_here():
            break
        # While it runs it may set another one: look again.
        waited = True
        pthread_cond_wait(&g_done, &g_lock)
    pthread_mutex_unlock(&g_lock)
    if executing:
        return -EINPROGRESS
    return 0 if count[0] or waited else -ENOENT


# The Python face.

cdef set g_handles = set()      # Alarm, those to come
cdef bint g_at_exit = False


cdef class Alarm:
    """A Python callback to come, made by set."""
    cdef object callback
    cdef object loop

    def cancel(self) -> bool:
        """True: it will not be called.  False: it has been, or was cancelled before.

        OSError EINPROGRESS in its own call.
        """
        cdef int count = 0
        cdef int rc
        cdef void *arg = <void *>self
        # The call that is waited for may be waiting for the GIL.
        with nogil:
            rc = alarm_cancel(run_python, arg, &count)
        if rc != -ENOENT:
            ok(rc, "the alarm is being called")
        g_handles.discard(self)
        return count > 0


# On the interrupt thread, never on a reactor.
cdef void run_python(void *arg) noexcept with gil:
    handle = <Alarm>arg
    g_handles.discard(handle)
    deliver(handle.callback, handle.loop)


def set_alarm(us: int, callback, *, loop=None) -> Alarm:
    """Have callback() called once, in so many microseconds; the handle's cancel prevents it.

    It is called on the interrupt thread, with the GIL, and must be short; or, with an asyncio loop,
    by call_soon_threadsafe.  OSError EINVAL for a time that is none.
    """
    global g_at_exit
    cdef Alarm handle
    cdef uint64_t c_us
    if not 1 <= us <= UINT64_MAX - SECOND_US:
        ok(-EINVAL, f"alarm in {us} us, not in 1 to {UINT64_MAX - SECOND_US}")
    if not callable(callback):
        raise TypeError(f"callback of an alarm: {callback!r} cannot be called")
    interrupt.init()
    if not g_at_exit:
        g_at_exit = True
        atexit.register(fini)
    handle = Alarm.__new__(Alarm)
    handle.callback = callback
    handle.loop = loop
    c_us = us
    g_handles.add(handle)
    try:
        ok(alarm_set(c_us, run_python, <void *>handle), f"alarm in {us} us")
    except BaseException:
        g_handles.discard(handle)
        raise
    return handle


def pending() -> int:
    """Return how many alarms are to come, or executing; 0 in a forked child."""
    cdef alarm_t *alarm
    cdef int n = 0
    if not is_ours():
        return 0
    pthread_mutex_lock(&g_lock)
    alarm = g_alarms
    while alarm is not NULL:
        n += 1
        alarm = alarm.next
    pthread_mutex_unlock(&g_lock)
    return n


cdef void forget_all() noexcept nogil:
    """Free the alarms, which nobody fires any more, and the timer."""
    global g_alarms, g_timer, g_epoch
    cdef alarm_t *alarm
    while g_alarms is not NULL:
        alarm = g_alarms
        g_alarms = alarm.next
        free(alarm)
    if g_timer >= 0:
        close(g_timer)
    g_timer = -1
    g_epoch = 0
    store_release_u32(&g_pid, 0)


def fini() -> None:
    """Forget every alarm, the one that is executing once it is over; a forked child only forgets.

    Before interrupt.fini.  Again: nothing.  OSError EDEADLK on the interrupt thread.
    """
    if interrupt_is_here():
        ok(-EDEADLK, "alarms cannot be ended by one of them")
    if is_ours():
        with nogil:
            interrupt_unregister_sync(g_timer, fire, ANY_ARG)
    elif is_inherited():
        # The parent's thread may have held them when it forked.
        pthread_mutex_init(&g_lock, NULL)
        pthread_cond_init(&g_done, NULL)
    forget_all()
    g_handles.clear()
