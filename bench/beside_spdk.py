"""Events and pollers beside SPDK's: its event_perf, reactor_perf and poller_perf, and the same work
here, in alternation on the same CPU.

    python -m bench.beside_spdk SPDK [--rounds 9] [--only event] [--through "sudo"]

SPDK: a directory in which SPDK was built, its tests too. It needs huge pages, and root.
Both are measured by their own clocks: events a second, and ticks of a poll, which are those in
which the thread was busy, divided by the polls.
"""
import argparse
import os
import re
import statistics
import subprocess
import sys

from vhostrt.base.ticks import hz
from vhostrt.env import lcore, memory
from vhostrt.event import reactor

from bench import cy_event

EVENTS = 12_000_000
RUNS = 20_000_000
SECONDS = "1"
CPU = 0                                 # reactor_perf has no option for another one
NUMBER = re.compile(r"lcore +\d+: +(\d+)|Performance: +(\d+)")
POLLS = re.compile(r"busy:(\d+).*?total_run_count: (\d+).*?tsc_hz: (\d+)", re.S)


def events_here(kind, in_flight):
    return lambda: EVENTS / cy_event.events(kind, in_flight, EVENTS) / 1e6


def events_there(program, *words):
    def run():
        found = NUMBER.findall(spdk(program, *words))
        return int("".join(found[-1])) / 1e6
    return run


def polls_here(count, period_us):
    return lambda: 1e9 * cy_event.pollers(count, period_us, RUNS)[1] / RUNS


def polls_there(count, period_us):
    def run():
        busy, runs, tsc_hz = map(int, POLLS.search(spdk(
            "test/thread/poller_perf/poller_perf", "-m", "0x1", "-b", str(count), "-l",
            str(period_us), "-t", SECONDS)).groups())
        return 1e9 * busy / runs / tsc_hz
    return run


def spdk(program, *words):
    """Run one of its programs; return what it printed."""
    done = subprocess.run([*options.through.split(), f"{options.spdk}/{program}", *words],
                          stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout


def cases():
    """Yield (name, unit, whether more is better, here, there)."""
    yield ("event_perf", "M events/s", True, events_here("event_perf", 4),
           events_there("test/event/event_perf/event_perf", "-m", "0x1", "-t", SECONDS))
    for depth in (1, 4, 32):
        yield (f"reactor_perf -q {depth}", "M events/s", True, events_here("reactor_perf", depth),
               events_there("test/event/reactor_perf/reactor_perf", "-q", str(depth), "-t",
                            SECONDS))
    for period_us in (0, 1):
        for count in (100, 1000):
            yield (f"poller_perf -b {count} -l {period_us}", "ns a poll", False,
                   polls_here(count, period_us), polls_there(count, period_us))


def compare(name, unit, more, here, there):
    found = [(here(), there()) for _ in range(options.rounds)]
    ours, theirs = ([pair[i] for pair in found] for i in (0, 1))
    ratios = [a / b if more else b / a for a, b in found]
    print(f"| {name} | {unit} | {spread(theirs)} | {spread(ours)} | "
          f"{statistics.median(ratios):.2f} |", flush=True)


def spread(values):
    return f"{statistics.median(values):.1f} ({min(values):.1f} to {max(values):.1f})"


def main():
    """Run the cases, with a reactor on the CPU that SPDK's programs get too."""
    lcore.init({0: (CPU,)})
    lcore.control_affinity([0])
    memory.init()
    reactor.init([0], "spin")
    print(f"TSC {hz() / 1e9:.3f} GHz, load {os.getloadavg()[0]:.1f}")
    print("| | unit | SPDK | vhostrt | ratio |\n| --- | --- | --- | --- | --- |")
    for case in cases():
        if options.only in case[0]:
            compare(*[started(f) if f is case[3] else f for f in case])
    reactor.fini()
    lcore.fini()
    memory.fini()


def started(here):
    """Have the reactor run for one measure only: SPDK's gets the CPU to itself, too."""
    def run():
        reactor.start()
        try:
            here()                      # pools and caches fill
            return here()
        finally:
            reactor.stop()
    return run


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("spdk")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--only", default="", help="those with this in their names")
    parser.add_argument("--through", default="", help="words in front of SPDK's programs")
    options = parser.parse_args()
    sys.exit(main())
