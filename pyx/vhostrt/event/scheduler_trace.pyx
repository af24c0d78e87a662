"""The trace points of schedulers: what they saw in a period, and what they moved.

Threads:  the control thread.
"""
from libc.stdint cimport uint64_t
from vhostrt.event.thread cimport Thread
from vhostrt.event.trace cimport TRACE_POINTS, TRACE_SCHEDULER, trace, trace_any

from vhostrt.event import trace as tracing

cdef enum:
    PERIOD_START = TRACE_SCHEDULER * TRACE_POINTS
    CORE_STATS
    THREAD_STATS
    MOVE_THREAD

Point = tracing.Point

tracing.register("scheduler", TRACE_SCHEDULER, [
    Point(0, "SCHEDULER_PERIOD_START", (("took_us", "int"),)),
    Point(1, "SCHEDULER_CORE_STATS", (("core", "int"), ("busy_us", "int"), ("idle_us", "int"))),
    Point(2, "SCHEDULER_THREAD_STATS", (("id", "int"), ("core", "int"), ("busy_us", "int"),
                                        ("idle_us", "int")), "thread"),
    Point(3, "SCHEDULER_MOVE_THREAD", (("id", "int"), ("from", "int"), ("to", "int"),
                                       ("rc", "signed")), "thread"),
])


def wanted() -> bool:
    """Return whether any of the points is on."""
    return trace_any(TRACE_SCHEDULER)


def period(uint64_t us) -> None:
    """A scheduler looks; the last look was so many microseconds ago."""
    trace(PERIOD_START, NULL, 0, us)


def core(uint64_t lcore, uint64_t busy_us, uint64_t idle_us) -> None:
    """What a core has done in that time."""
    trace(CORE_STATS, NULL, 0, lcore, busy_us, idle_us)


def light(Thread thread not None, uint64_t busy_us, uint64_t idle_us) -> None:
    """What a light thread has done in that time."""
    trace(THREAD_STATS, thread.t, 0, thread.t.id, <uint64_t>thread.lcore, busy_us, idle_us)


def move(Thread thread not None, int source, int target, int rc) -> None:
    """A scheduler has moved a thread; rc: -errno when it stays."""
    trace(MOVE_THREAD, thread.t, 0, thread.t.id, <uint64_t>source, <uint64_t>target, <uint64_t>rc)
