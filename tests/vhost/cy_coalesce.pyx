"""vhostrt.vhost.coalesce: each decision about an interrupt, with no reactor and no clock but ours.

A queue that has only what the decisions look at; its interrupts go to an eventfd.
"""
import os

import pytest
from libc.stdint cimport UINT64_MAX, uint32_t
from libc.string cimport memset
from vhostrt.base.ticks cimport ticks_from_us, ticks_now
from vhostrt.event.reactor cimport POLLER_OFF, thread_init, thread_t
from vhostrt.vhost.coalesce cimport (coalesce_flush, coalesce_mode, coalesce_set,
                                     coalesce_signal, coalescing_t)
from vhostrt.vhost.queue cimport Queue, queue_t

from vhostrt.event.thread import Thread
from vhostrt.vhost.queue import Queue as PyQueue

WINDOW_US = 10_000


cdef class Driver:
    """A queue whose thread is on no reactor, and what its driver hears."""
    cdef Queue queue
    cdef queue_t *q
    cdef thread_t thread
    cdef int fd

    def __cinit__(self, str mode="off", delay_base_us=0, iops_threshold=60000):
        self.queue = PyQueue(0, 128, Thread("vq0"), print)
        self.q = self.queue.q
        memset(&self.thread, 0, sizeof(thread_t))
        thread_init(&self.thread)
        self.q.poller.thread = &self.thread
        self.fd = os.eventfd(0, os.EFD_NONBLOCK)
        self.q.call_fd = self.fd
        self.set(mode, delay_base_us, iops_threshold)

    def __dealloc__(self):
        coalesce_flush(self.q)
        os.close(self.fd)

    def set(self, str mode, delay_base_us=0, iops_threshold=60000):
        cdef coalescing_t c = [self.q, coalesce_mode(mode), delay_base_us, iops_threshold]
        coalesce_set(&c)

    def calls(self):
        """Return how often the driver was interrupted since the last time."""
        try:
            return os.eventfd_read(self.fd)
        except BlockingIOError:
            return 0

    def begin(self, uint32_t n):
        self.q.inflight += n

    def done(self, uint32_t n=1):
        """Answer so many requests in one batch; the driver wants to hear of it."""
        self.q.inflight -= n
        self.q.answered += n
        coalesce_signal(self.q)
        return self.calls()

    def end_window(self, uint32_t requests):
        """Have had so many requests in a window that ends now."""
        self.q.when.window = ticks_now() - ticks_from_us(WINDOW_US)
        self.q.when.answered = self.q.answered - requests

    def never_due(self):
        self.q.when.due = UINT64_MAX

    def overdue(self):
        self.q.when.due = 0

    def tick(self):
        """Let the timer run, as the thread does; return how often the driver was interrupted."""
        if self.timed:
            self.q.when.timer.poll(self.q.when.timer.arg)
        return self.calls()

    def flush(self):
        coalesce_flush(self.q)
        return self.calls()

    @property
    def waiting(self):
        return bool(self.q.when.waiting)

    @property
    def timed(self):
        assert bool(self.q.when.timed) == (self.q.when.timer.state != POLLER_OFF)
        return bool(self.q.when.timed)

    @property
    def delay_us(self):
        return round(self.q.when.delay / (ticks_from_us(1_000_000) / 1_000_000))


def test_off_means_at_once():
    driver = Driver()
    driver.begin(32)
    assert [driver.done(n) for n in (1, 5, 26)] == [1, 1, 1]
    assert not driver.timed


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_automatic_costs_nothing_at_a_low_depth(depth):
    """Each answer is told at once, and no timer runs."""
    driver = Driver("auto")
    driver.begin(depth)
    for _ in range(100):
        assert driver.done() == 1 and not driver.timed
        driver.begin(1)


