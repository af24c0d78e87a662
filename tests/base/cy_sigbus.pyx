"""vhostrt.base.sigbus: memory of a client that vanishes, from the viewpoint of who works in it."""
import os
import signal
import subprocess
import sys

import pytest
from libc.errno cimport ENOSPC
from libc.stdint cimport uint8_t, uint32_t, uintptr_t
from libc.string cimport memset
from posix.mman cimport MAP_FAILED, MAP_SHARED, PROT_READ, PROT_WRITE, mmap, munmap
from vhostrt.base.atomics cimport fetch_add_u32, load_acquire_u32
from vhostrt.base.sigbus cimport sigbus_add, sigbus_remove

from vhostrt.base import sigbus

cdef extern from "<pthread.h>" nogil:
    ctypedef unsigned long pthread_t
    int pthread_create(pthread_t *thread, const void *attr, void *(*fn)(void *), void *arg)
    int pthread_join(pthread_t thread, void **result)

cdef enum:
    PAGE = 4096
    PAGES = 4
    THREADS = 4
    SLOTS = 32768               # of the table

# Where nobody's memory is; all of it lies between the two.
cdef void *LOW = <void *><uintptr_t>PAGE
cdef void *HIGH = <void *><uintptr_t>-(2 * PAGE)

ROUNDS = 50 * int(os.environ.get("VHOSTRT_STRESS", "1"))


cdef class Memory:
    """PAGES pages of a memfd, mapped, each byte 1; registered if asked for."""
    cdef uint8_t *base
    cdef int fd
    cdef int slot
    cdef uint32_t flag

    def __cinit__(self, bint register=True):
        sigbus.install()
        self.slot = -1
        self.fd = os.memfd_create("client")
        os.ftruncate(self.fd, PAGES * PAGE)
        self.base = <uint8_t *>mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED,
                                    self.fd, 0)
        assert <void *>self.base != MAP_FAILED
        memset(self.base, 1, PAGES * PAGE)
        if register:
            self.slot = sigbus_add(self.base, PAGES * PAGE, PAGE, &self.flag)
            assert self.slot >= 0

    def __dealloc__(self):
        if self.slot >= 0:
            sigbus_remove(self.slot)
        munmap(self.base, PAGES * PAGE)
        os.close(self.fd)

    def truncate(self, pages):
        """Do what a hostile client does."""
        os.ftruncate(self.fd, pages * PAGE)

    def __getitem__(self, int at):
        return (<volatile uint8_t *>self.base)[at]

    def __setitem__(self, int at, value):
        (<volatile uint8_t *>self.base)[at] = value


def test_missing_pages_read_zero_and_are_told():
    memory = Memory()
    memory.truncate(1)
    assert memory[PAGE - 1] == 1 and (<Memory>memory).flag == 0, "a page that is there was mended"
    assert memory[PAGE] == 0
    assert (<Memory>memory).flag == 1
    assert memory[3 * PAGE + 100] == 0
    assert memory[0] == 1, "what is left of the file was lost"


def test_missing_pages_can_be_written():
    memory = Memory()
    memory.truncate(0)
    memory[2 * PAGE] = 7
    assert memory[2 * PAGE] == 7 and (<Memory>memory).flag == 1
    # Nothing of it goes back to the client.
    assert os.fstat((<Memory>memory).fd).st_size == 0


def test_only_its_own_region_is_told():
    memories = [Memory() for _ in range(3)]
    memories[1].truncate(0)
    assert memories[1][0] == 0
    assert [(<Memory>m).flag for m in memories] == [0, 1, 0]


def test_a_slot_is_used_again():
    first, second = Memory(), Memory()
    slot = (<Memory>first).slot
    assert slot != (<Memory>second).slot
    del first
    third = Memory()
    assert (<Memory>third).slot == slot
    third.truncate(0)
    assert third[0] == 0 and (<Memory>third).flag == 1 and (<Memory>second).flag == 0


