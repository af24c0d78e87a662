"""The program traces, and vhostrt-trace shows it: alive, ended, killed."""
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.lib.blk_client import FLUSH, IN, OUT, Blk
from tests.lib.command import Place

BLOCK = 4096
SHM = Path("/dev/shm")


def reader_words():
    """Return the words that run vhostrt-trace: the console command beside this Python, or -m."""
    installed = shutil.which("vhostrt-trace", path=os.path.dirname(sys.executable))
    return [installed] if installed else [sys.executable, "-m", "vhostrt.tools.trace"]


def shown(*words, status=0):
    """Run vhostrt-trace; return what it printed."""
    done = subprocess.run([*reader_words(), *map(str, words)], capture_output=True, text=True,
                          timeout=60)
    assert done.returncode == status, done.stderr
    return done.stdout if status == 0 else done.stderr


def rows(*words):
    return [json.loads(line) for line in shown("--json", *words).splitlines()]


def file_of(run):
    return SHM / f"vhostrt_trace.pid{run.pid}"


@pytest.fixture
def place():
    with Place() as one:
        yield one


def serve(place, *words):
    """Start the program with a RAM disk."""
    return place.start("--disk", "malloc:8M,name=ram,socket=ram", *words)


def some_requests(place):
    """Write, read and flush 4 KiB, three times; return how many requests that was."""
    with Blk(place.sockets / "ram") as blk:
        for n in range(3):
            assert blk.request(OUT, 8 * n, b"x" * BLOCK).status == 0
            assert blk.request(IN, 8 * n, read=BLOCK).data == b"x" * BLOCK
            assert blk.request(FLUSH).status == 0
    return 9


def test_requests_of_a_guest_as_they_went(place):
    with serve(place, "-e", "bdev:BDEV_IO_START+BDEV_IO_DONE,vhost_blk") as run:
        count = some_requests(place)
        found = rows("-p", run.pid)
        assert [row["lcore"] for row in found] == [found[0]["lcore"]] * len(found)
        names = [row["point"] for row in found]
        assert names.count("VHOST_BLK_POP") == names.count("VHOST_BLK_COMPLETE") == count
        popped = [row["args"] for row in found if row["point"] == "VHOST_BLK_POP"]
        assert [(args["type"], args["sector"], args["bytes"]) for args in popped[:3]] == [
            ("OUT", 0, BLOCK), ("IN", 0, BLOCK), ("FLUSH", 0, 0)]
        started = [row["args"] for row in found if row["point"] == "BDEV_IO_START"]
        assert [(args["type"], args["offset"], args["blocks"]) for args in started[:4]] == [
            ("write", 0, 8), ("read", 0, 8), ("flush", 0, 0), ("write", 8, 8)]
        ended = [row for row in found if row["point"] in ("BDEV_IO_DONE", "VHOST_BLK_COMPLETE")]
        assert len(ended) == count + len(started)
        assert all(row["took_us"] > 0 and row["args"].get("rc", 0) == 0 for row in ended)
        assert {row["args"]["status"] for row in ended if "status" in row["args"]} == {"OK"}
        run.stop()
    assert not file_of(run).exists()


def test_points_turned_on_while_a_guest_is_at_work(place):
    """Threads that were there before the trace are named in it as those that come later."""
    with serve(place) as run, Blk(place.sockets / "ram") as blk:
        blk.request(IN, read=BLOCK)
        assert not file_of(run).exists()
        run.rpc("trace_enable_tpoint_group", name="vhost_blk")
        run.rpc("trace_set_tpoint_mask", name="bdev", tpoint_mask=1)
        blk.request(IN, read=BLOCK)
        some_requests(place)
        found = rows("-p", run.pid)
        assert {row["point"] for row in found} == {"VHOST_BLK_POP", "VHOST_BLK_COMPLETE",
                                                   "BDEV_IO_START"}
        assert {row["owner"] for row in found} == {"ram.vq0"}
        assert [row["args"]["type"] for row in found[:2]] == ["IN", "read"]
        run.rpc("trace_disable_tpoint_group", name="all")
        some_requests(place)
        assert rows("-p", run.pid) == found
        run.rpc("trace_clear")
        assert rows("-p", run.pid) == []
        run.stop()


