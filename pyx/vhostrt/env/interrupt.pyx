"""The interrupt thread: it sleeps until a descriptor has an event, and calls back.

Descriptors are added to and taken from its epoll instance by whoever registers them, so that nobody
has to wake it; an event that it has already taken is told from a newer registration of the same
descriptor by a serial number.  A descriptor is unregistered before it is closed.

Owner:    the thread starts with the first registration and ends in fini, also when Python ends.
Threads:  any may register and unregister; callbacks run on the interrupt thread, one at a time.
Fails:    -errno below, OSError with a sentence above.
"""
import atexit

from libc.errno cimport EAGAIN, EINTR, EINVAL, ENOENT, ENOMEM, EPIPE, ESRCH, errno
from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from posix.unistd cimport close, getpid, read, write
from vhostrt.base.atomics cimport load_acquire_u32, store_release_u32
from vhostrt.base.check cimport check
from vhostrt.base.errors cimport ok
from vhostrt.base.pthreads cimport (
    EDEADLK, pthread_cond_broadcast, pthread_cond_init, pthread_cond_t, pthread_cond_wait,
    pthread_equal, pthread_join, pthread_mutex_init, pthread_mutex_lock, pthread_mutex_t,
    pthread_mutex_unlock, pthread_self, pthread_setname_np, pthread_t, thread_start)
from vhostrt.env.affinity cimport affinity_leave

cdef extern from *:
    """
    #include <errno.h>
    #include <sys/epoll.h>
    #include <sys/eventfd.h>
    """
    ctypedef union epoll_data_t:
        uint64_t u64
    ctypedef struct epoll_event "struct epoll_event":
        uint32_t events
        epoll_data_t data
    enum:
        EPOLL_CLOEXEC
        EPOLL_CTL_ADD
        EPOLL_CTL_DEL
        EPOLLIN
        EPOLLPRI
        EPOLLRDHUP
        EPOLLHUP
        EFD_CLOEXEC
    int epoll_create1(int flags) nogil
    int epoll_ctl(int epoll, int what, int fd, epoll_event *event) nogil
    int epoll_wait(int epoll, epoll_event *events, int n, int timeout) nogil
    int eventfd(unsigned initial, int flags) nogil

cdef enum:
    EVENTS = 8                  # taken at a time
    QUIT = 0                    # the serial number of the descriptor that ends the thread

cdef struct callback_t:
    interrupt_fn fn
    void *arg
    callback_t *next

cdef struct source_t:
    int fd
    uint32_t kind               # INTERRUPT_*
    uint32_t serial
    bint active                 # its callbacks are running: none of them may be freed
    bint silent                 # taken off epoll: it ended, or failed
    callback_t *callbacks       # in the order of registration
    source_t *next

# Under g_lock, but for what start and fini do while no other thread is there.
cdef pthread_mutex_t g_lock
cdef pthread_cond_t g_idle      # a source is active no more
cdef source_t *g_sources = NULL
cdef uint32_t g_serial = QUIT
cdef uint32_t g_epoch = 0       # how often the thread has been started
cdef int g_epoll = -1
cdef int g_quit = -1            # eventfd
cdef pthread_t g_thread
cdef uint32_t g_pid = 0         # of the process that started it; 0: not started

pthread_mutex_init(&g_lock, NULL)
pthread_cond_init(&g_idle, NULL)


# The thread.

cdef int clear(source_t *source) noexcept nogil:
    """Read a descriptor that has an event; 1: call, 0: there was none, -1: it ended or failed."""
    cdef uint64_t buffer
    cdef size_t *sizes = [1, 4, 8, 8, 0]                        # by INTERRUPT_*
    cdef ssize_t n
    if sizes[source.kind] == 0:
        return 1
    n = read(source.fd, &buffer, sizes[source.kind])
    if n > 0:
        return 1
    return 0 if n < 0 and errno in (EINTR, EAGAIN) else -1      # EWOULDBLOCK is EAGAIN


cdef source_t *source_of(uint32_t serial) noexcept nogil:
    cdef source_t *source = g_sources
    while source is not NULL and source.serial != serial:
        source = source.next
    return source


cdef void silence(source_t *source) noexcept nogil:
    """Hear no more of a descriptor; it may have been closed already."""
    if not source.silent:
        epoll_ctl(g_epoll, EPOLL_CTL_DEL, source.fd, NULL)
        source.silent = True


