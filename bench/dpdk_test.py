"""Debian's dpdk-test, driven through its prompt: figures of its ring and mempool autotests.

Its mempool autotest measures each of some 700 rows for 5 s by its own clock. A library that is
loaded before it tells it that the clock is SLOWER times as slow, so that a row takes 50 ms; what
it runs is unchanged.
"""
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PROGRAM = "dpdk-test"
WORDS = ["--no-huge", "-m", "1024", "--no-pci", "--no-telemetry", "--no-shconf"]
SLOWER = 100
CLOCK = """
#include <stdint.h>
uint64_t rte_get_tsc_hz(void) { return %d; }
"""
SECTION = re.compile(r"### Testing (?:using )?(.*?) ###")
RING = re.compile(r"legacy APIs: (SP/SC|MP/MC): (single|burst|bulk)(?: \(size: (\d+)\))?: ([\d.]+)")
MEMPOOL = re.compile(r"mempool_autotest cache=(\d+) cores=(\d+) n_get_bulk=(\d+) n_put_bulk=(\d+) "
                     r"n_keep=(\d+) constant_n=(\d) *rate_persec=(\d+)")


def missing() -> str | None:
    """Say what there is to install, or None."""
    if shutil.which(PROGRAM) is None:
        return f"{PROGRAM} is not installed: it is in Debian's package dpdk-dev"
    return None


@contextmanager
def lines_of(command: str, lcores: str, preload: str | None = None) -> Iterator[Iterator[str]]:
    """Have a command of the prompt run; the lines that it prints. It is ended at the exit."""
    run = subprocess.Popen([PROGRAM, "-l", lcores, *WORDS], stdin=subprocess.PIPE,
                           stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                           env={"LD_PRELOAD": preload, "PATH": "/usr/bin:/bin"} if preload
                           else None)
    try:
        run.stdin.write(f"{command}\n")
        run.stdin.flush()
        yield iter(run.stdout)
    finally:
        run.kill()
        run.wait()
        run.stdin.close()
        run.stdout.close()


def ring_row(section: str, line: str) -> tuple[tuple[str, str, int], float] | None:
    """Return (kind, call, burst) and ticks of a line of the ring autotest."""
    found = RING.search(line)
    if found is None:
        return None
    kind = found[1].lower().replace("/", "_")
    call = "empty" if "empty" in section else found[2]
    if "core" in section or "hyperthread" in section:
        call = "across"
    return (kind, call, int(found[3] or 1)), float(found[4])


def ring(lcores: str = "0") -> dict[tuple[str, str, int], float]:
    """Run the ring autotest; (kind, call, burst) -> ticks of a pair, or across: of an object.

    The rows of pointers, that is; it is ended where those of 16-byte elements begin.
    """
    rows: dict[tuple[str, str, int], float] = {}
    section = ""
    with lines_of("ring_perf_autotest", lcores) as lines:
        for line in lines:
            section = m[1] if (m := SECTION.search(line)) else section
            if row := ring_row(section, line):
                rows[row[0]] = row[1]
            # What comes next are all cores at once, which takes long, and then other elements.
            if "all worker" in section or "elem APIs" in line:
                break
    if len(rows) < 10:
        raise RuntimeError(f"{PROGRAM} printed {len(rows)} rows of its ring autotest")
    return rows


def slow_clock(folder: str, hz: int) -> str:
    """Build the library that tells a slower clock; its path."""
    source, library = Path(folder, "clock.c"), Path(folder, "clock.so")
    source.write_text(CLOCK % (hz // SLOWER))
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", str(library), str(source)], check=True)
    return str(library)


def mempool(wanted: set[tuple[int, int, bool]], hz: int) -> dict[tuple[int, int, bool], float]:
    """Run the mempool autotest until the wanted rows of one core with a cache have come.

    (keep, bulk, constant) -> ticks of the get and the put of one object. hz: of the clock.
    """
    rows: dict[tuple[int, int, bool], float] = {}
    with tempfile.TemporaryDirectory() as folder, \
            lines_of("mempool_perf_autotest", "0", slow_clock(folder, hz)) as lines:
        for line in lines:
            if found := MEMPOOL.search(line):
                cache, cores, get, put, keep, constant, rate = map(int, found.groups())
                if cache and cores == 1 and get == put and rate:
                    rows.setdefault((keep, get, bool(constant)), hz / (rate * SLOWER))
            if wanted <= rows.keys():
                return {row: rows[row] for row in wanted}
    raise RuntimeError(f"{PROGRAM} did not print {wanted - rows.keys()} of its mempool autotest")
