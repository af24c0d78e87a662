"""Queues that move between reactors while clients use them, by thread_set_cpumask on a real target.
"""
import itertools
import os
import threading
import time

import pytest

from tests.lib import blk_client as bc
from tests.lib.blk_load import load_while, zero_disk
from tests.lib.target import RpcError, Target

FILE_SIZE = 8 << 20
MOVES = 200                             # of queues in one test, at least


@pytest.fixture(scope="module")
def target(tmp_path_factory):
    """A target on two cores: a RAM disk, one on a file through io_uring, one through threads."""
    path = tmp_path_factory.mktemp("disk") / "disk.img"
    for name in ("one", "two"):
        with open(path.with_name(name), "wb") as f:
            f.truncate(FILE_SIZE)
    with Target(disks=["malloc:8M", str(path.with_name("one"))], mask="0x3") as running:
        running.add_disk("bdev_aio_create", "Threads", filename=str(path.with_name("two")),
                         block_size=512)
        yield running
        assert running.alive(), f"the target ended by itself: {running.stderr()}"


def threads(target):
    """Return {name: (id, core)} of the light threads on reactors."""
    return {t["name"]: (t["id"], r["lcore"])
            for r in target.rpc("framework_get_reactors")["reactors"] for t in r["lw_threads"]}


def queues(target, disk):
    """Return [(id, core)] of the threads of a disk's queues, by index."""
    name = target.socket(disk).name
    found = threads(target)
    return [found[each] for each in sorted(found) if each.startswith(f"{name}.vq")]


def move(target, number, core):
    assert target.rpc("thread_set_cpumask", id=number, cpumask=f"{1 << core:x}") is True


class Mover(threading.Thread):
    """Moves the queues of a disk to and fro until it is told to stop."""

    def __init__(self, target, disk):
        super().__init__(daemon=True)
        self.target, self.disk = target, disk
        self.moves, self.over, self.error = 0, threading.Event(), None

    def run(self):
        try:
            numbers = [number for number, _ in queues(self.target, self.disk)]
            for core in itertools.cycle((1, 0)):
                for number in numbers:
                    move(self.target, number, core)
                self.moves += 1
                if self.over.is_set():
                    return
        except Exception as error:      # noqa: BLE001 - told by the test
            self.error = error

    def stop(self):
        self.over.set()
        self.join(60)
        assert self.error is None, self.error
        assert not self.is_alive()


@pytest.mark.parametrize(("disk", "queue_count", "event_idx"), [
    (0, 1, False), (0, 3, True), (1, 1, True), (1, 2, False), (2, 2, False)],
    ids=["memory", "memory, 3 queues", "file", "file, 2 queues", "threads, 2 queues"])
def test_a_checked_load_while_its_queues_move(target, disk, queue_count, event_idx):
    """Every request is answered once, and every byte is as the model says."""
    with bc.Blk(target.socket(disk), queue_count, 64, event_idx) as blk:
        zero_disk(blk)
        mover = Mover(target, disk)
        mover.start()
        done = load_while(
            blk, lambda: mover.moves * queue_count < MOVES and mover.error is None)
        mover.stop()
        assert done >= MOVES
        served = [q["index"] for c in target.rpc("vhost_get_controllers")
                  for s in c["sessions"] for q in s["queues"] if c["ctrlr"] == mover_name(mover)]
        assert served == list(range(queue_count))
        assert blk.stop() != []
    assert "*ERROR*" not in target.stderr()


def mover_name(mover):
    return mover.target.socket(mover.disk).name


def test_where_a_queue_is_told_and_its_mask(target):
    with bc.Blk(target.socket(0), 2) as blk:
        ((first, _), (second, _)) = queues(target, 0)
        for core in (1, 0, 1):
            move(target, first, core)
            move(target, second, 1 - core)
            assert queues(target, 0) == [(first, core), (second, 1 - core)]
            assert [q["lcore"] for c in target.rpc("vhost_get_controllers")
                    for s in c["sessions"] for q in s["queues"]] == [core, 1 - core]
            blk.write(0, bytes([core]) * 512, queue=0)
            assert blk.read(0, 512, queue=1) == bytes([core]) * 512
        # A mask that has the present core moves nothing.
        assert target.rpc("thread_set_cpumask", id=first, cpumask="[0-1]") is True
        assert queues(target, 0)[0] == (first, 1)
        masks = {t["id"]: t["cpumask"] for r in target.rpc("framework_get_reactors")["reactors"]
                 for t in r["lw_threads"]}
        assert (masks[first], masks[second]) == ("3", "1")


def test_messages_of_a_client_while_its_queue_moves(target):
    """New memory, new descriptors, stops and starts come between moves and wait for them."""
    with bc.Blk(target.socket(2), 2, 64) as blk:
        zero_disk(blk)
        mover = Mover(target, 2)
        mover.start()
        turn = 0
        while mover.moves < 60 and mover.error is None:
            turn += 1
            blk.client.set_mem_table(blk.memory)
            for ring in blk.rings:
                blk.client.set_vring_call(ring.index, ring.call_fd)
                blk.client.set_vring_err(ring.index, ring.err_fd)
            blk.write(turn % 100, bytes([turn % 256]) * 1024, queue=turn % 2)
            assert blk.read(turn % 100, 1024, queue=1 - turn % 2) == bytes([turn % 256]) * 1024
        mover.stop()
        blk.stop()


