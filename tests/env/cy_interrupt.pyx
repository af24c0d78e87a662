"""vhostrt.env.interrupt at the C level: sources, how they are read, and what is refused."""
import errno
import os
import resource
import threading
import time

import pytest

from libc.stdint cimport uint32_t, uintptr_t
from libc.string cimport memset
from posix.unistd cimport read
from vhostrt.base.atomics cimport (fetch_add_u32, load_acquire_u32, load_relaxed_u32,
                                   store_release_u32)
from vhostrt.base.pthreads cimport pthread_self, pthread_t
from vhostrt.env.interrupt cimport (
    ANY_ARG, INTERRUPT_ALARM, INTERRUPT_EXT, INTERRUPT_OTHER, INTERRUPT_UIO, INTERRUPT_VFIO,
    interrupt_epoch, interrupt_is_here, interrupt_register, interrupt_unregister,
    interrupt_unregister_sync)
from vhostrt.env.lcore cimport LCORE_NONE, lcore_current

from vhostrt.env import interrupt, lcore

cdef extern from "<unistd.h>" nogil:
    int usleep(unsigned usec)

cdef extern from "<pthread.h>" nogil:
    int pthread_getname_np(pthread_t thread, char *name, size_t size)

cdef struct watch_t:
    uint32_t calls
    uint32_t hold               # a call lasts until this is 0
    int read_fd                 # read by the call; 0: nothing is
    int fd                      # unregistered by the call
    int rc
    uint32_t lcore
    bint here
    char name[16]


@pytest.fixture(autouse=True)
def ended():
    yield
    interrupt.fini()


@pytest.fixture
def event():
    made = []

    def make(initial=0, flags=os.EFD_NONBLOCK):
        fd = os.eventfd(initial, flags)
        made.append(fd)
        return fd
    yield make
    interrupt.fini()
    for fd in made:
        os.close(fd)


# The thread goes on until the fixture ends it: what it works on outlives a test.
cdef watch_t g_watches[4]
cdef int g_next = 0


cdef watch_t *fresh(hold=False):
    global g_next
    g_next = (g_next + 1) % 4
    cdef watch_t *w = &g_watches[g_next]
    memset(w, 0, sizeof(watch_t))
    w.hold = hold
    return w


cdef void note(void *arg) noexcept nogil:
    cdef watch_t *w = <watch_t *>arg
    cdef char buffer[64]
    w.lcore = lcore_current()
    w.here = interrupt_is_here()
    pthread_getname_np(pthread_self(), w.name, sizeof(w.name))
    if w.read_fd:
        read(w.read_fd, buffer, sizeof(buffer))
    if w.fd:
        w.rc = interrupt_unregister(w.fd, note, arg)
    fetch_add_u32(&w.calls, 1)
    while load_acquire_u32(&w.hold):
        usleep(100)


cdef void count(void *arg) noexcept nogil:
    fetch_add_u32(<uint32_t *>arg, 1)


cdef bint reaches(uint32_t *calls, uint32_t n):
    """Wait until that many calls have been made; False when they do not come."""
    deadline = time.monotonic() + 10
    while load_acquire_u32(calls) < n and time.monotonic() < deadline:
        time.sleep(0.001)
    return load_acquire_u32(calls) >= n


def test_a_call_comes_on_its_own_thread(event):
    cdef watch_t *w = fresh()
    fd = event()
    assert interrupt_epoch() == 0 and not interrupt_is_here()
    lcore.init(sorted(os.sched_getaffinity(0))[:1])
    try:
        assert interrupt_register(fd, INTERRUPT_VFIO, note, w) == 0
        os.eventfd_write(fd, 3)
        assert reaches(&w.calls, 1)
        assert w.name == b"eal-intr-thread"
        assert w.lcore == LCORE_NONE and w.here and not interrupt_is_here()
        assert interrupt_epoch() > 0
    finally:
        lcore.fini()


@pytest.mark.parametrize(("kind", "width"), [(INTERRUPT_OTHER, 1), (INTERRUPT_UIO, 4)])
def test_a_source_is_read_before_the_call(uint32_t kind, width):
    cdef watch_t *w = fresh()
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    assert interrupt_register(reader, kind, note, w) == 0
    os.write(writer, bytes(5 * width))
    assert reaches(&w.calls, 5), "one call for each read"
    assert interrupt_unregister_sync(reader, note, w) == 1
    assert w.calls == 5
    with pytest.raises(BlockingIOError):
        os.read(reader, 1)
    os.close(reader)
    os.close(writer)


