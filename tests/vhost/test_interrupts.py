"""Interrupts of a running target: coalesced ones come, whatever the reactor does without work."""
import itertools

import pytest

from tests.lib.blk_client import IN, Blk
from tests.lib.split_ring import WRITE
from tests.lib.target import RpcError, Target

pytestmark = pytest.mark.timeout(180)

FILE_SIZE = 8 << 20
MODES = {
    "off": {"delay_base_us": 0, "iops_threshold": 60000},
    "rate": {"delay_base_us": 2000, "iops_threshold": 100},
    "auto": {"automatic": True},
}


@pytest.fixture(scope="module", params=["yield", "sleep", "interrupt"])
def target(request, tmp_path_factory):
    """A RAM disk, which answers at once, and a file served by threads, on two reactors."""
    store = tmp_path_factory.mktemp("disk") / "disk.img"
    with open(store, "wb") as f:
        f.truncate(FILE_SIZE)
    with Target(disks=["malloc:8M"], mask="0x3", idle=request.param,
                extra=["--max-delay-us", "5000"] if request.param != "yield" else []) as running:
        running.add_disk("bdev_aio_create", "Slow", filename=str(store), block_size=512)
        yield running


def set_mode(target, name, mode):
    assert target.rpc("vhost_controller_set_coalescing", ctrlr=name, **MODES[mode]) is True


def reads(blk, n):
    """Write `n` chains that read a block; return their heads."""
    data, heads = blk.memory.alloc(512, 4096), []
    for i in range(n):
        parts = [(blk.header(IN), 16, 0), (data, 512, WRITE), (blk.status(), 1, WRITE)]
        heads.append(blk.rings[0].chain(parts, [3 * i, 3 * i + 1, 3 * i + 2]))
    return heads


def sleep_until_done(ring, n):
    """Take n answers as a driver that sleeps until it is called; return how often it was."""
    done = calls = 0
    while done < n:
        taken = len(ring.collect())     # which asks to be called for the next
        done += taken
        if not taken:
            assert ring.wait_call(), f"{n - done} of {n} answers were never told"
            calls += 1
    return calls


@pytest.mark.parametrize("event_idx", [False, True], ids=["flags", "event-idx"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("disk", ["disk0.sock", "Slow"])
def test_an_interrupt_is_never_lost(target, disk, mode, event_idx):
    set_mode(target, disk, mode)
    with Blk(target.socket(0 if disk == "disk0.sock" else 1), event_idx=event_idx) as blk:
        ring, heads = blk.rings[0], reads(blk, 64)
        for n in itertools.islice(itertools.cycle((1, 64, 2, 33, 7)), 25):
            ring.submit(*heads[:n])
            sleep_until_done(ring, n)
    set_mode(target, disk, "off")


def test_a_change_reaches_rings_that_run(target):
    with Blk(target.socket(1)) as blk:
        ring, heads = blk.rings[0], reads(blk, 32)
        for mode in ("rate", "auto", "off", "auto", "rate"):
            ring.submit(*heads)
            set_mode(target, "Slow", mode)
            sleep_until_done(ring, 32)
    set_mode(target, "Slow", "off")


def test_a_stop_sends_what_waits(target):
    """A driver that stops its ring at once is told of all that was done before."""
    set_mode(target, "Slow", "rate")
    with Blk(target.socket(1)) as blk:
        ring, heads = blk.rings[0], reads(blk, 64)
        for _ in range(20):
            ring.submit(*heads)
            base = blk.client.get_vring_base(0)
            answers = ring.collect()
            assert not answers or ring.wait_call()
            ring.start(blk.client, base)
            assert ring.wait_call()     # the spurious one
            ring.kick()
            sleep_until_done(ring, 64 - len(answers))
    set_mode(target, "Slow", "off")


def test_who_starts_again_is_called_again(target):
    """Answers may be older than the descriptor that would have told of them."""
    with Blk(target.socket(0), queues=2) as blk:
        for _ in range(5):
            for ring in blk.rings:
                assert ring.wait_call() == 1, "who starts is called once"
            blk.stop()
            for ring in blk.rings:
                assert not ring.wait_call(0)
                ring.reset(0)
                ring.start(blk.client)
        for ring in blk.rings:
            assert ring.wait_call() == 1


def test_what_is_set_is_shown(target):
    about = target.rpc("vhost_get_controllers", name="Slow")[0]
    assert (about["delay_base_us"], about["iops_threshold"], about["automatic"]) \
        == (0, 60000, False)
    for mode, words in MODES.items():
        set_mode(target, "Slow", mode)
        about = target.rpc("vhost_get_controllers", name="Slow")[0]
        assert {name: about[name] for name in words} == words
    set_mode(target, "Slow", "off")


@pytest.mark.parametrize("params, part", [
    ({"delay_base_us": -1}, "'delay_base_us' must be"),
    ({"delay_base_us": 1_000_001}, "'delay_base_us' is 1000001, and may be 0 to 1000000"),
    ({"iops_threshold": 99}, "'iops_threshold' is 99, and may be 100 to "),
    ({"iops_threshold": 2**32}, "'iops_threshold' is 4294967296"),
    ({"automatic": 1}, "'automatic' must be"),
    ({"automatic": True, "delay_base_us": 5}, "give one of them"),
])
def test_what_is_refused(target, params, part):
    with pytest.raises(RpcError) as refused:
        target.rpc("vhost_controller_set_coalescing", ctrlr="Slow", **params)
    assert part in str(refused.value) and refused.value.code == -32602


def test_of_a_controller_that_is_not_there(target):
    with pytest.raises(RpcError, match="controller nobody does not exist"):
        target.rpc("vhost_controller_set_coalescing", ctrlr="nobody", delay_base_us=1,
                   iops_threshold=1000)