def test_clients_that_come_and_go_while_their_queues_move(target):
    """A queue may be gone when its move comes to it: that is told, and harms nobody."""
    over, moved = threading.Event(), [0, 0]

    def keep_moving():
        for core in itertools.cycle((0, 1)):
            for number, _ in queues(target, 0):
                try:
                    move(target, number, core)
                    moved[0] += 1
                except RpcError:
                    moved[1] += 1
            if over.is_set():
                return

    mover = threading.Thread(target=keep_moving, daemon=True)
    mover.start()
    turn = 0
    end = time.monotonic() + 60
    while (moved[0] < 50 or turn < 30) and time.monotonic() < end:
        turn += 1
        with bc.Blk(target.socket(0), 2) as blk:
            blk.write(turn, bytes([turn % 256]) * 512)
            assert blk.read(turn, 512, queue=1) == bytes([turn % 256]) * 512
            if turn % 2:
                blk.stop()
    over.set()
    mover.join(60)
    assert moved[0] >= 50 and not mover.is_alive()


def test_a_disk_is_removed_while_its_queues_move(target):
    for turn in range(5):
        name = f"gone{turn}"
        assert target.rpc("bdev_malloc_create", name=name, num_blocks=2048, block_size=512)
        assert target.rpc("vhost_create_blk_controller", ctrlr=name, dev_name=name)
        target.sockets.append(target.folder / name)
        disk = len(target.sockets) - 1
        with bc.Blk(target.socket(disk), 2) as blk:
            mover = Mover(target, disk)
            mover.start()
            while mover.moves < 3:
                blk.write(0, bytes(512))
            assert target.rpc("bdev_malloc_delete", name=name) is True
            assert blk.request(bc.IN, read=512).status == bc.IOERR
            mover.stop()
        assert target.rpc("vhost_delete_controller", ctrlr=name) is True


REFUSED = {
    "no such thread": ({"id": 10**6, "cpumask": "1"}, -2, "there is no thread with the id"),
    "app_thread": ({"id": 1, "cpumask": "1"}, -1, "app_thread is bound to where it runs"),
    "no such core": ({"id": 0, "cpumask": "10"}, -32602, "has no core with a reactor"),
    "no core": ({"id": 0, "cpumask": "0"}, -32602, "names no core"),
    "no mask": ({"id": 0, "cpumask": "x"}, -32602, "neither a hexadecimal core mask"),
    "no id": ({"cpumask": "1"}, -32602, "missing 'id'"),
}


@pytest.mark.parametrize(("params", "code", "why"), REFUSED.values(), ids=REFUSED)
def test_refused(target, params, code, why):
    with bc.Blk(target.socket(0)):
        number, core = queues(target, 0)[0]
        params = {**params, "id": params["id"] or number} if "id" in params else params
        with pytest.raises(RpcError, match=why) as told:
            target.rpc("thread_set_cpumask", **params)
        assert told.value.code == code
        assert queues(target, 0) == [(number, core)]


def test_what_serves_a_file_stays(target):
    with bc.Blk(target.socket(2)):
        number, _ = next(where for name, where in threads(target).items() if name[:4] == "aio_")
        with pytest.raises(RpcError, match="is bound to where it runs") as told:
            target.rpc("thread_set_cpumask", id=number, cpumask="3")
        assert told.value.code == -1


def test_channels_are_those_of_the_thread_that_uses_them(target):
    """As thread_get_io_channels tells it: of each queue to its disk, of what serves a file to all
    that use it."""
    def channels():
        told = target.rpc("thread_get_io_channels")
        assert told["tick_rate"] > 1_000_000
        return {t["name"]: [(c["name"], c["ref"]) for c in t["io_channels"]]
                for t in told["threads"]}

    def none_is_left():
        end = time.monotonic() + 30
        while channels() != {"app_thread": []}:
            assert time.monotonic() < end, channels()

    none_is_left()
    with bc.Blk(target.socket(1), 3), bc.Blk(target.socket(0)):
        cores = [core for _, core in queues(target, 1)]
        disk = target.socket(1).name
        assert channels() == {
            "app_thread": [], target.socket(0).name + ".vq0": [("bdev_Disk0", 1)],
            **{f"{disk}.vq{i}": [("bdev_Disk1", 1)] for i in range(3)},
            **{f"uring_{core}": [("uring_module", cores.count(core))] for core in (0, 1)}}
        for number, _ in queues(target, 1):
            move(target, number, 0)
        assert channels()["uring_0"] == [("uring_module", 3)] and "uring_1" not in channels()
    none_is_left()


def test_descriptors_do_not_pile_up(target):
    with bc.Blk(target.socket(1)):
        number, core = queues(target, 1)[0]
        move(target, number, 1 - core)
        move(target, number, core)
        before = target.fds()
        for _ in range(20):
            move(target, number, 1 - core)
            move(target, number, core)
        target.await_fds(before)
    assert os.path.exists(target.socket(1))
