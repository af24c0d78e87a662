"""The programs of Debian's package `prometheus`, and pages of metrics as tests look at them."""
import contextlib
import http.client
import json
import re
import shutil
import socket
import subprocess
import time
import urllib.parse

START_S = 60
SAMPLE = re.compile(r'^(\w+)(?:\{(.*)\})? (\S+)$')
LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


def program(name: str) -> str:
    found = shutil.which(name)
    assert found, f"these tests need {name}: install it with 'apt-get install prometheus'"
    return found


def promtool(*words: str, text: str | None = None) -> str:
    """Run promtool, which must find nothing wrong; return what it said."""
    done = subprocess.run([program("promtool"), *words], input=text, capture_output=True,
                          text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def get(port: int, path: str) -> tuple[int, bytes]:
    """Ask a server on this machine for a page."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


class Page:
    """The samples of a page: {(name, frozenset of (label, value)): value}."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.samples = {}
        for line in text.splitlines():
            if not line.startswith("#"):
                name, labels, value = SAMPLE.match(line).groups()
                key = (name, frozenset(LABEL.findall(labels or "")))
                assert key not in self.samples, f"{line} is told twice"
                self.samples[key] = float(value)

    def value(self, name: str, **labels) -> float:
        return self.samples[name, frozenset((k, str(v)) for k, v in labels.items())]

    def all(self, name: str, **labels) -> dict[frozenset, float]:
        """Return what there is of one name with at least these labels."""
        wanted = {(k, str(v)) for k, v in labels.items()}
        return {key: value for (each, key), value in self.samples.items()
                if each == name and wanted <= key}

    def names(self) -> set[str]:
        return {name for name, _ in self.samples}


class Prometheus:
    """A running Prometheus. query() asks it for an expression."""

    def __init__(self, port: int, process) -> None:
        self.port = port
        self.process = process

    def ask(self, path: str, **params):
        query = urllib.parse.urlencode(params)
        status, text = get(self.port, f"/api/v1/{path}?{query}")
        reply = json.loads(text)
        assert status == 200 and reply["status"] == "success", reply
        return reply["data"]

    def query(self, expression: str) -> list[tuple[dict, float]]:
        """Return [(labels, value)] of an expression at this moment."""
        return [(each["metric"], float(each["value"][1]))
                for each in self.ask("query", query=expression)["result"]]

    def await_ready(self) -> None:
        end = time.monotonic() + START_S
        while True:
            assert self.process.poll() is None, "Prometheus has ended"
            with contextlib.suppress(OSError):
                if get(self.port, "/-/ready")[0] == 200:
                    return
            assert time.monotonic() < end, "Prometheus is not ready"
            time.sleep(0.05)


@contextlib.contextmanager
def prometheus(folder, config: str):
    """Run a Prometheus in a folder with this configuration."""
    (folder / "prometheus.yml").write_text(config)
    port = free_port()
    with open(folder / "prometheus.log", "wb") as log:
        process = subprocess.Popen(
            [program("prometheus"), f"--config.file={folder}/prometheus.yml",
             f"--storage.tsdb.path={folder}/data", f"--web.listen-address=127.0.0.1:{port}"],
            stdout=log, stderr=log, stdin=subprocess.DEVNULL)
    try:
        running = Prometheus(port, process)
        running.await_ready()
        yield running
    finally:
        process.terminate()
        process.wait(30)
