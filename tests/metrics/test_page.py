"""The page of --metrics, of the running program: its form, its values, when it cannot be had."""
import asyncio
import json
import re
import socket

import pytest

from tests.lib.blk_client import FLUSH, IN, OUT, Blk
from tests.lib.command import ROOT, Place
from tests.lib.prometheus import Page, free_port, get, promtool
from tests.lib.target import Target
from tests.test_command_refusals import refused
from vhostrt.metrics.families import BOUNDS, Edges, Rows
from vhostrt.metrics.text import PIECE_LINES, pieces

DOC = (ROOT / "docs/monitoring.md").read_text()


class Metered:
    """A target with one disk and its page."""

    def __init__(self):
        self.port = free_port()
        self.target = Target(disks=["malloc:8M"], extra=["--metrics", f"127.0.0.1:{self.port}"])
        self.name = self.target.socket().name

    def page(self) -> Page:
        """Return a page of now: one is told again for a fifth of a second."""
        first = self.look()
        while (page := self.look()).value("vhostrt_reactor_iterations_total", reactor=0) == \
                first.value("vhostrt_reactor_iterations_total", reactor=0):
            pass
        return page

    def look(self) -> Page:
        status, text = get(self.port, "/metrics")
        assert status == 200
        return Page(text.decode())


@pytest.fixture(scope="module")
def metered():
    made = Metered()
    with made.target:
        yield made


def test_the_form_is_as_promtool_wants_it(metered):
    with Blk(metered.target.socket(), queues=2) as blk:
        blk.write(0, bytes(512))
        metered.target.rpc("bdev_enable_histogram", name="Disk0", enable=True)
        assert promtool("check", "metrics", text=metered.page().text).strip() == ""


def test_values_of_known_requests(metered):
    with Blk(metered.target.socket(), queues=2) as blk:
        metered.target.rpc("bdev_enable_histogram", name="Disk0", enable=True, granularity=5)
        before = metered.page()
        for _ in range(3):
            blk.write(8, bytes(4096), 1)
        blk.read(0, 512, 1)
        blk.request(FLUSH, queue=1)
        blk.request(OUT, 0, out=bytes(3), queue=1)
        blk.request(IN, 1 << 40, read=512, queue=1)
        after = metered.page()

        def grown(name, **labels):
            return (after.value(name, **labels)
                    - before.samples.get((name, frozenset((k, str(v)) for k, v in labels.items())),
                                         0))

        queue = {"controller": metered.name, "queue": 1}
        for op, count, size in (("write", 4, 3 * 4096 + 3), ("read", 2, 1024), ("flush", 1, 0),
                                ("discard", 0, 0)):
            assert grown("vhostrt_queue_requests_total", op=op, **queue) == count
            assert grown("vhostrt_queue_bytes_total", op=op, **queue) == size
        for cause, count in (("misaligned", 1), ("out_of_range", 1), ("io_error", 0)):
            assert grown("vhostrt_queue_errors_total", cause=cause, **queue) == count
        assert grown("vhostrt_queue_calls_total", **queue) == 7
        for op, count in (("write", 3), ("read", 1), ("flush", 1)):
            assert grown("vhostrt_bdev_requests_total", bdev="Disk0", op=op) == count
        assert grown("vhostrt_bdev_bytes_total", bdev="Disk0", op="write") == 3 * 4096
        assert grown("vhostrt_bdev_latency_seconds_count", bdev="Disk0") == 5
        (session,) = {dict(key)["session"] for key in after.all("vhostrt_queue_size")}
        for name, value in (("inflight", 0), ("size", 256), ("reactor", 0), ("broken", 0)):
            assert after.value(f"vhostrt_queue_{name}", session=session, **queue) == value
        assert after.value("vhostrt_controller_info", controller=metered.name, bdev="Disk0",
                           socket=metered.target.socket()) == 1
        assert after.value("vhostrt_controller_sessions", controller=metered.name) == 1
        assert after.value("vhostrt_bdev_size_bytes", bdev="Disk0") == 8 << 20
        metered.target.rpc("bdev_enable_histogram", name="Disk0", enable=False)
        assert not metered.page().all("vhostrt_bdev_latency_seconds_count")


def test_histograms_are_whole(metered):
    with Blk(metered.target.socket()) as blk:
        for _ in range(50):
            blk.write(0, bytes(512))
        page = metered.page()
        labels = {"controller": metered.name, "queue": 0, "op": "write"}
        buckets = {dict(key)["le"]: value for key, value in page.all(
            "vhostrt_queue_latency_seconds_bucket", **labels).items()}
        counts = [buckets.pop(f"{bound:g}") for bound in BOUNDS]
        total = page.value("vhostrt_queue_latency_seconds_count", **labels)
        assert list(buckets) == ["+Inf"] and buckets["+Inf"] == total >= 50
        assert counts == sorted(counts) and counts[-1] == total
        # The sum lies between what the buckets allow.
        steps = [n - m for m, n in zip([0, *counts], counts, strict=False)]
        least = sum(n * bound for n, bound in zip(steps, [0, *BOUNDS], strict=False))
        most = sum(n * bound for n, bound in zip(steps, BOUNDS, strict=True))
        assert least * 15 / 16 <= page.value("vhostrt_queue_latency_seconds_sum", **labels) <= \
            most * 17 / 16
        waited = page.value("vhostrt_bdev_request_seconds_total", bdev="Disk0", op="write")
        assert 0 < waited <= sum(page.all("vhostrt_queue_latency_seconds_sum",
                                          op="write").values())


