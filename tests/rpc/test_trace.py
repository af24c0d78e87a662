"""RPC methods of tracing and of the claims on cores: their replies and their refusals."""
import os
from pathlib import Path

import pytest

from tests.lib.target import RpcError, Target

ALL = "0xffffffffffffffff"
# Of the replies of SPDK v26.05: groups that are here, too, with their masks and first points.
GROUPS = {"bdev": ("0x8", ["BDEV_IO_START", "BDEV_IO_DONE", "BDEV_IOCH_CREATE",
                           "BDEV_IOCH_DESTROY"]),
          "thread": ("0x400", ["THREAD_IOCH_GET", "THREAD_IOCH_PUT"]),
          "scheduler": ("0x40000", ["SCHEDULER_PERIOD_START", "SCHEDULER_CORE_STATS",
                                    "SCHEDULER_THREAD_STATS", "SCHEDULER_MOVE_THREAD"])}


@pytest.fixture(scope="module")
def target():
    with Target(disks=()) as running:
        yield running


@pytest.fixture(autouse=True)
def all_off(target):
    yield
    target.rpc("trace_disable_tpoint_group", name="all")


def groups(reply):
    return {name: value for name, value in reply.items() if isinstance(value, dict)}


def test_the_groups_and_their_points(target):
    reply = target.rpc("trace_get_tpoint_group_mask")
    assert reply["tpoint_group_mask"] == "0x0"
    assert reply.keys() - groups(reply).keys() == {"tpoint_group_mask"}
    for group in groups(reply).values():
        assert group.keys() == {"enabled", "mask", "tpoint_mask", "tpoints"}
        assert (group["enabled"], group["tpoint_mask"]) == (False, "0x0")
        for point in group["tpoints"]:
            assert point.keys() == {"name", "tpoint_id", "enabled"} and point["enabled"] is False
    for name, (mask, points) in GROUPS.items():
        assert reply[name]["mask"] == mask
        found = [(point["tpoint_id"], point["name"]) for point in reply[name]["tpoints"]]
        assert found[:len(points)] == list(enumerate(points))
    masks = [int(group["mask"], 16) for group in groups(reply).values()]
    assert masks == sorted(set(masks)) and all(mask.bit_count() == 1 for mask in masks)


def test_where_the_trace_is(target):
    reply = target.rpc("trace_get_info")
    assert reply["tpoint_shm_path"] == f"/dev/shm/vhostrt_trace.pid{target.pid}"
    assert list(reply)[:2] == ["tpoint_shm_path", "tpoint_group_mask"]
    for group in groups(reply).values():
        assert group.keys() == {"mask", "tpoint_mask"}
    assert groups(reply).keys() == groups(target.rpc("trace_get_tpoint_group_mask")).keys()


def test_a_group_is_turned_on_and_off(target):
    assert target.rpc("trace_enable_tpoint_group", name="bdev") is True
    assert Path(target.rpc("trace_get_info")["tpoint_shm_path"]).exists()
    reply = target.rpc("trace_get_tpoint_group_mask")
    assert reply["tpoint_group_mask"] == "0x8"
    assert (reply["bdev"]["enabled"], reply["bdev"]["tpoint_mask"]) == (True, ALL)
    assert all(point["enabled"] for point in reply["bdev"]["tpoints"])
    assert not reply["vhost_blk"]["enabled"]
    assert target.rpc("trace_disable_tpoint_group", name="bdev") is True
    assert target.rpc("trace_get_info")["bdev"]["tpoint_mask"] == "0x0"


