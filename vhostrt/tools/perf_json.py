"""The result of vhostrt-perf as JSON; docs/perf.md lists the keys."""
import dataclasses
import json
from typing import Any

from vhostrt import __version__
from vhostrt.tools.perf_options import KINDS, Plan
from vhostrt.tools.perf_run import area
from vhostrt.tools.perf_stats import (PERCENTILES, Latency, Moment, Result, fault_text, merged,
                                      status_name)
from vhostrt.vhost.client.blk import BlkFrontEnd

SCHEMA = 1
NO_OPTIONS = ("json", "plot", "histogram", "quiet")     # say only what becomes of the result


def latency(kind: Latency) -> dict[str, Any]:
    return {"mean": kind.mean_us, "min": kind.min_us, "max": kind.max_us,
            "percentiles": {f"{p:g}": kind.percentile_us(p) for p in PERCENTILES}}


def figures(kind: Latency, seconds: float) -> dict[str, Any]:
    return {"ios": kind.count, "bytes": kind.bytes, "iops": kind.count / seconds,
            "bytes_per_second": kind.bytes / seconds, "latency_us": latency(kind),
            "histogram_us": kind.histogram_us()}


def moment(one: Moment) -> dict[str, Any]:
    both = merged(one.kinds[0].hz, one.kinds)
    return {"at": one.at, "seconds": one.seconds, "iops": one.iops,
            "bytes_per_second": one.bytes_s, "latency_us": {
                "mean": both.mean_us, "p50": both.percentile_us(50),
                "p99": both.percentile_us(99)}}


def document(plan: Plan, front: BlkFrontEnd, result: Result) -> dict[str, Any]:
    """Return everything as JSON takes it."""
    return {
        "schema": SCHEMA, "program": "vhostrt-perf", "version": __version__,
        "options": {key: value for key, value in dataclasses.asdict(plan).items()
                    if key not in NO_OPTIONS},
        "target": {**dataclasses.asdict(front.device), "features": hex(front.features),
                   "protocol_features": hex(front.protocol), "area": area(plan, front)},
        "ok": result.ok and not result.interrupted, "failure": result.failure,
        "interrupted": result.interrupted, "seconds": result.seconds,
        "kinds": {name: figures(kind, result.seconds)
                  for name, kind in zip(KINDS, result.kinds, strict=True) if kind.count},
        "all": figures(result.all, result.seconds),
        "errors": {status_name(status): count for status, count in result.errors.items()},
        "verify": {"sectors": result.checked, "wrong": result.wrong,
                   "first": [{"offset": fault[0], "what": fault_text(fault)}
                             for fault in result.faults]},
        "course": [moment(one) for one in result.course],
    }


def text(plan: Plan, front: BlkFrontEnd, result: Result) -> str:
    return json.dumps(document(plan, front, result), indent=1)