def test_the_table_can_be_full():
    cdef uint32_t flag = 0
    cdef int i
    slots = []
    try:
        for i in range(SLOTS):
            slot = sigbus_add(<void *>(<uintptr_t>(i + 1) * PAGE), PAGE, PAGE, &flag)
            if slot < 0:
                break
            slots.append(slot)
        assert sigbus_add(<void *><uintptr_t>PAGE, PAGE, PAGE, &flag) == -ENOSPC
    finally:
        for slot in slots:
            sigbus_remove(slot)
    assert len(slots) == len(set(slots)) > SLOTS // 2
    # The search passes all those slots.
    memory = Memory()
    memory.truncate(0)
    assert memory[0] == 0 and flag == 0


# What others' memory, and signals that somebody sends, do to a process.

def touch_unregistered():
    """Die: the memory is not in the table, though the table is not empty."""
    other = Memory()
    memory = Memory(register=False)
    memory.truncate(0)
    print("about to touch", flush=True)
    print(memory[0], other[0], flush=True)


def touch_after_removal():
    """Die: the region was forgotten."""
    memory = Memory()
    sigbus_remove((<Memory>memory).slot)
    (<Memory>memory).slot = -1
    memory.truncate(0)
    print("about to touch", flush=True)
    print(memory[0], flush=True)


def send():
    """Die of a SIGBUS that somebody sent."""
    other = Memory()
    print("about to touch", flush=True)
    os.kill(os.getpid(), signal.SIGBUS)
    print("alive", other[0], flush=True)


def send_ignored():
    """Ignore it, as the handler before us did, and live on."""
    signal.signal(signal.SIGBUS, signal.SIG_IGN)
    sigbus.install()
    os.kill(os.getpid(), signal.SIGBUS)
    print("alive", flush=True)


def send_handled():
    """Reach the handler before us."""
    signal.signal(signal.SIGBUS, lambda *_: print("handled", flush=True))
    sigbus.install()
    memory = Memory()
    memory.truncate(0)
    assert memory[0] == 0
    os.kill(os.getpid(), signal.SIGBUS)
    print("alive", flush=True)


def run(case):
    return subprocess.run([sys.executable, "-c", f"from {__name__} import {case}; {case}()"],
                          capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("case", ["touch_unregistered", "touch_after_removal", "send"])
def test_other_bus_errors_still_kill(case):
    done = run(case)
    assert (done.returncode, done.stdout) == (-signal.SIGBUS, "about to touch\n")


@pytest.mark.parametrize(("case", "out"), [("send_ignored", "alive\n"),
                                           ("send_handled", "handled\nalive\n")])
def test_the_handler_before_is_asked(case, out):
    done = run(case)
    assert (done.returncode, done.stdout) == (0, out), done.stderr


# Stress: threads fault in regions of their own while slots around theirs come and go.

ctypedef struct faulting_t:
    uint8_t *base
    uint32_t *flag
    uint32_t *wrong
    uint32_t *done


cdef void *fault(void *arg) noexcept nogil:
    cdef faulting_t *f = <faulting_t *>arg
    cdef int i
    for i in range(PAGES):
        if (<volatile uint8_t *>f.base)[i * PAGE + i] != 0 or load_acquire_u32(f.flag) != 1:
            fetch_add_u32(f.wrong, 1)
    fetch_add_u32(f.done, 1)
    return NULL


def test_stress_faults_while_regions_come_and_go():
    cdef faulting_t f[THREADS]
    cdef pthread_t threads[THREADS]
    cdef uint32_t wrong = 0, done, strange = 0
    cdef int i, n
    cdef Memory memory
    for _ in range(ROUNDS):
        done = 0
        # Slots before those of the memories, which the search passes while they change.
        early = [sigbus_add(LOW, PAGE, PAGE, &strange) for _ in range(8)]
        memories = [Memory() for _ in range(THREADS)]
        for i in range(THREADS):
            memory = memories[i]
            memory.truncate(0)
            f[i] = faulting_t(memory.base, &memory.flag, &wrong, &done)
            pthread_create(&threads[i], NULL, fault, &f[i])
        n = 0
        while load_acquire_u32(&done) < THREADS:
            n += 1
            slot = early[n % 8]
            sigbus_remove(slot)
            # Now below all memory and now above it: half of each would hold everything.
            early[n % 8] = sigbus_add(HIGH if n // 8 % 2 else LOW, PAGE, PAGE, &strange)
        for i in range(THREADS):
            pthread_join(threads[i], NULL)
        for slot in early:
            sigbus_remove(slot)
    assert wrong == 0 and strange == 0
