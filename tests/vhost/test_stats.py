"""What vhost_get_controllers tells of requests: a real target and its clients."""
import threading
import time

import pytest

from tests.lib import blk_client as bc
from tests.lib.blk_load import load_while, zero_disk
from tests.lib.target import Target
from tests.vhost.test_moves import Mover
from tests.vhost.test_queue import some

FILE_SIZE = 8 << 20
KINDS = {"read", "write", "flush", "discard", "write_zeroes", "get_id", "other"}
CAUSES = {"malformed", "misaligned", "out_of_range", "unsupported", "read_only", "no_device",
          "io_error"}


@pytest.fixture(scope="module")
def target(tmp_path_factory):
    """Two cores: a RAM disk, one that is read-only, one in a file."""
    path = tmp_path_factory.mktemp("disk") / "disk.img"
    with open(path, "wb") as f:
        f.truncate(FILE_SIZE)
    with Target(disks=["malloc:8M", "malloc:1M,ro"], mask="0x3") as running:
        running.add_disk("bdev_aio_create", "Threads", filename=str(path), block_size=512)
        yield running
        assert running.alive(), f"the target ended by itself: {running.stderr()}"


def controller(target, disk):
    (told,) = target.rpc("vhost_get_controllers", name=target.socket(disk).name)
    return told


def queue(target, disk, index=0):
    """Return what is told of a queue by its index, as if nothing had been counted at first."""
    found = [q for q in controller(target, disk)["queues"] if q["index"] == index]
    return found[0] if found else {"requests": dict.fromkeys(KINDS, 0), "kicks": 0, "calls": 0,
                                   "bytes": dict.fromkeys(KINDS, 0),
                                   "errors": dict.fromkeys(CAUSES, 0)}


def since(before, after):
    """Return which counters have grown, and by how much."""
    return {what: some({key: after[what][key] - before[what][key] for key in after[what]})
            for what in ("requests", "bytes", "errors")}


def requests(told):
    return sum(told["requests"].values())


def answered(told):
    return sum(each["count"] for each in told["latency_us"].values())


def test_a_known_sequence_on_a_queue(target):
    with bc.Blk(target.socket(0), queues=2) as blk:
        before, other = queue(target, 0, 1), queue(target, 0, 0)
        blk.write(0, bytes(4096), 1)
        blk.read(0, 1024, 1)
        blk.read(8, 512, 1)
        blk.flush(1)
        assert blk.request(77, 0, read=512, queue=1).status == bc.UNSUPP
        assert blk.request(bc.IN, 1 << 50, read=512, queue=1).status == bc.IOERR
        assert blk.request(bc.OUT, 0, out=bytes(100), queue=1).status == bc.IOERR
        after = queue(target, 0, 1)
        assert set(after["requests"]) == set(after["bytes"]) == KINDS
        assert set(after["errors"]) == CAUSES
        assert since(before, after) == {
            "requests": {"write": 2, "read": 3, "flush": 1, "other": 1},
            "bytes": {"write": 4196, "read": 2048},
            "errors": {"unsupported": 1, "out_of_range": 1, "misaligned": 1}}
        assert (after["inflight"], after["oldest_request_us"]) == (0, 0)
        # The client asks for an interrupt for each, and has kicked at most as often as it sent.
        assert after["calls"] - before["calls"] == 7
        assert 0 <= after["kicks"] - before["kicks"] <= 7
        assert since(other, queue(target, 0, 0)) == {"requests": {}, "bytes": {}, "errors": {}}
        for each in after["latency_us"].values():
            assert 0 < each["p50"] <= each["p90"] <= each["p99"] <= each["p99_9"] <= each["max"]
        assert requests(after) == answered(after)


def test_a_disk_that_is_read_only(target):
    with bc.Blk(target.socket(1)) as blk:
        assert blk.request(bc.OUT, 0, out=bytes(512)).status == bc.IOERR
        assert some(queue(target, 1)["errors"]) == {"read_only": 1}


