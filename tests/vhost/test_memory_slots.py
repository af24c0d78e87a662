"""Memory that comes and goes by regions, seen from the wire: slots, ADD_MEM_REG and REM_MEM_REG.

Source: vhost-user, CONFIGURE_MEM_SLOTS.
"""
import os
import struct
import time

import pytest

from tests.lib import vhost_client as vc
from tests.lib.blk_client import IN, OK, Blk
from tests.lib.guest_memory import UADDR_SHIFT, Region
from tests.lib.split_ring import WRITE
from tests.lib.vhost_client import Msg, Refused

pytestmark = pytest.mark.timeout(120)

SLOTS = 509
MIB = 1 << 20
FAR = 1 << 40                           # guest address of what the tests add


def slots(disk, **options) -> Blk:
    """A session that may add regions."""
    blk = Blk(disk, **options)
    blk.client.set_protocol_features(blk.protocol | vc.P_CONFIGURE_MEM_SLOTS)
    return blk


def add(blk: Blk, gpa: int = FAR, size: int = MIB, **options) -> Region:
    """Add a fresh region to the memory of the guest and tell the target."""
    region = Region(gpa, size, **options)
    blk.client.add_mem_reg(region)
    blk.memory.regions.append(region)
    return region


def read_into(blk: Blk, gpa: int, queue: int = 0) -> int:
    """Read sector 0 into 512 bytes at a guest address; return the status byte."""
    status = blk.status()
    parts = [(blk.header(IN), 16, 0), (gpa, 512, WRITE), (status, 1, WRITE)]
    return blk.run(blk.rings[queue].chain(parts), status, queue)[0]


def mapped(target, *regions: Region) -> set[str]:
    """Where the target has these regions mapped."""
    inodes = {str(os.fstat(region.fd).st_ino) for region in regions}
    with open(f"/proc/{target.pid}/maps", encoding="utf-8") as maps:
        rows = [line.split() for line in maps if "memfd:guest" in line]
    return {row[0] for row in rows if row[4] in inodes}


def await_unmapped(target, *regions: Region) -> None:
    """Wait until the target has let go of these regions."""
    end = time.monotonic() + 10
    while mapped(target, *regions):
        assert time.monotonic() < end, mapped(target, *regions)
        time.sleep(0.01)


def test_slots(disk):
    with slots(disk) as blk:
        assert blk.client.get_max_mem_slots() == SLOTS


@pytest.mark.parametrize("offset", [0, 4096, 100 * 4096])
def test_added_region_is_served(disk, offset):
    with slots(disk) as blk:
        blk.write(0, b"\x5a" * 512)
        region = add(blk, offset=offset)
        assert read_into(blk, FAR + MIB - 512) == OK
        assert blk.get(FAR + MIB - 512, 512) == b"\x5a" * 512
        assert not region.bytes[:MIB - 512].any()


def test_memory_by_regions_alone(disk):
    with Blk(disk, start=False) as blk:
        blk.client.set_protocol_features(blk.protocol | vc.P_CONFIGURE_MEM_SLOTS)
        for region in blk.memory.regions:
            blk.client.rem_mem_reg(region)
        for region in reversed(blk.memory.regions):
            blk.client.add_mem_reg(region)
        blk.rings[0].start(blk.client)
        blk.write(0, b"\x11" * 512)
        assert blk.read(0, 512) == b"\x11" * 512


def test_region_that_was_removed_is_not_served(disk):
    with slots(disk) as blk:
        region = add(blk)
        blk.client.rem_mem_reg(region)
        blk.rings[0].submit(blk.rings[0].chain([(blk.header(IN), 16, 0), (FAR, 512, WRITE),
                                                (blk.status(), 1, WRITE)]))
        assert blk.rings[0].wait_err()
        assert not region.bytes.any()


def test_removed_region_is_unmapped_and_may_come_again(target, disk):
    with slots(disk) as blk:
        for _ in range(3):
            region = add(blk)
            assert len(mapped(target, region)) == 1
            assert read_into(blk, FAR) == OK
            blk.client.rem_mem_reg(region)
            await_unmapped(target, region)
            blk.memory.regions.remove(region)


