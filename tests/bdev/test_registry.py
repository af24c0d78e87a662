"""The registry of bdevs, as RPC methods and controllers use it."""
import asyncio
import errno
import json

import pytest

from vhostrt.bdev import registry
from vhostrt.bdev.null import NullBdev

UUID = "604c4e11-3f2b-4b0d-8e2d-84498ccb980d"


@pytest.fixture(autouse=True)
def empty():
    yield
    registry.entries.clear()
    registry.by_uuid.clear()


async def let_go(descriptor) -> None:
    descriptor.close()


def test_found_by_name_and_uuid_in_creation_order():
    b, a = NullBdev("b", 8, uuid=UUID), NullBdev("a", 8)
    registry.register(b)
    registry.register(a)
    assert registry.bdevs() == [b, a]
    assert registry.get("a") is a
    assert registry.get(UUID) is b
    assert registry.get(UUID.upper()) is b


@pytest.mark.parametrize("name, uuid", [("taken", None), (UUID, None), ("other", UUID)],
                         ids=["name", "name is a uuid", "uuid"])
def test_taken_identity_is_refused(name, uuid):
    registry.register(NullBdev("taken", 8, uuid=UUID))
    with pytest.raises(OSError, match="already exists") as caught:
        registry.register(NullBdev(name, 8, uuid=uuid))
    assert caught.value.errno == errno.EEXIST
    assert len(registry.bdevs()) == 1


def test_unknown_name_is_refused():
    with pytest.raises(OSError, match="bdev nobody does not exist") as caught:
        registry.get("nobody")
    assert caught.value.errno == errno.ENODEV


def test_delete_tells_every_user_and_waits_for_all():
    told = []

    async def main():
        registry.register(NullBdev("disk", 8))
        held = []

        async def later(descriptor):
            told.append(descriptor)
            held.append(descriptor)

        registry.open("disk", True, later)
        registry.open("disk", False, later)
        deleting = asyncio.create_task(registry.delete("disk"))
        while len(held) < 2:
            await asyncio.sleep(0)
        with pytest.raises(OSError, match="being deleted"):
            registry.open("disk", False, let_go)
        with pytest.raises(OSError, match="being deleted already"):
            await registry.delete("disk")
        held[0].close()
        held[0].close()
        for _ in range(5):
            await asyncio.sleep(0)
        assert not deleting.done()
        held[1].close()
        await deleting

    asyncio.run(main())
    assert len(told) == 2
    assert registry.bdevs() == []


def test_user_that_holds_on_is_an_error_and_delete_may_be_repeated():
    async def hold(_descriptor):
        pass

    async def main():
        registry.register(NullBdev("disk", 8))
        descriptor = registry.open("disk", True, hold)
        with pytest.raises(OSError, match="still open 1 times") as caught:
            await registry.delete("disk", timeout=0.01)
        assert caught.value.errno == errno.ETIMEDOUT
        assert registry.get("disk").removed
        descriptor.close()
        await registry.delete("disk")

    asyncio.run(main())
    assert registry.bdevs() == []


def test_user_that_is_slow_is_not_cut_off_half_way():
    told, slow = [], asyncio.Event()

    async def take_time(descriptor):
        told.append(descriptor)
        await slow.wait()
        descriptor.close()

    async def main():
        registry.register(NullBdev("disk", 8))
        registry.open("disk", True, take_time)
        with pytest.raises(OSError, match="still open 1 times"):
            await registry.delete("disk", timeout=0.01)
        slow.set()
        await registry.delete("disk")

    asyncio.run(main())
    assert len(told) == 1
    assert registry.bdevs() == []


def test_user_that_fails_is_logged_and_the_others_are_told(capsys):
    async def fail(descriptor):
        descriptor.close()
        raise RuntimeError("boom")

    async def main():
        registry.register(NullBdev("disk", 8))
        registry.open("disk", True, fail)
        registry.open("disk", True, let_go)
        await registry.delete("disk")

    asyncio.run(main())
    assert registry.bdevs() == []
    assert "boom" in capsys.readouterr().err


def test_delete_of_another_product_is_refused():
    registry.register(NullBdev("disk", 8))
    with pytest.raises(OSError, match="is a Null disk, not a Malloc disk") as caught:
        asyncio.run(registry.delete("disk", "Malloc disk"))
    assert caught.value.errno == errno.ENODEV
    assert not registry.get("disk").removed


def test_delete_all_takes_the_newest_first(monkeypatch):
    order = []
    real = registry.delete

    async def delete(name):
        order.append(name)
        await real(name)

    monkeypatch.setattr(registry, "delete", delete)
    for name in "abc":
        registry.register(NullBdev(name, 8))
    asyncio.run(registry.delete_all())
    assert order == ["c", "b", "a"]
    assert registry.bdevs() == []


def test_description_has_the_keys_and_the_order_of_the_original():
    bdev = NullBdev("Null0", 2097152, 512, UUID)
    registry.register(bdev)
    about = registry.describe(bdev)
    assert list(about) == [
        "name", "aliases", "product_name", "block_size", "num_blocks", "preferred_write_alignment",
        "preferred_write_granularity", "optimal_write_size", "preferred_unmap_alignment",
        "preferred_unmap_granularity", "uuid", "assigned_rate_limits", "claimed", "zoned",
        "supported_io_types", "driver_specific"]
    assert about["aliases"] == [about["uuid"]] == [UUID]
    assert list(about["supported_io_types"]) == [
        "read", "write", "unmap", "flush", "reset", "nvme_admin", "nvme_io", "nvme_io_md",
        "write_zeroes", "zcopy", "get_zone_info", "zone_management", "zone_append", "compare",
        "compare_and_write", "abort", "seek_hole", "seek_data", "copy", "nvme_iov_md", "nvme_nssr",
        "write_uncorrectable"]
    assert {k for k, v in about["supported_io_types"].items() if v} == {
        "read", "write", "write_zeroes", "reset"}
    json.dumps(about)
