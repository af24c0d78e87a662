"""vhostrt.event.thread and message: threads that exchange messages while all of them move."""
import asyncio
import os
import random

import pytest
from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from vhostrt.base.atomics cimport exchange_u32, fetch_add_u64, load_relaxed_u64
from vhostrt.event.control cimport thread_current
from vhostrt.event.message cimport thread_send_msg, thread_send_node
from vhostrt.event.poller cimport poller_register, poller_unregister
from vhostrt.event.reactor cimport msg_t, poller_t, reactor_current, thread_t
from vhostrt.event.thread cimport Thread, thread_call

from tests.lib.light_threads import attached, end, run
from vhostrt.event.load import running
from vhostrt.event.scheduler import SCHEDULERS, Scheduler, register, scheduling

cdef enum:
    NODES = 64                  # messages of a pair that are on the way at once

STRESS = int(os.environ.get("VHOSTRT_STRESS", "1"))


cdef struct side_t:
    thread_t *thread
    side_t *other
    poller_t poller
    uint32_t inside             # 1 while any function of this thread runs
    uint32_t twice
    uint64_t sent               # numbers of the messages to the other side
    uint64_t received           # of those that have come from there
    uint64_t disorder
    uint64_t most               # to be received
    uint64_t pooled_sent
    uint64_t pooled_ran
    uint64_t refused
    uint64_t polls
    uint32_t cores[2]           # messages that ran there

cdef struct node_t:
    msg_t msg                   # first
    side_t *to
    uint64_t number


cdef inline void enter(side_t *s) noexcept nogil:
    if exchange_u32(&s.inside, 1):
        s.twice += 1


cdef inline void leave(side_t *s) noexcept nogil:
    exchange_u32(&s.inside, 0)


cdef inline void send(side_t *s, node_t *node) noexcept nogil:
    """Send a node to the other side of `s`, on the thread of `s`."""
    node.to = s.other
    node.number = s.sent
    s.sent += 1
    thread_send_node(s.other.thread, &node.msg)


cdef void bounce(void *ctx) noexcept nogil:
    """Count a message, look at its number, and send it back while more are wanted."""
    cdef node_t *node = <node_t *>ctx
    cdef side_t *s = node.to
    enter(s)
    s.disorder += node.number != s.received or thread_current() is not s.thread
    s.cores[reactor_current().lcore] += 1
    fetch_add_u64(&s.received, 1)
    if s.sent < s.most:
        send(s, node)
    leave(s)


cdef void pooled_run(void *ctx) noexcept nogil:
    cdef side_t *s = <side_t *>ctx
    enter(s)
    fetch_add_u64(&s.pooled_ran, 1)
    leave(s)


cdef int side_poll(void *arg) noexcept nogil:
    """A message of the pool to the other side, when not too many are on the way."""
    cdef side_t *s = <side_t *>arg
    cdef int rc
    enter(s)
    s.polls += 1
    if s.pooled_sent < s.most // 8 \
            and s.pooled_sent - load_relaxed_u64(&s.other.pooled_ran) < 256:
        rc = thread_send_msg(s.other.thread, pooled_run, s.other)
        if rc == 0:
            s.pooled_sent += 1
        else:
            s.refused += 1
    leave(s)
    return 0


cdef int side_begin(void *arg) noexcept nogil:
    cdef side_t *s = <side_t *>arg
    s.poller.poll = side_poll
    s.poller.arg = s
    s.poller.fd = -1
    poller_register(s.thread, &s.poller, 0)
    return 0


cdef int side_start(void *arg) noexcept nogil:
    """Send the first messages."""
    cdef side_t *s = (<pair_t *>arg).sides
    cdef uint32_t i
    for i in range(<uint32_t>NODES):
        (<pair_t *>arg).nodes[i].msg.fn = bounce
        (<pair_t *>arg).nodes[i].msg.ctx = &(<pair_t *>arg).nodes[i]
        send(s, &(<pair_t *>arg).nodes[i])
    return 0


cdef int side_end(void *arg) noexcept nogil:
    poller_unregister(&(<side_t *>arg).poller)
    return 0


cdef struct pair_t:
    side_t sides[2]
    node_t nodes[NODES]


cdef class Pair:
    """Two threads that send each other `most` numbered messages each, 64 on the way at a time, and
    some of the pool."""
    cdef pair_t *p
    cdef list threads

    def __cinit__(self, threads, uint64_t most):
        cdef int i
        self.threads = threads
        self.p = <pair_t *>calloc(1, sizeof(pair_t))
        for i in range(2):
            self.p.sides[i].thread = (<Thread>threads[i]).t
            self.p.sides[i].other = &self.p.sides[1 - i]
            self.p.sides[i].most = most

    def __dealloc__(self):
        free(self.p)

    async def start(self):
        for i in range(2):
            await thread_call(self.threads[i], side_begin, &self.p.sides[i], self)
        await thread_call(self.threads[0], side_start, self.p, self)

    async def end(self):
        for i in range(2):
            await thread_call(self.threads[i], side_end, &self.p.sides[i], self)

    @property
    def over(self):
        cdef side_t *s
        for i in range(2):
            s = &self.p.sides[i]
            if load_relaxed_u64(&s.received) < s.most \
                    or load_relaxed_u64(&s.pooled_ran) < s.most // 8:
                return False
        return True

    def side(self, int i):
        cdef side_t *s = &self.p.sides[i]
        return dict(twice=s.twice, disorder=s.disorder, sent=s.sent, received=s.received,
                    pooled=(s.pooled_sent, s.pooled_ran), cores=[s.cores[0], s.cores[1]])


async def exchange(most, move):
    """Have two pairs of threads on two reactors exchange messages while move(threads) is awaited
    again and again; nothing may be lost, out of order, or run twice at once."""
    made = await attached(0, 1, 0, 1)
    pairs = [Pair(made[:2], most), Pair(made[2:], most)]
    for pair in pairs:
        await pair.start()
    while not all(pair.over for pair in pairs):
        await move(made)
    for pair in pairs:
        await pair.end()
        for side in (pair.side(0), pair.side(1)):
            assert side["twice"] == side["disorder"] == 0
            assert side["sent"] == side["received"] == most
            assert side["pooled"] == (most // 8, most // 8)
            assert min(side["cores"]) > 0
    await end(*made)


@pytest.mark.timeout(1200)
@run()
async def test_stress_messages_while_threads_move():
    """Those of four threads on two reactors; as `make check` runs it, 22 million."""
    moves = [0]

    async def move(threads):
        light = threads[moves[0] % 4]
        await light.move(1 - light.lcore)
        moves[0] += 1

    await exchange(1_000_000 * min(STRESS, 5), move)
    assert moves[0] >= 4


class Restless(Scheduler):
    """Moves threads at random."""

    name = "restless"
    rounds = 0
    rng = random.Random(1)

    def balance(self, _scheduling, cores):
        Restless.rounds += 1
        return [(light, self.rng.randrange(2)) for light in running()]


@pytest.mark.timeout(1200)
@run()
async def test_stress_messages_while_a_scheduler_moves_threads():
    """Every millisecond."""
    async def watch(threads):
        await asyncio.sleep(0.01)

    register(Restless)
    scheduling.set("restless", 1000)
    scheduling.start()
    try:
        await exchange(400_000 * min(STRESS, 5), watch)
    finally:
        await scheduling.stop()
        del SCHEDULERS["restless"]
    assert Restless.rounds > 4
