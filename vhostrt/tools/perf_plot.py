"""The result of vhostrt-perf as a picture, by matplotlib, which is imported here alone."""
import io
import os
from typing import Any

from vhostrt.tools.perf_options import Plan
from vhostrt.tools.perf_stats import Result, merged

INCHES = (9, 8)
MB = 1e6


def course(rates: Any, times: Any, result: Result) -> None:
    """Draw IOPS and MB/s, and the latencies below, over the time."""
    at = [moment.at for moment in result.course]
    both = [merged(moment.kinds[0].hz, moment.kinds) for moment in result.course]
    rates.plot(at, [moment.iops for moment in result.course], color="C0")
    rates.set_ylabel("IOPS", color="C0")
    rates.set_ylim(bottom=0)
    other = rates.twinx()
    other.plot(at, [moment.bytes_s / MB for moment in result.course], color="C1", linestyle="--")
    other.set_ylabel("MB/s", color="C1")
    other.set_ylim(bottom=0)
    for name, values in (("50 %", [one.percentile_us(50) for one in both]),
                         ("99 %", [one.percentile_us(99) for one in both]),
                         ("mean", [one.mean_us for one in both])):
        times.plot(at, values, label=name)
    times.set_ylabel("latency, us")
    times.set_xlabel("seconds")
    times.set_yscale("log")
    times.grid(True, which="major", alpha=0.4)
    times.legend()


def distribution(axes: Any, result: Result) -> None:
    """Draw the latencies of each kind: which share of the requests took longer."""
    for name, kind in result.named():
        left, edges, shares = kind.count, [], []
        for _, end, count in kind.histogram_us():
            left -= count
            edges.append(end)
            # The last request is drawn at its place, and not at the infinity of a zero.
            shares.append(max(left, 0.5) / max(kind.count, 1))
        axes.step(edges, shares, where="post", label=name)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("latency, us")
    axes.set_ylabel("share that took longer")
    axes.grid(True, which="major", alpha=0.4)
    axes.legend()


def draw(path: str, plan: Plan, title: str, result: Result) -> None:
    """Write the picture.  Fails: OSError."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=INCHES, layout="constrained")
    rates, times, shares = figure.subplots(3, 1)
    figure.suptitle(title, fontsize="medium", wrap=True)
    course(rates, times, result)
    distribution(shares, result)
    if os.path.splitext(path)[1].lower() != ".html":
        figure.savefig(path)
        return
    picture = io.StringIO()
    figure.savefig(picture, format="svg")
    svg = picture.getvalue()
    with open(path, "w", encoding="utf-8") as file:
        file.write("<!DOCTYPE html>\n<meta charset=utf-8>\n<title>vhostrt-perf</title>\n"
                   + svg[svg.index("<svg"):])
