"""vhostrt/rpc/{framework,bdev,vhost,log}.py: replies and refusals, of the running program."""
import json
import threading
import time

import pytest

from tests.lib.blk_client import Blk
from tests.lib.rpc_server import Client
from tests.lib.target import Target
from vhostrt.rpc.methods import METHODS

BDEV = {
    "name": str, "aliases": list, "product_name": str, "block_size": int, "num_blocks": int,
    "preferred_write_alignment": int, "preferred_write_granularity": int,
    "optimal_write_size": int, "preferred_unmap_alignment": int,
    "preferred_unmap_granularity": int, "uuid": str, "numa_id": int, "assigned_rate_limits": dict,
    "claimed": bool, "zoned": bool, "supported_io_types": dict, "driver_specific": dict,
}
REACTOR = {"lcore": int, "numa_id": int, "tid": int, "busy": int, "idle": int,
           "in_interrupt": bool, "irq": int, "sys": int, "usr": int, "lw_threads": list}
CONTROLLER = {"ctrlr": str, "cpumask": str, "delay_base_us": int, "iops_threshold": int,
              "automatic": bool, "socket": str, "sessions": list, "backend_specific": dict,
              "statistics": dict, "queues": list}

SESSION = {"vid": int, "id": int, "name": str, "started": bool, "max_queues": int,
           "inflight_task_cnt": int, "queues": list}
QUEUE = {"index": int, "lcore": int, "thread_id": int, "size": int, "inflight_task_cnt": int,
         "broken": int, "oldest_request_us": int}
THREAD = {"name": str, "id": int, "cpumask": str, "elapsed": int}


@pytest.fixture(scope="module")
def target():
    with Target(disks=()) as running:
        yield running


@pytest.fixture
def client(target):
    with Client(str(target.rpc_path)) as connected:
        yield connected


def result(client, method, /, **params):
    reply = client.call(method, params or None)
    assert "result" in reply, reply
    return reply["result"]


def error(client, method, /, **params):
    reply = client.call(method, params or None)
    assert "error" in reply, reply
    return reply["error"]["code"], reply["error"]["message"]


def types(value):
    return {key: type(item) for key, item in value.items()}


def test_methods(client):
    names = result(client, "rpc_get_methods")
    assert len(names) == len(set(names))
    assert set(names) == {known.name for known in METHODS.values()}
    with_aliases = set(result(client, "rpc_get_methods", include_aliases=True))
    assert with_aliases == set(METHODS)
    current = set(result(client, "rpc_get_methods", current=True))
    assert set(names) - current == {"framework_start_init", "scheduler_set_options"}
    assert result(client, "get_rpc_methods") == names


def spent(reply):
    return [r["busy"] + r["idle"] for r in reply["reactors"]]


def test_reactors(client, target):
    before = result(client, "framework_get_reactors")
    assert types(before) == {"tick_rate": int, "pid": int, "reactors": list}
    assert before["pid"] == target.pid and before["tick_rate"] > 1_000_000
    assert types(before["reactors"][0]) == REACTOR
    end = time.monotonic() + 30
    while spent(result(client, "framework_get_reactors")) == spent(before):
        assert time.monotonic() < end, "the reactor stands still"


def test_subsystems(client):
    done = set()
    for entry in result(client, "framework_get_subsystems"):
        assert types(entry) == {"subsystem": str, "depends_on": list}
        assert set(entry["depends_on"]) <= done
        done.add(entry["subsystem"])
    assert {"bdev", "vhost_blk"} <= done


def test_signals_that_are_refused(client):
    for name in ("SIGSEGV", "TERM1", "", 11, -15, "0", 15.5):
        code, text = error(client, "spdk_kill_instance", sig_name=name)
        assert code == -32602 and "'sig_name' must be" in text


@pytest.mark.parametrize("name", ["SIGTERM", "TERM", "15", 15])
def test_a_signal_by_name_or_number(name):
    with Target(disks=()) as target, Client(str(target.rpc_path)) as client:
        assert result(client, "spdk_kill_instance", sig_name=name) is True
        assert target.process.wait(30) == 0


def test_bdevs(client):
    made = {"name": "m", "num_blocks": 2048, "block_size": 512, "optimal_io_boundary": 0,
            "md_interleave": False, "dif_is_head_of_md": False, "numa_id": -1}
    assert result(client, "bdev_malloc_create", **made) == "m"
    assert result(client, "bdev_null_create", name="n", num_blocks=8, block_size=4096) == "n"
    try:
        malloc, null = result(client, "bdev_get_bdevs")
        assert types(malloc) == BDEV
        assert types(null) == {key: kind for key, kind in BDEV.items() if key != "numa_id"}
        assert malloc["aliases"] == [malloc["uuid"]]
        assert result(client, "bdev_get_bdevs", name=malloc["uuid"]) == [malloc]
        assert error(client, "bdev_null_create", name="x", num_blocks=8, block_size=512,
                     uuid=null["uuid"])[0] == -17
    finally:
        assert result(client, "bdev_malloc_delete", name="m") is True
        assert result(client, "bdev_null_delete", name="n") is True
    assert error(client, "bdev_get_bdevs", name="m") == (-19, "bdev m does not exist")


