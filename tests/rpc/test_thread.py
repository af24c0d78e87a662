"""vhostrt/rpc/thread.py: light threads and their pollers, of the running program."""
import time

import pytest

from tests.lib.blk_client import Blk
from tests.lib.target import RpcError, Target

# The keys of SPDK's replies, in their order.
STATS = {"name": str, "id": int, "cpumask": str, "busy": int, "idle": int,
         "active_pollers_count": int, "timed_pollers_count": int, "paused_pollers_count": int}
THREAD = {"name": str, "id": int, "active_pollers": list, "timed_pollers": list,
          "paused_pollers": list}
POLLER = {"name": str, "id": int, "state": str, "run_count": int, "busy_count": int}


@pytest.fixture(scope="module")
def target():
    with Target() as running:
        yield running


@pytest.fixture
def blk(target):
    with Blk(target.socket(0), queues=2) as client:
        yield client
        client.stop()


def types(value):
    return {key: type(item) for key, item in value.items()}


def queues(reply):
    return {t["name"]: t for t in reply["threads"] if ".vq" in t["name"]}


def test_thread_get_stats(target, blk):
    reply = target.rpc("thread_get_stats")
    assert types(reply) == {"tick_rate": int, "threads": list} and reply["tick_rate"] > 1_000_000
    assert all(types(light) == STATS and list(light) == list(STATS) for light in reply["threads"])
    ids = [light["id"] for light in reply["threads"]]
    assert ids == sorted(set(ids)) and ids[0] >= 1
    first, second = queues(reply).values()
    assert first["cpumask"] == second["cpumask"] == "1"
    assert [light["active_pollers_count"] for light in (first, second)] == [1, 1]


def test_a_thread_that_works_was_busy(target, blk):
    def seen():
        return queues(target.rpc("thread_get_stats"))
    before = seen()
    first, second = before
    for _ in range(50):
        blk.read(0, 4096, queue=0)
    after = seen()
    assert after[first]["busy"] > before[first]["busy"]
    assert after[second]["busy"] == before[second]["busy"]
    while (now := seen())[second]["idle"] == before[second]["idle"]:
        time.sleep(0.001)
    assert now[second]["idle"] > before[second]["idle"]


def test_thread_get_pollers(target, blk):
    reply = target.rpc("thread_get_pollers")
    assert types(reply) == {"tick_rate": int, "threads": list}
    assert all(types(light) == THREAD and list(light) == list(THREAD)
               for light in reply["threads"])
    poller, = queues(reply).popitem()[1]["active_pollers"]
    assert types(poller) == POLLER and list(poller) == list(POLLER)
    assert poller["state"] == "waiting"


def test_runs_are_counted(target, blk):
    def first():
        reply = target.rpc("thread_get_pollers")
        return queues(reply)[min(queues(reply))]["active_pollers"][0]
    before = first()
    for _ in range(50):
        blk.read(0, 4096, queue=0)
    after = first()
    assert after["busy_count"] > before["busy_count"]
    assert after["run_count"] - before["run_count"] >= after["busy_count"] - before["busy_count"]


def test_threads_are_those_of_the_reactors(target, blk):
    reactor, = target.rpc("framework_get_reactors")["reactors"]
    here = {light["id"]: light["name"] for light in reactor["lw_threads"]}
    there = {light["id"]: light["name"] for light in target.rpc("thread_get_stats")["threads"]
             if light["name"] != "app_thread"}
    assert here == there and len(here) >= 2


def test_app_thread_is_the_control_thread(target):
    """Its pollers are those of Python, and no reactor has it."""
    app, = (t for t in target.rpc("thread_get_pollers")["threads"] if t["id"] == 1)
    assert app["name"] == "app_thread" and app["active_pollers"] == app["paused_pollers"] == []
    assert sorted(p["name"] for p in app["timed_pollers"]) == ["context_switch_monitor",
                                                               "reactor_watchdog"]
    stats = target.rpc("thread_get_stats")["threads"][0]
    assert (stats["name"], stats["timed_pollers_count"]) == ("app_thread", 2)
    assert (stats["active_pollers_count"], stats["paused_pollers_count"]) == (0, 0)


def test_they_belong_to_a_running_program():
    with Target(disks=(), extra=("--wait-for-rpc",)) as target:
        for name in ("thread_get_stats", "thread_get_pollers", "thread_get_io_channels"):
            with pytest.raises(RpcError, match="can be called only after"):
                target.rpc(name)
