"""vhostrt/rpc/scheduler.py: schedulers of the running program, by RPC, configuration and spdk-rpc.
"""
import json
import time

import pytest

from tests.lib import blk_client as bc
from tests.lib.blk_load import load_while, zero_disk
from tests.lib.command import Place
from tests.lib.target import RpcError, Target
from tests.rpc.test_spdk_client import Cli

STATIC = {"scheduler_name": "static", "scheduler_period": 0, "isolated_core_mask": "0",
          "scheduling_core": 0}
LIMITS = {"load_limit": 20, "core_limit": 80, "core_busy": 95}


@pytest.fixture(scope="module")
def target():
    with Target(disks=["malloc:8M"], mask="0x3") as running:
        yield running


@pytest.fixture(autouse=True)
def static_afterwards(target):
    yield
    target.rpc("framework_set_scheduler", name="static")


def wait_until(condition):
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.01)


def reactors(target):
    """Return {core: (in_interrupt, names of its threads)}."""
    return {r["lcore"]: (r["in_interrupt"], sorted(t["name"] for t in r["lw_threads"]))
            for r in target.rpc("framework_get_reactors")["reactors"]}


def test_the_default_and_the_other_one(target):
    assert target.rpc("framework_get_scheduler") == STATIC
    assert target.rpc("framework_set_scheduler", name="dynamic") is True
    assert target.rpc("framework_get_scheduler") == {
        **STATIC, "scheduler_name": "dynamic", "scheduler_period": 1_000_000, **LIMITS}
    target.rpc("framework_set_scheduler", name="dynamic", period=50_000, load_limit=1,
               core_limit=2, core_busy=3)
    assert target.rpc("framework_get_scheduler") == {
        **STATIC, "scheduler_name": "dynamic", "scheduler_period": 50_000, "load_limit": 1,
        "core_limit": 2, "core_busy": 3}
    target.rpc("framework_set_scheduler", name="static")
    assert target.rpc("framework_get_scheduler") == STATIC
    assert target.rpc("framework_get_governor") == {}


REFUSED = {
    "unknown": ({"name": "round"}, "there is no scheduler 'round': it is one of dynamic, static"),
    "no name": ({}, "missing 'name'"),
    "a short period": ({"name": "dynamic", "period": 10}, "at least 1000 microseconds, not 10"),
    "a negative one": ({"name": "dynamic", "period": -1}, "'period' must be an integer that is"),
    "percent": ({"name": "dynamic", "core_busy": 101}, "'core_busy' must be a percentage"),
    "of the other": ({"name": "static", "core_busy": 90}, "'core_busy' is no option of the"),
    "mappings": ({"name": "static", "mappings": "x"}, "'mappings': 'x' is not thread:core"),
    "unknown option": ({"name": "static", "speed": 1}, "has no parameter \"speed\""),
}


@pytest.mark.parametrize(("params", "why"), REFUSED.values(), ids=REFUSED)
def test_refused(target, params, why):
    with pytest.raises(RpcError, match=why) as told:
        target.rpc("framework_set_scheduler", **params)
    assert told.value.code == -32602
    assert target.rpc("framework_get_scheduler") == STATIC


def test_options_are_for_the_start(target):
    with pytest.raises(RpcError, match="only before the subsystems are initialised") as told:
        target.rpc("scheduler_set_options", scheduling_core=0)
    assert told.value.code == -1


def test_spdk_rpc(target):
    with Cli(target) as cli:
        cli("framework_set_scheduler", "-p", 100_000, "--load-limit", 30, "--core-limit", 70,
            "--core-busy", 90, "dynamic")
        assert cli("framework_get_scheduler")["load_limit"] == 30
        cli("framework_set_scheduler", "--mappings", "nobody:1", "static")
        assert cli("framework_get_scheduler") == STATIC
        assert cli("framework_get_governor") == {}
        assert "thread_set_cpumask" in cli("rpc_get_methods")
        with bc.Blk(target.socket(0)):
            threads = [t for r in cli("framework_get_reactors")["reactors"]
                       for t in r["lw_threads"]]
            assert [t["name"] for t in threads] == ["disk0.sock.vq0"]
            cli("thread_set_cpumask", "-i", threads[0]["id"], "-m", "0x2")
            assert reactors(target)[1][1] == ["disk0.sock.vq0"]


def test_queues_without_work_come_together_and_the_other_core_sleeps(target):
    # Queues of a client that has just gone still count where new ones are put.
    wait_until(lambda: reactors(target) == {0: (False, []), 1: (False, [])})
    with bc.Blk(target.socket(0), 2) as blk:
        names = ["disk0.sock.vq0", "disk0.sock.vq1"]
        assert sorted(reactors(target)[n][1] for n in (0, 1)) == [names[:1], names[1:]]
        target.rpc("framework_set_scheduler", name="dynamic", period=20_000, load_limit=50)
        wait_until(lambda: reactors(target) == {0: (False, names), 1: (True, [])})
        for queue in (0, 1):
            blk.write(0, bytes(512), queue=queue)
        # Now nothing is idle below 0 percent, and a core is full with anything: they spread.
        target.rpc("framework_set_scheduler", name="dynamic", period=20_000, load_limit=0,
                   core_limit=0, core_busy=0)
        wait_until(lambda: [reactors(target)[n] for n in (0, 1)] in (
            [(False, names[:1]), (False, names[1:])], [(False, names[1:]), (False, names[:1])]))
        target.rpc("framework_set_scheduler", name="static")
        wait_until(lambda: sorted(reactors(target)[n][1] for n in (0, 1)) == [names[:1], names[1:]])
        blk.stop()
    wait_until(lambda: reactors(target) == {0: (False, []), 1: (False, [])})