def test_every_slot_at_once_and_not_one_more(target, disk):
    with slots(disk) as blk:
        fds = target.fds()
        while len(blk.memory.regions) < SLOTS:
            add(blk, FAR + len(blk.memory.regions) * MIB, 4096)
        with pytest.raises(Refused):
            add(blk, FAR - MIB, 4096)
        assert len(mapped(target, *blk.memory.regions)) == SLOTS
        target.await_fds(fds)
        for region in (blk.memory.regions[2], blk.memory.regions[-1]):
            assert read_into(blk, region.gpa) == OK
        for region in blk.memory.regions[2:][::-2]:
            blk.client.rem_mem_reg(region)
        assert read_into(blk, blk.memory.regions[3].gpa) == OK
        add(blk, FAR - MIB, 4096)


OVERLAPS = {
    "same": (0, MIB, 0),
    "guest-first-byte": (1 - MIB, MIB, 1 << 32),
    "guest-last-byte": (MIB - 1, MIB, 1 << 32),
    "guest-inside": (4096, 4096, 1 << 32),
    "guest-around": (-4096, 2 * MIB, 1 << 32),
    "user-last-byte": (1 << 32, MIB, MIB - 1),
    "user-first-byte": (1 << 32, MIB, 1 - MIB),
    "user-around": (1 << 32, 2 * MIB, -4096),
}


@pytest.mark.parametrize("row", OVERLAPS.values(), ids=OVERLAPS)
def test_overlap_is_refused(target, disk, row):
    at, size, user = row
    with slots(disk) as blk:
        add(blk)
        fds = target.fds()
        other = Region(FAR + at, size, uaddr=FAR + UADDR_SHIFT + user)
        with pytest.raises(Refused):
            blk.client.add_mem_reg(other)
        await_unmapped(target, other)
        other.close()
        target.await_fds(fds)
        assert read_into(blk, FAR) == OK


def test_neighbours_do_not_overlap(disk):
    with slots(disk) as blk:
        for at in (FAR, FAR + MIB, FAR - MIB):
            add(blk, at)
        assert read_into(blk, FAR + MIB) == OK


@pytest.mark.parametrize("change", ["gpa", "size", "uaddr"])
def test_unknown_region_is_not_removed(disk, change):
    with slots(disk) as blk:
        region = add(blk)
        row = {"gpa": region.gpa, "size": region.size, "uaddr": region.uaddr}
        row[change] += 4096
        with pytest.raises(Refused):
            blk.client.tell(Msg.REM_MEM_REG, struct.pack("=5Q", 0, *row.values(), 0))
        assert read_into(blk, FAR) == OK


def test_the_offset_means_nothing_on_removal(disk):
    with slots(disk) as blk:
        region = add(blk)
        blk.client.tell(Msg.REM_MEM_REG,
                        struct.pack("=5Q", 0, region.gpa, region.size, region.uaddr, 1 << 40))
        add(blk)


@pytest.mark.parametrize("count", [0, 2, 8])
def test_one_descriptor_each(target, disk, count):
    with slots(disk) as blk:
        region, fds = Region(FAR, MIB), target.fds()
        with pytest.raises(Refused):
            blk.client.tell(Msg.ADD_MEM_REG, bytes(8) + region.entry(), [region.fd] * count)
        target.await_fds(fds)
        assert read_into(blk, blk.scratch) == OK
        region.close()


def test_a_stray_descriptor_on_removal_is_closed(target, disk):
    with slots(disk) as blk:
        fds = target.fds()
        for _ in range(20):
            region = add(blk)
            blk.client.tell(Msg.REM_MEM_REG, bytes(8) + region.entry(), [region.fd])
        target.await_fds(fds)


def test_messages_need_the_feature(disk):
    with Blk(disk) as blk:
        region = Region(FAR, MIB)
        with pytest.raises(Refused):
            blk.client.add_mem_reg(region)
        region.close()


# A ring in what changes

def test_ring_stops_with_its_region_and_goes_on_with_it(disk):
    with slots(disk) as blk:
        blk.write(0, b"\x77" * 512)
        home = blk.memory.regions[0]
        blk.client.rem_mem_reg(home)
        header, status = blk.header(IN), blk.status()
        head = blk.rings[0].chain([(header, 16, 0), (blk.scratch, 512, WRITE), (status, 1, WRITE)])
        blk.rings[0].submit(head)
        with pytest.raises(TimeoutError):
            blk.rings[0].wait(1, 0.2)
        blk.client.add_mem_reg(home)
        assert blk.rings[0].wait() == [(head, 513)]
        assert not blk.rings[0].wait_err(0)
        assert blk.read(0, 512) == b"\x77" * 512


