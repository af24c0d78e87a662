"""vhostrt.event.message: messages to light threads, from the viewpoint of senders and of movers."""
import os
import time

from libc.errno cimport EBUSY, ENODEV, ENOMEM
from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset
from vhostrt.base.atomics cimport (fetch_add_u32, load_acquire_u32, load_relaxed_u64,
                                   store_release_u32)
from vhostrt.event.events cimport event_call_on
from vhostrt.event.message cimport thread_send_critical, thread_send_msg, thread_send_node
from vhostrt.event.reactor cimport (msg_t, reactor_current, thread_attach, thread_detach,
                                    thread_init, thread_t)

cdef extern from "<pthread.h>" nogil:
    ctypedef unsigned long pthread_t
    int pthread_create(pthread_t *thread, const void *attr, void *(*fn)(void *), void *arg)
    int pthread_join(pthread_t thread, void **result)

cdef extern from "<sched.h>" nogil:
    int sched_yield()

cdef enum:
    NOTES = 4096
    SENDERS = 3

STRESS = int(os.environ.get("VHOSTRT_STRESS", "1"))
DEADLINE_S = 60


def wait_for(condition):
    """Wait until condition() holds."""
    end = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.0005)


cdef struct log_t:
    thread_t thread             # first
    uint32_t moves              # attach and detach events that have run
    uint32_t count
    uint32_t who[NOTES]
    uint64_t turn[NOTES]
    uint32_t lcore[NOTES]

cdef struct item_t:
    msg_t msg                   # first
    log_t *log
    uint32_t who


cdef void item_run(void *ctx) noexcept nogil:
    cdef item_t *item = <item_t *>ctx
    cdef log_t *log = item.log
    if log.count < NOTES:
        log.who[log.count] = item.who
        log.turn[log.count] = reactor_current().iterations
        log.lcore[log.count] = reactor_current().lcore
    store_release_u32(&log.count, log.count + 1)
    free(item)


cdef void attach(void *arg1, void *arg2) noexcept nogil:
    thread_attach(reactor_current(), &(<log_t *>arg1).thread)
    fetch_add_u32(&(<log_t *>arg1).moves, 1)


cdef void detach(void *arg1, void *arg2) noexcept nogil:
    thread_detach(&(<log_t *>arg1).thread)
    fetch_add_u32(&(<log_t *>arg1).moves, 1)


cdef class Log:
    """A thread whose messages leave notes."""
    cdef log_t *log

    def __cinit__(self):
        self.log = <log_t *>calloc(1, sizeof(log_t))
        thread_init(&self.log.thread)

    def __dealloc__(self):
        free(self.log)

    def attach(self, uint32_t core=0):
        before = load_acquire_u32(&self.log.moves)
        assert event_call_on(core, attach, self.log, NULL) == 0
        wait_for(lambda: load_acquire_u32(&self.log.moves) > before)

    def detach(self, uint32_t core=0):
        before = load_acquire_u32(&self.log.moves)
        assert event_call_on(core, detach, self.log, NULL) == 0
        wait_for(lambda: load_acquire_u32(&self.log.moves) > before)

    def send(self, uint32_t who, bint own=False):
        cdef item_t *item = <item_t *>calloc(1, sizeof(item_t))
        item.log = self.log
        item.who = who
        if own:
            item.msg.fn = item_run
            item.msg.ctx = item
            thread_send_node(&self.log.thread, &item.msg)
            return 0
        rc = thread_send_msg(&self.log.thread, item_run, item)
        if rc < 0:
            free(item)
        return rc

    def __len__(self):
        return load_acquire_u32(&self.log.count)

    def notes(self, n):
        """Wait for n notes; (who, turn since the first, lcore) of each."""
        wait_for(lambda: len(self) >= n)
        return [(self.log.who[i], self.log.turn[i] - self.log.turn[0], self.log.lcore[i])
                for i in range(<int>n)]


def test_messages_of_a_sender_run_in_order(one):
    log = Log()
    log.attach()
    for i in range(1000):
        assert log.send(i, own=i % 3 == 0) == 0
    assert [who for who, *_ in log.notes(1000)] == list(range(1000))
    log.detach()


