"""vhostrt/rpc/config.py: what is saved and loaded, of the running program and by SPDK's client."""
import json
import re
from pathlib import Path

import pytest

from tests.lib.rpc_server import Client
from tests.lib.target import Target
from tests.rpc.test_spdk_client import command

SAVED_BY_SPDK = (Path(__file__).parent / "save_config.spdk.json").read_text()


def result(client, method, /, **params):
    reply = client.call(method, params or None)
    assert "result" in reply, reply
    return reply["result"]


def error(client, method, /, **params):
    reply = client.call(method, params or None)
    assert "error" in reply, reply
    return reply["error"]["code"], reply["error"]["message"]


@pytest.fixture(scope="module")
def target():
    with Target(disks=()) as running:
        yield running


@pytest.fixture
def client(target):
    with Client(str(target.rpc_path)) as connected:
        yield connected
        for controller in result(connected, "vhost_get_controllers"):
            result(connected, "vhost_delete_controller", ctrlr=controller["ctrlr"])
        for bdev in result(connected, "bdev_get_bdevs"):
            kind = {"Malloc disk": "malloc", "Null disk": "null", "AIO disk": "aio",
                    "URING bdev": "uring"}[bdev["product_name"]]
            result(connected, f"bdev_{kind}_delete", name=bdev["name"])


def config_of(client, subsystem):
    return result(client, "framework_get_config", name=subsystem)


def foreign(*left_out):
    """Return what SPDK saved, less some subsystems."""
    root = json.loads(SAVED_BY_SPDK)
    root["subsystems"] = [each for each in root["subsystems"]
                          if each["subsystem"] not in left_out]
    return root


def entries(root, method):
    return [entry for subsystem in root["subsystems"] for entry in subsystem["config"] or ()
            if entry["method"] == method]


def test_of_nothing(client):
    """The form of SPDK's, to the letter."""
    assert result(client, "save_config") == {"subsystems": [
        {"subsystem": "log", "config": []}, {"subsystem": "trace", "config": []},
        {"subsystem": "scheduler", "config": [
            {"method": "framework_set_scheduler", "params": {"name": "static"}}]},
        {"subsystem": "bdev", "config": [
            *entries(foreign(), "bdev_set_options"), {"method": "bdev_wait_for_examine"}]},
        {"subsystem": "vhost_blk", "config": []}]}


def test_what_spdk_saved_is_loaded_and_saved_again(client, target):
    """Bdevs and controllers have SPDK's keys and values; what is ignored is named in one line."""
    assert result(client, "load_config", **foreign("vhost_scsi")) is True
    line, = [line for line in target.stderr().splitlines() if "ignored" in line]
    ignored = line.rpartition(": ")[2].split(", ")
    assert ignored == ["accel_set_options", "bdev_nvme_set_hotplug", "bdev_nvme_set_options",
                       "bdev_raid_set_options", "iobuf_set_options", "sock_impl_set_options",
                       "sock_set_default_impl"]
    saved = result(client, "save_config")
    for method in ("framework_set_scheduler", "bdev_set_options", "bdev_malloc_create",
                   "bdev_null_create", "bdev_wait_for_examine", "vhost_create_blk_controller"):
        assert entries(saved, method) == entries(foreign(), method)
    assert (target.folder / "blk.malloc").is_socket()


def test_the_keys_are_in_spdks_order(client):
    result(client, "load_config", **foreign("vhost_scsi"))
    saved = result(client, "save_config")
    for method in ("bdev_malloc_create", "bdev_null_create", "vhost_create_blk_controller"):
        for ours, theirs in zip(entries(saved, method), entries(foreign(), method), strict=True):
            assert list(ours["params"]) == list(theirs["params"])


def test_a_controller_that_is_not_there_yet_keeps_the_whole_file_out(client):
    code, text = error(client, "load_config", **foreign())
    assert code == -32602
    assert re.findall(r"(\S+): Method '(\w+)' not found: remove the entry", text) == [
        ("subsystems[10].config[0]", "vhost_create_scsi_controller"),
        ("subsystems[10].config[1]", "vhost_scsi_controller_add_target"),
        ("subsystems[10].config[2]", "vhost_start_scsi_controller")]
    assert result(client, "bdev_get_bdevs") == []


def one(method, subsystem="bdev", /, **params):
    return {"subsystem": subsystem, "config": [{"method": method, "params": params}]}