def test_points_are_turned_on_and_off_one_by_one(target):
    assert target.rpc("trace_set_tpoint_mask", name="bdev", tpoint_mask=1) is True
    assert target.rpc("trace_set_tpoint_mask", name="bdev", tpoint_mask=6) is True
    assert target.rpc("trace_get_info")["bdev"]["tpoint_mask"] == "0x7"
    assert target.rpc("trace_clear_tpoint_mask", name="bdev", tpoint_mask=2) is True
    reply = target.rpc("trace_get_tpoint_group_mask")["bdev"]
    assert [point["enabled"] for point in reply["tpoints"]] == [True, False, True, False]
    assert target.rpc("trace_clear_tpoint_mask", name="all", tpoint_mask=2**64 - 1) is True
    assert target.rpc("trace_get_info")["tpoint_group_mask"] == "0x0"


def test_all_groups(target):
    assert target.rpc("trace_enable_tpoint_group", name="all") is True
    reply = target.rpc("trace_get_info")
    mask = sum(int(group["mask"], 16) for group in groups(reply).values())
    assert int(reply["tpoint_group_mask"], 16) == mask
    assert target.rpc("trace_clear") is True


def test_the_names_before_v20_04(target):
    assert target.rpc("enable_tpoint_group", name="bdev") is True
    assert target.rpc("get_tpoint_group_mask")["tpoint_group_mask"] == "0x8"
    assert target.rpc("disable_tpoint_group", name="bdev") is True


@pytest.mark.parametrize("method, params, words", [
    ("trace_enable_tpoint_group", {"name": "none"}, "must be one of bdev, "),
    ("trace_disable_tpoint_group", {"name": "none"}, "all, not \"none\""),
    ("trace_enable_tpoint_group", {}, "name"), ("trace_enable_tpoint_group", {"name": 1}, "name"),
    ("trace_enable_tpoint_group", {"name": "bdev", "x": 1}, "x"),
    ("trace_set_tpoint_mask", {"name": "bdev"}, "tpoint_mask"),
    ("trace_set_tpoint_mask", {"name": "none", "tpoint_mask": 1}, "must be one of"),
    ("trace_set_tpoint_mask", {"name": "bdev", "tpoint_mask": 0}, "not 0"),
    ("trace_set_tpoint_mask", {"name": "bdev", "tpoint_mask": -1}, "not -1"),
    ("trace_clear_tpoint_mask", {"name": "bdev", "tpoint_mask": 2**64}, "tpoint_mask"),
    ("trace_set_tpoint_mask", {"name": "bdev", "tpoint_mask": "0x1"}, "tpoint_mask"),
    ("trace_clear", {"name": "bdev"}, "name"), ("trace_get_info", {"name": "bdev"}, "name"),
])
def test_refusals(target, method, params, words):
    with pytest.raises(RpcError, match=words) as error:
        target.rpc(method, **params)
    assert error.value.code == -32602
    assert target.rpc("trace_get_info")["tpoint_group_mask"] == "0x0"


def test_without_entries_nothing_can_be_turned_on():
    with Target(disks=(), extra=["--num-trace-entries", "0"]) as running:
        assert running.rpc("trace_get_info")["tpoint_shm_path"] == ""
        with pytest.raises(RpcError, match="--num-trace-entries 0") as error:
            running.rpc("trace_enable_tpoint_group", name="bdev")
        assert error.value.code == -19
        assert running.rpc("trace_disable_tpoint_group", name="bdev") is True


def test_a_file_in_the_way_is_told():
    with Target(disks=()) as running:
        path = running.rpc("trace_get_info")["tpoint_shm_path"]
        os.mkdir(path)
        try:
            with pytest.raises(RpcError, match=path):
                running.rpc("trace_enable_tpoint_group", name="bdev")
        finally:
            os.rmdir(path)
        assert running.rpc("trace_enable_tpoint_group", name="bdev") is True
    assert not os.path.exists(path)


def test_before_the_subsystems_run():
    with Target(disks=(), extra=["--wait-for-rpc"]) as running:
        assert running.rpc("trace_enable_tpoint_group", name="bdev") is True
        assert running.rpc("framework_start_init") is True
        assert running.rpc("trace_get_info")["tpoint_group_mask"] == "0x8"
