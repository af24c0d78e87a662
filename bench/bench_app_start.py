"""The command as a process: from exec to the first answer of its RPC, and from SIGTERM to its end.

Every round is a process of its own. Beside the time there is what it costs its main thread, which
another program on the machine disturbs less.
"""
import socket
import time
from pathlib import Path

import pytest

from tests.lib.command import Place

ROUNDS = 10
VERSION = b'{"jsonrpc":"2.0","id":1,"method":"spdk_get_version"}'


@pytest.fixture
def place():
    with Place() as one:
        yield one


def first_answer(path):
    """Connect as soon as the socket is there, and return the first bytes of an answer."""
    while True:
        with socket.socket(socket.AF_UNIX) as client:
            try:
                client.connect(str(path))
            except OSError:
                time.sleep(0.0005)
                continue
            client.sendall(VERSION)
            return client.recv(4096)


def cpu_ms(pid):
    """Return the milliseconds that the main thread of a process has run for."""
    return int(Path(f"/proc/{pid}/task/{pid}/schedstat").read_text().split()[0]) / 1e6


@pytest.mark.parametrize("words", [[], ["-s", "512"], ["--disk", "malloc:64M"]], ids=" ".join)
def bench_exec_to_first_answer(benchmark, place, words):
    cpu = []

    def start():
        runs.append(place.start(*words, ready=False))
        assert first_answer(place.rpc)

    def end():
        cpu.append(cpu_ms(runs[-1].pid))
        with runs[-1] as run:
            run.stop()
    runs = []
    benchmark.pedantic(start, teardown=end, rounds=ROUNDS, warmup_rounds=1)
    benchmark.extra_info["cpu_ms_median"] = sorted(cpu)[len(cpu) // 2]


@pytest.mark.parametrize("controllers", [0, 3])
def bench_sigterm_to_end(benchmark, place, controllers):
    words = ["--disk", "malloc:8M"] * controllers

    def started():
        return (place.start(*words),), {}

    def stop(run):
        run.stop()
    benchmark.pedantic(stop, setup=started, rounds=ROUNDS, warmup_rounds=1)
