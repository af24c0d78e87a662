"""vhostrt.metrics: what a scrape takes, and what it does to the RPC, of a disk with many queues.

A client in Python has a disk of 256 queues open, and each of them has done requests.  The page is
asked for again and again; meanwhile another client asks for the version, one call after the other.
"""
import statistics
import threading
import time

import pytest
from tests.lib.blk_client import Blk
from tests.lib.prometheus import free_port, get
from tests.lib.rpc_server import Client
from tests.lib.target import Target

SCRAPES = 20
PAUSE_S = 0.25                          # a page is told again for a fifth of a second


def ms(seconds):
    return f"{1000 * seconds:.2f} ms"


def calls(target, over):
    """Call the RPC until `over` is set; return how long each took."""
    took = []
    with Client(str(target.rpc_path)) as client:
        while not over.is_set():
            start = time.perf_counter()
            client.call("spdk_get_version", None)
            took.append(time.perf_counter() - start)
            time.sleep(0.001)
    return sorted(took)


def of(took):
    return {"p50": ms(took[len(took) // 2]), "p99": ms(took[len(took) * 99 // 100]),
            "most": ms(took[-1])}


@pytest.mark.parametrize("queues", [1, 256])
def bench_scrape(note, queues):
    port = free_port()
    with Target(extra=["--metrics", f"127.0.0.1:{port}"], mask="0x1") as target, \
            Blk(target.socket(), queues, 16) as blk:
        for queue in range(queues):
            blk.write(0, bytes(512), queue)
            blk.read(0, 512, queue)
        for scraping in (False, True):
            over, found = threading.Event(), []
            thread = threading.Thread(target=lambda o=over, f=found: f.extend(calls(target, o)))
            thread.start()
            took, size = [], 0
            for _ in range(SCRAPES):
                time.sleep(PAUSE_S)
                if scraping:
                    start = time.perf_counter()
                    _, text = get(port, "/metrics")
                    took.append(time.perf_counter() - start)
                    size = len(text)
            over.set()
            thread.join()
            if scraping:
                note("a scrape", median=ms(statistics.median(took)), most=ms(max(took)),
                     size=f"{size // 1000} kB")
            note("RPC meanwhile" if scraping else "RPC alone", **of(found))
