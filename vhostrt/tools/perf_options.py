"""The command line of vhostrt-perf: read, and checked as far as that goes without the target.

Fails: the sentence and exit status 2 of argparse.
"""
import argparse
import importlib.util
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

from vhostrt import values

SECTOR = 512
BLOCK_MAX = 64 << 20                    # bytes of the longest request
DEPTH_MAX, RING_MAX, QUEUES_MAX, SIZES_MAX = 10922, 32768, 256, 16
AREA_MAX = 1 << 62
RUN_SECONDS = 10.0
# What a mode does: share of reads (None: --rwmixread), the other kind, random.
READ, WRITE, FLUSH, TRIM = range(4)
KINDS = ("read", "write", "flush", "trim")
MODES = {
    "read": (1.0, WRITE, False), "randread": (1.0, WRITE, True),
    "write": (0.0, WRITE, False), "randwrite": (0.0, WRITE, True),
    "rw": (None, WRITE, False), "randrw": (None, WRITE, True),
    "trim": (0.0, TRIM, False), "randtrim": (0.0, TRIM, True),
}
PLOTS = (".png", ".svg", ".pdf", ".html")


class Parser(argparse.ArgumentParser):
    """Says in one sentence what is wrong with the arguments."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"vhostrt-perf: {message}\nTry 'vhostrt-perf --help'.\n")


def reader(read: Callable[[str], Any]) -> Callable[[str], Any]:
    """Make a reader of values one whose sentence argparse shows."""
    def checked(text: str) -> Any:
        try:
            return read(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None
    return checked


def read_size(text: str) -> int:
    """Read a size in bytes, or with k, M, G or T."""
    unit = values.SUFFIXES.get(text[-1:].lower())
    digits = text if unit is None else text[:-1]
    if not (digits.isascii() and digits.isdigit()) or len(digits) > 20:
        raise ValueError(f"{values.shown(text)} is not a size: write a whole number of bytes, or "
                         "with k, M, G or T directly behind it")
    return int(digits) * (unit or 1)


def read_area(text: str) -> int:
    """Read a size that a disk could have, in whole sectors."""
    size = read_size(text)
    if size % SECTOR or size > AREA_MAX:
        raise ValueError(f"{values.shown(text)} is not a multiple of {SECTOR} bytes that a disk "
                         "could have")
    return size


def read_sizes(text: str) -> tuple[tuple[int, int], ...]:
    """Read block sizes with weights: `4k`, `4k:70,64k:30`."""
    found = []
    for part in text.split(","):
        size_text, colon, weight_text = part.partition(":")
        size = read_size(size_text)
        if not 0 < size <= BLOCK_MAX or size % SECTOR:
            raise ValueError(f"a block of {values.shown(size_text)} is not a multiple of {SECTOR} "
                             f"bytes up to {BLOCK_MAX >> 20} MiB")
        found.append((size, values.read_number(weight_text, 1, 10**6) if colon else 1))
    if len(found) > SIZES_MAX:
        raise ValueError(f"{len(found)} block sizes are more than {SIZES_MAX}")
    return tuple(found)


def read_seconds(text: str) -> float:
    """Read a time in seconds."""
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= 10**8 or math.isnan(seconds):
        raise ValueError(f"{values.shown(text)} is not a time in seconds")
    return seconds


def read_wait(text: str) -> float:
    """Read a time to wait: not none at all."""
    seconds = read_seconds(text)
    if seconds == 0:
        raise ValueError("0 seconds are no time to wait")
    return seconds


def read_plot(text: str) -> str:
    """Read the name of a picture, whose ending says of which kind it is."""
    if os.path.splitext(text)[1].lower() not in PLOTS:
        raise ValueError(f"{values.shown(text)} does not end with one of {', '.join(PLOTS)}")
    if importlib.util.find_spec("matplotlib") is None:
        raise ValueError("a plot needs matplotlib: pip install 'vhostrt[plot]'")
    return text


def read_ring_size(text: str) -> int:
    """Read a power of two."""
    size = values.read_number(text, 1, RING_MAX)
    if size & (size - 1):
        raise ValueError(f"a ring of {size} descriptors cannot be: the size is a power of two")
    return size


def number(low: int, high: int) -> Callable[[str], Any]:
    return reader(lambda text: values.read_number(text, low, high))


@dataclass
class Plan:
    """What is to be done, as the command line says it.  Sizes are bytes, times seconds."""

    socket: str = ""
    listen: bool = False
    timeout: float = 10.0
    rw: str = "randread"
    rwmixread: int = 50
    bs: tuple[tuple[int, int], ...] = ((4096, 1),)
    depth: int = 32
    queues: int = 1
    offset: int = 0
    size: int = 0
    time: float | None = None
    ramp: float = 0.0
    ios: int | None = None
    rate_iops: int = 0
    rate: int = 0
    flush: int = 0
    verify: bool = False
    seed: int = 1
    cores: tuple[int, ...] | None = None
    interrupt: bool = False
    ring: str = "split"
    ring_size: int = 0
    indirect: bool = False
    hugepages: int = 0
    json: str | None = None
    plot: str | None = None
    histogram: bool = False
    quiet: bool = False

    @property
    def reads(self) -> float:
        """Share of reads."""
        share = MODES[self.rw][0]
        return self.rwmixread / 100 if share is None else share

    @property
    def other(self) -> int:
        """The kind of what is no read."""
        return MODES[self.rw][1]

    @property
    def random(self) -> bool:
        return MODES[self.rw][2]

    @property
    def writes(self) -> bool:
        """Whether anything on the disk is changed."""
        return self.reads < 1

    @property
    def longest(self) -> int:
        """Bytes of the longest request."""
        return max(size for size, _ in self.bs)

    @property
    def unit(self) -> int:
        """Bytes of which every block size is a multiple."""
        return math.gcd(*(size for size, _ in self.bs))

    @property
    def descriptors(self) -> int:
        """Size of each ring."""
        least = self.depth * (1 if self.indirect else 3)
        return self.ring_size or max(128, 1 << (least - 1).bit_length())


def arguments() -> Parser:
    """Return the command line's parser."""
    parser = Parser(prog="vhostrt-perf", allow_abbrev=False, description="Put load on the disk "
                    "behind a vhost-user-blk socket, of vhostrt or any other target, and measure. "
                    "It reads unless --rw says otherwise.")
    parser.add_argument("socket", metavar="SOCKET", type=reader(values.read_path),
                        help="the disk's vhost-user socket")
    parser.add_argument("--listen", action="store_true",
                        help="make the socket and wait for the target to connect")
    parser.add_argument("--timeout", type=reader(read_wait), metavar="SECONDS",
                        help="how long the target may take to answer (10)")
    what = parser.add_argument_group("what is done")
    what.add_argument("--rw", choices=MODES, metavar="MODE", help="read, write, randread (the "
                      "default), randwrite, rw, randrw, trim or randtrim; all but the reads "
                      "overwrite what is on the disk")
    what.add_argument("--rwmixread", type=number(0, 100), metavar="PERCENT",
                      help="reads in rw and randrw (50)")
    what.add_argument("--bs", type=reader(read_sizes), metavar="SIZES",
                      help="bytes of a request (4k), or several with weights: 4k:70,64k:30")
    what.add_argument("--flush", type=number(1, 10**9), metavar="N", help="a flush behind every N "
                      "writes of a queue")
    what.add_argument("--offset", type=reader(read_area), metavar="SIZE",
                      help="where the area begins (0)")
    what.add_argument("--size", type=reader(read_area), metavar="SIZE",
                      help="of the area (to the end of the disk)")
    what.add_argument("--verify", action="store_true", help="check what is read; with writes: "
                      "what this run wrote, all of it once more at the end; without: what an "
                      "earlier run with --verify wrote")
    what.add_argument("--seed", type=number(0, 2**32 - 1), metavar="N",
                      help="of what is random (1)")
    long = parser.add_argument_group("how long and how fast")
    long.add_argument("--time", "-t", type=reader(read_wait), metavar="SECONDS",
                      help="run time, the ramp included (10, or without end with --ios)")
    long.add_argument("--ramp", type=reader(read_seconds), metavar="SECONDS",
                      help="of the beginning that is not counted (0)")
    long.add_argument("--ios", type=number(1, 2**31 - 1), metavar="N",
                      help="end after so many requests")
    rate = long.add_mutually_exclusive_group()
    rate.add_argument("--rate-iops", type=number(1, 10**9), metavar="N",
                      help="at most so many requests a second")
    rate.add_argument("--rate", type=reader(read_size), metavar="SIZE",
                      help="at most so many bytes a second")
    add_more_arguments(parser)
    return parser