def test_reactors_threads_and_the_process(metered):
    with Blk(metered.target.socket()) as blk:
        blk.read(0, 512)
        page = metered.page()
        (thread,) = page.all("vhostrt_thread_reactor", thread=f"{metered.name}.vq0")
        assert page.all("vhostrt_thread_reactor")[thread] == 0
        assert page.samples["vhostrt_thread_busy_seconds_total", thread] > 0
        for name in ("busy_seconds_total", "idle_seconds_total", "events_total", "threads"):
            assert page.value(f"vhostrt_reactor_{name}", reactor=0) > 0
        assert page.value("process_resident_memory_bytes") > 1 << 20
        (version,) = page.all("vhostrt_build_info")
        told = metered.target.rpc("spdk_get_version")["version"].removeprefix("vhostrt v")
        assert dict(version)["version"] == told


def test_the_documents_and_the_page_name_the_same_metrics(metered):
    with Blk(metered.target.socket()) as blk:
        blk.read(0, 512)
        metered.target.rpc("bdev_enable_histogram", name="Disk0", enable=True)
        families = set(re.findall(r"^# TYPE (\w+)", metered.page().text, re.MULTILINE))
        metered.target.rpc("bdev_enable_histogram", name="Disk0", enable=False)
    listed = re.findall(r"^\| `(\w+)` \|", DOC[DOC.index("| metric |"):], re.MULTILINE)
    assert sorted(listed) == sorted(families)
    used = json.dumps(json.loads((ROOT / "docs/monitoring/grafana.json").read_text()))
    used += (ROOT / "docs/monitoring/alerts.yml").read_text()
    names = {re.sub(r"_(bucket|sum|count)$", "", name)
             for name in re.findall(r"\b(?:vhostrt|process)_\w+", used)}
    assert names <= families


# The other things

def test_a_metric_of_many_rows_comes_in_pieces_of_one_text():
    rows = Rows("a", "counter", "Help.", ("n",), (((n,), n) for n in range(3 * PIECE_LINES)))
    texts = list(pieces(rows))
    assert len(texts) == 3
    lines = b"".join(texts).decode().splitlines()
    assert lines[:2] == ["# HELP a_total Help.", "# TYPE a_total counter"]
    assert lines[2:] == [f'a_total{{n="{n}"}} {float(n)}' for n in range(3 * PIECE_LINES)]
    assert list(pieces(Rows("a", "gauge", "Help.", (), []))) == []
    text, = pieces(Rows("a", "gauge", "Help.", ("x",), [(("a\udcff\"\n",), 1)]))
    assert text.splitlines()[2] == b'a{x="a\\\\udcff\\"\\n"} 1.0'


def test_edges_of_histograms():
    from vhostrt.base import ticks
    from vhostrt.base.histogram import Histogram
    edges, histogram = Edges(), Histogram(7)
    for i, bound in enumerate(BOUNDS):
        histogram.count(int(bound * 0.98 * ticks.hz()), i + 1)
    wanted = [sum(range(i + 2)) for i in range(len(BOUNDS))]
    assert edges.cumulative(histogram) == [*wanted, wanted[-1]]


def test_a_unix_socket_and_its_end():
    with Place() as place:
        path = place.folder / "metrics"
        with place.start("--metrics", str(path)) as run:
            async def ask():
                reader, writer = await asyncio.open_unix_connection(str(path))
                writer.write(b"GET /metrics HTTP/1.0\r\n\r\n")
                text = await reader.read()
                writer.close()
                return text
            assert b"vhostrt_build_info" in asyncio.run(ask())
            run.stop()
        assert not path.exists() and "Traceback" not in run.said()


@pytest.fixture
def place():
    with Place() as one:
        yield one


@pytest.mark.parametrize("words, part, status", [
    (["--metrics"], "option --metrics needs a value", 2),
    (["--metrics", "localhost"], "option --metrics: 'localhost' is neither host:port", 2),
    (["--metrics", "localhost:99999"], "option --metrics: ", 2),
    (["--metrics", "192.0.2.1:9464"], "metrics address '192.0.2.1:9464' cannot be listened on", 1),
    (["--metrics", "/nowhere/m"], "metrics socket '/nowhere/m' cannot be made", 1),
])
def test_addresses_that_cannot_be_had(place, words, part, status):
    assert part in refused(place, *words, status=status)


def test_a_port_that_is_taken(place):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        assert "in use" in refused(place, "--metrics", f"127.0.0.1:{port}").lower()


def test_without_the_library_it_says_how_to_get_it(place):
    missing = place.folder / "prometheus_client.py"
    missing.write_text('raise ModuleNotFoundError("none", name="prometheus_client")\n')
    place.environment["PYTHONDONTWRITEBYTECODE"] = "1"
    place.environment["PYTHONPATH"] = f"{place.folder}:{place.environment['PYTHONPATH']}"
    said = refused(place, "--metrics", "127.0.0.1:9464")
    assert ("option --metrics needs the Python package prometheus-client: install it with pip "
            "install 'vhostrt[metrics]'") in said
