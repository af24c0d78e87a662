"""The command vhostrt-trace: shows what a vhostrt that runs, or has ended, has traced.

Exit status: 0 shown, 1 there is no trace to read, 2 bad arguments, 130 interrupted.
"""
import argparse
import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, NoReturn, TextIO

from vhostrt import stdio, values
from vhostrt.tools import trace_chrome, trace_file, trace_svg, trace_text
from vhostrt.tools.trace_file import CONTROL, Event, TraceError, TraceFile, open_trace
from vhostrt.tools.trace_pairs import Pairs

LOOK_S = 0.1                            # between two looks of --follow
Wanted = Callable[[Event], bool]


class Parser(argparse.ArgumentParser):
    """Says in one sentence what is wrong with the arguments."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"vhostrt-trace: {message}\nTry 'vhostrt-trace --help'.\n")


def reader(read: Callable[[str], Any]) -> Callable[[str], Any]:
    """Make a reader of values one whose sentence argparse shows."""
    def checked(text: str) -> Any:
        try:
            return read(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None
    return checked


def read_lcores(text: str) -> frozenset[int]:
    """Read a list of cores, `0,2-3`; `ctrl` is the control thread."""
    words = text.split(",")
    cores = {CONTROL} if "ctrl" in words else set()
    rest = [word for word in words if word != "ctrl"]
    return frozenset(cores | set(values.read_list(",".join(rest)) if rest else ()))


def read_us(text: str) -> float:
    """Read a time, as the first column of a trace has it."""
    try:
        us = float(text)
    except ValueError:
        us = -1.0
    if not 0 <= us < float("inf"):
        raise ValueError(f"{values.shown(text)} is not a time in microseconds")
    return us


def arguments() -> Parser:
    """Return the command line's parser."""
    parser = Parser(prog="vhostrt-trace", allow_abbrev=False, description="Show what a vhostrt "
                    "traces (its option -e, or the RPC trace_enable_tpoint_group). Without -p, -i "
                    "or -f: the one that runs, or else the one that began last.")
    which = parser.add_mutually_exclusive_group()
    number = reader(lambda text: values.read_number(text, 0))
    which.add_argument("-p", "--pid", type=number, metavar="PID", help="process to look at")
    which.add_argument("-i", "--shm-id", type=number, metavar="ID", help="shared memory id (-i of "
                       "vhostrt) to look at")
    which.add_argument("-f", "--file", type=reader(values.read_path), metavar="FILE",
                       help="trace file, or a copy of one")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="one JSON object a line")
    form.add_argument("--chrome", type=reader(values.read_path), metavar="FILE",
                      help="write a file (- for stdout) for chrome://tracing or Perfetto")
    form.add_argument("--svg", type=reader(values.read_path), metavar="FILE",
                      help="write a picture (- for stdout)")
    parser.add_argument("--follow", action="store_true",
                        help="go on until Ctrl-C or the end of the process")
    parser.add_argument("--from", type=reader(read_us), metavar="US", dest="first", default=0.0,
                        help="only from this time on, microseconds")
    parser.add_argument("--to", type=reader(read_us), metavar="US", dest="last",
                        default=float("inf"), help="only up to this time, microseconds")
    parser.add_argument("--lcore", type=reader(read_lcores), metavar="LIST",
                        help="only these cores: 0,2-3; ctrl for the control thread")
    parser.add_argument("--group", type=reader(values.read_names), metavar="NAMES",
                        help="only these groups, a comma list")
    parser.add_argument("--tpoint", type=reader(values.read_names), metavar="NAMES",
                        help="only these trace points, a comma list")
    return parser


# Which trace.

def describe(trace: TraceFile) -> str:
    return f"{trace.pid} ({trace.path})"


def choose(found: list[TraceFile], pid: int | None) -> TraceFile:
    """Return the trace that is meant.  Fails: TraceError, which names what there is."""
    if pid is not None:
        found = [trace for trace in found if trace.pid == pid]
    running = [trace for trace in found if trace.runs()]
    if len(running) > 1:
        raise TraceError("several processes trace, choose one with -p: "
                         + ", ".join(map(describe, running)))
    if running:
        return running[0]
    if not found:
        whose = "" if pid is None else f" of process {pid}"
        raise TraceError(f"there is no trace{whose} in {trace_file.FOLDER}: vhostrt -e turns "
                         "tracing on, or the RPC trace_enable_tpoint_group")
    return max(found, key=lambda trace: trace.start_unix_ns)


@contextlib.contextmanager
def chosen(options: argparse.Namespace) -> Iterator[TraceFile]:
    """Open the trace that the arguments name.  Fails: TraceError."""
    path = options.file
    if options.shm_id is not None:
        path = os.path.join(trace_file.FOLDER, f"{trace_file.PREFIX}{options.shm_id}")
    with contextlib.ExitStack() as opened:
        if path is not None:
            yield opened.enter_context(open_trace(path))
        else:
            found = [opened.enter_context(trace) for trace in trace_file.traces()]
            yield choose(found, options.pid)


