"""A trace in Chrome's trace event format, which chrome://tracing and Perfetto show.

Cores are threads of the process. What begins and ends by its number is an asynchronous pair, what a
core is in is a bar of its thread; how much of each kind is under way is a counter.

Source: "Trace Event Format", the JSON object form.
"""
import json
from collections.abc import Iterator
from typing import Any, TextIO

from vhostrt.tools.trace_file import CONTROL, Event, TraceFile
from vhostrt.tools.trace_pairs import BEGINS, ENDS, Key, Pairs, key_of
from vhostrt.tools.trace_text import core_name

CONTROL_TID = 1 << 16                   # above all cores
Json = dict[str, Any]


def thread_of(lcore: int) -> int:
    """Return the thread's number of a core; 0 would be the idle thread of the system."""
    return CONTROL_TID if lcore == CONTROL else lcore + 1


class Chrome:
    """Makes the events of a whole trace."""

    def __init__(self, trace: TraceFile) -> None:
        self.trace = trace
        self.pairs = Pairs()
        self.numbers: dict[Key, int] = {}       # of what has begun and not ended
        self.under_way: dict[tuple[str, int], int] = {}
        self.made = 0

    def event(self, event: Event, phase: str, name: str, **more: Any) -> Json:
        return {"ph": phase, "name": name, "cat": event.point.group,
                "ts": round(self.trace.us(event.tsc), 3), "pid": self.trace.pid,
                "tid": thread_of(event.lcore), **more}

    def metadata(self) -> Iterator[Json]:
        pid = self.trace.pid
        yield {"ph": "M", "name": "process_name", "pid": pid, "tid": 0,
               "args": {"name": self.trace.program}}
        for ring in self.trace.rings:
            tid = thread_of(ring.lcore)
            name = "control" if ring.lcore == CONTROL else f"core {ring.lcore}"
            yield {"ph": "M", "name": "thread_name", "pid": pid, "tid": tid, "args": {"name": name}}
            yield {"ph": "M", "name": "thread_sort_index", "pid": pid, "tid": tid,
                   "args": {"sort_index": tid}}

    def all(self, events: list[Event]) -> Iterator[Json]:
        """Yield what Chrome is to be told of these entries, which are in the order of time."""
        yield from self.metadata()
        for event in events:
            role = event.point.role
            before = self.pairs.open.get(key_of(event)) if role in BEGINS else None
            if before is not None:      # its end is lost
                yield from self.over(before, event, {"unfinished": True})
            begun = self.pairs.begun_by(event)
            if role == "begin":
                yield from self.begin(event)
            elif begun is not None:
                yield from self.over(begun, event, self.words(event))
            elif role != "enter":
                yield self.moment(event)
        for begun in self.pairs.open.values():
            yield from self.over(begun, begun._replace(tsc=max(begun.tsc, events[-1].tsc)),
                                 {"unfinished": True})

    def over(self, begun: Event, ended: Event, words: Json) -> Iterator[Json]:
        """What has begun ends here."""
        if begun.point.role == "begin":
            yield from self.end(begun, ended, words)
        else:
            took = round((ended.tsc - begun.tsc) * 1e6 / self.trace.tsc_hz, 3)
            yield self.event(begun, "X", label(begun), dur=took, args=self.words(begun) | words)

    def words(self, event: Event) -> Json:
        return {"owner": event.owner, **event.arguments()}

    def moment(self, event: Event) -> Json:
        """An entry that stands alone; also the end of what began before the trace."""
        words = self.words(event)
        if event.point.object:
            words["object"] = f"{event.object:#x}"
        if event.point.role in ENDS:
            words["began"] = "before the trace"
        return self.event(event, "i", event.point.name, s="t", args=words)

    def begin(self, event: Event) -> Iterator[Json]:
        self.made += 1
        self.numbers[key_of(event)] = self.made
        words = self.words(event) | {"object": f"{event.object:#x}"}
        yield self.event(event, "b", label(event), id=f"{self.made:#x}", args=words)
        yield self.count(event, event, 1)

    def end(self, begun: Event, ended: Event, words: Json) -> Iterator[Json]:
        """The end has thread and name of the beginning, wherever it was: so it finds it."""
        number = self.numbers.pop(key_of(begun))
        yield self.event(begun._replace(tsc=ended.tsc), "e", label(begun), id=f"{number:#x}",
                         args=words)
        yield self.count(begun, ended, -1)

    def count(self, begun: Event, now: Event, more: int) -> Json:
        """Say how many objects of a kind that began on a core are under way."""
        key = begun.point.object, begun.lcore
        self.under_way[key] = self.under_way.get(key, 0) + more
        return self.event(now, "C", f"{begun.point.object} under way on {core_name(begun.lcore)}",
                          args={"count": self.under_way[key]})


def label(event: Event) -> str:
    """Return what a bar is called: its kind, and the first argument that has a name, as "read"; a
    span by whose it is."""
    if event.point.role == "span":
        return event.owner
    for argument, word in zip(event.point.args, event.words, strict=False):
        if argument.names:
            return f"{event.point.object} {argument.value(word)}"
    return event.point.object


def write(trace: TraceFile, events: list[Event], file: TextIO) -> None:
    """Write the JSON document, one event a line.  Fails: OSError."""
    file.write('{"displayTimeUnit": "ns", "otherData": '
               + json.dumps({"program": trace.program, "clock_hz": trace.tsc_hz})
               + ', "traceEvents": [')
    between = "\n"
    for event in Chrome(trace).all(events):
        file.write(between + json.dumps(event))
        between = ",\n"
    file.write("\n]}\n")