def test_twenty_messages_run_in_three_batches_when_the_thread_comes(one):
    """What was sent before waits in the thread."""
    log = Log()
    for i in range(20):
        assert log.send(i) == 0
    log.attach()
    assert [(who, turn) for who, turn, _ in log.notes(20)] == [(i, i // 8) for i in range(20)]
    log.detach()


def test_messages_go_where_the_thread_is(two):
    log = Log()
    log.attach(0)
    log.send(1)
    log.notes(1)
    log.detach(0)
    log.send(2)
    time.sleep(0.01)
    assert len(log) == 1
    log.attach(1)
    log.send(3)
    assert [(who, core) for who, _, core in log.notes(3)] == [(1, 0), (2, 1), (3, 1)]
    log.detach(1)


cdef uint32_t g_critical = 0            # runs of the critical message below


cdef void critical(void *ctx) noexcept nogil:
    fetch_add_u32(&g_critical, 1)


def test_the_critical_message_runs_first_and_there_is_one(one):
    cdef Log log = Log()
    before = load_acquire_u32(&g_critical)
    assert thread_send_critical(&log.log.thread, critical) == 0
    assert thread_send_critical(&log.log.thread, critical) == -EBUSY
    log.attach()
    wait_for(lambda: load_acquire_u32(&g_critical) == before + 1)
    assert thread_send_critical(&log.log.thread, critical) == 0
    wait_for(lambda: load_acquire_u32(&g_critical) == before + 2)
    assert load_relaxed_u64(&log.log.thread.messages) == 2
    log.detach()


def test_without_reactors_there_are_no_messages():
    assert Log().send(1) == -ENODEV


def test_an_empty_pool_refuses_loses_nothing_and_fills_again(one):
    """Nobody runs the control thread's notes here, so the pool does not grow."""
    cdef Log log = Log()
    for _ in range(2):
        sent = 0
        while log.send(sent) == 0:
            sent += 1
        assert log.send(0) == -ENOMEM and sent > 3000
        seen = len(log)
        log.attach()
        wait_for(lambda seen=seen, sent=sent: len(log) == seen + sent)
        log.detach()


# Stress: senders on threads of their own, while the thread goes from one reactor to the other.

cdef struct sender_t:
    thread_t *thread
    uint32_t id
    uint32_t n
    msg_t *msgs                 # n of them
    uint32_t *last              # of each sender: the one that ran last, and one more
    uint32_t *wrong
    uint32_t *total

cdef struct numbered_t:
    msg_t msg                   # first
    sender_t *sender
    uint32_t number


cdef void numbered_run(void *ctx) noexcept nogil:
    cdef numbered_t *m = <numbered_t *>ctx
    cdef sender_t *s = m.sender
    if s.last[s.id] != m.number:
        fetch_add_u32(s.wrong, 1)
    s.last[s.id] = m.number + 1
    store_release_u32(s.total, s.total[0] + 1)      # by whoever polls the thread: one at a time


cdef void *send_all(void *arg) noexcept nogil:
    cdef sender_t *s = <sender_t *>arg
    cdef numbered_t *m = <numbered_t *>s.msgs
    cdef uint32_t i
    for i in range(s.n):
        m[i].msg.fn = numbered_run
        m[i].msg.ctx = &m[i]
        m[i].sender = s
        m[i].number = i
        thread_send_node(s.thread, &m[i].msg)
        if i % 64 == 0:
            sched_yield()
    return NULL


def test_stress_no_message_is_lost_by_a_thread_that_moves(two):
    cdef Log log = Log()
    cdef sender_t senders[SENDERS]
    cdef pthread_t threads[SENDERS]
    cdef uint32_t last[SENDERS]
    cdef uint32_t wrong = 0, total = 0, i
    cdef uint32_t n = 400_000 * min(STRESS, 9)
    memset(last, 0, sizeof(last))
    core = 0
    log.attach(core)
    for i in range(<uint32_t>SENDERS):
        senders[i] = sender_t(&log.log.thread, i, n, <msg_t *>calloc(n, sizeof(numbered_t)),
                              &last[0], &wrong, &total)
        pthread_create(&threads[i], NULL, send_all, &senders[i])
    moves = 0
    while load_acquire_u32(&total) < SENDERS * n:
        log.detach(core)
        core = 1 - core
        log.attach(core)
        moves += 1
    for i in range(<uint32_t>SENDERS):
        with nogil:
            pthread_join(threads[i], NULL)
    log.detach(core)
    for i in range(<uint32_t>SENDERS):
        free(senders[i].msgs)
    assert wrong == 0 and list(last) == [n] * SENDERS and moves > 1
