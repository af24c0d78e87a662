"""The metrics there are: their names, labels and values, read from the counters of the program.

Counters of queues and bdevs are those that never run backwards; a bdev, a controller or a light
thread that is made anew begins at 0, as Prometheus expects of counters.

Threads: the control thread. What reactors write is read relaxed: it costs them nothing.
"""
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from vhostrt import __version__
from vhostrt.base import ticks
from vhostrt.bdev import registry
from vhostrt.bdev.core import TYPE_NAMES
from vhostrt.event import reactor, thread
from vhostrt.vhost import controller
from vhostrt.vhost.queue_stats import LANE_NAMES

# Upper bounds of the buckets of histograms, in seconds: 1 us to 10 s.
BOUNDS = tuple(float(f"{digit}e{power}") for power in range(-6, 1) for digit in (1, 2, 5)) + (10.0,)
BOUND_NAMES = (*(f"{bound:g}" for bound in BOUNDS), "+Inf")


class Rows(NamedTuple):
    """One metric. rows: (values of the labels, value); the value of a histogram is ([count up to
    each bound], sum)."""

    name: str
    kind: str                           # counter, gauge or histogram
    help: str
    labels: tuple[str, ...]
    rows: Iterable[tuple[tuple[Any, ...], Any]]


class Edges:
    """Where the bounds lie in histograms, by what buckets these have."""

    def __init__(self) -> None:
        self.found: dict[tuple[int, int, int], list[int]] = {}

    def cumulative(self, histogram: Any) -> list[int]:
        """Return how many times were not above each bound, and how many there are."""
        key = (histogram.granularity, histogram.min_range, histogram.max_range)
        if key not in self.found:
            self.found[key] = histogram.edges([bound * ticks.hz() for bound in BOUNDS])
        return histogram.cumulative(self.found[key])


def seconds(count: int) -> float:
    return count / ticks.hz()


def families(edges: Edges) -> Iterator[Rows]:
    """Return all metrics; who takes them one after the other may do other things in between."""
    yield Rows("vhostrt_build_info", "gauge", "Version of the program and of its interpreter.",
               ("version", "python"),
               [((__version__, ".".join(map(str, sys.version_info[:3]))), 1)])
    yield from of_reactors()
    yield from of_threads()
    yield from of_bdevs(edges)
    yield from of_controllers()
    yield from of_queues(edges)


REACTOR_COUNTERS = (
    ("busy", "busy_seconds", "Time in which the reactor did work.", True),
    ("idle", "idle_seconds", "Time in which the reactor found nothing to do, or slept.", True),
    ("iterations", "iterations", "Turns of the reactor's loop.", False),
    ("events", "events", "Events that the reactor has run.", False),
    ("events_refused", "events_refused", "Events that found the reactor's ring or pool full.",
     False),
    ("sleeps", "sleeps", "How often the reactor went to sleep.", False),
)


def of_reactors() -> Iterator[Rows]:
    stats = {lcore: reactor.stats(lcore) for lcore in reactor.lcores()}
    for key, name, text, timed in REACTOR_COUNTERS:
        yield Rows(f"vhostrt_reactor_{name}", "counter", text, ("reactor",),
                   [((lcore,), seconds(s[key]) if timed else s[key]) for lcore, s in stats.items()])
    yield Rows("vhostrt_reactor_threads", "gauge", "Light threads on the reactor.", ("reactor",),
               [((lcore,), s["threads"]) for lcore, s in stats.items()])


def of_threads() -> Iterator[Rows]:
    """A thread's reactor is a value and no label: its counters go on where it moves."""
    labels = ("thread", "thread_id")
    lights = [((light.name, light.id), light) for light in thread.threads()]
    yield Rows("vhostrt_thread_busy_seconds", "counter", "Time in which the thread did work.",
               labels, [(key, seconds(light.busy)) for key, light in lights])
    yield Rows("vhostrt_thread_idle_seconds", "counter",
               "Time on reactors in which the thread did no work.",
               labels, [(key, seconds(light.idle)) for key, light in lights])
    yield Rows("vhostrt_thread_reactor", "gauge", "Core of the reactor that the thread is on; -1: "
               "none.", labels, [(key, light.lcore) for key, light in lights])


