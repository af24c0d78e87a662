"""Split bdevs of the running program: by RPC and SPDK's client, served, saved, and in files."""
import json
import os

import pytest

from tests.lib.blk_client import Blk
from tests.lib.command import Place
from tests.lib.target import RpcError, Target
from tests.rpc.test_spdk_client import Cli


@pytest.fixture(scope="module")
def target():
    with Target(disks=()) as running:
        yield running


@pytest.fixture
def disk(target):
    target.rpc("bdev_malloc_create", name="m", num_blocks=4096, block_size=512)
    yield
    for controller in target.rpc("vhost_get_controllers"):
        target.rpc("vhost_delete_controller", ctrlr=controller["ctrlr"])
    target.rpc("bdev_malloc_delete", name="m")
    assert target.rpc("bdev_get_bdevs") == []


def test_a_part_is_served_and_its_blocks_are_the_bases(target, disk):
    assert target.rpc("bdev_split_create", base_bdev="m", split_count=2) == ["mp0", "mp1"]
    target.rpc("vhost_create_blk_controller", ctrlr="part", dev_name="mp1")
    data = os.urandom(1 << 16)
    with Blk(target.folder / "part") as blk:
        assert blk.capacity() == 2048
        blk.write(100, data)
        blk.flush()
        assert blk.read(100, len(data)) == data
    target.rpc("vhost_create_blk_controller", ctrlr="whole", dev_name="m", readonly=True)
    with Blk(target.folder / "whole") as blk:
        assert blk.read(2148, len(data)) == data


def test_refusals(target, disk):
    target.rpc("vhost_create_blk_controller", ctrlr="c", dev_name="m")
    for params, text in (
            ({"base_bdev": "m", "split_count": 2}, "Failed to create 2 split bdevs from 'm': bdev "
             "m is in use, and cannot be claimed by split"),
            ({"base_bdev": "m", "split_count": 0}, "'split_count' must be an integer from 1 to"),
            ({"split_count": 1}, "missing 'base_bdev'")):
        with pytest.raises(RpcError, match=text) as caught:
            target.rpc("bdev_split_create", **params)
        assert caught.value.code == -32602
    with pytest.raises(RpcError, match="there is no split of bdev m") as caught:
        target.rpc("bdev_split_delete", base_bdev="m")
    assert caught.value.code == -32602
    target.rpc("vhost_delete_controller", ctrlr="c")
    target.rpc("bdev_split_create", base_bdev="m", split_count=2)
    with pytest.raises(RpcError, match="bdev m is claimed by split") as caught:
        target.rpc("vhost_create_blk_controller", ctrlr="c", dev_name="m")
    assert caught.value.code == -1


def test_spdk_rpc(target, disk):
    with Cli(target) as cli:
        assert cli("bdev_split_create", "m", 2, "-s", 1) == "mp0 mp1"
        assert cli("bdev_get_bdevs", "-b", "mp1")[0]["num_blocks"] == 2048
        assert cli("bdev_split_delete", "m") == ""
        assert [bdev["name"] for bdev in cli("bdev_get_bdevs")] == ["m"]


def test_a_file_in_spdks_order_with_the_split_before_its_base():
    entries = [
        {"method": "bdev_split_create",
         "params": {"base_bdev": "n", "split_count": 2, "split_size_mb": 0}},
        {"method": "bdev_null_create",
         "params": {"name": "n", "num_blocks": 100, "block_size": 512}},
        {"method": "bdev_wait_for_examine"}]
    controller = {"method": "vhost_create_blk_controller",
                  "params": {"ctrlr": "c", "dev_name": "np1"}}
    with Place() as place:
        (place.cwd / "vhost.json").write_text(json.dumps({"subsystems": [
            {"subsystem": "bdev", "config": entries},
            {"subsystem": "vhost_blk", "config": [controller]}]}))
        with place.start("-c", "vhost.json", "--state", "state.json") as run:
            saved = run.rpc("save_config")
            assert [bdev["name"] for bdev in run.rpc("bdev_get_bdevs")] == ["n", "np0", "np1"]
            run.stop()
        with place.start("--state", "state.json") as run:
            assert run.rpc("save_config") == saved
            run.stop()


def test_an_old_file():
    text = ("[Split]\nSplit Malloc0 2\n[VhostBlk0]\nName c\nDev Malloc0p1\n"
            "[Malloc]\nNumberOfLuns 1\nLunSizeInMB 8\n")
    with Place() as place:
        (place.cwd / "vhost.conf").write_text(text)
        with place.start("-c", "vhost.conf") as run:
            controller, = run.rpc("vhost_get_controllers")
            assert controller["backend_specific"]["block"]["bdev"] == "Malloc0p1"
            run.stop()
