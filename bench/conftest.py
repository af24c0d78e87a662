"""What every benchmark uses: a measure of what one operation of a loop in C costs.

pytest-benchmark keeps the time of a whole loop in its JSON; the cost of one operation is put beside
it, as extra_info.ns_per_op, and printed at the end, the median also in ticks of the clock.
"""
import statistics

import pytest
from vhostrt.base.ticks import hz

COSTS = pytest.StashKey[list]()
NOTES = pytest.StashKey[list]()
ROUNDS = 9


def cost(seconds: list[float], operations: int) -> dict[str, float]:
    """Return median, mad, min and max in nanoseconds an operation."""
    ns = [1e9 * s / operations for s in seconds]
    median = statistics.median(ns)
    mad = statistics.median(abs(x - median) for x in ns)
    return {"median": median, "mad": mad, "min": min(ns), "max": max(ns)}


@pytest.fixture
def per_op(benchmark, request):
    """A function: measure loop(operations), which does so many of them in C; return the costs."""
    def measure(loop, operations: int, rounds: int = ROUNDS) -> dict[str, float]:
        benchmark.pedantic(loop, args=(operations,), rounds=rounds, warmup_rounds=1)
        found = cost(benchmark.stats.stats.data, operations)
        benchmark.extra_info["ns_per_op"] = found
        request.config.stash.setdefault(COSTS, []).append((request.node.name, found))
        return found
    return measure


@pytest.fixture
def note(request):
    """A function: print figures that are no costs, by name, at the end."""
    def keep(what: str, **figures: str) -> None:
        told = ", ".join(f"{name} {figure}" for name, figure in figures.items())
        request.config.stash.setdefault(NOTES, []).append(
            f"{request.node.name}: {what}: {told}")
    return keep


def pytest_terminal_summary(terminalreporter, config):
    for line in config.stash.get(NOTES, []):
        terminalreporter.write_line(line)
    costs = config.stash.get(COSTS, [])
    if not costs:
        return
    width = max(len(name) for name, _ in costs)
    terminalreporter.section("ns per operation")
    terminalreporter.write_line(f"{'':{width}} {'median':>10} {'mad':>8} {'min':>10} {'max':>10} "
                                f"{'ticks':>10}")
    for name, c in costs:
        terminalreporter.write_line(f"{name:{width}} {c['median']:10.2f} {c['mad']:8.2f} "
                                    f"{c['min']:10.2f} {c['max']:10.2f} "
                                    f"{c['median'] * hz() / 1e9:10.1f}")