def test_what_the_reactors_do(place):
    with serve(place, "-e", "reactor,thread", "--idle", "sleep") as run:
        some_requests(place)
        found = rows("-p", run.pid)
        points = {row["point"] for row in found}
        assert {"REACTOR_ATTACH", "REACTOR_EVENT", "REACTOR_EVENT_DONE", "REACTOR_SLEEP",
                "REACTOR_WAKE", "THREAD_BUSY"} <= points
        assert "ram.vq0" in {row["owner"] for row in found if row["point"] == "THREAD_BUSY"}
        assert all("took_us" in row for row in found if row["point"] == "THREAD_BUSY")
        run.stop()


def test_channels_that_threads_get_and_give_back(place):
    """The channel is the one that its requests name."""
    with serve(place, "-e", "thread:THREAD_IOCH_GET+THREAD_IOCH_PUT,bdev:BDEV_IO_START") as run:
        with Blk(place.sockets / "ram") as blk:
            number = {t["name"]: t["id"] for t in run.rpc("thread_get_stats")["threads"]}["ram.vq0"]
            assert blk.request(IN, 0, read=BLOCK).status == 0
        wait_until(lambda: "THREAD_IOCH_PUT" in shown("-p", run.pid))
        found = rows("-p", run.pid)
        channel, = {row["args"]["channel"] for row in found if row["point"] == "BDEV_IO_START"}
        assert int(channel, 16)
        assert [(row["point"], row["args"]) for row in found if row["group"] == "thread"] == [
            (f"THREAD_IOCH_{what}", {"device": "bdev_ram", "channel": channel, "refs": refs,
                                     "id": number}) for what, refs in (("GET", 1), ("PUT", 0))]
        run.stop()


def test_what_a_scheduler_sees_and_moves(place):
    """A queue without work goes to the main core, with the entries of each look before."""
    with serve(place, "-m", "0x3", "-e", "scheduler") as run, \
            Blk(place.sockets / "ram", 2) as blk:
        ids = {t["name"]: t["id"] for t in run.rpc("thread_get_stats")["threads"]}
        run.rpc("framework_set_scheduler", name="dynamic", period=20_000, load_limit=100)
        wait_until(lambda: "SCHEDULER_MOVE_THREAD" in shown("-p", run.pid))
        found = rows("-p", run.pid)
        points = [row["point"].removeprefix("SCHEDULER_") for row in found]
        move = points.index("MOVE_THREAD")
        assert found[move]["args"] == {"id": ids["ram.vq1"], "from": 1, "to": 0, "rc": 0}
        first = move - points[move::-1].index("PERIOD_START")
        us = found[first]["args"]["took_us"]
        assert us >= 20_000
        look = found[first + 1:move]
        assert points[first + 1:move] == ["CORE_STATS", "THREAD_STATS"] * 2
        assert [row["args"]["core"] for row in look] == [0, 0, 1, 1]
        assert [row["args"]["id"] for row in look[1::2]] == [ids["ram.vq0"], ids["ram.vq1"]]
        assert all(row["args"]["busy_us"] + row["args"]["idle_us"] == us for row in look)
        blk.stop()
        run.stop()


def wait_until(condition):
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, "it never came"


def test_what_is_said_at_the_start(place):
    with serve(place, "-e", "bdev") as run:
        said = run.said()
        assert "*NOTICE*: Tracepoint Group Mask bdev specified." in said
        assert (f"*NOTICE*: Use 'vhostrt-trace -p {run.pid}' to capture a snapshot of events at "
                "runtime.") in said
        assert "traced now: bdev\n" in shown("-p", run.pid)
        assert f"process {run.pid}, which runs" in shown("-f", file_of(run))
        run.stop()


