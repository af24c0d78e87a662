"""The ring protocol of a virtio-blk queue: notifications, indices, stops, memory changes, load."""
import os
import time

import pytest

from tests.lib.blk_client import IN, IOERR, OK, SCRATCH, UNTOUCHED, Blk
from tests.lib.blk_load import CHUNK, checked_load, zero_disk
from tests.lib.guest_memory import Memory, Region
from tests.lib.split_ring import NO_INTERRUPT, WRITE

pytestmark = pytest.mark.timeout(180)

REQUESTS = int(os.environ.get("VHOSTRT_TEST_REQUESTS", "1000000"))
SILENCE = 0.2                           # seconds in which a wrong notification would come


@pytest.fixture(params=[False, True], ids=["flags", "event-idx"])
def event_idx(request):
    """Whether notifications are suppressed by event index or by flag."""
    return request.param


def silence(ring) -> None:
    """Take what is pending on the call eventfd, the spurious call at the start included."""
    while ring.wait_call(SILENCE):
        pass


def reads(blk, n: int, length: int = 512, queue: int = 0) -> list[int]:
    """Write `n` chains that read the first sectors of the disk; return their heads."""
    ring, heads = blk.rings[queue], []
    data = blk.memory.alloc(length, 4096)
    for i in range(n):
        parts = [(blk.header(IN), 16, 0), (data, length, WRITE), (blk.status(), 1, WRITE)]
        heads.append(ring.chain(parts, [3 * i, 3 * i + 1, 3 * i + 2]))
    return heads


# Notifications.

def test_call_arrives(disk, event_idx):
    with Blk(disk, event_idx=event_idx) as blk:
        ring = blk.rings[0]
        silence(ring)
        for _ in range(100):
            blk.read(0, 512)
            assert ring.wait_call()


def test_call_arrives_where_the_driver_sleeps_on_it(disk, event_idx):
    with Blk(disk, event_idx=event_idx) as blk:
        ring = blk.rings[0]
        heads = reads(blk, 8)
        for _ in range(50):
            ring.submit(*heads)
            done = 0
            while done < len(heads):
                done += len(ring.collect()) or bool(ring.wait_call()) - 1
                assert done >= 0, "completions without a call"


def test_no_interrupt_is_honoured(disk):
    with Blk(disk) as blk:
        ring = blk.rings[0]
        silence(ring)
        ring.avail_flags[0] = NO_INTERRUPT
        blk.read(0, 512)
        assert not ring.wait_call(SILENCE)
        ring.avail_flags[0] = 0
        blk.read(0, 512)
        assert ring.wait_call()


def test_event_index_is_honoured(disk):
    with Blk(disk, event_idx=True) as blk:
        ring = blk.rings[0]
        blk.read(0, 512)                            # the first call may come in any case
        heads = reads(blk, 1)
        silence(ring)
        ring.used_event[0] = 4                      # at the fourth completion from here
        for i in range(4):
            assert not ring.wait_call(SILENCE / 4)
            ring.submit(*heads)
            end = time.monotonic() + 20
            while int(ring.used_idx[0]) != i + 2:
                assert time.monotonic() < end
        assert ring.wait_call()
        ring.submit(*heads)
        assert not ring.wait_call(SILENCE)


def test_kick_only_when_wanted(disk, event_idx):
    with Blk(disk, event_idx=event_idx) as blk:
        heads = reads(blk, 1)
        for _ in range(2000):
            blk.rings[0].publish(*heads)
            blk.rings[0].kick_if_wanted()
            assert blk.rings[0].wait() == [(0, 513)]


def test_kick_from_before_the_start_is_honoured(disk):
    with Blk(disk, start=False) as blk:
        ring = blk.rings[0]
        ring.submit(*reads(blk, 5))
        ring.start(blk.client, base=0)
        assert len(ring.wait(5)) == 5


def test_requests_from_before_the_start_need_one_kick(disk):
    with Blk(disk, start=False) as blk:
        ring = blk.rings[0]
        ring.publish(*reads(blk, 5))
        ring.start(blk.client, base=0)
        ring.kick()
        assert len(ring.wait(5)) == 5