def test_a_ring_that_its_driver_has_broken(target):
    with bc.Blk(target.socket(0)) as blk:
        before = queue(target, 0)
        ring = blk.rings[0]
        ring.submit(ring.chain([(0xdead0000, 16, 0), (0xdead0000, 1, bc.WRITE)]))
        end = time.monotonic() + 30
        while since(before, queue(target, 0))["errors"] != {"malformed": 1}:
            assert time.monotonic() < end
        assert since(before, queue(target, 0))["requests"] == {}


def test_counters_go_on_where_clients_come_and_go(target):
    told = queue(target, 0)
    for turn in range(5):
        with bc.Blk(target.socket(0)) as blk:
            blk.write(0, bytes(512))
            if turn % 2:
                blk.stop()
        end = time.monotonic() + 30
        while controller(target, 0)["sessions"]:
            assert time.monotonic() < end
        after = queue(target, 0)
        assert since(told, after)["requests"] == {"write": 1} and answered(after) == requests(after)
        assert after["calls"] >= told["calls"] and after["kicks"] >= told["kicks"]
        told = after


def test_two_clients_of_one_queue_add_up(target):
    before = queue(target, 0)
    with bc.Blk(target.socket(0)) as one, bc.Blk(target.socket(0)) as other:
        one.write(0, bytes(512))
        other.read(0, 512)
        assert since(before, queue(target, 0))["requests"] == {"write": 1, "read": 1}
        both = controller(target, 0)
        assert [len(session["queues"]) for session in both["sessions"]] == [1, 1]
        assert both["statistics"]["requests"] == {
            kind: sum(q["requests"][kind] for q in both["queues"]) for kind in KINDS}


class Looker(threading.Thread):
    """Looks at the counters of a disk again and again: none may become less."""

    def __init__(self, target, disk):
        super().__init__(daemon=True)
        self.target, self.disk = target, disk
        self.over, self.error, self.looks = threading.Event(), None, 0

    def run(self):
        try:
            before = controller(self.target, self.disk)["statistics"]
            while not self.over.is_set():
                after = controller(self.target, self.disk)["statistics"]
                for what in ("requests", "bytes", "errors"):
                    for key, count in after[what].items():
                        assert count >= before[what][key], (what, key, before, after)
                assert after["calls"] >= before["calls"] and answered(after) >= answered(before)
                before = after
                self.looks += 1
                time.sleep(0.002)       # the control thread also moves queues
        except BaseException as error:      # noqa: BLE001 - told by the test
            self.error = error

    def stop(self):
        self.over.set()
        self.join(60)
        assert self.error is None, self.error
        assert self.looks > 5 and not self.is_alive()


@pytest.mark.parametrize("disk", [0, 2], ids=["memory", "threads"])
def test_nothing_is_lost_or_counted_twice_while_queues_move(target, disk):
    before = controller(target, disk)["statistics"]
    name = controller(target, disk)["backend_specific"]["block"]["bdev"]
    (stat,) = target.rpc("bdev_get_iostat", name=name)["bdevs"]
    with bc.Blk(target.socket(disk), 2, 64) as blk:
        zero_disk(blk)
        mover, looker = Mover(target, disk), Looker(target, disk)
        mover.start()
        looker.start()
        done = load_while(blk, lambda: mover.moves < 12 and mover.error is None)
        mover.stop()
        looker.stop()
        blk.stop()
        after = controller(target, disk)["statistics"]
        grown = since(before, after)
        assert requests(after) == answered(after) and grown["errors"] == {}
        assert grown["requests"]["read"] + grown["requests"]["write"] >= done > 0
        (end,) = target.rpc("bdev_get_iostat", name=name)["bdevs"]
        for kind, ops, size in (("read", "num_read_ops", "bytes_read"),
                                ("write", "num_write_ops", "bytes_written")):
            assert end[ops] - stat[ops] == grown["requests"].get(kind, 0)
            assert end[size] - stat[size] == grown["bytes"].get(kind, 0)
