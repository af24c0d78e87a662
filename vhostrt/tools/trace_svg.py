"""A trace as a picture: time from left to right, for each core what was under way on it."""
from collections.abc import Iterator
from html import escape
from typing import NamedTuple, TextIO

from vhostrt.tools.trace_chrome import label
from vhostrt.tools.trace_file import CONTROL, Event, TraceFile
from vhostrt.tools.trace_pairs import BEGINS, Pairs, key_of

WIDTH, LEFT, RIGHT, TOP = 1200, 130, 20, 60
ROW, GAP = 11, 3                        # height of a bar, and between bars
ROWS_MAX = 24                           # of one kind on one core; what does not fit is counted
SPANS_MAX = 20_000                      # that a browser shows without trouble; the last ones count
TICKS = 10                              # about so many on the axis of time
COLOURS = ("#4e79a7", "#f28e2b", "#59a14f", "#e15759", "#b07aa1", "#76b7b2", "#edc948", "#9c755f",
           "#ff9da7", "#bab0ac")


class Span(NamedTuple):
    """What began and ended; ended is the last event of the trace when over is False."""

    begun: Event
    ended: Event
    over: bool


def spans(events: list[Event]) -> Iterator[Span]:
    """Yield what has both ends, and what was not over."""
    pairs = Pairs()
    for event in events:
        if event.point.role in BEGINS and (before := pairs.open.get(key_of(event))):
            yield Span(before, event, False)
        begun = pairs.begun_by(event)
        if begun is not None:
            yield Span(begun, event, True)
    for begun in pairs.open.values():
        yield Span(begun, events[-1], False)


def stacked(found: list[Span]) -> tuple[list[list[Span]], int]:
    """Put spans into as few rows as they need side by side; return them, and how many are left."""
    rows: list[list[Span]] = []
    left = 0
    for span in sorted(found, key=lambda one: one.begun.tsc):
        row = next((row for row in rows if row[-1].ended.tsc <= span.begun.tsc), None)
        if row is not None:
            row.append(span)
        elif len(rows) < ROWS_MAX:
            rows.append([span])
        else:
            left += 1
    return rows, left


class Picture:
    """Draws the spans of a trace."""

    def __init__(self, trace: TraceFile, events: list[Event]) -> None:
        self.trace = trace
        self.first = events[0].tsc
        self.ticks = max(1, events[-1].tsc - self.first)
        self.spans = list(spans(events))[-SPANS_MAX:]
        self.colours: dict[str, str] = {}
        self.y = TOP
        self.lines: list[str] = []

    def x(self, tsc: int) -> float:
        """Return where a moment lies."""
        return LEFT + (WIDTH - LEFT - RIGHT) * (tsc - self.first) / self.ticks

    def colour(self, name: str) -> str:
        return self.colours.setdefault(name, COLOURS[len(self.colours) % len(COLOURS)])

    def text(self, x: float, y: float, words: str, more: str = "") -> None:
        self.lines.append(f'<text x="{x:.1f}" y="{y:.1f}" {more}>{escape(words)}</text>')

    def bar(self, span: Span) -> None:
        """Draw one span, with what it says when the pointer is on it."""
        name = label(span.begun)
        # A span that is one entry may have begun before the first one.
        x, end = max(self.x(span.begun.tsc), LEFT), self.x(span.ended.tsc)
        took = (span.ended.tsc - span.begun.tsc) * 1e6 / self.trace.tsc_hz
        words = span.begun.arguments() | (span.ended.arguments() if span.over else {})
        said = [f"{name}, {took:.3f} us" + ("" if span.over else ", not over"), span.begun.owner,
                *(f"{key}={value}" for key, value in words.items())]
        self.lines.append(
            f'<rect x="{x:.2f}" y="{self.y}" width="{max(end - x, 0.5):.2f}" height="{ROW}" '
            f'fill="{self.colour(name)}"><title>{escape(chr(10).join(said))}</title></rect>')

    def core(self, lcore: int) -> None:
        """Draw what began on one core, kind by kind."""
        mine = [span for span in self.spans if span.begun.lcore == lcore]
        if not mine:
            return
        core = "control" if lcore == CONTROL else f"core {lcore}"
        self.lines.append(f'<line x1="0" x2="{WIDTH}" y1="{self.y}" y2="{self.y}" class="rule"/>')
        self.y += GAP * 2
        for kind in dict.fromkeys(span.begun.point.object for span in mine):
            rows, left = stacked([span for span in mine if span.begun.point.object == kind])
            self.text(4, self.y + ROW - 2, f"{core}: {kind}")
            for row in rows:
                for span in row:
                    self.bar(span)
                self.y += ROW + GAP
            if left:
                self.text(LEFT, self.y + ROW - 2, f"and {left} more at the same times")
                self.y += ROW + GAP
        self.y += GAP

    def axis(self) -> None:
        """Draw the times, at round numbers of microseconds."""
        us = self.ticks * 1e6 / self.trace.tsc_hz
        step = next(m * 10.0 ** e for e in range(-3, 40) for m in (1, 2, 5)
                    if us <= TICKS * m * 10.0 ** e)
        at = 0.0
        while at <= us:
            x = LEFT + (WIDTH - LEFT - RIGHT) * at / us
            self.lines.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{TOP - 6}" y2="{self.y}" '
                              'class="rule"/>')
            self.text(x, TOP - 10, f"{at:g} us", 'text-anchor="middle"')
            at += step

    def legend(self) -> None:
        x = float(LEFT)
        for name, colour in self.colours.items():
            self.lines.append(f'<rect x="{x:.1f}" y="10" width="{ROW}" height="{ROW}" '
                              f'fill="{colour}"/>')
            self.text(x + ROW + 4, 20, name)
            x += ROW + 20 + 7 * len(name)

    def draw(self) -> str:
        """Return the picture as SVG."""
        for ring in self.trace.rings:
            self.core(ring.lcore)
        self.axis()
        self.legend()
        style = "text{font:11px sans-serif;fill:#333}.rule{stroke:#ccc;stroke-width:.5}"
        return (f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{self.y + 10}" '
                f'viewBox="0 0 {WIDTH} {self.y + 10}"><style>{style}</style>'
                f'<rect width="100%" height="100%" fill="#fff"/>' + "\n".join(self.lines)
                + "\n</svg>\n")


def write(trace: TraceFile, events: list[Event], file: TextIO) -> None:
    """Write the picture; without events it is empty.  Fails: OSError."""
    if events:
        file.write(Picture(trace, events).draw())
    else:
        file.write('<svg xmlns="http://www.w3.org/2000/svg"/>\n')