def test_base_of_a_ring_without_its_region(disk):
    with slots(disk) as blk:
        for _ in range(3):
            blk.read(0, 512)
        blk.client.rem_mem_reg(blk.memory.regions[0])
        assert blk.client.get_vring_base(0) == 3
        blk.client.add_mem_reg(blk.memory.regions[0])
        with pytest.raises(TimeoutError):
            blk.rings[0].submit(0)
            blk.rings[0].wait(1, 0.2)


def test_requests_in_flight_outlive_their_region(target, thread_disk):
    """They are written where the region was, though the guest has taken it away."""
    with slots(thread_disk, size=1024) as blk:
        blk.write(0, b"\x3c" * 512)
        for _ in range(10):
            region, ring = add(blk), blk.rings[0]
            parts = [(blk.header(IN), 16, 0), (FAR, 512, WRITE), (blk.status(), 1, WRITE)]
            for i in range(300):
                ring.chain([parts[0], (FAR + 512 * i, 512, WRITE), parts[2]],
                           [3 * i, 3 * i + 1, 3 * i + 2])
            ring.submit(*range(0, 900, 3))
            while not ring.pending():
                pass
            blk.client.rem_mem_reg(region)
            time.sleep(0.01)
            done = {head for head, _ in ring.collect()}
            for head in done:
                at = 512 * (head // 3)
                assert region.bytes[at:at + 512].tobytes() == b"\x3c" * 512
            blk.memory.regions.remove(region)
            if len(done) < 300:                     # what came later names memory that is gone
                assert ring.wait_err()
                blk.client.get_vring_base(0)
                ring.reset(0)
                ring.start(blk.client)
            await_unmapped(target, region)


def test_other_rings_go_on(disk):
    with slots(disk, queues=2) as blk:
        region = add(blk, size=4 * MIB)
        ring = blk.rings[1]
        ring.desc_gpa, ring.avail_gpa, ring.used_gpa = FAR, FAR + MIB, FAR + 2 * MIB
        blk.client.get_vring_base(1)
        ring.bind()
        ring.reset(0)
        ring.start(blk.client)
        blk.write(0, b"\x21" * 512, queue=1)
        blk.client.rem_mem_reg(region)
        assert blk.read(0, 512) == b"\x21" * 512
        blk.client.add_mem_reg(region)
        assert blk.read(0, 512, queue=1) == b"\x21" * 512


# What vanishes

@pytest.mark.parametrize("after", ["at-once", "when-removed"])
def test_truncated_region_breaks_only_its_session(target, disk, after):
    with Blk(disk) as witness, slots(disk) as blk:
        region = add(blk)
        os.ftruncate(region.fd, 0)
        if after == "when-removed":
            blk.client.rem_mem_reg(region)
            assert read_into(blk, blk.scratch) == OK
        else:
            blk.rings[0].submit(blk.rings[0].chain([(blk.header(IN), 16, 0), (FAR, 512, WRITE),
                                                    (blk.status(), 1, WRITE)]))
            assert blk.rings[0].wait_err()
            assert not blk.rings[0].pending()
        witness.write(0, bytes(512))
        assert witness.read(0, 512) == bytes(512)
        blk.memory.regions.remove(region)


def test_after_a_new_table_missing_memory_is_forgotten(disk):
    with slots(disk) as blk:
        region = add(blk)
        os.ftruncate(region.fd, 0)
        blk.rings[0].submit(blk.rings[0].chain([(blk.header(IN), 16, 0), (FAR, 512, WRITE),
                                                (blk.status(), 1, WRITE)]))
        assert blk.rings[0].wait_err()
        blk.memory.regions.remove(region)
        blk.client.get_vring_base(0)
        blk.client.set_mem_table(blk.memory)
        blk.rings[0].reset(0)
        blk.rings[0].start(blk.client)
        assert blk.read(0, 512)


# A table in place of regions

def test_a_table_keeps_the_mappings_that_are_in_both(target, disk):
    with slots(disk) as blk:
        before = mapped(target, *blk.memory.regions)
        blk.client.set_mem_table(blk.memory)
        region = add(blk)
        blk.client.set_mem_table(blk.memory)
        assert mapped(target, *blk.memory.regions) == before | mapped(target, region)
        assert read_into(blk, FAR) == OK


def test_a_table_with_another_file_at_the_same_place(disk):
    with slots(disk) as blk:
        blk.write(0, b"\x41" * 512)
        old = add(blk)
        blk.memory.regions.remove(old)
        new = Region(FAR, MIB)
        blk.memory.regions.append(new)
        blk.client.set_mem_table(blk.memory)
        assert read_into(blk, FAR) == OK
        assert new.bytes[:512].tobytes() == b"\x41" * 512
        assert not old.bytes.any()
