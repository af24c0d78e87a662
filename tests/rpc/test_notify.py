"""vhostrt/notify.py and rpc/notify.py: what happened is told, kept within bounds, waited for."""
import asyncio
import threading
import time

import pytest

from tests.lib.blk_client import Blk
from tests.lib.rpc_server import Client
from tests.lib.target import Target
from vhostrt.notify import KEPT_MAX, Notifications

TYPES = {"bdev_register", "bdev_unregister", "bdev_resize", "vhost_controller_create",
         "vhost_controller_delete", "vhost_session_connect", "vhost_session_disconnect",
         "vhost_ring_broken"}


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
    return reply["error"]["code"], reply["error"]["message"]


def brief(events):
    return [(event["type"], event["ctx"]) for event in events]


def test_the_newest_are_kept():
    some = Notifications(kept_max=3)
    some.register("a", "something")
    for n in range(5):
        some.send("a", f"x{n}", number=n)
    assert some.next_id == 5 and some.oldest_id == 2
    assert [event["id"] for event in some.since(0)] == [2, 3, 4]
    assert [event["id"] for event in some.since(4)] == [4] and some.since(5) == []
    assert some.since(3)[0]["details"] == {"number": 3}
    with pytest.raises(KeyError):
        some.send("b", "x")


def test_waiting():
    async def scene():
        some = Notifications()
        some.register("a", "something")
        waits = [asyncio.create_task(some.wait(n)) for n in (0, 0, 1)]
        await asyncio.sleep(0)
        assert not any(wait.done() for wait in waits)
        some.send("a", "x")
        await asyncio.wait_for(asyncio.gather(*waits[:2]), 10)
        assert not waits[2].done()
        some.send("a", "y")
        await asyncio.wait_for(waits[2], 10)
        await asyncio.wait_for(some.wait(0), 10)
    asyncio.run(scene())


def test_what_happens_is_told(client, target):
    assert TYPES <= set(result(client, "notify_get_types"))
    first = result(client, "notify_wait_notifications", timeout=0)["next_id"]
    result(client, "bdev_null_create", name="n", num_blocks=2048, block_size=512)
    result(client, "vhost_create_blk_controller", ctrlr="c", dev_name="n")
    with Blk(target.folder / "c", queues=1):
        session, = result(client, "vhost_get_controllers", name="c")[0]["sessions"]
    result(client, "vhost_delete_controller", ctrlr="c")
    result(client, "bdev_null_resize", name="n", new_size=2)
    result(client, "bdev_null_delete", name="n")
    events = result(client, "notify_get_notifications", id=first)
    assert brief(events) == [
        ("bdev_register", "n"), ("vhost_controller_create", "c"),
        ("vhost_session_connect", session["name"]), ("vhost_session_disconnect", session["name"]),
        ("vhost_controller_delete", "c"), ("bdev_resize", "n"), ("bdev_unregister", "n")]
    assert [event["id"] for event in events] == list(range(first, first + 7))
    assert events[1]["details"] == {"bdev": "n", "socket": str(target.folder / "c")}
    assert events[2]["details"] == {"ctrlr": "c"}
    assert events[5]["details"] == {"num_blocks": 4096}
    times = [event["time"] for event in events]
    assert times == sorted(times) and abs(times[-1] - time.time()) < 60


def test_a_broken_ring_is_told(client, target):
    result(client, "bdev_null_create", name="n", num_blocks=2048, block_size=512)
    result(client, "vhost_create_blk_controller", ctrlr="c", dev_name="n")
    first = result(client, "notify_wait_notifications", timeout=0)["next_id"]
    with Blk(target.folder / "c", queues=1) as blk:
        blk.rings[0].publish_to(5000)           # more than the ring has
        blk.rings[0].kick()
        found = result(client, "notify_wait_notifications", id=first, types=["vhost_ring_broken"])
        event, = found["notifications"]
        assert event["details"]["ctrlr"] == "c" and event["details"]["ring"] == 0
        assert event["details"]["errno"] > 0 and found["next_id"] == event["id"] + 1
    result(client, "vhost_delete_controller", ctrlr="c")
    result(client, "bdev_null_delete", name="n")


def make_and_delete(client, name):
    result(client, "bdev_null_create", name=name, num_blocks=8, block_size=512)
    result(client, "bdev_null_delete", name=name)


def test_a_client_waits_for_the_next(client, target):
    found = []

    def wait():
        with Client(str(target.rpc_path)) as other:
            found.append(result(other, "notify_wait_notifications", timeout=60_000,
                                types=["bdev_unregister"]))

    waiter = threading.Thread(target=wait)
    waiter.start()
    time.sleep(0.2)
    assert not found
    make_and_delete(client, "late")
    waiter.join(30)
    assert brief(found[0]["notifications"]) == [("bdev_unregister", "late")]
    assert found[0]["lost"] == 0


def test_the_wait_ends_in_time(client):
    before = result(client, "notify_wait_notifications", timeout=0)
    assert before["notifications"] == [] and before["lost"] == 0
    again = result(client, "notify_wait_notifications", id=before["next_id"], timeout=30)
    assert again == before


def test_few_at_a_time(client):
    first = result(client, "notify_wait_notifications", timeout=0)["next_id"]
    make_and_delete(client, "a")
    assert len(result(client, "notify_get_notifications", id=first, max=1)) == 1
    part = result(client, "notify_wait_notifications", id=first, max=1)
    assert brief(part["notifications"]) == [("bdev_register", "a")]
    assert part["next_id"] == first + 1
    rest = result(client, "notify_wait_notifications", id=first + 1)
    assert brief(rest["notifications"]) == [("bdev_unregister", "a")]


def test_lost_ones_are_told(client):
    first = result(client, "notify_wait_notifications", timeout=0)["next_id"]
    for _ in range(KEPT_MAX // 2 + 5):
        make_and_delete(client, "x")
    found = result(client, "notify_wait_notifications", id=first)
    assert found["lost"] == 10 and len(found["notifications"]) == KEPT_MAX
    assert found["notifications"][0]["id"] == first + 10
    assert result(client, "notify_get_notifications", id=first) == found["notifications"]


def test_what_cannot_be_asked(client):
    ahead = result(client, "notify_wait_notifications", timeout=0)["next_id"] + 1
    code, text = error(client, "notify_wait_notifications", id=ahead)
    assert code == -32602 and f"not {ahead}" in text
    code, text = error(client, "notify_wait_notifications", types=["bdev_register", "none"])
    assert code == -32602 and 'not "none"' in text
    assert result(client, "notify_get_notifications", id=2**40) == []