NULL = {"num_blocks": 8, "block_size": 512}
REFUSED = {
    "no list": ({"subsystems": {}}, -32602, "'subsystems' must be an array, not an object"),
    "nothing": ({}, -32602, "missing 'subsystems'"),
    "form": ({"subsystems": [{"config": []}, 1]}, -32602,
             'subsystems[0] needs a name "subsystem"; subsystems[1] needs'),
    "unknown": ({"subsystems": [one("bdev_null_create", name="a", **NULL), one("x")]}, -32602,
                "subsystems[1].config[0]: Method 'x' not found"),
    "itself": ({"subsystems": [one("bdev_null_create", name="a", **NULL),
                               one("load_config", subsystems=[])]}, -32602,
               "subsystems[1].config[0]: load_config has no place in a configuration"),
    "too late": ({"subsystems": [one("bdev_null_create", name="a", **NULL),
                                 one("scheduler_set_options")]}, -32602,
                 "subsystems[1].config[0]: scheduler_set_options can be called only before the "
                 "subsystems are initialised: start with -c, or with --wait-for-rpc"),
    "params": ({"subsystems": [one("bdev_null_create", name="a")]}, -32602,
               "subsystems[0].config[0]: bdev_null_create: Invalid parameters: missing 'num_blo"),
    "errno": ({"subsystems": [one("vhost_create_blk_controller", ctrlr="c", dev_name="no")]}, -19,
              "subsystems[0].config[0]: vhost_create_blk_controller: bdev no does not exist"),
}


@pytest.mark.parametrize("root, code, text", REFUSED.values(), ids=REFUSED)
def test_what_load_config_refuses(client, root, code, text):
    got = error(client, "load_config", **root)
    assert got[0] == code and text in got[1]
    assert result(client, "bdev_get_bdevs") == []


@pytest.mark.parametrize("entry", [1, {"method": "x"}], ids=["form", "unknown"])
def test_an_error_does_not_grow_with_the_request(client, entry):
    root = {"subsystems": [{"subsystem": "a", "config": [entry] * 20_000}]}
    code, text = error(client, "load_config", **root)
    assert code == -32602 and len(text) < 2000 and text.endswith("; and 19990 more")


def test_what_was_made_before_an_error_stays(client):
    root = {"subsystems": [one("bdev_null_create", name="a", **NULL),
                           one("bdev_null_create", name="a", **NULL),
                           one("bdev_null_create", name="b", **NULL)]}
    assert error(client, "load_config", **root) == (
        -17, "subsystems[1].config[0]: bdev_null_create: bdev a already exists")
    assert [bdev["name"] for bdev in result(client, "bdev_get_bdevs")] == ["a"]
    assert result(client, "load_config", ignore_errors=True, **root) is True
    assert [bdev["name"] for bdev in result(client, "bdev_get_bdevs")] == ["a", "b"]


@pytest.mark.parametrize("kind", ["aio", "uring"])
def test_files(client, tmp_path, kind):
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(1 << 20))
    for name, more in (("own", {}), ("said", {"block_size": 4096, "readonly": True})):
        reply = client.call(f"bdev_{kind}_create", {"name": name, "filename": str(image), **more})
        if kind == "uring" and "error" in reply:        # where the kernel refuses io_uring
            assert reply["error"]["code"] == -95
            return
        bdev, = result(client, "bdev_get_bdevs", name=name)
        entry, = [entry for entry in config_of(client, "bdev") if entry["method"][5:8] == kind[:3]]
        assert entry["method"] == f"bdev_{kind}_create"
        expected = {"name": name, "filename": str(image), "uuid": bdev["uuid"]}
        if kind == "aio":
            expected |= {"readonly": bool(more), "nowait": False,
                         "fallocate": bdev["driver_specific"]["aio"]["fallocate"]}
            expected |= {"block_size": 4096} if more else {}
        else:
            expected |= {"block_size": bdev["block_size"], **({"readonly": True} if more else {})}
        assert entry["params"] == expected
        result(client, f"bdev_{kind}_delete", name=name)


def test_controllers(client, target):
    result(client, "bdev_malloc_create", name="m", num_blocks=2048, block_size=512)
    elsewhere = str(target.folder / "elsewhere")
    result(client, "vhost_create_blk_controller", ctrlr="a", dev_name="m")
    result(client, "vhost_create_blk_controller", ctrlr="b", dev_name="m", cpumask="[0]",
           readonly=True, socket=elsewhere)
    first, second = config_of(client, "vhost_blk")
    assert first["params"] == {"ctrlr": "a", "dev_name": "m", "cpumask": "1", "readonly": False,
                               "transport": "vhost_user_blk"}
    assert second["params"] == {"ctrlr": "b", "dev_name": "m", "cpumask": "1", "readonly": True,
                                "transport": "vhost_user_blk", "socket": elsewhere}
    result(client, "bdev_malloc_delete", name="m")
    assert config_of(client, "vhost_blk") == []         # as SPDK: they could not be made again


