"""What is saved makes the same again: random configurations, saved, loaded into a fresh process and
saved again; without and with the loss of the process in between."""
import asyncio
import contextlib
import json
import os
import string
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.lib.apps import in_app
from tests.lib.command import Place
from vhostrt import log
from vhostrt.rpc.method import RpcError
from vhostrt.subsystems import (
    BdevSubsystem,
    LogSubsystem,
    TraceSubsystem,
    VhostBlkSubsystem,
)

NAMES = st.text(string.ascii_letters + string.digits + "._- ,:", min_size=1, max_size=12).filter(
    lambda name: name.strip(". ") == name and name)
SIZE32 = st.integers(0, 2**32 - 1)
BLOCK = st.sampled_from([512, 4096, 65536])
UUID = st.uuids().map(str)
FILES = ("a.img", "b.img", "c.img", "d.img")        # one a bdev: each is locked


def call(method, **params):
    """Return a strategy of calls; a value None leaves its parameter out."""
    return st.fixed_dictionaries(params).map(
        lambda given: (method, {key: v for key, v in given.items() if v is not None}))


def maybe(strategy):
    return st.none() | strategy


MALLOC = call("bdev_malloc_create", name=maybe(NAMES), num_blocks=st.integers(1, 5000),
              block_size=BLOCK, uuid=maybe(UUID), optimal_io_boundary=maybe(SIZE32),
              physical_block_size=maybe(st.just(65536)), numa_id=maybe(st.just(-1)))
NULL = call("bdev_null_create", name=NAMES, num_blocks=st.integers(1, 2**40), block_size=BLOCK,
            uuid=maybe(UUID), physical_block_size=maybe(st.just(65536)),
            **{f"preferred_{which}": maybe(SIZE32) for which in
               ("write_alignment", "write_granularity", "unmap_alignment", "unmap_granularity")},
            optimal_write_size=maybe(SIZE32))
AIO = call("bdev_aio_create", name=NAMES, filename=st.sampled_from(FILES[:2]),
           block_size=maybe(BLOCK), readonly=maybe(st.booleans()), uuid=maybe(UUID))
URING = call("bdev_uring_create", name=NAMES, filename=st.sampled_from(FILES[2:]),
             block_size=maybe(BLOCK), readonly=maybe(st.booleans()), uuid=maybe(UUID))
CONTROLLER = call("vhost_create_blk_controller", ctrlr=NAMES, dev_name=st.integers(0, 9),
                  cpumask=maybe(st.sampled_from(["1", "0x1", "[0]"])),
                  readonly=maybe(st.booleans()), socket=maybe(NAMES),
                  mode=maybe(st.sampled_from(["0600", "660"])),
                  owner=maybe(st.just(str(os.getuid()))), group=maybe(st.just(str(os.getgid()))),
                  peers=maybe(st.lists(st.sampled_from(["0", "1000", "1001"]), unique=True)))
COALESCING = call("vhost_controller_set_coalescing", ctrlr=st.integers(0, 9),
                  delay_base_us=maybe(st.integers(0, 1000)), automatic=maybe(st.booleans()),
                  iops_threshold=maybe(st.integers(100, 10**6)))
SPLIT = call("bdev_split_create", base_bdev=st.integers(0, 9) | NAMES,
             split_count=st.integers(1, 5), split_size_mb=maybe(st.integers(0, 2)))
SCHEDULER = (call("framework_set_scheduler", name=st.just("dynamic"),
                  period=maybe(st.integers(1000, 2**40)), load_limit=maybe(st.integers(0, 100)),
                  core_limit=maybe(st.integers(0, 100)), core_busy=maybe(st.integers(0, 100)))
             | call("framework_set_scheduler", name=st.just("static"),
                    mappings=maybe(st.sampled_from(["a:0", "a:0,b.vq1:0"]))))
