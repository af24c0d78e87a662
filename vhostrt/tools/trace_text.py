"""A trace as lines: for people, and as JSON for programs."""
import datetime
import json
from typing import Any

from vhostrt.tools.trace_file import CONTROL, Event, TraceFile

COLUMNS = f"# {'us':>13}  {'core':>4}  {'owner':<18}  {'point':<22}  object, arguments, duration"


def core_name(lcore: int) -> str:
    """Return how a ring is named in a column, and by --lcore."""
    return "ctrl" if lcore == CONTROL else str(lcore)


def heading(trace: TraceFile) -> list[str]:
    """Return the lines that say what a trace is of; to be called after its events were read."""
    began = datetime.datetime.fromtimestamp(trace.start_unix_ns / 1e9 % 2**32, datetime.UTC)
    state = "runs" if trace.runs() else "has ended"
    on = ",".join(trace.points_on()) or "nothing"
    lines = [f"# {trace.program}, process {trace.pid}, which {state}; us since "
             f"{began:%Y-%m-%d %H:%M:%S.%f} UTC", f"# traced now: {on}"]
    for ring in trace.rings:
        if ring.read or ring.lost:
            lost = f", {ring.lost} older ones are overwritten" if ring.lost else ""
            lines.append(f"# core {core_name(ring.lcore)}: {ring.read} entries{lost}")
    return [*lines, COLUMNS]


def text_line(trace: TraceFile, event: Event, begun: Event | None) -> str:
    """Return an entry as a line for people; begun: the entry that began what this one ends."""
    said = [f"{event.point.object}={event.object:#x}" if event.point.object else ""]
    said += [f"{name}={value}" for name, value in event.arguments().items()]
    if begun is not None:
        said.append(f"took={(event.tsc - begun.tsc) * 1e6 / trace.tsc_hz:.3f}us")
    return (f"{trace.us(event.tsc):15.3f}  {core_name(event.lcore):>4}  {event.owner:<18}  "
            f"{event.point.name:<22}  {' '.join(filter(None, said))}").rstrip()


def json_line(trace: TraceFile, event: Event, begun: Event | None) -> str:
    """Return an entry as a JSON object on one line.

    us, tsc; lcore (null: the control thread); owner, group, point; object, hexadecimal, where the
    point has one, and its kind; args; took_us where it ends something.
    """
    said: dict[str, Any] = {
        "us": round(trace.us(event.tsc), 3), "tsc": event.tsc,
        "lcore": None if event.lcore == CONTROL else event.lcore, "owner": event.owner,
        "group": event.point.group, "point": event.point.name}
    if event.point.object:
        said |= {"object": f"{event.object:#x}", "kind": event.point.object}
    said["args"] = event.arguments()
    if begun is not None:
        said["took_us"] = round((event.tsc - begun.tsc) * 1e6 / trace.tsc_hz, 3)
    return json.dumps(said)