@pytest.mark.parametrize("params, text", [
    ({"block_size": 512}, "missing 'num_blocks'"),
    ({"num_blocks": 0, "block_size": 512}, "'num_blocks' must be a positive integer, not 0"),
    ({"num_blocks": 8, "block_size": 513}, "block size 513 must be a power of two"),
    ({"num_blocks": 2**62, "block_size": 512}, "num_blocks"),
    ({"num_blocks": 8, "block_size": 512, "name": "a/b"}, "without '/'"),
    ({"num_blocks": 8, "block_size": 512, "uuid": "12"}, "is not a UUID"),
    ({"num_blocks": 8, "block_size": 512, "md_size": 8}, "metadata"),
    ({"num_blocks": 8, "block_size": 512, "numa_id": -2}, "'numa_id' must be a NUMA node"),
    ({"num_blocks": 8, "block_size": 512, "bogus": 1}, 'has no parameter "bogus"'),
])
def test_bdevs_that_cannot_be_made(client, params, text):
    code, message = error(client, "bdev_malloc_create", **params)
    assert code == -32602 and text in message
    assert result(client, "bdev_get_bdevs") == []


def test_a_bdev_is_waited_for(client, target):
    found = []

    def wait():
        with Client(str(target.rpc_path)) as other:
            found.append(result(other, "bdev_get_bdevs", name="late", timeout=20_000))

    waiter = threading.Thread(target=wait)
    waiter.start()
    time.sleep(0.1)
    assert not found
    result(client, "bdev_malloc_create", name="late", num_blocks=8, block_size=512)
    waiter.join(20)
    assert found[0][0]["name"] == "late"
    result(client, "bdev_malloc_delete", name="late")
    assert error(client, "bdev_get_bdevs", name="late", timeout=50)[0] == -19


def test_files(client, tmp_path):
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(1 << 20))
    for kind in ("aio", "uring"):
        params = {"name": kind, "filename": str(image), "block_size": 4096, "readonly": True}
        reply = client.call(f"bdev_{kind}_create", params)
        if kind == "uring" and "error" in reply:        # where the kernel refuses io_uring
            assert reply["error"]["code"] == -95 and "io_uring" in reply["error"]["message"]
            continue
        assert reply["result"] == kind
        bdev, = result(client, "bdev_get_bdevs", name=kind)
        assert bdev["num_blocks"] == 256 and not bdev["supported_io_types"]["write"]
        assert result(client, f"bdev_{kind}_delete", name=kind) is True
    assert error(client, "bdev_aio_create", name="x", filename=str(tmp_path / "no"))[0] == -2
    assert error(client, "bdev_aio_create", name="x", filename="a\0b")[0] == -32602


def test_controllers(client, target):
    result(client, "bdev_malloc_create", name="m", num_blocks=2048, block_size=512)
    elsewhere = target.folder / "elsewhere"
    assert result(client, "vhost_create_blk_controller", ctrlr="c", dev_name="m",
                  readonly=False, packed_ring=False) is True
    assert result(client, "vhost_create_blk_controller", ctrlr="d", dev_name="m",
                  socket=str(elsewhere), transport="vhost_user_blk", cpumask="[0]") is True
    assert elsewhere.is_socket()
    first, second = result(client, "vhost_get_controllers")
    assert types(first) == CONTROLLER and first["sessions"] == []
    assert first["backend_specific"]["block"]["bdev"] == "m" and second["cpumask"] == "0x1"
    assert result(client, "vhost_get_controllers", name="d") == [second]
    assert result(client, "bdev_malloc_delete", name="m") is True
    assert [c["backend_specific"]["block"]["bdev"]
            for c in result(client, "vhost_get_controllers")] == [None, None]
    for name in ("c", "d"):
        assert result(client, "vhost_delete_controller", ctrlr=name) is True
    assert not elsewhere.exists() and result(client, "vhost_get_controllers") == []


def test_sessions_and_their_queues(client, target):
    result(client, "bdev_malloc_create", name="m", num_blocks=2048, block_size=512)
    result(client, "vhost_create_blk_controller", ctrlr="c", dev_name="m")
    with Blk(target.folder / "c", queues=2) as blk:
        assert blk.capacity() == 2048
        about, = result(client, "vhost_get_controllers", name="c")
        session, = about["sessions"]
        assert types(session) == SESSION
        assert session["started"] and session["max_queues"] == 2
        assert session["name"] == f"cs{session['vid']}"
        assert [types(q) for q in session["queues"]] == [QUEUE] * 2
        assert [(q["index"], q["lcore"], q["size"]) for q in session["queues"]] == [
            (i, 0, 256) for i in range(2)]
        assert {q["inflight_task_cnt"] or q["broken"] for q in session["queues"]} == {0}
        reactor, = result(client, "framework_get_reactors")["reactors"]
        threads = reactor["lw_threads"]
        assert [types(t) for t in threads] == [THREAD] * 2
        assert [t["cpumask"] for t in threads] == ["1", "1"]
        assert all(t["name"].startswith("c") for t in threads)
    end = time.monotonic() + 30
    while result(client, "vhost_get_controllers", name="c")[0]["sessions"]:
        assert time.monotonic() < end, "a session whose client has gone is still there"
    assert result(client, "framework_get_reactors")["reactors"][0]["lw_threads"] == []
    assert result(client, "vhost_delete_controller", ctrlr="c") is True
    assert result(client, "bdev_malloc_delete", name="m") is True


