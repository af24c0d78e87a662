"""What memory is registered, and the maps that are told of it.

Registrations are kept as runs, sorted by address, of pages that are registered equally often.  A
change makes the new list aside, tells the maps, and puts it in place when none has refused: what
fails half-way has never been seen.
"""
from _thread import get_ident

from libc.errno cimport EDEADLOCK as EDEADLK
from libc.errno cimport EINVAL, EIO, ENOMEM
from libc.stdint cimport UINT64_MAX, UINTPTR_MAX, uint64_t, uintptr_t
from libc.stdlib cimport calloc, free, malloc
from vhostrt.base.errors cimport ok
from vhostrt.env.memory cimport env_unwatch_segments, env_watch_segments
from vhostrt.env.pagetable cimport (pthread_mutex_t, table_check, table_clear, table_close,
                                    table_init, table_run, table_set, table_t, table_translate)
from vhostrt.env.runs cimport runs_change, runs_copy, runs_cover, runs_t, runs_whole

cdef extern from *:
    """
    #include <pthread.h>
    /* A call from within a notify finds the mutex its own, and is refused instead of hanging. */
    static pthread_mutex_t vh_memmap_mutex = PTHREAD_ERRORCHECK_MUTEX_INITIALIZER_NP;
    """
    pthread_mutex_t g_mutex "vh_memmap_mutex"

cdef extern from "<pthread.h>" nogil:
    int pthread_mutex_lock(pthread_mutex_t *mutex)
    int pthread_mutex_unlock(pthread_mutex_t *mutex)

# Under g_mutex.
cdef runs_t g_runs
cdef map_t *g_maps = NULL           # those with a notify, the first created first
cdef bint g_from_python = False     # the call under way is the Python face's


# Those who are told.

cdef int replay(map_notify_fn fn, void *ctx) noexcept nogil:
    """Tell fn of all that is registered, in maximal runs, up to its first error; 0 or that."""
    cdef uintptr_t at, end
    cdef size_t i = 0
    cdef int rc = 0
    while i < g_runs.n and rc >= 0:
        i = runs_whole(&g_runs, i, &at, &end)
        rc = fn(ctx, at, end - at, True)
        if rc < 0:
            replay_back(fn, ctx, at)
    return min(rc, 0)


cdef void replay_back(map_notify_fn fn, void *ctx, uintptr_t until) noexcept nogil:
    """Tell fn that the memory below an address, of whole runs, is registered no more."""
    cdef uintptr_t at, end
    cdef size_t i = 0
    while i < g_runs.n:
        i = runs_whole(&g_runs, i, &at, &end)
        if at >= until:
            break
        fn(ctx, at, end - at, False)


cdef void take_back(map_t *m, runs_t *news, size_t done, bint added) noexcept nogil:
    """Tell the maps up to this one, which was told `done` runs, the opposite, the last first."""
    while m is not NULL:
        while done:
            done -= 1
            m.notify(m.ctx, news.r[done].at, news.r[done].end - news.r[done].at, not added)
        m = m.prev
        done = news.n


cdef int tell(runs_t *news, bint added, bint anyway) noexcept nogil:
    """Tell every map of every run; at the first error take it back, unless `anyway`; 0 or that."""
    cdef map_t *m = g_maps
    cdef size_t i
    cdef int rc
    while m is not NULL:
        for i in range(news.n):
            rc = m.notify(m.ctx, news.r[i].at, news.r[i].end - news.r[i].at, added)
            if rc < 0 and not anyway:
                take_back(m, news, i, added)
                return rc
        m = m.next
    return 0


cdef int join(map_t *m, bint from_python) noexcept nogil:
    """Have a map take what is registered, and put it behind the others; 0 or -errno."""
    global g_from_python
    cdef map_t **link = &g_maps
    cdef int rc
    if pthread_mutex_lock(&g_mutex) == EDEADLK:
        return -EDEADLK
    g_from_python = from_python
    rc = replay(m.notify, m.ctx)
    g_from_python = False
    if rc == 0:
        while link[0] is not NULL:
            m.prev = link[0]
            link = &link[0].next
        link[0] = m
    pthread_mutex_unlock(&g_mutex)
    return rc


cdef int create(map_t **m, uint64_t none, bint linear, map_notify_fn notify, void *ctx,
                bint from_python) noexcept nogil:
    """Do map_create."""
    cdef int rc = 0
    m[0] = <map_t *>calloc(1, sizeof(map_t))
    if m[0] is NULL:
        return -ENOMEM
    table_init(&m[0].table, none, linear)
    m[0].notify = notify
    m[0].ctx = ctx
    if notify is not NULL:
        rc = join(m[0], from_python)
    if rc < 0:
        table_close(&m[0].table)
        free(m[0])
        m[0] = NULL
    return rc