def test_automatic_tells_a_quarter_at_a_time():
    driver = Driver("auto")
    driver.begin(32)
    told = []
    for i in range(32):
        if driver.done():
            told.append(i + 1)
        driver.never_due()
    # 8 of 32, 6 of 24, 5 of 18, 4 of 13, 3 of 9, 2 of 6, then each.
    assert told == [8, 14, 19, 23, 26, 28, 29, 30, 31, 32]
    assert not driver.waiting


def test_automatic_with_a_depth_that_stays():
    driver = Driver("auto")
    driver.begin(128)
    told = 0
    for _ in range(1000):
        told += driver.done()
        driver.never_due()
        driver.begin(1)
    # 43 are a quarter of themselves and the 127 that are in flight then; 42 are less.
    assert told == 1000 // 43


def test_automatic_does_not_wait_when_nothing_is_in_flight():
    driver = Driver("auto")
    driver.begin(32)
    assert driver.done(1) == 0 and driver.waiting
    driver.q.inflight = 1
    assert driver.done(1) == 1 and not driver.waiting


def test_automatic_the_time_ends_the_wait():
    driver = Driver("auto")
    driver.begin(64)
    assert driver.done() == 0 and driver.timed
    driver.never_due()
    assert driver.tick() == 0
    driver.overdue()
    assert driver.tick() == 1 and not driver.waiting
    assert driver.timed and driver.tick() == 0 and not driver.timed     # then it has nothing to do
    # Answers that come later find that it is over, too.
    assert driver.done() == 0
    driver.overdue()
    assert driver.done() == 1


# By rate: a threshold of 60000 a second is 600 in a window of 10 ms.

@pytest.mark.parametrize("requests, delay_us", [
    (1, 0), (600, 0), (601, 0), (660, 10), (900, 50), (1200, 100), (6000, 900), (600_000, 10_000)])
def test_the_delay_follows_the_rate(requests, delay_us):
    driver = Driver("rate", 100)
    driver.begin(1)
    driver.end_window(requests - 1)
    assert driver.done() == 1
    assert abs(driver.delay_us - delay_us) <= max(2, delay_us // 50)
    assert driver.delay_us <= WINDOW_US


def test_a_long_window_counts_by_its_length():
    driver = Driver("rate", 100)
    driver.begin(1)
    driver.end_window(1199)
    driver.q.when.window -= ticks_from_us(WINDOW_US)
    driver.done()
    assert driver.delay_us <= 2


def test_between_two_interrupts_there_is_the_delay():
    driver = Driver("rate", 100)
    driver.begin(100)
    driver.end_window(1199)
    assert driver.done() == 1
    driver.never_due()
    assert [driver.done() for _ in range(10)] == [0] * 10
    assert driver.waiting and driver.timed
    assert driver.tick() == 0
    driver.overdue()
    assert driver.tick() == 1 and not driver.waiting
    driver.overdue()
    assert driver.done() == 1           # and those after that time, at once


def test_a_rate_that_falls_ends_the_delay():
    driver = Driver("rate", 100)
    driver.begin(10)
    driver.end_window(1199)
    driver.done()
    driver.never_due()
    assert driver.done() == 0
    driver.end_window(10)
    assert driver.done() == 1


@pytest.mark.parametrize("mode", ["rate", "auto"])
def test_a_flush_sends_what_waits(mode):
    driver = Driver(mode, 100)
    driver.begin(64)
    driver.end_window(1200)
    driver.done()
    driver.never_due()
    driver.done()
    driver.calls()
    assert driver.waiting
    assert driver.flush() == 1 and not driver.waiting and not driver.timed
    assert driver.flush() == 0


@pytest.mark.parametrize("before", ["rate", "auto"])
@pytest.mark.parametrize("after", ["off", "rate", "auto"])
def test_another_way_sends_what_waited_by_the_last(before, after):
    driver = Driver(before, 100)
    driver.begin(64)
    driver.end_window(1200)
    driver.done()
    driver.never_due()
    driver.done()
    driver.calls()
    driver.set(after, 50 if after == "rate" else 0)
    assert driver.calls() == 1 and not driver.waiting
    driver.q.inflight = 1
    assert driver.done() == 1