cdef void serve(uint32_t serial) noexcept nogil:
    """Read a source and call its callbacks, the lock dropped around the read and each call."""
    cdef callback_t *callback
    cdef int rc
    pthread_mutex_lock(&g_lock)
    cdef source_t *source = source_of(serial)
    if source is NULL:                                          # unregistered in the meantime
        pthread_mutex_unlock(&g_lock)
        return
    source.active = True
    pthread_mutex_unlock(&g_lock)
    rc = clear(source)
    pthread_mutex_lock(&g_lock)
    callback = source.callbacks if rc > 0 else NULL
    while callback is not NULL:
        pthread_mutex_unlock(&g_lock)
        callback.fn(callback.arg)
        pthread_mutex_lock(&g_lock)
        callback = callback.next
    if rc < 0:
        silence(source)                                         # it would have an event for ever
    source.active = False
    pthread_cond_broadcast(&g_idle)
    pthread_mutex_unlock(&g_lock)


cdef void *interrupt_loop(void *arg) noexcept nogil:
    cdef epoll_event events[EVENTS]
    cdef int i, n
    affinity_leave()
    while True:                                                 # until QUIT
        n = epoll_wait(g_epoll, events, EVENTS, -1)
        check(n >= 0 or errno == EINTR)
        for i in range(n):
            if events[i].data.u64 == QUIT:
                return NULL
            serve(<uint32_t>events[i].data.u64)


cdef int listen_to(int fd, uint32_t serial) noexcept nogil:
    cdef epoll_event event
    event.events = EPOLLIN | EPOLLPRI | EPOLLRDHUP | EPOLLHUP
    event.data.u64 = serial
    return -errno if epoll_ctl(g_epoll, EPOLL_CTL_ADD, fd, &event) < 0 else 0


cdef void close_both() noexcept nogil:
    global g_epoll, g_quit
    if g_epoll >= 0:
        close(g_epoll)
    if g_quit >= 0:
        close(g_quit)
    g_epoll = g_quit = -1


cdef int start() noexcept nogil:
    """Start the thread, under the lock; 0 or -errno."""
    global g_epoll, g_quit, g_epoch
    cdef int rc
    g_epoll = epoll_create1(EPOLL_CLOEXEC)
    g_quit = eventfd(0, EFD_CLOEXEC)
    rc = -errno if g_epoll < 0 or g_quit < 0 else listen_to(g_quit, QUIT)
    if rc == 0:
        rc = thread_start(&g_thread, interrupt_loop, NULL)
    if rc < 0:
        close_both()
        return rc
    pthread_setname_np(g_thread, b"eal-intr-thread")
    g_epoch += 1
    store_release_u32(&g_pid, getpid())
    return 0


cdef bint is_ours() noexcept nogil:
    """True while the thread is there, and not in a forked child."""
    return load_acquire_u32(&g_pid) == <uint32_t>getpid()


cdef int interrupt_start() noexcept nogil:
    """Have the thread; 0, -ESRCH in a forked child, or -errno of the system."""
    cdef int rc = 0
    if load_acquire_u32(&g_pid) != 0 and not is_ours():
        return -ESRCH
    pthread_mutex_lock(&g_lock)
    if load_acquire_u32(&g_pid) == 0:
        rc = start()
    pthread_mutex_unlock(&g_lock)
    return rc


cdef uint32_t interrupt_epoch() noexcept nogil:
    """Return a number of this thread, or 0 when there is none: what an earlier one knew is gone."""
    return g_epoch if is_ours() else 0


cdef bint interrupt_is_here() noexcept nogil:
    """True on the interrupt thread."""
    return is_ours() and pthread_equal(g_thread, pthread_self())


# Registration.

cdef source_t **link_of(int fd) noexcept nogil:
    """Return where the source of a descriptor is linked in; the end of the list when it is not."""
    cdef source_t **link = &g_sources
    while link[0] is not NULL and link[0].fd != fd:
        link = &link[0].next
    return link


cdef int add_source(source_t **link, int fd, uint32_t kind, callback_t *first) noexcept nogil:
    """Make a source with its first callback; 0, -ENOMEM, or -EINVAL: no such descriptor."""
    global g_serial
    cdef source_t *source = <source_t *>calloc(1, sizeof(source_t))
    if source is NULL:
        return -ENOMEM
    g_serial += 1
    if g_serial == QUIT:
        g_serial += 1
    source.fd = fd
    source.kind = kind
    source.serial = g_serial
    source.callbacks = first
    if listen_to(fd, g_serial) < 0:
        free(source)
        return -EINVAL
    link[0] = source
    return 0


