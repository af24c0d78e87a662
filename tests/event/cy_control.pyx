"""vhostrt.event.control: calls to reactors and notes from them, on a running asyncio loop."""
import asyncio
import errno
import os
import weakref

import pytest
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.stdint cimport uint32_t
from libc.stdlib cimport calloc, free
from vhostrt.event.control cimport (CALL_PENDING, call_done, call_on, call_t, control_node_t,
                                    control_post)
from vhostrt.event.poller cimport poller_register, poller_unregister
from vhostrt.event.reactor cimport (poller_t, reactor_current, thread_attach,
                                    thread_detach, thread_t)

from tests.lib.reactors import reactors
from vhostrt.event import control, reactor

cdef enum:
    BURST = 50                  # notes of one poll

NOTES = 100_000 * min(int(os.environ.get("VHOSTRT_STRESS", "1")), 10)


def run(main, count=1):
    """Run main() while there are reactors and control listens to them."""
    async def with_reactors():
        async with reactors(count):
            await asyncio.wait_for(main(), 120)
    asyncio.run(with_reactors())


# Calls

cdef int answer_arg(call_t *call) noexcept nogil:
    return (<int *>call.arg)[0]


cdef int answer_lcore(call_t *call) noexcept nogil:
    return <int>reactor_current().lcore


cdef int answer_later(call_t *call) noexcept nogil:
    """Leave the call with who asked."""
    (<call_t **>call.arg)[0] = call
    return CALL_PENDING


cdef int finish(call_t *call) noexcept nogil:
    """Answer the call that waits."""
    call_done((<call_t **>call.arg)[0], 77)
    return 0


cdef class Answers:
    cdef int value
    cdef call_t *waiting
    cdef object __weakref__

    def now(self, int value, int core=0):
        self.value = value
        return call_on(core, answer_arg, &self.value, self)

    def where(self, int core):
        return call_on(core, answer_lcore, NULL, self)

    def later(self):
        return call_on(0, answer_later, &self.waiting, self)

    def finish(self, core=0):
        return call_on(core, finish, &self.waiting, self)


def test_answers():
    async def main():
        for value in (0, 1, -5, 2**20 - 1, -2**31):
            assert await Answers().now(value) == value
        assert [await Answers().where(core) for core in (0, 1)] == [0, 1]
        assert await asyncio.gather(*(Answers().now(i) for i in range(500))) == list(range(500))
    run(main, 2)


def test_a_pending_call_is_answered_once_by_whom_it_was_left_with():
    async def main():
        for core in (0, 1):             # also from another reactor
            answers = Answers()
            later = answers.later()
            assert await answers.now(3) == 3
            assert not later.done()
            assert await answers.finish(core) == 0
            assert await later == 77
    run(main, 2)


def test_what_the_argument_points_into_lives_until_the_answer():
    async def main():
        answers = Answers()
        alive = weakref.ref(answers)
        later = answers.later()
        await Answers().now(0)
        finishing = answers.finish()
        del answers
        assert alive() is not None
        assert await later == 77 and await finishing == 0
        assert alive() is None
    run(main)


def test_a_wait_that_was_cancelled_does_no_harm():
    async def main():
        answers = Answers()
        alive = weakref.ref(answers)
        cancelled = [answers.now(1), answers.later()]
        for future in cancelled:
            future.cancel()
        await answers.finish()
        assert await answers.now(2) == 2
        assert all(future.cancelled() for future in cancelled)
        del answers
        assert alive() is None
    run(main)


@pytest.mark.parametrize("core", [-1, 1, 1024])
def test_no_reactor_to_call(core):
    async def main():
        answers = Answers()
        alive = weakref.ref(answers)
        with pytest.raises(OSError, match=f"core {core}") as refused:
            answers.now(1, core)
        assert refused.value.errno == errno.ENODEV
        del answers, refused
        assert alive() is None
    run(main)


def test_a_call_needs_a_loop():
    with pytest.raises(RuntimeError, match="no running event loop"):
        Answers().now(1)


# Notes

cdef struct source_t:
    thread_t thread             # first
    poller_t poller
    control_node_t *nodes       # all of them, prepared
    uint32_t count
    uint32_t posted


