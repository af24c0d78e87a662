"""vhostrt/rpc/bdev_stats.py: replies and refusals, of the running program, in SPDK's form."""
import base64
import struct

import pytest

from tests.lib.blk_client import FLUSH, IN, OUT, Blk
from tests.lib.rpc_server import Client
from tests.lib.target import Target
from tests.rpc.test_methods import error, result

# As SPDK v26.05 tells them, in its order; what is ours stands behind.
SPDK = ["bytes_read", "num_read_ops", "bytes_written", "num_write_ops", "bytes_unmapped",
        "num_unmap_ops", "bytes_copied", "num_copy_ops", "read_latency_ticks",
        "max_read_latency_ticks", "min_read_latency_ticks", "write_latency_ticks",
        "max_write_latency_ticks", "min_write_latency_ticks", "unmap_latency_ticks",
        "max_unmap_latency_ticks", "min_unmap_latency_ticks", "copy_latency_ticks",
        "max_copy_latency_ticks", "min_copy_latency_ticks", "io_error"]


@pytest.fixture(scope="module")
def target(tmp_path_factory):
    """Disk 0 is in memory, disk 1 in a file that helper threads serve."""
    path = tmp_path_factory.mktemp("disk") / "disk.img"
    path.write_bytes(bytes(1 << 20))
    with Target(disks=["malloc:1M"]) as running:
        running.add_disk("bdev_aio_create", "Threads", filename=str(path), block_size=512)
        yield running
        assert running.alive(), running.stderr()


@pytest.fixture
def client(target):
    with Client(str(target.rpc_path)) as connected:
        result(connected, "bdev_reset_iostat")
        yield connected


@pytest.fixture(params=[0, 1], ids=["memory", "file"])
def disk(request):
    return request.param


NAMES = ("Disk0", "Threads")


def iostat(client, disk, **params):
    reply = result(client, "bdev_get_iostat", name=NAMES[disk], **params)
    assert list(reply) == ["tick_rate", "ticks", "bdevs"]
    (bdev,) = reply["bdevs"]
    assert bdev.pop("name") == NAMES[disk]
    return bdev


def counts(bdev):
    """Return the counters that are not 0, without times."""
    return {key: value for key, value in bdev.items() if value and "latency" not in key}


def test_the_form_is_spdks(client):
    reply = result(client, "bdev_get_iostat")
    assert [bdev["name"] for bdev in reply["bdevs"]] == list(NAMES)
    for bdev in reply["bdevs"]:
        assert [key for key in bdev if key in SPDK] == SPDK
        assert {type(value) for key, value in bdev.items() if key not in ("name", "io_error")} == {
            int}
        assert bdev["io_error"] == {}
    assert result(client, "bdev_get_iostat", names=["Threads", "Disk0"])["bdevs"][0][
        "name"] == "Threads"


def test_a_known_sequence_of_requests(client, target, disk):
    with Blk(target.socket(disk), queues=2) as blk:
        for queue in (0, 1):
            blk.write(0, bytes(4096), queue)
            blk.read(0, 512, queue)
            blk.read(8, 1024, queue)
        blk.flush()
        blk.get_id()
        assert blk.request(IN, 1 << 40, read=512).status == 1
        bdev = iostat(client, disk)
        assert counts(bdev) == {"num_read_ops": 4, "bytes_read": 3072, "num_write_ops": 2,
                                "bytes_written": 8192, "num_flush_ops": 1}
        for kind, count in (("read", 4), ("write", 2), ("flush", 1)):
            total, least, most = (bdev[f"{what}{kind}_latency_ticks"] for what in ("", "min_",
                                                                                  "max_"))
            assert 0 < least <= most and count * least <= total <= count * most
        channels = result(client, "bdev_get_iostat", name=NAMES[disk], per_channel=True)
        assert list(channels) == ["tick_rate", "ticks", "name", "channels"]
        threads = {t["name"]: t["id"]
                   for t in result(client, "thread_get_stats")["threads"]}
        name = target.socket(disk).name
        assert {c["thread_id"] for c in channels["channels"]} == {threads[f"{name}.vq{i}"]
                                                                  for i in (0, 1)}
        assert [c["num_read_ops"] for c in channels["channels"]] == [2, 2]
        blk.stop()
    # A client that has gone has still done what it did.
    assert counts(iostat(client, disk)) == counts(bdev)


def test_resets(client, target, disk):
    with Blk(target.socket(disk)) as blk:
        blk.write(0, bytes(512))
        before = iostat(client, disk, reset_mode="error")
        assert counts(iostat(client, disk, reset_mode="maxmin")) == counts(before)
        after = iostat(client, disk)
        assert counts(after) == counts(before) and after["write_latency_ticks"] == before[
            "write_latency_ticks"]
        assert after["max_write_latency_ticks"] == after["min_write_latency_ticks"] == 0
        blk.write(0, bytes(512))
        assert counts(iostat(client, disk, reset_mode="all")) == {"num_write_ops": 2,
                                                                   "bytes_written": 1024}
        assert not any(value for value in iostat(client, disk).values())
        blk.read(0, 512)
        assert result(client, "bdev_reset_iostat", name=NAMES[disk], mode="none") is True
        assert counts(iostat(client, disk)) == {"num_read_ops": 1, "bytes_read": 512}
        assert result(client, "bdev_reset_iostat", name=NAMES[disk]) is True
        assert counts(iostat(client, disk)) == {}