def test_late_kick(disk):
    with Blk(disk) as blk:
        blk.rings[0].publish(*reads(blk, 5))
        time.sleep(SILENCE)
        blk.rings[0].kick()
        assert len(blk.rings[0].wait(5)) == 5


# Indices.

@pytest.mark.parametrize("size", [4, 8, 256, 1024, 32768])
@pytest.mark.parametrize("base", [0, 32767, 65530, 65535])
def test_indices_wrap_around(disk, size, base):
    with Blk(disk, size=size, base=base) as blk:
        for i in range(40):
            blk.write(i, bytes([i]) * 512)
        for i in range(40):
            assert blk.read(i, 512) == bytes([i]) * 512
        assert blk.stop() == [(base + 80) % 65536]


def test_full_ring(disk):
    with Blk(disk, size=256) as blk:
        ring = blk.rings[0]
        data = blk.memory.alloc(512, 4096)
        for slot in range(256):
            parts = [(blk.header(IN), 16, 0), (data, 512, WRITE), (blk.status(), 1, WRITE)]
            ring.indirect(parts, slot)
        for _ in range(5):
            ring.submit(*range(256))
            assert sorted(ring.wait(256)) == [(slot, 513) for slot in range(256)]


# Stop and start.

def test_base_counts_the_requests(disk):
    with Blk(disk) as blk:
        for _ in range(7):
            blk.read(0, 512)
        assert blk.client.get_vring_base(0) == 7


def test_base_of_a_ring_that_never_ran(disk):
    with Blk(disk, start=False) as blk:
        blk.rings[0].configure(blk.client, base=77)
        assert blk.client.get_vring_base(0) == 77


@pytest.mark.parametrize("which", ["disk", "file_disk", "thread_disk"])
def test_stop_drains(request, which):
    with Blk(request.getfixturevalue(which)) as blk:
        ring = blk.rings[0]
        heads = reads(blk, 64, 1 << 20)
        for _ in range(10):
            ring.submit(*heads)
            base = blk.client.get_vring_base(0)
            done = int(ring.used_idx[0])
            assert base == done, "requests were taken and not completed before the answer"
            time.sleep(0.01)
            assert int(ring.used_idx[0]) == done, "a completion after GET_VRING_BASE"
            ring.start(blk.client, base)
            ring.kick()
            assert len(ring.wait(64)) == 64


def test_stopped_ring_does_not_serve(disk):
    with Blk(disk) as blk:
        ring = blk.rings[0]
        base = blk.client.get_vring_base(0)
        ring.submit(*reads(blk, 1))
        with pytest.raises(TimeoutError):
            ring.wait(1, SILENCE)
        ring.start(blk.client, base)
        ring.kick()
        assert ring.wait() == [(0, 513)]


def test_restart_of_an_emptied_ring(disk):
    with Blk(disk, queues=2) as blk:
        for base in (0, 100, 65535, 0):
            blk.stop()
            for ring in blk.rings:
                ring.reset(base)
                ring.start(blk.client)
            for queue in (0, 1):
                blk.write(base % 1000, bytes([queue + 1]) * 512, queue)
                assert blk.read(base % 1000, 512, 1 - queue) == bytes([queue + 1]) * 512


def test_stop_of_one_queue_leaves_the_other(disk):
    with Blk(disk, queues=2) as blk:
        blk.client.get_vring_base(0)
        blk.write(0, b"\x77" * 512, queue=1)
        assert blk.read(0, 512, queue=1) == b"\x77" * 512


# The memory table.

def test_new_region_while_the_ring_runs(disk):
    with Blk(disk) as blk:
        blk.write(0, b"\x31" * 512)
        blk.memory.regions.append(Region(1 << 40, 1 << 20))
        blk.client.set_mem_table(blk.memory)
        data, status = blk.put(bytes(512), region=2), blk.status(region=2)
        parts = [(blk.header(IN, region=2), 16, 0), (data, 512, WRITE), (status, 1, WRITE)]
        assert blk.run(blk.rings[0].chain(parts), status) == (OK, 513)
        assert blk.get(data, 512) == b"\x31" * 512