cdef int add_callback(int fd, uint32_t kind, callback_t *callback) noexcept nogil:
    """Add a callback to the source of a descriptor, which is made when there is none."""
    cdef source_t **link = link_of(fd)
    cdef callback_t **last
    if link[0] is NULL:
        return add_source(link, fd, kind, callback)
    if link[0].kind != kind:
        return -EINVAL
    last = &link[0].callbacks
    while last[0] is not NULL:
        last = &last[0].next
    last[0] = callback
    return 0


cdef int interrupt_register(int fd, uint32_t kind, interrupt_fn fn, void *arg) noexcept nogil:
    """Have fn(arg) called on the interrupt thread at each event of a descriptor.

    kind: INTERRUPT_*.  One descriptor may have several callbacks.
    0
    -EINVAL  fd is no descriptor that can have events, or has another kind already; no such kind;
             fn is NULL
    -ENOMEM
    -EPIPE   the thread cannot be started (interrupt.init tells why)
    -ESRCH   a forked child
    """
    cdef callback_t *callback
    cdef int rc
    if fd < 0 or fn is NULL or kind > INTERRUPT_EXT:
        return -EINVAL
    rc = interrupt_start()
    if rc < 0:
        return rc if rc == -ESRCH else -EPIPE
    callback = <callback_t *>calloc(1, sizeof(callback_t))
    if callback is NULL:
        return -ENOMEM
    callback.fn = fn
    callback.arg = arg
    pthread_mutex_lock(&g_lock)
    rc = add_callback(fd, kind, callback)
    pthread_mutex_unlock(&g_lock)
    if rc < 0:
        free(callback)
    return rc


cdef int take_callbacks(source_t **link, interrupt_fn fn, void *arg) noexcept nogil:
    """Remove callbacks, and the source with the last of them; return how many."""
    cdef source_t *source = link[0]
    cdef callback_t **at = &source.callbacks
    cdef callback_t *callback
    cdef int n = 0
    while at[0] is not NULL:
        callback = at[0]
        if callback.fn == fn and (arg == ANY_ARG or callback.arg == arg):
            at[0] = callback.next
            free(callback)
            n += 1
        else:
            at = &callback.next
    if source.callbacks is NULL:
        silence(source)
        link[0] = source.next
        free(source)
    return n


cdef int unregister(int fd, interrupt_fn fn, void *arg, bint wait) noexcept nogil:
    cdef source_t **link
    cdef int rc = -ENOENT
    if fd < 0 or fn is NULL:
        return -EINVAL
    if not is_ours():
        return -ENOENT if load_acquire_u32(&g_pid) == 0 else -ESRCH
    pthread_mutex_lock(&g_lock)
    link = link_of(fd)
    while wait and link[0] is not NULL and link[0].active and not interrupt_is_here():
        pthread_cond_wait(&g_idle, &g_lock)
        link = link_of(fd)
    if link[0] is not NULL:
        rc = -EAGAIN if link[0].active else take_callbacks(link, fn, arg)
    pthread_mutex_unlock(&g_lock)
    return rc


cdef int interrupt_unregister(int fd, interrupt_fn fn, void *arg) noexcept nogil:
    """Take callbacks of a descriptor away; arg ANY_ARG: whatever their argument.

    The number taken; the descriptor is heard no more when it has none left.
    -ENOENT  it has no callback
    -EAGAIN  its callbacks are running at this moment; nothing was taken
    -EINVAL  fd is negative, or fn NULL
    -ESRCH   a forked child
    """
    return unregister(fd, fn, arg, False)


cdef int interrupt_unregister_sync(int fd, interrupt_fn fn, void *arg) noexcept nogil:
    """Do as interrupt_unregister, but wait while callbacks are running.

    -EAGAIN on the interrupt thread alone, in a callback of that descriptor.
    """
    return unregister(fd, fn, arg, True)


# The Python face.

KINDS = {"other": INTERRUPT_OTHER, "uio": INTERRUPT_UIO, "vfio": INTERRUPT_VFIO,
         "alarm": INTERRUPT_ALARM, "ext": INTERRUPT_EXT}
cdef set g_handles = set()      # that are registered
cdef bint g_at_exit = False


cdef class Interrupt:
    """A Python callback at the events of a descriptor, made by register."""
    cdef readonly int fd
    cdef object callback
    cdef object loop

    def remove(self) -> None:
        """Have no more calls.  Again, or after fini: nothing.

        OSError EAGAIN in the callback itself, on the interrupt thread.
        """
        cdef int fd = self.fd
        cdef int rc
        cdef void *arg = <void *>self
        if self in g_handles:
            # The callback that is waited for may be waiting for the GIL.
            with nogil:
                rc = interrupt_unregister_sync(fd, run_python, arg)
            ok(rc, f"the callback of descriptor {fd} is running")
            g_handles.discard(self)


