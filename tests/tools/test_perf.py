"""vhostrt-perf on targets that run: vhostrt's own, and QEMU's storage daemon."""
import contextlib
import fcntl
import os
import pty
import random
import signal
import struct
import subprocess
import termios
import threading
import time

import pytest

from tests.e2e.tools import need
from tests.lib.perf import Relay, perf, perf_json, refused, start
from tests.lib.target import Target
from tests.lib.vhost_client import F_PROTOCOL, Msg

MAIN, READ_ONLY, FILE = range(3)
SIZE = 16 << 20
CPU = max(os.sched_getaffinity(0))


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    path = tmp_path_factory.mktemp("perf") / "disk.img"
    path.write_bytes(random.Random(1).randbytes(SIZE))
    return path


@pytest.fixture(scope="module")
def target(image):
    with Target(["malloc:64M", "malloc:16M,ro", str(image)]) as running:
        yield running


@pytest.fixture
def disk(target):
    return target.socket(MAIN)


def test_reads_unless_told(target, image):
    before = image.read_bytes()
    found = perf_json(target.socket(FILE), "--time", 0.5)
    assert list(found["kinds"]) == ["read"] and found["ok"] and found["options"]["rw"] == "randread"
    assert found["all"]["ios"] > 0 and found["all"] == found["kinds"]["read"]
    assert found["all"]["bytes"] == 4096 * found["all"]["ios"]
    assert found["seconds"] >= 0.5 and found["target"]["capacity"] == SIZE
    assert sum(count for *_, count in found["all"]["histogram_us"]) == found["all"]["ios"]
    latency = found["all"]["latency_us"]
    assert 0 < latency["min"] <= latency["percentiles"]["50"] <= latency["max"]
    assert latency["min"] <= latency["mean"] <= latency["max"]
    assert image.read_bytes() == before


def test_what_people_see(disk):
    out, err = perf(disk, "--time", 2.2, "--histogram")
    heading, seconds, titles, row, *histogram = out.splitlines()
    assert heading == (f"{disk}: randread of 4 KiB in 64 MiB; 1 x 32 in flight, rings of 128, "
                       "EVENT_IDX, polling")
    assert float(seconds.split()[0]) >= 2.2 and titles.split()[:3] == ["requests", "IOPS", "MB/s"]
    assert row.split()[0] == "read" and int(row.split()[1]) > 0
    assert histogram[1] == "read:" and histogram[-1].split()[4] == "100.0000%"
    lines = err.splitlines()
    assert len(lines) == 2 and all("IOPS" in line and "p99" in line for line in lines)


def test_quiet(disk):
    assert perf(disk, "--time", 1.2, "--quiet")[1] == ""


@pytest.mark.parametrize("words", [
    ["-n", 2], ["--interrupt"], ["--indirect"], ["--indirect", "--interrupt", "-n", 2],
    ["--bs", "512:1,4k:5,128k:1"], ["-q", 1], ["-q", 200, "--ring-size", 1024],
    ["--cores", CPU], ["--rw", "read"], ["--rw", "rw", "--rwmixread", 20], ["--seed", 9]],
    ids=lambda words: " ".join(map(str, words)))
def test_so_many_requests(disk, words):
    found = perf_json(disk, "--ios", 3001, *words)
    assert found["ok"] and found["all"]["ios"] == 3001


def test_a_mix_with_flushes(disk):
    kinds = perf_json(disk, "--rw", "randrw", "--rwmixread", 25, "--flush", 10, "--ios", 5000)[
        "kinds"]
    assert set(kinds) == {"read", "write", "flush"}
    assert 1000 < kinds["read"]["ios"] < 1500
    assert kinds["write"]["ios"] // 10 - 1 <= kinds["flush"]["ios"] <= kinds["write"]["ios"] // 10
    assert kinds["flush"]["bytes"] == 0


def test_only_the_area_is_written(target, image):
    before = image.read_bytes()
    perf(target.socket(FILE), "--rw", "write", "--offset", "1M", "--size", "1M", "--ios", 256,
         "-n", 2)
    after = image.read_bytes()
    first, end = 1 << 20, 2 << 20
    assert after[:first] == before[:first] and after[end:] == before[end:]
    assert all(after[at:at + 4096] != before[at:at + 4096] for at in range(first, end, 4096))


def test_a_rate_is_kept(disk):
    found = perf_json(disk, "--rate-iops", 500, "--time", 2, "-n", 2)
    # What was missed is made good for 10 ms.
    assert 0 < found["all"]["iops"] < 540
    found = perf_json(disk, "--rate", "4M", "--bs", "64k", "--time", 2)
    assert 0 < found["all"]["bytes_per_second"] < (4 << 20) * 1.2


