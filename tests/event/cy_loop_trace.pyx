"""The trace points of reactors and light threads, read back while the reactors run."""
import asyncio

import pytest
from libc.stdint cimport uint64_t
from vhostrt.event.message cimport thread_send_msg
from vhostrt.event.thread cimport Thread
from vhostrt.event.trace cimport TRACE_POINTS, trace

from tests.lib.cy_channels import Device, Place
from tests.lib.reactors import reactors
from tests.lib.traces import events_of, tracing
from vhostrt.event import reactor
from vhostrt.event import trace as module

cdef enum:
    GROUP = 27
    INSIDE = GROUP * TRACE_POINTS

module.register("looptest", GROUP, [module.Point(0, "INSIDE")])

ALL = 2**64 - 1


def traced(main, folder, idle="yield", groups=("reactor", "thread", "looptest")):
    """Run main(path) beside one reactor that traces; return the events of the lcore."""
    async def with_reactor():
        async with reactors(1, idle):
            for group in groups:
                module.set_mask(group, ALL)
            await asyncio.wait_for(main(path), 60)
    # The trace is made before there are reactors and ends after them.
    with tracing(folder, [0], 32768) as path:
        asyncio.run(with_reactor())
        return [event for event in events_of(path) if event.lcore == 0]


def names(events):
    return [event.point.name for event in events]


async def until(condition):
    while not condition():
        await asyncio.sleep(0.005)


cdef void mark_inside(void *ctx) noexcept nogil:
    trace(INSIDE, ctx)


async def send_to(Thread light, uint64_t what):
    assert thread_send_msg(light.t, mark_inside, <void *>what) == 0


def test_events_threads_and_messages(tmp_path):
    async def main(path):
        # A reactor asks which points are on every few turns of its loop.
        await until(lambda: reactor.nop(0) == 0 and "REACTOR_EVENT" in names(events_of(path)))
        light = Thread("worker.7")
        await light.attach(0)
        await send_to(light, 5)
        await until(lambda: "INSIDE" in names(events_of(path)))
        await until(lambda: "THREAD_BUSY" in names(events_of(path)))
        await light.exit()
        ids.append(light.id)

    ids = []
    events = traced(main, tmp_path)
    # An event attaches the thread, its message runs, its pass is told, its end detaches it.
    del events[:names(events).index("REACTOR_ATTACH") - 1]
    at = {name: names(events).index(name) for name in set(names(events))}
    assert at["REACTOR_EVENT"] < at["REACTOR_ATTACH"] < at["THREAD_MSG"] < at["INSIDE"] \
        < at["THREAD_MSG_DONE"] < at["THREAD_BUSY"] < at["REACTOR_DETACH"]
    assert names(events).count("REACTOR_EVENT") == names(events).count("REACTOR_EVENT_DONE") >= 2
    assert names(events).count("THREAD_MSG") == names(events).count("THREAD_MSG_DONE") == 1
    attach, inside, busy = (events[at[name]] for name in ("REACTOR_ATTACH", "INSIDE",
                                                          "THREAD_BUSY"))
    assert attach.arguments() == {"id": ids[0]} and attach.owner == "reactor_0"
    assert (inside.owner, inside.object) == ("worker.7", 5)
    message = events[at["THREAD_MSG"]]
    assert message.owner == "worker.7" and message.arguments()["ctx"] == "0x5"
    assert busy.owner == "worker.7"
    # The pass took the time from before the message until after it.
    assert busy.words[0] >= events[at["THREAD_MSG_DONE"]].tsc - message.tsc > 0


def test_channels(tmp_path):
    async def main(path):
        device, light = Device(), Thread("user")
        await light.attach(0)
        here = Place(device, light)
        for what in ("register", "get", "get", "put", "put", "unregister"):
            assert await here.do(what) == 0
        found.extend([here.channel, light.id])
        await light.exit()

    found = []
    events = [e for e in traced(main, tmp_path, groups=("thread",)) if "IOCH" in e.point.name]
    channel, number = found
    assert [(e.point.name.removeprefix("THREAD_IOCH_"), e.arguments()["refs"]) for e in events] == [
        ("GET", 1), ("GET", 2), ("PUT", 1), ("PUT", 0)]
    for event in events:
        assert event.owner == "user" and event.arguments() | {"refs": 0} == {
            "device": "device", "channel": f"{channel:#x}", "refs": 0, "id": number}


@pytest.mark.parametrize("idle", ["sleep", "interrupt"])
def test_sleep(tmp_path, idle):
    async def main(path):
        # It may sleep already, without an entry: each look wakes it.
        await until(lambda: (reactor.nop(0) == 0
                             and names(events_of(path)).count("REACTOR_SLEEP") > 2))

    order = [name for name in names(traced(main, tmp_path, idle)) if name in (
        "REACTOR_SLEEP", "REACTOR_WAKE")]
    del order[:order.index("REACTOR_SLEEP")]
    assert order[:2] == ["REACTOR_SLEEP", "REACTOR_WAKE"]
    assert all(a != b for a, b in zip(order, order[1:]))


def test_points_that_are_off_leave_nothing(tmp_path):
    async def main(path):
        light = Thread("worker")
        await light.attach(0)
        await send_to(light, 1)
        await until(lambda: "INSIDE" in names(events_of(path)))
        await light.exit()

    assert set(names(traced(main, tmp_path, groups=("looptest",)))) == {"INSIDE"}