def test_log_and_trace(client):
    result(client, "log_set_flag", flag="vhost")
    result(client, "log_set_print_level", level="ERROR")
    result(client, "log_set_level", level="ERROR")
    result(client, "log_enable_timestamps", enabled=False)
    result(client, "trace_enable_tpoint_group", name="bdev")
    result(client, "trace_set_tpoint_mask", name="vhost_blk", tpoint_mask=5)
    try:
        assert config_of(client, "log") == [
            {"method": "log_set_print_level", "params": {"level": "ERROR"}},
            {"method": "log_set_level", "params": {"level": "ERROR"}},
            {"method": "log_enable_timestamps", "params": {"enabled": False}},
            {"method": "log_set_flag", "params": {"flag": "vhost"}}]
        assert config_of(client, "trace") == [
            {"method": "trace_enable_tpoint_group", "params": {"name": "bdev"}},
            {"method": "trace_set_tpoint_mask", "params": {"name": "vhost_blk", "tpoint_mask": 5}}]
    finally:
        result(client, "log_clear_flag", flag="all")
        result(client, "log_set_print_level", level="INFO")
        result(client, "log_set_level", level="NOTICE")
        result(client, "log_enable_timestamps", enabled=True)
        result(client, "trace_disable_tpoint_group", name="all")
    assert config_of(client, "log") == [] and config_of(client, "trace") == []


def test_what_the_command_line_says_is_not_saved_but_what_was_turned_off_is():
    with (Target(disks=(), extra=["-L", "vhost", "-L", "bdev", "-e", "bdev,vhost_blk:3"]) as target,
          Client(str(target.rpc_path)) as client):
        assert config_of(client, "log") == [] and config_of(client, "trace") == []
        result(client, "log_clear_flag", flag="vhost")
        result(client, "trace_disable_tpoint_group", name="bdev")
        result(client, "trace_clear_tpoint_mask", name="vhost_blk", tpoint_mask=1)
        assert config_of(client, "log") == [
            {"method": "log_clear_flag", "params": {"flag": "vhost"}}]
        assert config_of(client, "trace") == [
            {"method": "trace_disable_tpoint_group", "params": {"name": "bdev"}},
            {"method": "trace_clear_tpoint_mask",
             "params": {"name": "vhost_blk", "tpoint_mask": 1}}]


def test_subsystems_that_are_not_there(client):
    assert error(client, "framework_get_config", name="nvmf") == (
        -32602, "Subsystem 'nvmf' not found")
    assert error(client, "framework_get_config")[1].endswith("missing 'name'")


def test_options_of_bdevs_are_kept_for_the_file(client):
    given = {"bdev_io_pool_size": 1000, "bdev_io_cache_size": 10, "bdev_auto_examine": False,
             "iobuf_small_cache_size": 1, "iobuf_large_cache_size": 2}
    default = entries(foreign(), "bdev_set_options")[0]["params"]
    assert result(client, "bdev_set_options", **given) is True
    assert config_of(client, "bdev")[0] == {"method": "bdev_set_options", "params": given}
    assert result(client, "bdev_set_options", **default) is True
    assert error(client, "bdev_set_options", bdev_io_pool_size=-1)[0] == -32602
    assert result(client, "bdev_wait_for_examine") is True


def test_load_config_starts_the_subsystems_where_they_wait():
    root = {"subsystems": [
        one("bdev_null_create", name="a", **NULL),
        one("scheduler_set_options", "scheduler", isolated_core_mask="0", scheduling_core=0)]}
    with (Target(disks=(), extra=["--wait-for-rpc"]) as target,
          Client(str(target.rpc_path)) as client):
        assert error(client, "save_config")[0] == -1
        assert result(client, "load_config", **root) is True
        assert result(client, "framework_wait_init") is True
        assert [bdev["name"] for bdev in result(client, "bdev_get_bdevs")] == ["a"]


def test_load_config_makes_only_calls_that_clients_may_make():
    with (Target(disks=(), extra=["--rpcs-allowed", "load_config,save_config,spdk_get_version"])
          as target, Client(str(target.rpc_path)) as client):
        root = {"subsystems": [one("bdev_null_create", name="a", **NULL)]}
        assert "Method 'bdev_null_create' not found" in error(client, "load_config", **root)[1]
        assert "subsystems" in result(client, "save_config")


# SPDK's client, unchanged

def test_spdk_rpc_saves_and_loads(client, target, tmp_path):
    result(client, "load_config", **foreign("vhost_scsi"))
    result(client, "log_set_flag", flag="rpc")
    done = command(target, "save_config")
    saved = json.loads(done.stdout)
    assert done.returncode == 0 and saved == result(client, "save_config")
    done = command(target, "save_subsystem_config", "-n", "vhost_blk")
    assert json.loads(done.stdout) == saved["subsystems"][-1]
    for extra in ([], ["--wait-for-rpc"]):
        with Target(disks=(), extra=extra) as fresh:
            done = command(fresh, "load_config", stdin=json.dumps(saved))
            assert done.returncode == 0 and done.stdout.strip() == "", done.stdout
            assert json.loads(command(fresh, "save_config").stdout) == saved
    result(client, "log_clear_flag", flag="rpc")