def test_region_that_is_gone_cannot_be_used(disk):
    with Blk(disk) as blk:
        gone = blk.memory.regions.pop()
        blk.client.set_mem_table(blk.memory)
        status = blk.status()
        parts = [(blk.header(IN), 16, 0), (gone.gpa, 512, WRITE), (status, 1, WRITE)]
        ring = blk.rings[0]
        ring.submit(ring.chain(parts))
        if ring.wait_err(SILENCE):
            assert not ring.pending()
        else:
            [(head, _written)] = ring.wait()
            assert head == 0
            assert blk.get(status, 1)[0] in (IOERR, UNTOUCHED)
            blk.read(0, 512)
        assert not gone.bytes.any()
        gone.close()


@pytest.mark.parametrize("which", ["disk", "thread_disk"])
def test_memory_table_changes_under_load(request, which):
    with Blk(request.getfixturevalue(which)) as blk:
        ring = blk.rings[0]
        heads = reads(blk, 64, SCRATCH)
        for i in range(20):
            ring.submit(*heads)
            if i % 2:
                blk.memory.regions.pop().close()
            else:
                blk.memory.regions.append(Region((1 << 40) + (i << 30), 1 << 20))
            blk.client.set_mem_table(blk.memory)
            assert sorted(ring.wait(64)) == [(h, SCRATCH + 1) for h in heads]


def test_ring_stops_with_its_memory_and_comes_back(disk):
    memory = Memory.of_sizes(4 << 20, 4 << 20)
    with Blk(disk, memory=memory) as blk:
        ring = blk.rings[0]
        blk.read(0, 512)
        blk.client.set_mem_table(Memory(memory.regions[1]))
        heads = reads(blk, 1)
        ring.submit(*heads)
        with pytest.raises(TimeoutError):
            ring.wait(1, SILENCE)
        blk.client.get_vring_base(0)
        blk.client.set_mem_table(memory)
        ring.start(blk.client, base=1)
        ring.kick()
        assert ring.wait() == [(0, 513)]


def test_memory_changes_twice_and_takes_the_ring_along(target, tmp_path):
    """What is in flight meanwhile is answered into memory that is still mapped."""
    image, name = tmp_path / "slow.img", "slow"
    with open(image, "wb") as f:
        f.truncate(16 << 20)
    target.rpc("bdev_aio_create", name=name, filename=str(image))
    target.rpc("vhost_create_blk_controller", ctrlr=name, dev_name=name)
    for _ in range(3):
        memory = Memory.of_sizes(32 << 20, 4 << 20)
        with Blk(target.folder / name, memory=memory) as blk:
            blk.rings[0].submit(*reads(blk, 64, 16 << 20))
            blk.client.set_mem_table(memory)                        # the ring moves ...
            blk.client.set_mem_table(Memory(memory.regions[1]))     # ... and is gone
            assert blk.rings[0].wait_err()
            blk.client.get_vring_base(0)                            # answers after the last read
    target.rpc("vhost_delete_controller", ctrlr=name)
    target.rpc("bdev_aio_delete", name=name)


# Load.

@pytest.mark.parametrize("queues", [1, 2, 4])
@pytest.mark.parametrize("size", [8, 1024])
def test_checked_load_on_several_queues(disk, queues, size, event_idx):
    with Blk(disk, queues=queues, size=size, event_idx=event_idx, base=65000) as blk:
        zero_disk(blk)
        assert checked_load(blk, 4000 if size == 8 else 20000) >= 4000
        blk.stop()


@pytest.mark.parametrize("which", ["file_disk", "thread_disk"])
def test_checked_load_on_a_file(request, which):
    with Blk(request.getfixturevalue(which), queues=2, event_idx=True) as blk:
        zero_disk(blk)
        checked_load(blk, 20000)


def test_load_finds_wrong_data(disk):
    with Blk(disk) as blk:
        zero_disk(blk)
        checked_load(blk, 20000)
        with pytest.raises(AssertionError, match="wrong data"):
            checked_load(blk, 20000, seed=2)        # takes the disk for a zeroed one


@pytest.mark.timeout(600)
def test_a_million_requests(disk):
    with Blk(disk, queues=2, event_idx=True) as blk:
        zero_disk(blk)
        assert checked_load(blk, REQUESTS) >= REQUESTS
        bases = blk.stop()
        assert bases == [int(ring.used_idx[0]) for ring in blk.rings]
        assert blk.capacity() % CHUNK == 0