def test_a_checked_load_while_the_scheduler_moves_its_queues(target):
    """Limits that change twenty times make the queues come together and spread."""
    together = {"load_limit": 100, "core_limit": 80, "core_busy": 95}
    apart = {"load_limit": 0, "core_limit": 0, "core_busy": 0}
    wanted = [((2, 0), together), ((1, 1), apart)] * 10
    end = time.monotonic() + 120

    def choose():
        target.rpc("framework_set_scheduler", name="dynamic", period=5000, **wanted[0][1])

    def go_on():
        if tuple(len(names) for _, names in reactors(target).values()) == wanted[0][0]:
            del wanted[0]
            if wanted:
                choose()
        assert time.monotonic() < end, wanted
        return wanted

    with bc.Blk(target.socket(0), 2, 64, event_idx=True) as blk:
        zero_disk(blk)
        choose()
        assert load_while(blk, go_on) > 20
        blk.stop()


def test_a_new_queue_goes_where_its_mapping_says(target):
    target.rpc("framework_set_scheduler", name="static", mappings="disk0.sock.vq0:1")
    with bc.Blk(target.socket(0)) as blk:
        assert reactors(target)[1][1] == ["disk0.sock.vq0"]
        blk.write(0, bytes(512))
    target.rpc("framework_set_scheduler", name="static")
    with bc.Blk(target.socket(0)):
        wait_until(lambda: reactors(target)[0][1] == ["disk0.sock.vq0"])


# Before the start, and from a file

@pytest.fixture
def place():
    with Place() as folder:
        yield folder


def test_options_by_rpc_before_the_start(place):
    with place.start("-m", "0x3", "--wait-for-rpc") as run:
        for params, why in (({"isolated_core_mask": "4"}, "cores without a reactor"),
                            ({"isolated_core_mask": "1"}, "must not have the scheduling core"),
                            ({"isolated_core_mask": "q"}, "neither a hexadecimal core mask"),
                            ({"scheduling_core": 5}, "must be a core with a reactor")):
            with pytest.raises(RpcError, match=why):
                run.rpc("scheduler_set_options", **params)
        assert run.rpc("scheduler_set_options", isolated_core_mask="0x1", scheduling_core=1) is True
        assert run.rpc("scheduler_set_options", isolated_core_mask="0") is True
        assert run.rpc("scheduler_set_options", isolated_core_mask="[0]") is True
        assert run.rpc("framework_set_scheduler", name="dynamic", period=30_000) is True
        run.rpc("framework_start_init")
        assert run.rpc("framework_get_scheduler") == {
            "scheduler_name": "dynamic", "scheduler_period": 30_000, "isolated_core_mask": "1",
            "scheduling_core": 1, **LIMITS}
        run.stop()


def test_a_configuration_sets_the_scheduler(place):
    """Also one that SPDK saved, with its default."""
    file = place.folder / "config.json"
    for calls, name in (([("framework_set_scheduler", {"name": "static"})], "static"),
                        ([("scheduler_set_options", {"isolated_core_mask": "0x2"}),
                          ("framework_set_scheduler", {"name": "dynamic", "period": 20000})],
                         "dynamic")):
        config = [{"method": method, "params": params} for method, params in calls]
        file.write_text(json.dumps({"subsystems": [{"subsystem": "scheduler", "config": config}]}))
        with place.start("-m", "0x3", "-c", str(file)) as run:
            about = run.rpc("framework_get_scheduler")
            assert about["scheduler_name"] == name
            assert about["isolated_core_mask"] == ("2" if name == "dynamic" else "0")
            assert "ignored" not in run.said()
            subsystems = run.rpc("framework_get_subsystems")
            assert {"subsystem": "scheduler", "depends_on": []} in subsystems
            run.stop()
    file.write_text(json.dumps({"subsystems": [{"subsystem": "scheduler", "config": [
        {"method": "framework_set_scheduler", "params": {"name": "gscheduler"}}]}]}))
    ended = place.run("-c", str(file))
    assert ended.returncode == 1
    assert "there is no scheduler 'gscheduler': it is one of dynamic, static" in ended.stderr


def test_what_is_saved():
    from vhostrt.event.scheduler import scheduling
    from vhostrt.subsystems import SchedulerSubsystem
    assert SchedulerSubsystem().config() == [       # as SPDK says it
        {"method": "framework_set_scheduler", "params": {"name": "static"}}]
    try:
        scheduling.set("dynamic", 7000, {"core_limit": 60})
        assert SchedulerSubsystem().config() == [{
            "method": "framework_set_scheduler",
            "params": {"name": "dynamic", "load_limit": 20, "core_limit": 60, "core_busy": 95,
                       "period": 7000}}]
    finally:
        scheduling.forget()