def of_bdevs(edges: Edges) -> Iterator[Rows]:
    bdevs = registry.bdevs()
    counted = [(bdev, bdev.totals()) for bdev in bdevs]
    ops = ("bdev", "op")
    for name, text, value in (
            ("requests", "Requests that the bdev has done.", lambda bdev, c: c["ops"]),
            ("bytes", "Bytes of their data.", lambda bdev, c: c["blocks"] * bdev.block_size),
            ("request_seconds", "Sum of the times that they took.",
             lambda bdev, c: seconds(c["ticks"]))):
        yield Rows(f"vhostrt_bdev_{name}", "counter", text, ops,
                   [((bdev.name, op), value(bdev, c[op])) for bdev, c in counted
                    for op in TYPE_NAMES])
    yield Rows("vhostrt_bdev_errors", "counter", "Requests that the bdev could not do.",
               ("bdev", "cause"), [((bdev.name, cause), n) for bdev, c in counted
                                   for cause, n in c["errors"].items()])
    yield Rows("vhostrt_bdev_inflight", "gauge", "Requests that the bdev is doing.", ("bdev",),
               [((bdev.name,), bdev.inflight()) for bdev in bdevs])
    yield Rows("vhostrt_bdev_size_bytes", "gauge", "Size of the bdev.", ("bdev",),
               [((bdev.name,), bdev.num_blocks * bdev.block_size) for bdev in bdevs])
    kept = [(bdev.name, found) for bdev in bdevs if (found := bdev.histogram()) is not None]
    yield Rows("vhostrt_bdev_latency_seconds", "histogram",
               "Times of the requests that bdev_enable_histogram has counted.", ("bdev",),
               [((name,), (edges.cumulative(found), seconds(found.sum()))) for name, found in kept])


def of_controllers() -> Iterator[Rows]:
    blks = tuple(controller.controllers.values())
    yield Rows("vhostrt_controller_info", "gauge", "What the controller serves, and where.",
               ("controller", "bdev", "socket"),
               [((blk.name, blk.bdev_name if blk.descriptor else "", blk.path), 1)
                for blk in blks])
    yield Rows("vhostrt_controller_sessions", "gauge", "Clients that are connected.",
               ("controller",), [((blk.name,), len(blk.sessions)) for blk in blks])


def of_queues(edges: Edges) -> Iterator[Rows]:
    """Counters are of the controller's queue of that index, whoever had it."""
    blks = tuple(controller.controllers.values())
    stats = {(blk.name, index): each for blk in blks for index, each in blk.stats().items()}
    key = ("controller", "queue")
    for name, text, label, value in (
            ("requests", "Requests taken from the queue.", "op", lambda s: s.requests()),
            ("bytes", "Bytes of their data.", "op", lambda s: s.data()),
            ("errors", "Requests that failed.", "cause", lambda s: s.errors())):
        yield Rows(f"vhostrt_queue_{name}", "counter", text, (*key, label),
                   spread(stats, value))
    yield Rows("vhostrt_queue_kicks", "counter", "Notifications by the driver.", key,
               ((labels, each.kicks) for labels, each in stats.items()))
    yield Rows("vhostrt_queue_calls", "counter", "Interrupts of the driver.", key,
               ((labels, each.calls) for labels, each in stats.items()))
    yield Rows("vhostrt_queue_latency_seconds", "histogram",
               "Times from a request's pop to its answer.", (*key, "op"), times(stats, edges))
    yield from of_running(blks)


def spread(stats: Mapping[tuple[str, int], Any], value: Any) -> Iterator[tuple[tuple, int]]:
    """Return a row for each entry of what value() finds in each."""
    for labels, each in stats.items():
        for label, count in value(each).items():
            yield (*labels, label), count


def times(stats: Mapping[tuple[str, int], Any], edges: Edges) -> Iterator[tuple[tuple, Any]]:
    """Return the rows of the latency histograms; those without a request are left out."""
    for labels, each in stats.items():
        sums = each.ticks()
        for lane, histogram in zip(LANE_NAMES, each.histograms, strict=True):
            counts = edges.cumulative(histogram)
            if counts[-1]:
                yield (*labels, lane), (counts, seconds(sums[lane]))


def of_running(blks: Iterable[Any]) -> Iterator[Rows]:
    """The queues that are served now, each of one client's session."""
    queues = [((blk.name, ring.index, session.name), ring.queue) for blk in blks
              for session in blk.sessions for ring in session.rings.values()
              if ring.queue is not None]
    for name, text, value in (
            ("inflight", "Requests that are under way.", lambda q: q.inflight),
            ("oldest_request_seconds", "Age of the oldest request that is under way.",
             lambda q: q.oldest_us / 1e6),
            ("size", "Descriptors of the queue.", lambda q: q.size),
            ("reactor", "Core of the reactor that serves the queue.", lambda q: q.lcore),
            ("broken", "1: the driver has spoilt the queue, which is served no more.",
             lambda q: int(q.broken != 0))):
        yield Rows(f"vhostrt_queue_{name}", "gauge", text, ("controller", "queue", "session"),
                   [(labels, value(queue)) for labels, queue in queues])