def test_a_ramp_is_not_counted(disk):
    found = perf_json(disk, "--ramp", 1, "--time", 2, "--rate-iops", 400)
    assert 0.9 < found["seconds"] < 30 and found["all"]["ios"] < 500


def test_the_course(disk):
    course = perf_json(disk, "--time", 3.2)["course"]
    assert len(course) in (3, 4) and all(one["iops"] >= 0 for one in course)
    assert course[0]["at"] < course[1]["at"] < course[2]["at"]


@pytest.mark.parametrize("ending", ["png", "svg", "html", "pdf"])
def test_a_plot(disk, tmp_path, ending):
    picture = tmp_path / f"plot.{ending}"
    perf(disk, "--time", 0.3, "--quiet", "--rw", "randrw", "--plot", picture)
    start_of = {"png": b"\x89PNG", "svg": b"<?xml", "html": b"<!DOCTYPE html>", "pdf": b"%PDF"}
    assert picture.read_bytes().startswith(start_of[ending])
    if ending == "html":
        assert b"<svg" in picture.read_bytes()


def test_a_result_in_a_file(disk, tmp_path):
    out, _ = perf(disk, "--time", 0.2, "--json", tmp_path / "result")
    assert "randread" in out and (tmp_path / "result").read_text().startswith("{")


def test_a_result_that_cannot_be_written(disk, tmp_path):
    path = tmp_path / "no" / "result"
    _, err = perf(disk, "--time", 0.2, "--quiet", "--json", path, status=1)
    assert err == f"vhostrt-perf: the result cannot be written: {path}: No such file or directory\n"


# Verification

@pytest.mark.parametrize("words", [
    ["--rw", "randwrite"], ["--rw", "randrw", "--bs", "512,4k,20k"], ["--rw", "rw", "-n", "2"],
    ["--rw", "randwrite", "--interrupt", "--indirect"]], ids=lambda words: " ".join(words))
def test_what_was_written_is_there(target, words):
    found = perf_json(target.socket(FILE), *words, "--verify", "--ios", 3000)
    assert found["ok"] and found["verify"]["sectors"] > 1000 and found["verify"]["wrong"] == 0


