"""bdevs from the parameters of the create methods, as RPC and --disk give them."""
import asyncio
import errno
import os

import pytest

from vhostrt.bdev import factory, registry

UUID = "604c4e11-3f2b-4b0d-8e2d-84498ccb980d"


@pytest.fixture(autouse=True)
def empty():
    yield
    asyncio.run(registry.delete_all())
    assert registry.bdevs() == []


def make(coroutine):
    return registry.get(asyncio.run(coroutine))


def test_malloc_disk_with_a_name_of_its_own():
    made = [make(factory.create_malloc(2048)) for _ in range(3)]
    assert [b.name for b in made] == ["Malloc0", "Malloc1", "Malloc2"]
    asyncio.run(factory.delete("Malloc1", "malloc"))
    assert make(factory.create_malloc(2048, name="", uuid=UUID)).name == "Malloc1"
    about = registry.describe(registry.get(UUID))
    assert about["product_name"] == "Malloc disk"
    assert (about["num_blocks"], about["block_size"], about["numa_id"]) == (2048, 512, -1)
    assert list(about)[list(about).index("uuid") + 1] == "numa_id"
    assert {k for k, v in about["supported_io_types"].items() if v} == {
        "read", "write", "unmap", "flush", "reset", "write_zeroes"}


def test_null_disk_reports_its_sizes():
    bdev = make(factory.create_null("Null0", 64, 4096, UUID, 8192, preferred_write_alignment=2,
                                    optimal_write_size=16))
    about = registry.describe(bdev)
    assert about["preferred_write_alignment"] == 2
    assert about["optimal_write_size"] == 16
    assert about["preferred_unmap_alignment"] == 0
    assert bdev.hints["physical_block_size"] == 8192
    assert "numa_id" not in about


@pytest.mark.parametrize("create, product", [
    (factory.create_aio, "AIO disk"), (factory.create_uring, "URING bdev"),
    (factory.create_file, "URING bdev")])
def test_file(create, product, tmp_path):
    path = tmp_path / "f"
    path.write_bytes(bytes(8192))
    bdev = make(create("disk", str(path), 4096))
    about = registry.describe(bdev)
    assert (about["product_name"], about["num_blocks"], about["block_size"]) == (product, 2, 4096)
    with pytest.raises(OSError, match="not a Malloc disk"):
        asyncio.run(factory.delete("disk", "malloc"))
    asyncio.run(factory.delete("disk"))
    bdev = make(create("disk", str(path), readonly=True))
    types = registry.describe(bdev)["supported_io_types"]
    assert types["read"] and types["flush"]
    assert not types["write"] and not types["write_zeroes"] and not types["unmap"]


def test_taken_name_opens_nothing(tmp_path):
    path = tmp_path / "f"
    path.write_bytes(bytes(8192))
    make(factory.create_null("disk", 8, uuid=UUID))
    before = len(os.listdir("/proc/self/fd"))
    for create in (factory.create_aio("disk", str(path)), factory.create_uring("disk", str(path)),
                   factory.create_malloc(8, name="disk"), factory.create_null("disk", 8),
                   factory.create_null("other", 8, uuid=UUID)):
        with pytest.raises(OSError, match="already exists") as caught:
            asyncio.run(create)
        assert caught.value.errno == errno.EEXIST
    assert len(os.listdir("/proc/self/fd")) == before


def test_two_at_once_with_one_name_leave_one_and_no_descriptor(tmp_path):
    paths = [tmp_path / "a", tmp_path / "b"]
    for path in paths:
        path.write_bytes(bytes(8192))

    async def main():
        return await asyncio.gather(*(factory.create_file("disk", str(p)) for p in paths),
                                    return_exceptions=True)

    results = asyncio.run(main())
    assert sorted(map(str, results)) == ["[Errno 17] bdev disk already exists", "disk"]
    asyncio.run(factory.delete("disk"))
    opened = [os.path.realpath(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")]
    assert not set(map(str, paths)) & set(opened)


REFUSED = [
    (factory.create_malloc, (0,), "num_blocks 0"),
    (factory.create_malloc, (-1,), "num_blocks -1"),
    (factory.create_malloc, (1 << 62,), "num_blocks"),
    (factory.create_malloc, (1 << 61, 4096), "blocks of 4096 bytes cannot be made"),
    (factory.create_malloc, (8, 500), "block size 500"),
    (factory.create_malloc, (8, 768), "block size 768"),
    (factory.create_malloc, (8, 1 << 40), "block size 1099511627776"),
    (factory.create_malloc, (8, 512, "a/b"), "bdev name 'a/b'"),
    (factory.create_malloc, (8, 512, "m", "no uuid"), "uuid 'no uuid' is not a UUID"),
    (factory.create_malloc, (8, 512, "m", None, 256), "physical block size 256"),
    (factory.create_malloc, (8, 512, "m", None, 1536), "physical block size 1536"),
    (factory.create_malloc, (8, 512, "m", None, 0, 0, 8), "md_size 8 is refused"),
    (factory.create_malloc, (8, 512, "m", None, 0, 0, 0, False, 1), "dif_type 1 is refused"),
    (factory.create_malloc, (8, 512, "m", None, 0, 0, 0, False, 0, False, 0, 77), "numa_id 77"),
    (factory.create_malloc, (8, 512, "m", None, 0, 0, 0, False, 0, False, 0, 1 << 40), "numa_id"),
    (factory.create_null, ("", 8), "bdev name ''"),
    (factory.create_null, ("n", 0), "num_blocks 0"),
    (factory.create_null, ("n" * 256, 8), "1 to 255"),
    (factory.create_aio, ("a", "/dev/null", 512, False, False, None, True), "nowait is refused"),
    (factory.create_aio, ("a", "/dev/null", -5), "block size -5"),
    (factory.create_uring, ("a", "/dev/null", 1 << 40), "block size"),
    (factory.create_file, ("a", "", 512), "'' is not the name of a file"),
]


@pytest.mark.parametrize("create, arguments, text", REFUSED, ids=[r[2] for r in REFUSED])
def test_parameters_that_cannot_be_had(create, arguments, text):
    with pytest.raises(ValueError, match=text):
        asyncio.run(create(*arguments))


def test_more_memory_than_there_is_addressed():
    with pytest.raises(OSError, match="memory of bdev Malloc0") as caught:
        asyncio.run(factory.create_malloc(1 << 52))
    assert caught.value.errno == errno.ENOMEM