cdef int map_create(map_t **m, uint64_t none, bint linear, map_notify_fn notify,
                    void *ctx) noexcept nogil:
    """Make a map in which every address has the value `none`.

    notify, if any, is told of all that is registered, in maximal runs, before this returns (*m is
    the map by then), and of each change from then on.
    0
    -ENOMEM
    -EDEADLK  called by a notify
    -errno    of notify; it has been told the opposite of all that it took, and *m is NULL
    """
    return create(m, none, linear, notify, ctx, False)


cdef int destroy(map_t *m, bint from_python) noexcept nogil:
    """Do map_free."""
    global g_from_python, g_maps
    if m is NULL:
        return 0
    if m.notify is not NULL:
        if pthread_mutex_lock(&g_mutex) == EDEADLK:
            return -EDEADLK
        g_from_python = from_python
        replay_back(m.notify, m.ctx, UINTPTR_MAX)
        g_from_python = False
        if m.prev is not NULL:
            m.prev.next = m.next
        else:
            g_maps = m.next
        if m.next is not NULL:
            m.next.prev = m.prev
        pthread_mutex_unlock(&g_mutex)
    table_close(&m.table)
    free(m)
    return 0


cdef int map_free(map_t *m) noexcept nogil:
    """Free a map that nobody reads any more; NULL is allowed.

    Its notify is told that all that is registered no longer is.  0, or -EDEADLK: called by a
    notify, and nothing is done.
    """
    return destroy(m, False)


# Registrations.

cdef int change_runs(uintptr_t at, uintptr_t end, int delta, bint anyway) noexcept nogil:
    """Count a range up or down, and tell the maps of the pages that this adds or takes away."""
    global g_runs
    cdef runs_t after, news
    cdef int rc
    if delta < 0 and not runs_cover(&g_runs, at, end):
        return -EINVAL
    rc = runs_change(&g_runs, at, end, delta, &after, &news)
    if rc < 0:
        return rc
    rc = tell(&news, delta > 0, anyway)
    if rc == 0:
        free(g_runs.r)
        g_runs = after
    else:
        free(after.r)
    free(news.r)
    return rc


cdef int change(uintptr_t at, size_t size, int delta, bint anyway,
                bint from_python) noexcept nogil:
    """Check a range and change its registration under the mutex; 0 or -errno."""
    global g_from_python
    cdef int rc = table_check(at, size)
    if rc < 0:
        return rc
    if pthread_mutex_lock(&g_mutex) == EDEADLK:
        return -EDEADLK
    g_from_python = from_python
    rc = change_runs(at, at + size, delta, anyway)
    g_from_python = False
    pthread_mutex_unlock(&g_mutex)
    return rc


cdef int memmap_register(uintptr_t at, size_t size) noexcept nogil:
    """Register memory once more; the maps are told of the pages that were not registered.

    0
    -EINVAL   not whole pages of 4 KiB, none, or beyond 2^48
    -ENOMEM
    -EDEADLK  called by a notify
    -errno    of a notify; whoever had been told is told the opposite, and nothing is registered
    """
    return change(at, size, 1, False, False)


cdef int memmap_unregister(uintptr_t at, size_t size) noexcept nogil:
    """Undo one registration; the maps are told of the pages that have no other.

    0
    -EINVAL   as memmap_register, or a page in it is not registered; nothing has changed
    -ENOMEM   nothing has changed
    -EDEADLK  called by a notify
    -errno    of a notify; whoever had been told is told the opposite, and all stays registered
    """
    return change(at, size, -1, False, False)


cdef bint memmap_registered(uintptr_t at, size_t size) noexcept nogil:
    """True when every page that a range touches is registered; not for a notify."""
    cdef bint found
    if size > UINTPTR_MAX - at or pthread_mutex_lock(&g_mutex) == EDEADLK:
        return False
    found = runs_cover(&g_runs, at, at + size)
    pthread_mutex_unlock(&g_mutex)
    return found


cdef int copy_registered(runs_t *to) noexcept nogil:
    cdef bint locked = pthread_mutex_lock(&g_mutex) != EDEADLK
    cdef int rc = runs_copy(&g_runs, to)
    if locked:
        pthread_mutex_unlock(&g_mutex)
    return rc


# The heap's segments.

cdef int on_segment(void *ctx, void *at, size_t size, bint added) noexcept nogil:
    """Register a segment of the heap, or unregister it: it goes, whatever the maps say to that."""
    return change(<uintptr_t>at, size, 1 if added else -1, not added, False)


cdef int on_leaving(void *ctx, void *at, size_t size, bint added) noexcept nogil:
    """Unregister a segment that stays in the heap."""
    change(<uintptr_t>at, size, -1, True, False)
    return 0