def test_a_planted_corruption_is_found(tmp_path):
    """Another run finds the byte that was flipped in the file behind the disk."""
    image = tmp_path / "disk.img"
    with open(image, "wb") as file:
        file.truncate(SIZE)
    with Target([str(image)]) as target:
        path = target.socket()
        perf(path, "--rw", "write", "--verify", "--ios", SIZE // 4096, "--quiet")
        assert perf_json(path, "--rw", "read", "--verify", "--ios", SIZE // 4096)["verify"] == {
            "sectors": SIZE // 512, "wrong": 0, "first": []}
    with open(image, "r+b") as file:
        file.seek(5_000_000)
        byte = file.read(1)[0]
        file.seek(5_000_000)
        file.write(bytes([byte ^ 0x10]))
    with Target([str(image)]) as target:
        out, err = perf(target.socket(), "--rw", "read", "--verify", "--ios", SIZE // 4096,
                        "--quiet", status=1)
    assert f"byte {5_000_000 // 512 * 512}: the sector is damaged" in out
    assert err == "vhostrt-perf: 1 sectors are not what was written\n"


# Refusals

@pytest.mark.parametrize(("disk", "words", "text"), [
    (READ_ONLY, ["--rw", "randwrite"], "the disk is read-only, and --rw randwrite would write"),
    (MAIN, ["-n", 256, "--offset", "63M", "--size", "2M"], "the disk ends at byte 67108864"),
    (MAIN, ["--bs", "32M", "-n", 3, "--size", "64M", "--offset", 0], "less than a block"),
    (MAIN, ["--offset", "64M"], "the disk ends at byte 67108864, before the area does"),
    (MAIN, ["--bs", "48M", "-n", 2], "an area of 67108864 bytes has no block of 50331648"),
], ids=["ro", "end", "size", "offset", "share"])
def test_refused(target, disk, words, text):
    status = 2 if "less than" in text else 1
    assert text in refused(target.socket(disk), *words, status=status)


def test_the_wrong_socket(target):
    assert "is this the vhost-user socket of a disk?" in refused(target.rpc_path, "--timeout", 5)


def test_huge_pages(disk):
    """With huge pages it runs; without, one sentence says what is missing."""
    words = ["--hugepages", "2M", "--ios", 1000, "--quiet"]
    with open("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages") as file:
        free = int(file.read())
    if free > 2:
        assert perf_json(disk, *words[:-1])["all"]["ios"] == 1000
    else:
        assert "huge pages of 2 MiB cannot be had" in refused(disk, *words)


# The end

@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_with_the_result(disk, number):
    run = start(disk, "--time", 100)
    first = run.stderr.readline()
    run.send_signal(number)
    out, err = run.communicate(timeout=60)
    assert run.returncode == 130 and "IOPS" in first and "Traceback" not in err
    assert "ended by a signal" in out and out.splitlines()[3].startswith("read ")


def test_the_target_is_killed():
    with contextlib.ExitStack() as undo:
        target = Target(["malloc:16M"])
        undo.callback(target.kill)
        run = start(target.socket(), "--time", 100)
        run.stderr.readline()
        target.process.kill()
        out, err = run.communicate(timeout=60)
    assert run.returncode == 1 and "Traceback" not in err
    assert err.splitlines()[-1].startswith(f"vhostrt-perf: {target.socket()}: the ")
    assert "requests" in out and "read " in out


def test_a_ring_that_is_not_given_back(disk, tmp_path):
    """The result is there although the target does not stop."""
    with Relay(tmp_path / "relay", disk, kept=Msg.GET_VRING_BASE):
        found = perf_json(tmp_path / "relay", "--ios", 100, "--timeout", 1, status=1)
    assert found["all"]["ios"] == 100
    assert "did not answer GET_VRING_BASE within 1 s" in found["failure"]


def test_requests_that_fail(disk, target):
    """The bdev behind a controller goes: what fails is counted, and the run goes on."""
    path = target.add_disk("bdev_malloc_create", "Gone", num_blocks=8192, block_size=512)
    run = start(path, "--time", 4, "--json", "-", "--rate-iops", 2000)
    run.stderr.readline()
    target.rpc("bdev_malloc_delete", name="Gone")
    out, err = run.communicate(timeout=60)
    assert run.returncode == 1 and '"IOERR": ' in out
    assert err.splitlines()[-1].endswith("requests failed")
    target.rpc("vhost_delete_controller", ctrlr="Gone")


# Other ways to connect

def test_the_target_connects(disk, tmp_path):
    with Relay(tmp_path / "ours", disk, connect=True):
        found = perf_json(tmp_path / "ours", "--listen", "--ios", 1000)
    assert found["all"]["ios"] == 1000 and not (tmp_path / "ours").exists()


def test_a_target_without_protocol_features(disk, tmp_path):
    with Relay(tmp_path / "relay", disk, hidden=F_PROTOCOL) as relay:
        found = perf_json(tmp_path / "relay", "--ios", 1000, "--size", "8M", "--rw", "randrw",
                          "--verify")
    assert found["ok"] and found["target"]["protocol_features"] == "0x0"
    assert not {Msg.SET_VRING_ENABLE, Msg.GET_CONFIG, Msg.GET_QUEUE_NUM} & set(relay.requests)


def test_a_progress_bar_on_a_terminal(disk):
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    run = start(disk, "--time", 2.5, stderr=theirs)
    os.close(theirs)
    said = []
    reader = threading.Thread(target=lambda: said.extend(iter_terminal(ours)))
    reader.start()
    assert run.wait(60) == 0
    reader.join(60)
    os.close(ours)
    run.stdout.close()
    drawn = b"".join(said).decode()
    assert drawn.count("\r[") >= 2 and "#" in drawn and "IOPS" in drawn
    assert all(len(line) < 80 for line in drawn.replace("\n", "").split("\r"))


def iter_terminal(fd):
    with contextlib.suppress(OSError):          # the other end is closed
        while True:
            yield os.read(fd, 4096)


# QEMU's storage daemon

@pytest.fixture
def daemon(tmp_path):
    """Its socket, for a file of 16 MiB, with two queues."""
    program = need("qemu-storage-daemon", "qemu-system-common")
    image, path = tmp_path / "disk.img", tmp_path / "sock"
    with open(image, "wb") as file:
        file.truncate(SIZE)
    process = subprocess.Popen([
        program, "--blockdev", f"driver=file,filename={image},node-name=f,discard=unmap",
        "--export", f"type=vhost-user-blk,id=e,node-name=f,addr.type=unix,addr.path={path},"
        "writable=on,num-queues=2"])
    end = time.monotonic() + 60
    while not path.exists():
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.02)
    yield path
    assert process.poll() is None, "the daemon has ended by itself"
    process.terminate()
    process.wait(30)


@pytest.mark.parametrize("words", [[], ["--indirect"], ["--interrupt"]], ids=lambda w: " ".join(w))
def test_the_storage_daemon(daemon, words):
    found = perf_json(daemon, *words, "--rw", "randrw", "--verify", "--flush", 32, "-n", 2,
                      "--ios", 4000, "--bs", "4k,16k")
    assert found["ok"] and found["all"]["ios"] == 4000 and found["target"]["queues"] == 2
    assert found["verify"]["sectors"] > 0


def test_trims_of_the_storage_daemon(daemon):
    found = perf_json(daemon, "--rw", "trim", "--bs", "64k", "--ios", 64)
    assert found["ok"] and found["kinds"]["trim"]["ios"] == 64