@pytest.mark.parametrize("params, code, text", [
    ({"ctrlr": "c"}, -32602, "missing 'dev_name'"),
    ({"ctrlr": "c", "dev_name": "none"}, -19, "bdev none does not exist"),
    ({"ctrlr": "a/b", "dev_name": "none"}, -32602, "without '/'"),
    ({"ctrlr": "c", "dev_name": "none", "cpumask": "0x8000"}, -32602, "cpumask"),
    ({"ctrlr": "c", "dev_name": "none", "cpumask": "zz"}, -32602, "core mask"),
    ({"ctrlr": "c", "dev_name": "none", "transport": "vfio"}, -32602, "'transport' must be"),
    ({"ctrlr": "c", "dev_name": "none", "packed_ring": True}, -32602, "packed rings"),
])
def test_controllers_that_cannot_be_made(client, params, code, text):
    got = error(client, "vhost_create_blk_controller", **params)
    assert got[0] == code and text in got[1]
    assert error(client, "vhost_delete_controller", ctrlr="c")[0] == -19
    assert error(client, "vhost_get_controllers", name="c")[0] == -19


def test_log(client):
    flags = result(client, "log_get_flags")
    assert set(flags.values()) == {False} and "all" not in flags
    for flag in ("vhost", "all"):
        assert result(client, "log_set_flag", flag=flag) is True
        on = {name for name, is_on in result(client, "log_get_flags").items() if is_on}
        assert on == (set(flags) if flag == "all" else {flag})
        assert result(client, "log_clear_flag", flag=flag) is True
        assert result(client, "log_get_flags") == flags
    assert error(client, "log_set_flag", flag="none")[0] == -32602
    assert error(client, "log_set_print_level", level="LOUD")[0] == -32602
    assert result(client, "log_enable_timestamps", enabled=True) is True


@pytest.mark.parametrize("which, default", [("log_{}_level", "NOTICE"),
                                            ("log_{}_print_level", "INFO")])
def test_log_levels(client, which, default):
    assert result(client, which.format("get")) == default
    for level in ("ERROR", "WARNING", "NOTICE", "INFO", "DEBUG", default):
        assert result(client, which.format("set"), level=level) is True
        assert result(client, which.format("get")) == level
    for level in ("LOUD", "error", 3, None):
        assert error(client, which.format("set"), level=level)[0] == -32602
    assert result(client, which.format("get")) == default


WRONG = (None, True, -1, 1.5, 2**70, "", "x" * 300, "\0", [], {}, [[1]], {"a": 1})


def test_no_wrong_type_is_more_than_an_error(client, target):
    # Methods that wait would; tests/rpc/test_hostile.py has their parameters too.
    for known in {known.name: known for known in METHODS.values() if not known.waits}.values():
        fields = known.parameters.__struct_fields__ if known.parameters else ()
        for field in (*fields, "bogus"):
            for value in WRONG:
                reply = client.call(known.name, {field: value})
                code = reply.get("error", {}).get("code", 0)
                assert code not in (-32603, -32700, -32601), (known.name, field, value, reply)
    assert "failed:" not in target.stderr() and target.alive()


def test_only_what_the_option_allows():
    names = ["rpc_get_methods", "spdk_get_version"]
    disks = ("malloc:1M",)              # made by the program itself, whatever clients may do
    with (Target(disks=disks, extra=["--rpcs-allowed", ",".join(names)]) as target,
          Client(str(target.rpc_path)) as client):
        assert sorted(result(client, "rpc_get_methods")) == names
        assert error(client, "bdev_get_bdevs")[0] == -32601
        assert target.socket().is_socket()


def test_nothing_made_while_the_program_stops_stays_behind():
    with Target() as target, Client(str(target.rpc_path)) as client:
        requests = [{"method": "spdk_kill_instance", "params": {"sig_name": "SIGTERM"}}]
        requests += [{"method": "vhost_create_blk_controller",
                      "params": {"ctrlr": f"late{n}", "dev_name": "Disk0"}} for n in range(60)]
        client.sock.sendall(b"".join(json.dumps({"jsonrpc": "2.0", "id": 1, **each}).encode()
                                     for each in requests))
        assert target.process.wait(30) == 0, target.stderr()
        assert not [path for path in target.folder.iterdir() if path.is_socket()]