def add_more_arguments(parser: Parser) -> None:
    how = parser.add_argument_group("queues")
    how.add_argument("--depth", "--iodepth", "-q", type=number(1, DEPTH_MAX), metavar="N",
                     help="requests in flight in each queue (32)")
    how.add_argument("--queues", "-n", type=number(1, QUEUES_MAX), metavar="N", help="queues, each "
                     "with a thread and its share of the area (1)")
    how.add_argument("--cores", type=reader(values.read_list), metavar="LIST",
                     help="CPUs of the threads, 0,2-3: one each, in turn")
    how.add_argument("--interrupt", action="store_true",
                     help="wait for the target's calls instead of polling")
    how.add_argument("--ring", choices=("split", "packed"), help="kind of ring (split)")
    how.add_argument("--ring-size", type=reader(read_ring_size), metavar="N",
                     help="descriptors of a ring (three for each request, 128 at least)")
    how.add_argument("--indirect", action="store_true",
                     help="one descriptor for each request, with a table of its own")
    how.add_argument("--hugepages", choices=("2M", "1G"), metavar="2M|1G",
                     help="take the shared memory from huge pages of this size")
    out = parser.add_argument_group("result")
    out.add_argument("--json", type=reader(values.read_path), metavar="FILE",
                     help="write the result to a file as JSON (- for stdout, and then no text)")
    out.add_argument("--plot", type=reader(read_plot), metavar="FILE",
                     help="draw it: .png, .svg, .pdf or .html; needs matplotlib")
    out.add_argument("--histogram", action="store_true", help="print the latencies' histogram")
    out.add_argument("--quiet", action="store_true", help="no figures while it runs")