LEVEL = st.sampled_from(log.NAMES)
FLAG = st.sampled_from(sorted(log.FLAGS))
GROUP = st.sampled_from(["bdev", "vhost_blk", "thread", "all"])
SETTING = (call("log_set_print_level", level=LEVEL) | call("log_set_level", level=LEVEL)
           | call("log_set_flag", flag=FLAG) | call("log_clear_flag", flag=FLAG)
           | call("log_enable_timestamps", enabled=st.booleans())
           | call("trace_enable_tpoint_group", name=GROUP)
           | call("trace_disable_tpoint_group", name=GROUP)
           | call("trace_set_tpoint_mask", name=GROUP, tpoint_mask=st.integers(1, 2**64 - 1))
           | call("trace_clear_tpoint_mask", name=GROUP, tpoint_mask=st.integers(1, 2**64 - 1))
           | call("bdev_set_options", bdev_io_pool_size=maybe(SIZE32),
                  bdev_auto_examine=maybe(st.booleans()), iobuf_large_cache_size=maybe(SIZE32)))
CALLS = st.lists(MALLOC | NULL | AIO | URING | SPLIT | CONTROLLER | CONTROLLER | COALESCING
                 | SCHEDULER | SETTING, max_size=25)


@contextlib.contextmanager
def folder():
    """The working directory, with images, for sockets as well."""
    before = os.getcwd()
    with tempfile.TemporaryDirectory(prefix="vhostrt-") as path:
        os.chdir(path)
        try:
            for name in FILES:
                with open(name, "wb") as file:
                    file.truncate(65536)
            yield Path(path)
        finally:
            os.chdir(before)


async def make(calls, invoke):
    """Make calls; those that are refused, for a taken name for example, count as not made."""
    for method, params in calls:
        for key in ("dev_name", "base_bdev"):
            if isinstance(params.get(key), int):
                bdevs = [bdev["name"] for bdev in await invoke("bdev_get_bdevs", None)] or ["none"]
                params = {**params, key: bdevs[params[key] % len(bdevs)]}
        if isinstance(params.get("ctrlr"), int):
            there = [each["ctrlr"] for each in await invoke("vhost_get_controllers", None)]
            params = {**params, "ctrlr": there[params["ctrlr"] % len(there)] if there else "none"}
        with contextlib.suppress(RpcError):
            await invoke(method, params)


def target(function, place):
    """Run a coroutine function, of an App with the target's subsystems, in a fresh application."""
    before = vars(log.settings).copy()
    async def run(app):
        for part in (LogSubsystem(app.options), TraceSubsystem(app.options)):
            app.subsystems.register(part)
        return await function(app)
    try:
        return in_app(run, subsystems=[BdevSubsystem(), VhostBlkSubsystem(str(place))],
                      rpc_addr=None, print_level=log.ERROR, trace_entries=16)
    finally:
        vars(log.settings).update(before)


async def save(app):
    return await app.rpc.call("save_config")


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(calls=CALLS)
def test_saved_loaded_and_saved_again(calls):
    async def first(app):
        await make(calls, app.rpc.call)
        return await save(app)

    async def second(app):
        root = json.loads(text)
        await app.rpc.call("load_config", root)
        return await save(app)

    with folder() as place:
        text = json.dumps(target(first, place))
        assert target(second, place) == json.loads(text)


@pytest.fixture(scope="module")
def examples():
    """A few configurations of the same kind, each with something in it."""
    found = []

    @settings(max_examples=6, deadline=None, database=None, derandomize=True,
              suppress_health_check=list(HealthCheck))
    @given(calls=st.lists(MALLOC | NULL | SPLIT | CONTROLLER, min_size=8, max_size=20), more=CALLS)
    def collect(calls, more):
        found.append([*more, *calls])
    collect()
    return found[-3:]


@pytest.mark.parametrize("number", range(3))
def test_with_real_processes(examples, number):
    """The same by RPC: saved, given to -c of a fresh process, kept by --state over a kill."""
    with Place() as place:
        for name in FILES:
            (place.cwd / name).write_bytes(bytes(65536))
        with place.start("--state", "state.json") as run:
            async def invoke(method, params):
                try:
                    return run.rpc(method, **params or {})
                except Exception as error:
                    raise RpcError(getattr(error, "code", 0), str(error)) from None
            asyncio.run(make(examples[number], invoke))
            saved = run.rpc("save_config")
            run.process.kill()
            run.process.wait()
        assert len(saved["subsystems"][-1]["config"]) + len(saved["subsystems"][3]["config"]) > 4
        with place.start("--state", "state.json") as run:
            assert run.rpc("save_config") == saved
            run.stop()
        (place.cwd / "saved.json").write_text(json.dumps(saved))
        with place.start("-c", "saved.json") as run:
            assert run.rpc("save_config") == saved
            run.stop()
