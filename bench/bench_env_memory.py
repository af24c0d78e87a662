"""vhostrt.env.memory: the heap, zones by name, the first touch, and the start by memory mode.

The start is a process of its own, from exec to "environment ready", with 2 GiB of huge pages on the
machine; the modes take turns, and so does DPDK's own start where Debian's dpdk-test is installed.
"""
import os
import shutil
import statistics
import subprocess
import sys
import time

import pytest
from vhostrt.env import memory, zone
from vhostrt.env.options import EnvOptions

from bench import cy_env_memory
from tests.lib import hugepages

MIB, HUGE = 1 << 20, 2 << 20
GIB_PAGES = 1024                        # of 2 MiB: what the start has, 2 GiB
ROUNDS = 9


@pytest.fixture
def heap():
    """A heap with some blocks and spaces in it."""
    memory.init(EnvOptions(no_huge=True))
    blocks = [memory.zalloc(1 + n * 7919 % 20_000) for n in range(1000)]
    blocks = blocks[::2]
    yield
    del blocks
    memory.fini()


@pytest.mark.parametrize("size", [64, 4096, 65536, MIB])
def bench_heap_pair(per_op, heap, size):
    per_op(lambda n: cy_env_memory.pairs(size, n), max(1000, 20_000_000 // (size + 200)))


def bench_heap_mixed(per_op, heap):
    per_op(cy_env_memory.mixed, 100_000)


@pytest.mark.parametrize("zones", [10, 2560])
def bench_zone_lookup(per_op, heap, zones):
    made = [zone.reserve(f"bench-zone-{n}", 64) for n in range(zones)]
    per_op(lambda n: cy_env_memory.lookups(made[-1].name.encode(), n), 2_000_000 // zones)
    for one in made:
        one.free()


def bench_iova(per_op, heap):
    at = memory.segments()[0]["address"]
    per_op(lambda n: cy_env_memory.addresses(at, n), 1_000_000)


@pytest.mark.parametrize("kind", ["huge pages", "ordinary pages"])
def bench_first_touch(benchmark, kind):
    """512 MiB that nobody has touched yet, from the request to the return."""
    with hugepages.reserved(300 if kind == "huge pages" else 0) as there:
        def fresh():
            memory.fini()
            memory.init(EnvOptions(no_huge=kind != "huge pages" or not there))
            return (), {}

        def take():
            assert memory.zalloc(512 * MIB).address
        benchmark.pedantic(take, setup=fresh, rounds=ROUNDS, warmup_rounds=1)
        benchmark.extra_info["ns_per_page_of_4_kib"] = (
            benchmark.stats.stats.median * 1e9 / (512 * MIB / 4096))
        memory.fini()


# The start.

READY = """if 1:
    import time
    from vhostrt import env
    from vhostrt.env import memory
    with env.init(lcores=[0], huge_dir={directory!r}, {options}):
        print("environment ready", flush=True)
        t = time.perf_counter()
        both = [memory.zalloc(900 << 20) for _ in range(2)]     # pages may lie in pieces
        print(time.perf_counter() - t, flush=True)
        del both
"""
MODES = {
    "eager (legacy_mem, 2 GiB)": "legacy_mem=True, mem_size=2 << 30",
    "reserved (2 GiB)": "mem_size=2 << 30",
    "default": "",
}


def until(command, mark):
    """Start a process; return the seconds until it says something, and the rest of what it says."""
    start = time.perf_counter()
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT) as run:
        said = b""
        while mark not in said:
            more = os.read(run.stdout.fileno(), 65536)
            assert more, said
            said += more
        seconds = time.perf_counter() - start
        rest = run.communicate(b"quit\n")[0]
    return seconds, (said.partition(mark)[2] + rest).decode()


def ours(options, directory):
    """Start ours so; return seconds to ready, and those of the first use of 1800 MiB."""
    code = READY.format(options=options, directory=directory)
    seconds, rest = until([sys.executable, "-c", code], b"environment ready\n")
    return seconds, float(rest)


def dpdks(directory, *words):
    """Return the seconds of DPDK's start to its prompt."""
    return until(["dpdk-test", "-l", "0", "--no-pci", "--no-telemetry", "--huge-unlink",
                  "--huge-dir", directory, *words], b"RTE>>")[0]


def bench_start(benchmark, capsys, tmp_path):
    """All modes in turn; the table says seconds to ready, and the first use beside it.

    Both sides have the pages of 2 MiB alone: what is reserved of others is nobody's business here.
    """
    with (hugepages.reserved(GIB_PAGES) as there, hugepages.mounted(tmp_path) as mounted):
        if not there or not mounted:
            return
        with_dpdk = shutil.which("dpdk-test") is not None
        times, touches = {}, {}

        def turn():
            for mode, options in MODES.items():
                seconds, touch = ours(options, str(tmp_path))
                times.setdefault(mode, []).append(seconds)
                touches.setdefault(mode, []).append(touch)
            if with_dpdk:
                for words in (["--legacy-mem", "-m", "2048"], ["-m", "2048"], []):
                    name = " ".join(["dpdk-test", *words])
                    times.setdefault(name, []).append(dpdks(str(tmp_path), *words))
        benchmark.pedantic(turn, rounds=ROUNDS, warmup_rounds=1)
    medians = {mode: statistics.median(found[1:]) for mode, found in times.items()}
    benchmark.extra_info["seconds_to_ready"] = medians
    benchmark.extra_info["seconds_of_first_1800_mib"] = {
        mode: statistics.median(found[1:]) for mode, found in touches.items()}
    eager = medians.get("dpdk-test --legacy-mem -m 2048", medians["eager (legacy_mem, 2 GiB)"])
    with capsys.disabled():
        print("\nseconds from exec to ready with 2 GiB of huge pages, median of "
              f"{ROUNDS}; ratio to the eager start of DPDK; first use of 1800 MiB")
        for mode, seconds in medians.items():
            touch = statistics.median(touches[mode][1:]) if mode in touches else None
            print(f"  {mode:32} {seconds:7.3f} {seconds / eager:7.2f}  "
                  f"{'' if touch is None else f'{touch:7.3f}'}")
