"""Rings and mempools beside Debian's dpdk-test, in alternation: ticks, and how many times ours.

    python -m bench.bench_peer_dpdk [--runs 9] [--two-cores]

A ratio above 1 means that DPDK takes longer. Each figure is the median of the runs, each ratio the
median of the ratios of one run; which of the two goes first changes from run to run. On one core
both are pinned to CPU 0, on ordinary pages, with as many iterations as DPDK's. Figures of a machine
that does other things meanwhile differ by a factor of two; the ratios of many runs much less.
"""
import argparse
import json
import os
import statistics
import time
from pathlib import Path

from vhostrt.base.ticks import hz
from vhostrt.env import lcore, memory
from vhostrt.env.mempool import Mempool
from vhostrt.env.ring import Ring

from bench import cy_env_mempool, cy_env_ring, dpdk_test

RUNS = 9
SLOTS = 4096
CALLS = [("single", 1), ("burst", 8), ("burst", 32), ("bulk", 8), ("bulk", 32), ("empty", 8)]
TIMES = {"single": 1 << 24, "burst": 1 << 23, "bulk": 1 << 23, "empty": 1 << 26}    # DPDK's
ACROSS_TIMES = 1 << 18
BALLS = 20_000
POOL = {(32, 1, False), (32, 1, True), (32, 32, False), (32, 32, True), (128, 1, False),
        (128, 32, False)}                               # objects kept, in bulks of, constant
POOL_OBJECTS = 1 << 23
KINDS = ["sp_sc", "mp_mc"]


def our_rings() -> dict:
    return {(kind, call, burst): cy_env_ring.pairs(Ring(SLOTS, kind), call, burst, TIMES[call])
            / TIMES[call] for kind in KINDS for call, burst in CALLS}


def our_pools() -> dict:
    pool = Mempool(2 * 1024 - 1, 2048, cache=512)
    ticks = {}
    for keep, bulk, constant in POOL:
        times = POOL_OBJECTS // keep
        ticks[keep, bulk, constant] = cy_env_mempool.loop(pool, 0, keep, bulk, constant,
                                                          times) / (times * keep)
    pool.free()
    return ticks


def our_rings_across() -> dict:
    ticks = {("round trip", "before", 0): cy_env_ring.round_trip(0, 1, BALLS)}
    ticks |= {(kind, "across", burst): cy_env_ring.across(Ring(SLOTS, kind), 0, 1, burst,
                                                          ACROSS_TIMES)
              for kind in KINDS for burst in (8, 32)}
    ticks["round trip", "after", 0] = cy_env_ring.round_trip(0, 1, BALLS)
    return ticks


def alternate(sides, runs: int) -> list[dict]:
    """Run each side of each pair that often, in turns; [{"dpdk": rows, "ours": rows}, ...]."""
    found = []
    for n in range(runs):
        both = {}
        for name, side in sorted(sides.items(), reverse=n % 2 == 1):
            both[name] = side()
        found.append(both)
    return found


def compare(found: list[dict]) -> list[dict]:
    """Return a record for each row that both have: medians, and the median ratio with its range."""
    rows = []
    for row in found[0]["dpdk"]:
        if row not in found[0]["ours"]:
            continue
        ratios = sorted(both["dpdk"][row] / both["ours"][row] for both in found)
        rows.append({"row": row, "ratio": statistics.median(ratios), "least": ratios[0],
                     "most": ratios[-1]}
                    | {side: statistics.median(both[side][row] for both in found)
                       for side in ("dpdk", "ours")})
    return sorted(rows, key=lambda r: r["row"], reverse=True)


def name_of(row: tuple) -> str:
    if isinstance(row[0], str):
        return f"ring {row[0]} {row[1]} {row[2]}"
    return f"mempool cached, get and put of {row[1]}{', constant' * row[2]}, {row[0]} kept"


def table(rows: list[dict], clock: int) -> str:
    """Return a table of Markdown."""
    lines = ["| row | DPDK ticks | ours | ours, ns | DPDK / ours (least to most) |",
             "| --- | --- | --- | --- | --- |"]
    lines += [f"| {name_of(r['row'])} | {r['dpdk']:.2f} | {r['ours']:.2f} | "
              f"{r['ours'] / clock * 1e9:.2f} | {r['ratio']:.2f} ({r['least']:.2f} to "
              f"{r['most']:.2f}) |" for r in rows]
    return "\n".join(lines)


def measure(runs: int, two_cores: bool) -> list[dict]:
    """Run both sides; the records of all rows."""
    clock = hz()
    allowed = os.sched_getaffinity(0)
    memory.init(no_huge=True)
    try:
        lcore.init({0: sorted(allowed)})                # it lends its cache; its thread waits
        os.sched_setaffinity(0, {0})
        rows = compare(alternate({"dpdk": dpdk_test.ring, "ours": our_rings}, runs))
        rows += compare(alternate({"dpdk": lambda: dpdk_test.mempool(POOL, clock),
                                   "ours": our_pools}, runs))
        os.sched_setaffinity(0, allowed)
        lcore.fini()
        if two_cores:
            lcore.init([0, 1])
            found = alternate({"dpdk": lambda: dpdk_test.ring("0,1"), "ours": our_rings_across},
                              runs)
            rows += compare([{"dpdk": {k: v for k, v in both["dpdk"].items() if k[1] == "across"},
                              "ours": both["ours"]} for both in found])
            ways = [both["ours"]["round trip", when, 0] / clock * 1e9 for both in found
                    for when in ("before", "after")]
            print("A cache line there and back, ns:", *(f"{way:.0f}" for way in ways))
    finally:
        os.sched_setaffinity(0, allowed)
        lcore.fini()
        memory.fini()
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=RUNS)
    parser.add_argument("--two-cores", action="store_true",
                        help="also from core to core, which takes minutes where they are far apart")
    given = parser.parse_args()
    if lacks := dpdk_test.missing():
        raise SystemExit(lacks)
    rows = measure(given.runs, given.two_cores)
    Path("bench/results").mkdir(exist_ok=True)
    kept = Path("bench/results", f"dpdk-{time.strftime('%Y%m%d-%H%M%S')}.json")
    kept.write_text(json.dumps(rows, indent=1))
    print(table(rows, hz()))
    print(f"{given.runs} runs; kept in {kept}")


def bench_peer_dpdk(capsys):
    """One run, as a part of `make bench`: nine take several minutes."""
    lacks = dpdk_test.missing()
    rows = [] if lacks else measure(1, False)
    with capsys.disabled():
        print(f"\n{lacks or table(rows, hz())}")


if __name__ == "__main__":
    main()