@pytest.mark.parametrize("kind", [INTERRUPT_VFIO, INTERRUPT_ALARM])
def test_an_eventfd_is_read_whole(event, uint32_t kind):
    cdef watch_t *w = fresh()
    fd = event(7)
    assert interrupt_register(fd, kind, note, w) == 0
    assert reaches(&w.calls, 1)
    assert interrupt_unregister_sync(fd, note, w) == 1
    assert w.calls == 1
    with pytest.raises(BlockingIOError):
        os.eventfd_read(fd)


def test_an_external_source_is_left_to_its_callback(event):
    cdef watch_t *w = fresh()
    cdef watch_t *reading = fresh()
    fd = event(1)
    assert interrupt_register(fd, INTERRUPT_EXT, note, w) == 0
    assert reaches(&w.calls, 3), "nobody reads it: it is called again and again"
    reading.read_fd = fd
    assert interrupt_register(fd, INTERRUPT_EXT, note, reading) == 0
    assert reaches(&reading.calls, 1)
    with pytest.raises(BlockingIOError):
        os.eventfd_read(fd)


def test_callbacks_of_one_source_in_the_order_of_registration(event):
    cdef watch_t *first = fresh(hold=True)
    cdef watch_t *second = fresh()
    fd = event()
    assert interrupt_register(fd, INTERRUPT_VFIO, note, first) == 0
    assert interrupt_register(fd, INTERRUPT_VFIO, note, second) == 0
    os.eventfd_write(fd, 1)
    assert reaches(&first.calls, 1)
    assert second.calls == 0
    store_release_u32(&first.hold, 0)
    assert reaches(&second.calls, 1)
    assert interrupt.sources() == {fd: ("vfio", 2, True)}
    assert interrupt_unregister_sync(fd, note, ANY_ARG) == 2
    assert interrupt.sources() == {}


def test_an_event_that_another_has_taken_is_skipped(event):
    cdef watch_t *gate = fresh(hold=True)
    cdef watch_t *a = fresh()
    cdef watch_t *b = fresh()
    fds = [event(), event(), event()]
    assert interrupt_register(fds[0], INTERRUPT_VFIO, note, gate) == 0
    assert interrupt_register(fds[1], INTERRUPT_VFIO, note, a) == 0
    assert interrupt_register(fds[2], INTERRUPT_VFIO, note, b) == 0
    a.read_fd, b.read_fd = fds[2], fds[1]                       # each reads the other's
    os.eventfd_write(fds[0], 1)
    assert reaches(&gate.calls, 1)
    os.eventfd_write(fds[1], 1)
    os.eventfd_write(fds[2], 1)
    store_release_u32(&gate.hold, 0)
    os.eventfd_write(fds[0], 1)
    assert reaches(&gate.calls, 2)
    for fd in fds:
        assert interrupt_unregister_sync(fd, note, ANY_ARG) == 1
    assert a.calls + b.calls == 1


def test_a_source_that_ends_is_heard_no_more():
    cdef watch_t *w = fresh()
    reader, writer = os.pipe()
    assert interrupt_register(reader, INTERRUPT_OTHER, note, w) == 0
    os.close(writer)
    deadline = time.monotonic() + 10
    while interrupt.sources()[reader][2]:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    assert w.calls == 0
    assert interrupt_unregister_sync(reader, note, w) == 1
    os.close(reader)


def test_unregister_takes_what_is_meant(event):
    cdef watch_t *w = fresh()
    cdef uint32_t counted = 0
    fd = event()
    for _ in range(2):
        assert interrupt_register(fd, INTERRUPT_VFIO, note, w) == 0
    assert interrupt_register(fd, INTERRUPT_VFIO, count, &counted) == 0
    assert interrupt_unregister(fd, note, &counted) == 0, "another argument"
    assert interrupt_unregister(fd, note, w) == 2
    assert interrupt_unregister(fd, note, w) == 0, "there is a source, and no such callback"
    os.eventfd_write(fd, 1)
    assert reaches(&counted, 1)
    assert interrupt_unregister_sync(fd, count, ANY_ARG) == 1
    assert interrupt_unregister(fd, count, ANY_ARG) == -errno.ENOENT
    assert w.calls == 0


def test_unregister_while_it_runs(event):
    cdef watch_t *w = fresh(hold=True)
    fd = event(1)
    w.fd = fd
    assert interrupt_register(fd, INTERRUPT_VFIO, note, w) == 0
    assert reaches(&w.calls, 1)
    assert w.rc == -errno.EAGAIN, "from the callback itself"
    assert interrupt_unregister(fd, note, w) == -errno.EAGAIN, "from here"
    got = []
    waits = threading.Thread(target=lambda: got.append(unregister_sync(fd, <uintptr_t>w)))
    waits.start()
    waits.join(0.05)
    assert waits.is_alive() and got == []
    store_release_u32(&w.hold, 0)
    waits.join()
    assert got == [1]