def test_no_file_without_a_wish_for_one(place):
    with serve(place, "--num-trace-entries", "64") as run:
        some_requests(place)
        assert not file_of(run).exists()
        run.stop()


@pytest.mark.parametrize("words, sentence", [
    (["-e", "nope"], "option -e: 'nope' is no trace group and no mask of them; there are bdev ("),
    (["-e", "bdev:NOPE"], "group bdev has BDEV_IO_START, BDEV_IO_DONE"),
    (["-e", "bdev", "--num-trace-entries", "0"], "started with --num-trace-entries 0"),
])
def test_a_bad_wish_fails_the_start(place, words, sentence):
    done = place.run(*words)
    assert done.returncode == 1 and sentence in done.stderr and "Traceback" not in done.stderr


def test_the_global_section_is_followed(place):
    (place.folder / "conf").write_text('[Global]\nTpointGroupMask "0x8"\n')
    with serve(place, "-c", str(place.folder / "conf")) as run:
        some_requests(place)
        assert {row["group"] for row in rows("-p", run.pid)} == {"bdev"}
        run.stop()


def test_a_process_that_was_killed(place):
    with serve(place, "-e", "vhost_blk,bdev", "--num-trace-entries", "16") as run:
        some_requests(place)
        run.process.send_signal(signal.SIGKILL)
        run.wait()
    try:
        text = shown("-p", run.pid)
        assert f"process {run.pid}, which has ended" in text
        found = [row for row in rows("-p", run.pid) if row["lcore"] is not None]
        assert found[-1]["point"] == "VHOST_BLK_COMPLETE" and len(found) == 16
        assert "16 entries, " in text and "older ones are overwritten" in text
    finally:
        file_of(run).unlink()


def test_an_id_names_the_trace_and_is_one_process_alone(place):
    # An id that nobody else uses: this process's number.
    number = str(os.getpid())
    path = SHM / f"vhostrt_trace.{number}"
    with serve(place, "-e", "bdev", "-i", number) as run:
        assert f"Use 'vhostrt-trace -i {number}'" in run.said()
        with Place() as other:
            done = other.run("-e", "bdev", "-i", number)
            assert done.returncode == 1
            assert f"{path} is in use by another process" in done.stderr
        assert f"process {run.pid}, which runs" in shown("-i", number)
        run.process.send_signal(signal.SIGKILL)
        run.wait()
    assert path.exists()
    with Place() as other, other.start("-e", "bdev", "-i", number) as run:
        assert f"process {run.pid}, which runs" in shown("-i", number)
        run.stop()
    assert not path.exists()


def test_follow_shows_what_comes_until_the_end(place):
    with serve(place, "-e", "vhost_blk") as run:
        words = [*reader_words(), "-p", str(run.pid), "--follow", "--json"]
        with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as follower:
            first = some_requests(place)
            lines = [follower.stdout.readline() for _ in range(2 * first)]
            second = some_requests(place)
            run.stop()
            lines += follower.stdout.readlines()
        assert follower.returncode == 0 and len(lines) == 2 * (first + second)
        points = [json.loads(line)["point"] for line in lines]
        assert points.count("VHOST_BLK_POP") == first + second


def test_follow_ends_at_ctrl_c_with_a_last_look(place, tmp_path):
    with serve(place, "-e", "vhost_blk") as run:
        path = tmp_path / "chrome.json"
        words = [*reader_words(), "-p", str(run.pid), "--follow", "--chrome", str(path)]
        with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as follower:
            # It listens to the signal before it opens the file.
            run.await_that(lambda: has_open(follower.pid, file_of(run)), "the follower")
            count = some_requests(place)
            follower.send_signal(signal.SIGINT)
            assert f"{2 * count} entries written to {path}" in follower.stderr.read()
        assert follower.returncode == 0
        events = json.loads(path.read_text())["traceEvents"]
        assert sum(event["ph"] == "b" for event in events) == count
        run.stop()


def has_open(pid, path):
    """Return whether a process has a file open."""
    names = []
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            names.append(os.readlink(fd))
    return str(path) in names