cdef void deliver(object callback, object loop) noexcept:
    """Call back here, or in the loop's thread; what is raised goes to sys.unraisablehook."""
    if loop is None:
        callback()
    else:
        loop.call_soon_threadsafe(callback)


# On the interrupt thread, never on a reactor.
cdef void run_python(void *arg) noexcept with gil:
    handle = <Interrupt>arg
    deliver(handle.callback, handle.loop)


def register(fd: int, callback, *, kind: str, loop=None) -> Interrupt:
    """Have callback() called at each event of a descriptor; the handle's remove ends that.

    kind: how it is read before: "other" 1 byte, "uio" 4, "vfio" (any eventfd) and "alarm" (timerfd)
    8, "ext" not at all, which the callback has to do itself.  It is called on the interrupt thread,
    with the GIL, and must be short; or, with an asyncio loop, by call_soon_threadsafe.  "ext" does
    not go with a loop: loop.add_reader does that.  OSError or ValueError.
    """
    cdef Interrupt handle
    cdef int c_fd = fd
    cdef uint32_t c_kind
    if kind not in KINDS:
        raise ValueError(f"interrupt of kind {kind!r}: the kinds are {', '.join(KINDS)}")
    if kind == "ext" and loop is not None:
        raise ValueError("interrupt of kind 'ext' with a loop: use loop.add_reader")
    if not callable(callback):
        raise TypeError(f"callback of descriptor {fd}: {callback!r} cannot be called")
    init()
    handle = Interrupt.__new__(Interrupt)
    handle.fd = c_fd
    handle.callback = callback
    handle.loop = loop
    c_kind = KINDS[kind]
    ok(interrupt_register(c_fd, c_kind, run_python, <void *>handle),
       f"descriptor {fd} of kind {kind}: it must be open, able to have events, and of one kind")
    g_handles.add(handle)
    return handle


def init() -> None:
    """Start the thread; again is no harm.  OSError when the system refuses, or in a fork."""
    global g_at_exit
    ok(interrupt_start(), "the interrupt thread")
    if not g_at_exit:
        # A callback must not look for Python when that has gone.
        g_at_exit = True
        atexit.register(fini)


def running() -> bool:
    """True between the first use and fini; not in a forked child."""
    return interrupt_epoch() != 0


cdef source_t nth_source(uint32_t n, int *callbacks) noexcept nogil:
    """Copy one source of the list and count its callbacks; fd -1 behind the end."""
    cdef source_t copy
    cdef source_t *source
    cdef callback_t *callback
    copy.fd = -1
    callbacks[0] = 0
    pthread_mutex_lock(&g_lock)
    source = g_sources
    while source is not NULL and n:
        source = source.next
        n -= 1
    if source is not NULL:
        copy = source[0]
        callback = source.callbacks
        while callback is not NULL:
            callbacks[0] += 1
            callback = callback.next
    pthread_mutex_unlock(&g_lock)
    return copy


def sources() -> dict:
    """Return descriptor -> (kind, number of callbacks, whether it is still heard)."""
    cdef source_t source
    cdef int callbacks = 0
    names = {kind: name for name, kind in KINDS.items()}
    found = {}
    while is_ours():
        source = nth_source(len(found), &callbacks)
        if source.fd < 0:
            break
        found[source.fd] = (names[source.kind], callbacks, not source.silent)
    return found


cdef void forget_all() noexcept nogil:
    """Free every source; no thread is there to see it."""
    global g_sources
    cdef source_t *source
    cdef callback_t *callback
    while g_sources is not NULL:
        source = g_sources
        g_sources = source.next
        while source.callbacks is not NULL:
            callback = source.callbacks
            source.callbacks = callback.next
            free(callback)
        free(source)


def fini() -> None:
    """End the thread and forget all callbacks; a forked child only forgets.  Again: nothing.

    OSError EDEADLK on the interrupt thread itself.
    """
    cdef uint64_t one = 1
    if interrupt_is_here():
        ok(-EDEADLK, "the interrupt thread cannot end itself")
    if is_ours():
        # The thread may be waiting for the GIL.
        with nogil:
            check(write(g_quit, &one, sizeof(one)) == sizeof(one))
            pthread_join(g_thread, NULL)
    elif load_acquire_u32(&g_pid) != 0:
        # The parent's thread may have held them when it forked.
        pthread_mutex_init(&g_lock, NULL)
        pthread_cond_init(&g_idle, NULL)
    store_release_u32(&g_pid, 0)
    forget_all()
    close_both()
    g_handles.clear()