def unregister_sync(int fd, uintptr_t arg):
    cdef int rc
    with nogil:
        rc = interrupt_unregister_sync(fd, note, <void *>arg)
    return rc


cdef struct own_t:
    int fd
    uint32_t calls
    int rc


cdef void unregister_own(void *arg) noexcept nogil:
    cdef own_t *own = <own_t *>arg
    own.rc = interrupt_unregister_sync(own.fd, unregister_own, arg)
    fetch_add_u32(&own.calls, 1)


cdef own_t g_own


def test_a_callback_cannot_wait_for_itself(event):
    g_own.calls = 0
    g_own.fd = event(1)
    assert interrupt_register(g_own.fd, INTERRUPT_VFIO, unregister_own, &g_own) == 0
    assert reaches(&g_own.calls, 1)
    assert g_own.rc == -errno.EAGAIN


def test_refused(event, tmp_path):
    cdef watch_t *w = fresh()
    fd = event()
    assert interrupt_register(-1, INTERRUPT_VFIO, note, w) == -errno.EINVAL
    assert interrupt_register(fd, INTERRUPT_VFIO, NULL, w) == -errno.EINVAL
    assert interrupt_register(fd, 5, note, w) == -errno.EINVAL
    assert interrupt_unregister(fd, note, w) == -errno.ENOENT, "before the thread is there"
    assert not interrupt.running(), "what is refused starts no thread"
    assert interrupt_register(99_999, INTERRUPT_VFIO, note, w) == -errno.EINVAL, "not open"
    with open(tmp_path / "file", "wb") as file:
        # A regular file has no events.
        assert interrupt_register(file.fileno(), INTERRUPT_OTHER, note, w) == -errno.EINVAL
    assert interrupt_register(fd, INTERRUPT_VFIO, note, w) == 0
    assert interrupt_register(fd, INTERRUPT_UIO, note, w) == -errno.EINVAL, "of another kind"
    assert interrupt_unregister(-1, note, w) == -errno.EINVAL
    assert interrupt_unregister(fd, NULL, w) == -errno.EINVAL
    assert interrupt_unregister(fd + 1000, note, w) == -errno.ENOENT
    assert interrupt.sources() == {fd: ("vfio", 1, True)}


def test_a_thread_that_cannot_be_had(event):
    cdef watch_t *w = fresh()
    cdef int rc
    fd = event()
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, limits[1]))
    try:
        rc = interrupt_register(fd, INTERRUPT_VFIO, note, w)
        with pytest.raises(OSError, match="the interrupt thread") as refused:
            interrupt.init()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert rc == -errno.EPIPE
    assert refused.value.errno == errno.EMFILE
    assert interrupt_register(fd, INTERRUPT_VFIO, note, w) == 0


def test_a_forked_child_only_forgets(event):
    cdef watch_t *w = fresh()
    fd = event()
    assert interrupt_register(fd, INTERRUPT_VFIO, note, w) == 0
    child = os.fork()
    if child == 0:
        good = (interrupt_register(fd, INTERRUPT_VFIO, note, w) == -errno.ESRCH
                and interrupt_unregister(fd, note, w) == -errno.ESRCH
                and not interrupt.running() and interrupt.sources() == {})
        interrupt.fini()
        own = os.eventfd(1)                                     # the other one the parent hears too
        good = good and interrupt_register(own, INTERRUPT_VFIO, note, w) == 0
        good = good and reaches(&w.calls, 1)
        interrupt.fini()
        os._exit(0 if good else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    os.eventfd_write(fd, 1)
    assert reaches(&w.calls, 1), "the parent's goes on"


# Stress: threads register and unregister callbacks of sources that have events all the time.

def churn(int fd, uint32_t rounds, list failed):
    cdef uint32_t counted = 0
    cdef uint32_t _i
    cdef int bad = 0
    with nogil:
        for _i in range(rounds):
            bad += interrupt_register(fd, INTERRUPT_VFIO, count, &counted) != 0
            while load_relaxed_u32(&counted) == 0:
                usleep(10)
            bad += interrupt_unregister_sync(fd, count, &counted) != 1
            counted = 0                                         # nobody calls any more
    failed.append(bad)


def test_stress_of_registration(event):
    fds = [event(), event()]
    failed = []
    rounds = 100 * int(os.environ.get("VHOSTRT_STRESS", "1"))
    threads = [threading.Thread(target=churn, args=(fds[n % 2], rounds, failed)) for n in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        for fd in fds:
            os.eventfd_write(fd, 1)
        time.sleep(0.0002)
    assert failed == [0] * 4
    assert interrupt.sources() == {}
