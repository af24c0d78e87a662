"""Disks that get another size while clients use them: null disks, and files that grew."""
import os
import struct

import pytest

from tests.lib.blk_client import IOERR, OK, OUT, Blk
from tests.lib.target import RpcError, Target
from vhostrt.vhost.messages import FLAG_NEED_REPLY, HEADER, VERSION

CONFIG_CHANGE = 2                       # VHOST_USER_BACKEND_CONFIG_CHANGE_MSG


@pytest.fixture(scope="module")
def target():
    with Target(disks=()) as running:
        yield running


@pytest.fixture
def null_disk(target):
    """A null disk of 2048 sectors that is served, and its socket."""
    path = target.add_disk("bdev_null_create", "n", num_blocks=2048, block_size=512)
    yield path
    target.rpc("vhost_delete_controller", ctrlr="n")
    target.rpc("bdev_null_delete", name="n")


def blocks(target, name):
    return target.rpc("bdev_get_bdevs", name=name)[0]["num_blocks"]


def told(blk):
    """Return the next request on the channel of the client's back end."""
    return HEADER.unpack(blk.client.backend.recv(HEADER.size))


def test_a_larger_disk_is_told_and_used(target, null_disk):
    with Blk(null_disk) as blk:
        blk.client.set_backend_req_fd()
        assert blk.capacity() == 2048
        assert blk.request(OUT, 2048, b"x" * 512).status == IOERR
        assert target.rpc("bdev_null_resize", name="n", new_size=2) is True
        assert told(blk) == (CONFIG_CHANGE, VERSION | FLAG_NEED_REPLY, 0)
        assert blk.capacity() == 4096 and blocks(target, "n") == 4096
        assert blk.request(OUT, 4095, b"x" * 512).status == OK
        assert target.rpc("bdev_null_resize", name="n", new_size=2) is True     # nothing new
        assert target.rpc("bdev_null_resize", name="n", new_size=3) is True
        assert told(blk) == (CONFIG_CHANGE, VERSION | FLAG_NEED_REPLY, 0)
        blk.client.backend.setblocking(False)
        with pytest.raises(BlockingIOError):
            blk.client.backend.recv(1)
    with Blk(null_disk) as later:
        assert later.capacity() == 3 << 11


def test_a_client_that_cannot_be_told_is_named(target, null_disk):
    with Blk(null_disk) as blk:
        target.rpc("bdev_null_resize", name="n", new_size=2)
        assert blk.capacity() == 4096
        assert "the client is not told of the new size of n: it has not asked" in target.stderr()
        blk.client.set_backend_req_fd()
        blk.client.backend.close()
        target.rpc("bdev_null_resize", name="n", new_size=3)
        assert "the client is not told of the new size of n: it has closed" in target.stderr()
        assert blk.capacity() == 3 << 11


def test_a_smaller_disk(target, null_disk):
    target.rpc("bdev_null_resize", name="n", new_size=2)
    with pytest.raises(RpcError, match="-16: bdev n is open and has 4096 blocks: it cannot"):
        target.rpc("bdev_null_resize", name="n", new_size=1)
    target.rpc("bdev_null_create", name="free", num_blocks=4096, block_size=512)
    assert target.rpc("bdev_null_resize", name="free", new_size=1) is True
    assert blocks(target, "free") == 2048
    target.rpc("bdev_null_delete", name="free")


@pytest.mark.parametrize("kind", ["aio", "uring"])
def test_a_file_that_grew(target, tmp_path, kind):
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(1 << 20))
    params = {"filename": str(image), "block_size": 512}
    try:
        path = target.add_disk(f"bdev_{kind}_create", "f", **params)
    except RpcError as refused:         # where the kernel refuses io_uring
        assert kind == "uring" and refused.code == -95
        return
    try:
        with Blk(path) as blk:
            blk.client.set_backend_req_fd()
            os.truncate(image, 3 << 20)
            assert blk.capacity() == 2048
            assert target.rpc(f"bdev_{kind}_rescan", name="f") is True
            assert told(blk)[0] == CONFIG_CHANGE and blk.capacity() == 3 << 11
            blk.write(6143, b"end!" * 128)
            assert blk.read(6143, 512) == b"end!" * 128
            os.truncate(image, (3 << 20) + 100)
            with pytest.raises(RpcError, match="-22: the size of .* is not a whole number"):
                target.rpc(f"bdev_{kind}_rescan", name="f")
            os.truncate(image, 2 << 20)
            with pytest.raises(RpcError, match="-16: bdev f is open"):
                target.rpc(f"bdev_{kind}_rescan", name="f")
            assert struct.unpack("<Q", blk.client.get_config(0, 8)) == (3 << 11,)
        target.rpc("vhost_delete_controller", ctrlr="f")
        assert target.rpc(f"bdev_{kind}_rescan", name="f") is True
        assert blocks(target, "f") == 4096
    finally:
        target.rpc(f"bdev_{kind}_delete", name="f")


@pytest.mark.parametrize("name, size, code, text", [
    ("none", 1, -19, "bdev none does not exist"), ("n", 2**42 + 1, -32602, "not 4398046511105"),
    ("n", 0, -32602, "'new_size' must be a positive number of MiB, not 0"),
])
def test_sizes_that_cannot_be(target, null_disk, name, size, code, text):
    with pytest.raises(RpcError) as refused:
        target.rpc("bdev_null_resize", name=name, new_size=size)
    assert refused.value.code == code and text in str(refused.value)
    assert blocks(target, "n") == 2048