# The Python face.

cdef struct late_t:
    # What a map was told by a thread that cannot wait for the GIL.
    late_t *next
    uintptr_t at
    size_t size
    bint added

cdef struct face_t:
    void *owner                 # the Map; NULL when it is going.  Under the GIL
    late_t *first               # under g_mutex, like last
    late_t **last

cdef bint g_watching = False    # the heap tells us; written by init and fini

# Thread -> what a notify raised in the call under way there.  Under the GIL.
cdef dict g_raised = {}


cdef int call(Map owner, uintptr_t at, size_t size, bint added) noexcept:
    """Call a Map's notify; 0, or -errno, and the exception is kept for who asked."""
    try:
        if owner.notify is not None:
            owner.notify(at, size, bool(added))
    except BaseException as error:
        g_raised.setdefault(get_ident(), error)
        return -(error.errno if isinstance(error, OSError) and error.errno else EIO)
    return 0


cdef bint pop_late(face_t *f, late_t *late) noexcept nogil:
    """Take the oldest of what is still to be told; False when there is nothing.  Under g_mutex."""
    cdef late_t *first = f.first
    if first is NULL:
        return False
    late[0] = first[0]
    f.first = first.next
    if f.first is NULL:
        f.last = &f.first
    free(first)
    return True


cdef bint next_late(face_t *f, late_t *late) noexcept nogil:
    cdef bint found = False
    if pthread_mutex_lock(&g_mutex) != EDEADLK:
        found = pop_late(f, late)
        pthread_mutex_unlock(&g_mutex)
    return found


# The control plane waits in register and its like without the GIL; a reactor calls none of them.
cdef int tell_now(face_t *f, uintptr_t at, size_t size, bint added) noexcept with gil:
    cdef late_t late
    if f.owner is NULL:
        return 0
    owner = <Map>f.owner
    while pop_late(f, &late):
        call(owner, late.at, late.size, late.added)
    return call(owner, at, size, added)


cdef int tell_late(face_t *f, uintptr_t at, size_t size, bint added) noexcept nogil:
    cdef late_t *late = <late_t *>malloc(sizeof(late_t))
    if late is NULL:
        return -ENOMEM
    late[0] = late_t(NULL, at, size, added)
    f.last[0] = late
    f.last = &late.next
    return 0


cdef int on_change(void *ctx, uintptr_t at, size_t size, bint added) noexcept nogil:
    """Tell a Map: now when the Python face asked for the change, else when it is delivered.

    Elsewhere, who has the GIL may be waiting for a lock of this thread's: the heap's, say.
    """
    if g_from_python:
        return tell_now(<face_t *>ctx, at, size, added)
    return tell_late(<face_t *>ctx, at, size, added)


cdef int told(int rc, str what) except -1:
    """Raise what a notify raised in the call that ended with rc, or what rc says."""
    raised = g_raised.pop(get_ident(), None)
    if rc < 0 and raised is not None:
        raise raised
    if rc == -EDEADLK:
        ok(rc, f"{what}, from within a notify")
    if rc == -EINVAL:
        ok(rc, f"{what}: not whole pages of 4 KiB below 2^48, or not registered")
    return ok(rc, what)


cdef int read_range(address, size, uintptr_t *at, size_t *length) except -1:
    """Take a range given as Python's numbers; OSError EINVAL when they are none of an address."""
    if not (0 <= address < 1 << 64 and 0 < size < 1 << 64):
        ok(-EINVAL, f"memory of {size} bytes at {address:#x}")
    at[0] = address
    length[0] = size
    return 0