cdef int post_burst(void *arg) noexcept nogil:
    cdef source_t *s = <source_t *>arg
    cdef uint32_t end = min(s.posted + BURST, s.count)
    while s.posted < end:
        # The node may be gone as soon as it is posted.
        s.posted += 1
        control_post(&s.nodes[s.posted - 1])
    if s.posted == s.count:
        poller_unregister(&s.poller)
    return 1


cdef int begin(call_t *call) noexcept nogil:
    cdef source_t *s = <source_t *>call.arg
    thread_attach(call.event.reactor, &s.thread)
    poller_register(&s.thread, &s.poller, 0)
    return 0


cdef int end(call_t *call) noexcept nogil:
    thread_detach(&(<source_t *>call.arg).thread)
    return 0


cdef void note_number(void *arg) noexcept:
    """arg: the node."""
    cdef control_node_t *node = <control_node_t *>arg
    cdef Source source = g_sources[0] if owns(g_sources[0], node) else g_sources[1]
    cdef uint32_t number = <uint32_t>(node - source.s.nodes)
    if number != source.ran:
        source.disorder += 1
    source.ran += 1


cdef bint owns(Source source, control_node_t *node) noexcept:
    return source.s.nodes <= node < source.s.nodes + source.s.count


cdef list g_sources = []        # of the test that runs


cdef class Source:
    """A poller that posts `count` notes in bursts."""
    cdef source_t *s
    cdef readonly uint32_t ran          # on the control thread
    cdef readonly uint32_t disorder

    def __cinit__(self, uint32_t count):
        cdef uint32_t i
        self.s = <source_t *>calloc(1, sizeof(source_t))
        self.s.nodes = <control_node_t *>calloc(count, sizeof(control_node_t))
        self.s.count = count
        self.s.poller.poll = post_burst
        self.s.poller.arg = self.s
        self.s.poller.fd = -1
        for i in range(count):
            self.s.nodes[i].run = note_number
            self.s.nodes[i].arg = &self.s.nodes[i]

    def __dealloc__(self):
        free(self.s.nodes)
        free(self.s)

    def begin(self, core):
        return call_on(core, begin, self.s, self)

    def end(self, core):
        return call_on(core, end, self.s, self)


def test_stress_notes_of_two_reactors_arrive_in_order():
    async def main():
        g_sources[:] = [Source(NOTES), Source(NOTES)]
        await asyncio.gather(*(source.begin(core) for core, source in enumerate(g_sources)))
        while any(source.ran < NOTES for source in g_sources):
            await asyncio.sleep(0.001)
        await asyncio.gather(*(source.end(core) for core, source in enumerate(g_sources)))
        assert [(s.ran, s.disorder) for s in g_sources] == [(NOTES, 0)] * 2
    run(main, 2)


def test_notes_from_before_the_start_and_before_the_stop_are_run():
    source = Source(2 * BURST)
    g_sources[:] = [source, source]

    async def main():
        post_burst((<Source>source).s)
        assert source.ran == 0
        control.start()
        assert source.ran == BURST
        post_burst((<Source>source).s)
        assert source.ran == BURST
        control.stop()
        assert (source.ran, source.disorder) == (2 * BURST, 0)
    asyncio.run(main())


cdef struct freed_t:
    control_node_t node         # first
    void *source                # owned reference


cdef void free_node(void *arg) noexcept:
    cdef freed_t *f = <freed_t *>arg
    done = <list>f.source
    Py_DECREF(done)
    free(f)
    done.append(len(done))


def test_a_note_may_free_its_node():
    done = []

    async def main():
        cdef freed_t *f
        for _ in range(100):
            f = <freed_t *>calloc(1, sizeof(freed_t))
            Py_INCREF(done)
            f.source = <void *>done
            f.node.run = free_node
            f.node.arg = f
            control_post(&f.node)
        while len(done) < 100:
            await asyncio.sleep(0)
    run(main)
    assert done == list(range(100))


def test_start_twice():
    async def main():
        with pytest.raises(RuntimeError, match="already listening"):
            control.start()
        assert control.drain() == 0     # nothing is there, nothing happens
        assert await Answers().now(5) == 5
    run(main)


def test_stop_without_start():
    control.stop()
    assert reactor.lcores() == []