def histogram(client, disk):
    """Return ([(bucket's first time in ticks, count)], ticks a second)."""
    told = result(client, "bdev_get_histogram", name=NAMES[disk])
    assert list(told) == ["histogram", "granularity", "min_range", "max_range", "tsc_rate"]
    raw = base64.b64decode(told["histogram"])
    granularity = told["granularity"]
    words = struct.unpack(f"={len(raw) // 8}Q", raw)
    assert len(words) == (told["max_range"] - told["min_range"] + 1) << granularity
    found = []
    for i, count in enumerate(words):
        if count:
            r, index = divmod(i, 1 << granularity)
            r += told["min_range"]
            start = ((1 << granularity) + index) << (r - 1) if r else index
            found.append((start, count))
    return found, told["tsc_rate"]


def test_histograms(client, target, disk):
    name = NAMES[disk]
    assert error(client, "bdev_get_histogram", name=name)[0] == -61
    with Blk(target.socket(disk)) as blk:
        blk.read(0, 512)                # not counted
        assert result(client, "bdev_enable_histogram", name=name, enable=True, min_nsec=1) is True
        for _ in range(5):
            blk.read(0, 512)
        blk.write(0, bytes(512))
        assert sum(count for _, count in histogram(client, disk)[0]) == 6
        # The same again changes nothing, another one begins anew.
        result(client, "bdev_enable_histogram", name=name, enable=True, min_nsec=1)
        assert sum(count for _, count in histogram(client, disk)[0]) == 6
        result(client, "bdev_enable_histogram", name=name, enable=True, opc="write", granularity=4,
               min_nsec=1)
        assert histogram(client, disk)[0] == []
        result(client, "bdev_reset_iostat", name=name, mode="maxmin")
        blk.read(0, 512)
        blk.write(0, bytes(512))
        ((start, count),), _ = histogram(client, disk)
        exact = iostat(client, disk)["max_write_latency_ticks"]
        assert count == 1 and start <= exact < start * 17 / 16 + 1
        blk.stop()
    with Blk(target.socket(disk)) as blk:
        blk.write(0, bytes(512))
        assert sum(count for _, count in histogram(client, disk)[0]) == 2
        borders = result(client, "bdev_get_histogram_borders", name=name, borders=[1, 10**9])
        assert borders["borders_count"][1:] == [2, 2]
    assert result(client, "bdev_enable_histogram", name=name, enable=False) is True
    assert error(client, "bdev_get_histogram", name=name)[0] == -61


@pytest.mark.parametrize("method, params, code, text", [
    ("bdev_get_iostat", {"name": "none"}, -19, "bdev none does not exist"),
    ("bdev_get_iostat", {"names": ["Disk0", "none"]}, -19, "bdev none does not exist"),
    ("bdev_get_iostat", {"name": "Disk0", "names": ["Disk0"]}, -32602, "exclude each other"),
    ("bdev_get_iostat", {"per_channel": True}, -32602, "'per_channel' needs the name of one"),
    ("bdev_get_iostat", {"per_channel": True, "names": ["Disk0", "Threads"]}, -32602, "one bdev"),
    ("bdev_get_iostat", {"reset_mode": "some"}, -32602, "'reset_mode' must be one of none, all"),
    ("bdev_reset_iostat", {"name": "none"}, -19, "bdev none does not exist"),
    ("bdev_reset_iostat", {"mode": 1}, -32602, "'mode' must be one of none, all, maxmin, error"),
    ("bdev_enable_histogram", {"name": "Disk0"}, -32602, "missing 'enable'"),
    ("bdev_enable_histogram", {"name": "none", "enable": True}, -19, "does not exist"),
    ("bdev_enable_histogram", {"name": "Disk0", "enable": True, "opc": "nvme_io"}, -32602,
     "'opc' must be one of read, write"),
    ("bdev_enable_histogram", {"name": "Disk0", "enable": True, "granularity": 11}, -32602,
     "'granularity' must be an integer from 1 to 10"),
    ("bdev_enable_histogram", {"name": "Disk0", "enable": True, "min_nsec": 9, "max_nsec": 9},
     -32602, "'min_nsec', 9, must be below 'max_nsec'"),
    ("bdev_get_histogram", {"name": "none"}, -19, "does not exist"),
    ("bdev_get_histogram", {"name": "Disk0"}, -61, "bdev_enable_histogram turns it on"),
    ("bdev_get_histogram_borders", {"name": "Disk0", "borders": []}, -32602, "'borders' must be"),
    ("bdev_get_histogram_borders", {"name": "Disk0", "borders": [2, 1]}, -32602, "ascending"),
])
def test_what_cannot_be_told(client, method, params, code, text):
    got = error(client, method, **params)
    assert got[0] == code and text in got[1]


def test_errors_are_told_by_their_cause(client, target, disk, tmp_path):
    image = tmp_path / "short.img"
    image.write_bytes(bytes(1 << 20))
    path = target.add_disk("bdev_aio_create", f"Short{disk}", filename=str(image), block_size=512)
    with Blk(path) as blk:
        image.write_bytes(b"")
        assert blk.request(IN, 0, read=512).status == 1
        assert blk.request(OUT, 1 << 40, out=bytes(512)).status == 1
        assert blk.request(FLUSH).status == 0
    (bdev,) = result(client, "bdev_get_iostat", name=f"Short{disk}")["bdevs"]
    assert bdev["io_error"] == {"failed": 1} and bdev["num_read_ops"] == 0
