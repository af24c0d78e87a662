"""The metrics as text, in the format of Prometheus, by its own library.

The text is made in pieces, and between two of them the loop does what else there is.

Threads: the control thread.
Fails:   ImportError where the library is missing; importing this module needs it.
"""
import asyncio
from collections.abc import Iterable, Iterator
from typing import Any

from prometheus_client import generate_latest
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.process_collector import ProcessCollector

from vhostrt.metrics.families import BOUND_NAMES, Edges, Rows, families

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
PIECE_LINES = 32                        # of text made at a time: half a millisecond's work
KEPT_S = 0.2                            # how long a text is told again: scrapes cannot add up
KINDS: dict[str, Any] = {"counter": CounterMetricFamily, "gauge": GaugeMetricFamily,
                         "histogram": HistogramMetricFamily}


class One:
    """What the library makes a text of: here of one metric."""

    def __init__(self, metric: Metric) -> None:
        self.metric = metric

    def collect(self) -> Iterable[Metric]:
        return (self.metric,)


def pieces(rows: Rows) -> Iterator[bytes]:
    """Return the text of one metric in pieces; none when it has no rows."""
    family, first = None, True
    for labels, value in rows.rows:
        family = family or KINDS[rows.kind](rows.name, rows.help, labels=rows.labels)
        add(family, [printable(label) for label in labels], value)
        if len(family.samples) >= PIECE_LINES:
            yield text_of(family, first)
            family, first = None, False
    if family is not None:
        yield text_of(family, first)


def add(family: Any, labels: list[str], value: Any) -> None:
    if family.type == "histogram":
        counts, total = value
        family.add_metric(labels, list(zip(BOUND_NAMES, counts, strict=True)), total)
    else:
        family.add_metric(labels, value)


def text_of(family: Metric, first: bool) -> bytes:
    """Return the text of a metric; the two lines that tell what it is stand before the first."""
    text = generate_latest(One(family))         # type: ignore[arg-type]
    return text if first else text.split(b"\n", 2)[2]


def printable(label: Any) -> str:
    """Return a label as text that can be encoded."""
    return str(label).encode("utf-8", "backslashreplace").decode()


class Page:
    """The text of all metrics, made anew when somebody asks and the last one is old."""

    def __init__(self) -> None:
        self.edges = Edges()
        self.process = ProcessCollector(registry=None)
        self.lock = asyncio.Lock()
        self.text = b""
        self.until = 0.0                # the loop's time up to which it is told again

    async def get(self) -> bytes:
        """Return the text; the loop goes on meanwhile."""
        clock = asyncio.get_running_loop().time
        async with self.lock:
            if clock() >= self.until:
                self.text = await self.make()
                self.until = clock() + KEPT_S
            return self.text

    async def make(self) -> bytes:
        made = []
        for rows in families(self.edges):
            for piece in pieces(rows):
                made.append(piece)
                await asyncio.sleep(0)
            await asyncio.sleep(0)
        made += [text_of(metric, True) for metric in self.process.collect()]
        return b"".join(made)
