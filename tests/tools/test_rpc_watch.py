"""vhostrt-rpc watch: what happens is printed when it happens."""
import json
import re
import signal
import subprocess
import time

import pytest

from tests.lib.target import Target
from tests.tools.test_rpc import COMMAND, ENVIRONMENT, fake, run


@pytest.fixture(scope="module")
def target():
    with Target(disks=()) as running:
        yield running


class Watch:
    """A running `vhostrt-rpc watch`; its lines are read one by one."""

    def __init__(self, address, *words):
        self.process = subprocess.Popen([*COMMAND, "-s", str(address), "watch", *words], cwd="/",
                                        env=ENVIRONMENT, text=True, stdout=subprocess.PIPE,
                                        stderr=subprocess.PIPE)

    def line(self):
        return self.process.stdout.readline().rstrip("\n")

    def end(self, status=0):
        """Return what it still says; it ends by itself, or has been told to."""
        out, err = self.process.communicate(timeout=60)
        assert self.process.returncode == status, (out, err)
        return out + err

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.process.kill()
        self.process.communicate()


def make(target, name):
    target.rpc("bdev_null_create", name=name, num_blocks=8, block_size=512)


def delete(target, name):
    target.rpc("bdev_null_delete", name=name)


def next_id(target):
    kept = target.rpc("notify_get_notifications")
    return kept[-1]["id"] + 1 if kept else 0


def test_lines_as_it_happens(target):
    with Watch(target.rpc_path, "--from", str(next_id(target))) as watch:
        make(target, "a")
        assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3}  bdev_register +a",
                            watch.line())
        delete(target, "a")
        assert watch.line().endswith("  a") and watch.process.poll() is None
        watch.process.send_signal(signal.SIGINT)
        assert watch.end() == ""


def test_json_of_the_past(target):
    make(target, "b")
    delete(target, "b")
    kept = target.rpc("notify_get_notifications")
    first = kept[-2]["id"]
    said = run(target.rpc_path, "watch", "--from", first, "--count", 2, "--json")
    assert [json.loads(line) for line in said.splitlines()] == kept[-2:]
    said = run(target.rpc_path, "watch", "--from", 0, "--count", 1, "--type", "bdev_unregister")
    assert "bdev_unregister" in said and said.count("\n") == 1
    assert "'types' must be among" in run(target.rpc_path, "watch", "--type", "x", status=1)


def test_the_end_of_the_target():
    with Target(disks=()) as target, Watch(target.rpc_path, "--from", "0") as watch:
        make(target, "a")
        assert watch.line().endswith("  a")
        target.process.send_signal(signal.SIGTERM)
        assert "ended the connection" in watch.end(4)


def test_lost_ones_and_a_target_that_cannot_wait(tmp_path):
    kept = [{"type": "bdev_register", "ctx": f"M{n}", "id": n} for n in range(5, 9)]

    def get(request):
        first = request.get("params", {}).get("id", 0)
        return {"result": [event for event in kept if event["id"] >= first]}

    with fake(tmp_path, {"notify_get_notifications": get}) as (path, _):
        said = run(path, "watch", "--from", 2, "--count", 4, "--json").splitlines()
        assert [json.loads(line) for line in said] == [{"lost": 3}, *kept]
        done = subprocess.run([*COMMAND, "-s", str(path), "watch", "--from", "0", "--count", "1"],
                              env=ENVIRONMENT, cwd="/", capture_output=True, text=True, timeout=60)
        assert done.returncode == 0 and "5 notifications are lost" in done.stderr
        assert done.stdout.split() == ["bdev_register", "M5"]
        with Watch(path) as watch:      # from now on
            time.sleep(1)
            kept.append({"type": "bdev_unregister", "ctx": "M7", "id": 9})
            assert watch.line().split() == ["bdev_unregister", "M7"]


def test_help():
    said = subprocess.run([*COMMAND, "watch", "--help"], env=ENVIRONMENT, cwd="/", text=True,
                          capture_output=True, timeout=60)
    assert said.returncode == 0 and "--from ID" in said.stdout