def filter_of(options: argparse.Namespace, trace: TraceFile) -> Wanted:
    """Return what tells whether an entry is to be shown.  Fails: TraceError for a name that is
    none."""
    groups = known(options.group, set(trace.groups), "group")
    points = known(options.tpoint, {point.name for point in trace.points.values()}, "point")
    lcores, first, last = options.lcore, options.first, options.last
    if lcores is not None and not lcores & {ring.lcore for ring in trace.rings}:
        raise TraceError("no core of the list is in the trace, which has "
                         + ", ".join(trace_text.core_name(ring.lcore) for ring in trace.rings))
    return lambda event: ((lcores is None or event.lcore in lcores)
                          and (groups is None or event.point.group in groups)
                          and (points is None or event.point.name in points)
                          and first <= max(0.0, trace.us(event.tsc)) <= last)


def known(words: tuple[str, ...] | None, there: set[str], what: str) -> set[str] | None:
    """Return the names that are meant, whatever their case; None: all."""
    if words is None:
        return None
    spelt = {name.lower(): name for name in there}
    for word in words:
        if word.lower() not in spelt:
            raise TraceError(f"the trace has no {what} {values.shown(word)}; it has "
                             f"{', '.join(sorted(there)) or 'none'}")
    return {spelt[word.lower()] for word in words}


# What is shown.

class CtrlC:
    """Notes the first Ctrl-C, so that --follow ends after one more look; a second interrupts."""

    def __init__(self) -> None:
        self.pressed = False

    def __enter__(self) -> "CtrlC":
        self.before = signal.signal(signal.SIGINT, self.press)
        return self

    def __exit__(self, *_exc: object) -> None:
        signal.signal(signal.SIGINT, self.before)

    def press(self, *_: object) -> None:
        if self.pressed:
            raise KeyboardInterrupt
        self.pressed = True


def looks(trace: TraceFile, follow: CtrlC | None) -> Iterator[list[Event]]:
    """Yield what there is and, with follow, what comes, until Ctrl-C or the end of the process."""
    going = True
    while going:
        # Asked before the look: what was written last is still seen.
        going = follow is not None and trace.runs() and not follow.pressed
        yield trace.events()
        if going:
            time.sleep(LOOK_S)


def show_json(trace: TraceFile, wanted: Wanted, follow: CtrlC | None) -> None:
    """Print a trace entry by entry, for programs."""
    pairs = Pairs()
    for events in looks(trace, follow):
        for event in events:
            begun = pairs.begun_by(event)
            if wanted(event):
                print(trace_text.json_line(trace, event, begun))
        sys.stdout.flush()


def show_text(trace: TraceFile, wanted: Wanted, follow: CtrlC | None) -> None:
    """Print a trace entry by entry, for people, and what had begun and is not over."""
    pairs = Pairs()
    heading = True
    for events in looks(trace, follow):
        if heading:
            print("\n".join(trace_text.heading(trace)))
        heading = False
        for event in events:
            begun = pairs.begun_by(event)
            if wanted(event):
                print(trace_text.text_line(trace, event, begun))
        sys.stdout.flush()
    for event in filter(wanted, pairs.open.values()):
        print("# not over: " + trace_text.text_line(trace, event, None).strip())


def write_file(trace: TraceFile, wanted: Wanted, follow: CtrlC | None, path: str,
               write: Callable[[TraceFile, list[Event], TextIO], None]) -> None:
    """Collect a trace, and write it as one document when there is no more to come."""
    events = [event for more in looks(trace, follow) for event in more if wanted(event)]
    if path == "-":
        write(trace, events, sys.stdout)
        return
    with open_output(path) as file:
        write(trace, events, file)
    print(f"{len(events)} entries written to {path}", file=sys.stderr)


def open_output(path: str) -> TextIO:
    try:
        return open(path, "w", encoding="utf-8")
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise TraceError(f"{path!a} cannot be written: {why}") from None


def show(options: argparse.Namespace) -> None:
    """Do what the arguments say.  Fails: TraceError, OSError of the output."""
    with contextlib.ExitStack() as held:
        follow = held.enter_context(CtrlC()) if options.follow else None
        trace = held.enter_context(chosen(options))
        if not (options.file or trace.runs()):
            print(f"vhostrt-trace: process {trace.pid} has ended, this is what it left",
                  file=sys.stderr)
        wanted = filter_of(options, trace)
        if options.chrome is not None:
            write_file(trace, wanted, follow, options.chrome, trace_chrome.write)
        elif options.svg is not None:
            write_file(trace, wanted, follow, options.svg, trace_svg.write)
        elif options.json:
            show_json(trace, wanted, follow)
        else:
            show_text(trace, wanted, follow)


def main(words: list[str] | None = None) -> int:
    """Run the command; return its exit status."""
    stdio.prepare()
    try:
        show(arguments().parse_args(words))
    except TraceError as error:
        print(f"vhostrt-trace: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        return 0                        # who reads has seen enough
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except OSError as error:
        print(f"vhostrt-trace: the output cannot be written: {error.strerror}", file=sys.stderr)
        return 1
    finally:
        stdio.settle()
    return 0


if __name__ == "__main__":
    sys.exit(main())
