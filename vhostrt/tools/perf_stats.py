"""What vhostrt-perf makes of the counts of its queues: sums, percentiles, errors, the course.

Times are ticks inside and microseconds where people and JSON see them.
"""
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from vhostrt.tools.perf_options import KINDS
from vhostrt.virtio.driver import latency

PERCENTILES = (50.0, 90.0, 95.0, 99.0, 99.9, 99.99, 99.999)
STATUS_NAMES = {1: "IOERR", 2: "UNSUPP", 255: "no status"}
FAULT_NAMES = ("", "nothing but zeros", "damaged", "of another place", "of another write",
               "of another run")


@dataclass
class Latency:
    """The requests of one kind.  least, most and ticks are exact, percentiles to 1 part in 64."""

    hz: int
    count: int = 0
    bytes: int = 0
    ticks: int = 0
    least: int = 0
    most: int = 0
    buckets: Sequence[int] = ()

    def us(self, ticks: float) -> float:
        """Return a time in microseconds."""
        return ticks * 1e6 / self.hz

    @property
    def mean_us(self) -> float:
        return self.us(self.ticks / self.count) if self.count else 0.0

    @property
    def min_us(self) -> float:
        return self.us(self.least)

    @property
    def max_us(self) -> float:
        return self.us(self.most)

    def percentile_us(self, percent: float) -> float:
        """Return the time that so many percent of the requests did not exceed; 0 without any."""
        seen, wanted = 0, percent / 100 * self.count
        for bucket, count in enumerate(self.buckets):
            seen += count
            if count and seen >= wanted:
                first, end = latency.bounds(bucket)
                # No time of the bucket lies outside what was really seen.
                return self.us(min(max((first + end - 1) / 2, self.least), self.most))
        return 0.0

    def histogram_us(self) -> list[tuple[float, float, int]]:
        """Return (from, to, requests) of every bucket that has any."""
        return [(*map(self.us, latency.bounds(bucket)), count)
                for bucket, count in enumerate(self.buckets) if count]


def merged(hz: int, parts: Iterable[Latency]) -> Latency:
    """Return the sum of several."""
    some = [part for part in parts if part.count]
    if not some:
        return Latency(hz)
    return Latency(hz, sum(p.count for p in some), sum(p.bytes for p in some),
                   sum(p.ticks for p in some), min(p.least for p in some),
                   max(p.most for p in some),
                   [sum(counts) for counts in zip(*(p.buckets for p in some), strict=True)])


def between(later: Latency, earlier: Latency) -> Latency:
    """Return what came between two looks; the extremes are those of the buckets."""
    if not earlier.count:
        return later
    if not later.count:
        return Latency(later.hz)
    buckets = [b - a for a, b in zip(earlier.buckets, later.buckets, strict=True)]
    used = [i for i, count in enumerate(buckets) if count]
    if any(buckets[i] < 0 for i in used):
        return later                    # the count began anew meanwhile: the ramp was over
    if not used:
        return Latency(later.hz)
    return Latency(later.hz, sum(buckets), later.bytes - earlier.bytes,
                   later.ticks - earlier.ticks, latency.bounds(used[0])[0],
                   latency.bounds(used[-1])[1] - 1, buckets)


@dataclass
class Moment:
    """One second, or what there was of it, of the run."""

    at: float                           # its end; seconds from the start
    seconds: float                      # its length
    kinds: list[Latency]

    @property
    def iops(self) -> float:
        return sum(kind.count for kind in self.kinds) / self.seconds

    @property
    def bytes_s(self) -> float:
        return sum(kind.bytes for kind in self.kinds) / self.seconds


@dataclass
class Result:
    """What a run has found."""

    seconds: float                      # that were counted
    kinds: list[Latency]                # in the order of KINDS
    errors: dict[int, int] = field(default_factory=dict)        # by status
    course: list[Moment] = field(default_factory=list)
    checked: int = 0                    # sectors
    wrong: int = 0                      # of them
    faults: list[tuple[int, int, int, int, int]] = field(default_factory=list)
    interrupted: bool = False
    failure: str = ""                   # why it ended before its time

    @property
    def all(self) -> Latency:
        return merged(self.kinds[0].hz, self.kinds)

    def named(self) -> list[tuple[str, Latency]]:
        """Return the kinds that there were, by their names, and the sum of several."""
        some = [(name, kind) for name, kind in zip(KINDS, self.kinds, strict=True) if kind.count]
        return some if len(some) == 1 else [*some, ("all", self.all)]

    @property
    def ok(self) -> bool:
        """Whether nothing went wrong."""
        return not (self.errors or self.wrong or self.failure)


def status_name(status: int) -> str:
    return STATUS_NAMES.get(status, f"status {status}")


def fault_text(fault: tuple[int, int, int, int, int]) -> str:
    """Say what is wrong with a sector."""
    offset, kind, wanted, found, belongs = fault
    text = f"byte {offset}: the sector is {FAULT_NAMES[kind]}"
    if FAULT_NAMES[kind] == "of another place":
        text += f": it belongs to byte {belongs}"
    if FAULT_NAMES[kind] == "of another write":
        text += f": write {found} is there and not {wanted}"
    return text
