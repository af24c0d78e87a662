"""What vhostrt-perf prints for people: live figures, the result, the histogram."""
import os
import sys
from typing import TextIO

from vhostrt.tools.perf_options import Plan
from vhostrt.tools.perf_run import area
from vhostrt.tools.perf_stats import (PERCENTILES, Latency, Moment, Result, fault_text, merged,
                                      status_name)
from vhostrt.vhost.client.blk import BlkFrontEnd
from vhostrt.vhost.messages import Feature
from vhostrt.virtio.driver import latency

MB = 1e6
BAR_COLUMNS = 20
ROWS_MAX, STARS = 24, 40                # of the histogram
SHIFTS = (4, 5, 6)                      # buckets of a row, as a binary logarithm
UNITS = ((1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"))


def size_text(size: int) -> str:
    """Return a size for people."""
    for unit, name in UNITS:
        if size >= unit and size % unit == 0:
            return f"{size // unit} {name}"
    return f"{size} bytes"


def count_text(count: float) -> str:
    """Return a number in four characters or so."""
    for unit, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= unit and count >= 1e4:
            scaled = count / unit
            return f"{scaled:.{max(0, 2 - len(str(int(scaled))) + 1)}f}{name}"
    return f"{count:.0f}"


def heading(plan: Plan, front: BlkFrontEnd) -> str:
    """Return what is about to be done, in one line."""
    sizes = ", ".join(f"{size_text(size)}" + (f" (weight {weight})" if len(plan.bs) > 1 else "")
                      for size, weight in plan.bs)
    mix = f" with {plan.rwmixread} % reads" if plan.rw in ("rw", "randrw") else ""
    features = [name for name, used in (("EVENT_IDX", front.has(Feature.EVENT_IDX)),
                                        ("INDIRECT_DESC", plan.indirect)) if used]
    return (f"{plan.socket}: {plan.rw}{mix} of {sizes} in {size_text(area(plan, front))}; "
            f"{plan.queues} x {plan.depth} in flight, "
            + ", ".join([f"rings of {plan.descriptors}", *features,
                         "waiting for calls" if plan.interrupt else "polling"]))


class Live:
    """Shows every second: a bar that is drawn anew on a terminal, else a line each."""

    def __init__(self, plan: Plan, out: TextIO | None = None) -> None:
        self.plan = plan
        self.out = out or sys.stderr
        self.terminal = self.out.isatty()
        self.done = 0
        self.drawn = False

    def __call__(self, moment: Moment) -> None:
        one = merged(moment.kinds[0].hz, moment.kinds)
        text = (f"{count_text(moment.iops)} IOPS  {moment.bytes_s / MB:.1f} MB/s  "
                f"mean {one.mean_us:.1f}  p99 {one.percentile_us(99):.1f} us")
        if moment.at >= self.plan.ramp:
            self.done += one.count
        if not self.terminal:
            print(f"{moment.at:6.0f} s  {text}", file=self.out, flush=True)
            return
        columns = os.get_terminal_size(self.out.fileno()).columns or 80
        line = f"{self._bar(moment.at)}  {text}"[:columns - 1]
        print(f"\r{line:<{columns - 1}}", end="", file=self.out, flush=True)
        self.drawn = True

    def _bar(self, at: float) -> str:
        shares = [at / self.plan.time] if self.plan.time else []
        shares += [self.done / self.plan.ios] if self.plan.ios else []
        share = min(1.0, max(shares))
        return (f"[{'#' * round(share * BAR_COLUMNS):<{BAR_COLUMNS}}] {share:4.0%}  "
                f"{at:.0f} s")

    def end(self) -> None:
        """Leave the line of the bar."""
        if self.drawn:
            print(file=self.out, flush=True)


def table(result: Result) -> list[str]:
    """Return the figures of each kind of request."""
    rows = [["", "requests", "IOPS", "MB/s", "mean us", "min"]
            + [f"{p:g} %" for p in PERCENTILES] + ["max"]]
    for name, kind in result.named():
        rows.append([name, str(kind.count), count_text(kind.count / result.seconds),
                     f"{kind.bytes / result.seconds / MB:.1f}", f"{kind.mean_us:.1f}",
                     f"{kind.min_us:.1f}"]
                    + [f"{kind.percentile_us(p):.1f}" for p in PERCENTILES]
                    + [f"{kind.max_us:.1f}"])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(word.rjust(width) if i else word.ljust(width)
                      for i, (word, width) in enumerate(zip(row, widths, strict=True))).rstrip()
            for row in rows]


def histogram(kind: Latency) -> list[str]:
    """Return the latencies as bars: up to four to a power of two, as long as they are few."""
    for shift in SHIFTS:
        rows: dict[int, int] = {}
        for bucket, count in enumerate(kind.buckets):
            if count:
                rows[bucket >> shift] = rows.get(bucket >> shift, 0) + count
        if len(rows) <= ROWS_MAX:
            break
    most = max(rows.values(), default=1)
    seen, lines = 0, ["    from us -      to us   requests       sum"]
    for row, count in rows.items():
        seen += count
        first = latency.bounds(row << shift)[0]
        end = latency.bounds(((row + 1) << shift) - 1)[1]
        lines.append(f"{kind.us(first):11.2f} - {kind.us(end):10.2f} {count:10} "
                     f"{seen / kind.count:9.4%}  {'#' * round(STARS * count / most)}".rstrip())
    return lines


def report(plan: Plan, result: Result) -> list[str]:
    """Return the result in lines."""
    lines = [f"{result.seconds:.2f} s" + (", ended by a signal" if result.interrupted else "")]
    if result.all.count:
        lines += table(result)
    else:
        lines.append("no request was answered")
    if plan.histogram:
        for name, kind in result.named():
            if kind.count:
                lines += ["", f"{name}:", *histogram(kind)]
    for status, count in sorted(result.errors.items()):
        lines.append(f"{count} requests failed: {status_name(status)}")
    if plan.verify:
        lines.append(f"verified: {result.checked} sectors, {result.wrong} of them wrong")
        lines += [f"  {fault_text(fault)}" for fault in result.faults]
        if result.wrong > len(result.faults):
            lines.append(f"  and {result.wrong - len(result.faults)} more")
    return lines