def read_plan(words: list[str] | None) -> Plan:
    """Read the command line; SystemExit(2) with a sentence where it cannot be followed."""
    parser = arguments()
    given = {name: value for name, value in vars(parser.parse_args(words)).items()
             if value is not None}
    if "hugepages" in given:
        given["hugepages"] = read_size(given["hugepages"])
    plan = Plan(**given)
    if plan.time is None and plan.ios is None:
        plan.time = plan.ramp + RUN_SECONDS
    wrong = contradiction(plan)
    if wrong:
        parser.error(wrong)
    return plan


def contradiction(plan: Plan) -> str:
    """Return what does not go together, or ""."""
    if plan.ring == "packed":
        return "argument --ring: packed rings are not there yet; split ones are"
    least = plan.depth * (1 if plan.indirect else 3)
    if plan.descriptors < least:
        return (f"argument --ring-size: {plan.depth} requests in flight need {least} descriptors, "
                f"and the ring has {plan.descriptors}")
    if plan.descriptors > RING_MAX:
        return f"argument --depth: no ring has the {least} descriptors of {plan.depth} requests"
    if plan.time is not None and plan.time <= plan.ramp:
        return f"argument --ramp: nothing is left of {plan.time:g} seconds after {plan.ramp:g}"
    if plan.flush and (not plan.writes or plan.other != WRITE):
        return f"argument --flush: --rw {plan.rw} writes nothing"
    if plan.verify and plan.other == TRIM:
        return f"argument --verify: what --rw {plan.rw} leaves is not known"
    if plan.size and plan.size < plan.longest * plan.queues:
        return (f"argument --size: {plan.size} bytes are less than a block of {plan.longest} for "
                f"each of {plan.queues} queues")
    known = os.sched_getaffinity(0)
    if plan.cores is not None and not known.issuperset(plan.cores):
        return (f"argument --cores: this process may run on {', '.join(map(str, sorted(known)))} "
                "only")
    return ""