cdef class Map:
    """A value for each page of 4 KiB of the address space.

    none: the value of a page that has none.  linear: the value goes on with the address.  notify:
    a function (address, size, added) of what becomes registered and what ceases to be.  It is
    called at once for what is registered already, then for each register and unregister of this
    module while that runs; what the heap does in other threads waits for the next of these, or
    for deliver.  What it raises undoes the change.  It calls neither this module nor the heap.

    Owner:    who made it; free tells notify that all is registered no more.
    Threads:  set, clear, translate, run: any.  The rest: the control thread.
    """
    cdef map_t *m               # NULL once freed
    cdef face_t *f              # NULL without notify
    cdef object notify

    def __cinit__(self, none: int = UINT64_MAX, linear: bool = False, notify=None):
        cdef uint64_t value = none
        cdef bint goes_on = linear
        cdef map_notify_fn fn = NULL
        cdef int rc
        if notify is not None:
            self.notify = notify
            self.f = <face_t *>calloc(1, sizeof(face_t))
            if self.f is NULL:
                raise MemoryError
            self.f.last = &self.f.first
            self.f.owner = <void *>self
            fn = on_change
        with nogil:
            rc = create(&self.m, value, goes_on, fn, self.f, True)
        told(rc, "new memory map")

    def __dealloc__(self):
        cdef late_t late
        cdef int rc
        if self.f is not NULL:
            self.f.owner = NULL
        with nogil:
            rc = destroy(self.m, True)
            # A garbage collection within a notify has the mutex: the tables then stay for good.
            if rc == 0 and self.f is not NULL:
                while pop_late(self.f, &late):
                    pass
                free(self.f)

    cdef table_t *table(self) except NULL:
        if self.m is NULL:
            raise ValueError("the memory map has been freed")
        return &self.m.table

    def set(self, address: int, size: int, value: int) -> None:
        """Give the pages of a range a value.

        OSError EINVAL: not whole pages of 4 KiB below 2^48; ENOMEM, and then nothing has changed.
        """
        cdef uintptr_t at = 0
        cdef size_t length = 0
        read_range(address, size, &at, &length)
        told(table_set(self.table(), at, length, value), f"memory of {size} bytes at {at:#x}")

    def clear(self, address: int, size: int) -> None:
        """Take the values of a range away; OSError as set."""
        cdef uintptr_t at = 0
        cdef size_t length = 0
        read_range(address, size, &at, &length)
        told(table_clear(self.table(), at, length), f"memory of {size} bytes at {at:#x}")

    def translate(self, address: int) -> int:
        """Return the value of an address, or `none`."""
        cdef uint64_t none = self.table().none
        return table_translate(self.table(), address) if 0 <= address < 1 << 64 else none

    def run(self, address: int, size: int) -> tuple:
        """Return the value of an address and the bytes, of `size`, over which it goes on."""
        cdef uintptr_t at = 0
        cdef size_t length = 0
        read_range(address, size, &at, &length)
        value = table_run(self.table(), at, &length)
        return value, length

    def deliver(self) -> int:
        """Call notify for what the heap has done in the meantime; return how often.

        What it raises comes through, and the rest stays for the next time.
        """
        cdef late_t late
        cdef bint more = True
        count = 0
        self.table()
        while self.f is not NULL:
            with nogil:
                more = next_late(self.f, &late)
            if not more:
                break
            count += 1
            self.notify(late.at, late.size, bool(late.added))
        return count

    def free(self) -> None:
        """Tell notify that all is registered no more, and free the tables.  Again: nothing."""
        cdef int rc
        with nogil:
            rc = destroy(self.m, True)
        if rc == 0:
            self.m = NULL
        told(rc, "free of a memory map")


cdef int change_from_python(address, size, int delta) except -1:
    cdef uintptr_t at = 0
    cdef size_t length = 0
    cdef int rc
    read_range(address, size, &at, &length)
    with nogil:
        rc = change(at, length, delta, False, True)
    return told(rc, f"memory of {size} bytes at {at:#x}")


def init() -> None:
    """Register the memory of the heap, now and as it changes; again is no harm.

    OSError with what a map says to memory that is there already.  Control thread.
    """
    global g_watching
    cdef int rc
    if g_watching:
        return
    with nogil:
        rc = env_watch_segments(on_segment, NULL)
    ok(rc, "memory map: the memory of the heap")
    g_watching = True


def fini() -> None:
    """Unregister the memory of the heap; what others have registered is theirs.  Control thread."""
    global g_watching
    if not g_watching:
        return
    with nogil:
        env_unwatch_segments(on_segment, NULL)
        # The heap tells whoever comes of all that there is.
        env_watch_segments(on_leaving, NULL)
        env_unwatch_segments(on_leaving, NULL)
    g_watching = False


def register(address: int, size: int) -> None:
    """Register memory once more, and tell the maps of what was not registered.

    OSError: EINVAL, not whole pages of 4 KiB below 2^48; ENOMEM; EDEADLK, from within a notify;
    and what a notify raises.  Then nothing is registered.  Control thread.
    """
    change_from_python(address, size, 1)


def unregister(address: int, size: int) -> None:
    """Undo one registration, and tell the maps of the pages that have no other.

    OSError as register; EINVAL also when a page is not registered.  Then nothing has changed.
    Control thread.
    """
    change_from_python(address, size, -1)


def registered() -> list:
    """Return what is registered, as (address, bytes, how often), by address.  Control thread."""
    cdef runs_t now
    cdef size_t i
    cdef int rc
    with nogil:
        rc = copy_registered(&now)
    ok(rc, "list of what is registered")
    try:
        return [(now.r[i].at, now.r[i].end - now.r[i].at, now.r[i].count) for i in range(now.n)]
    finally:
        free(now.r)
