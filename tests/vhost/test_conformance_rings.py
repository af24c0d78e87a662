"""What the vhost-user text demands of a back end about rings and the device's state.

Source: vhost-user protocol (docs/interop/vhost-user.rst of QEMU); a test begins with the name of
        its section. The device status is that of virtio 1.4, 2.1.
"""
import socket
import struct
import time

import pytest

from tests.lib import vhost_client as vc
from tests.lib.blk_client import IN, OK, Blk
from tests.lib.split_ring import WRITE
from tests.lib.vhost_client import BackendMsg, Msg, Refused

pytestmark = pytest.mark.timeout(120)

FEATURES = (vc.P_MQ | vc.P_REPLY_ACK | vc.P_BACKEND_REQ | vc.P_CONFIG | vc.P_RESET_DEVICE
            | vc.P_CONFIGURE_MEM_SLOTS | vc.P_STATUS)
SILENCE_S = 0.2
ACKNOWLEDGE, DRIVER, DRIVER_OK, FEATURES_OK, NEEDS_RESET, FAILED = 1, 2, 4, 8, 64, 128
ALL_OK = ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK


def session(disk, inband: bool = False, start: bool = True, **options) -> Blk:
    """A session with every protocol feature, its back-end channel open."""
    blk = Blk(disk, start=False, **options)
    blk.client.set_protocol_features(FEATURES | (vc.P_INBAND if inband else 0))
    blk.client.set_backend_req_fd()
    if start:
        for ring in blk.rings:
            ring.start(blk.client)
    return blk


def offer_read(blk: Blk, queue: int = 0) -> None:
    """Put a read of sector 0 into a ring, without a kick."""
    ring = blk.rings[queue]
    ring.publish(ring.chain([(blk.header(IN), 16, 0), (blk.scratch, 512, WRITE),
                             (blk.status(), 1, WRITE)]))


def idle(ring) -> bool:
    """Whether a ring stays untouched for a while."""
    try:
        ring.wait(1, SILENCE_S)
    except TimeoutError:
        return True
    return False


def configure(blk: Blk, queue: int = 0) -> None:
    """Tell size, base and addresses of a ring, and nothing about descriptors."""
    ring = blk.rings[queue]
    blk.client.set_vring_num(queue, ring.size)
    blk.client.set_vring_base(queue, ring.next_avail)
    blk.client.set_vring_addr(queue, *(blk.memory.uaddr(g) for g in
                                       (ring.desc_gpa, ring.used_gpa, ring.avail_gpa)))


# Ring states

def test_ring_states_a_ring_is_stopped_at_first(disk):
    with session(disk, start=False) as blk:
        blk.rings[0].configure(blk.client)
        blk.client.set_vring_enable(0, True)
        offer_read(blk)
        assert idle(blk.rings[0])


def test_ring_states_a_kick_starts_it(disk):
    with session(disk, start=False) as blk:
        ring = blk.rings[0]
        ring.configure(blk.client)
        blk.client.set_vring_enable(0, True)
        offer_read(blk)
        blk.client.set_vring_kick(0, ring.kick_fd)
        ring.kick()
        assert ring.wait() == [(0, 513)]


def test_ring_states_a_kick_that_came_before_its_descriptor_was_handed_over_starts_it(disk):
    with session(disk, start=False) as blk:
        ring = blk.rings[0]
        ring.configure(blk.client)
        offer_read(blk)
        ring.kick()
        blk.client.set_vring_kick(0, ring.kick_fd)
        blk.client.set_vring_enable(0, True)
        assert ring.wait() == [(0, 513)]


def test_ring_states_get_vring_base_stops_it(disk):
    with session(disk) as blk:
        blk.read(0, 512)
        assert blk.client.get_vring_base(0) == 1
        offer_read(blk)
        blk.rings[0].kick()
        assert idle(blk.rings[0])


def test_ring_states_a_disabled_ring_has_no_effect(disk):
    with session(disk) as blk:
        blk.client.set_vring_enable(0, False)
        offer_read(blk)
        blk.rings[0].kick()
        assert idle(blk.rings[0])
        blk.client.set_vring_enable(0, True)
        assert blk.rings[0].wait() == [(0, 513)]


def test_ring_states_without_protocol_features_a_ring_starts_enabled(disk):
    with Blk(disk, start=False) as blk:
        blk.client.set_features(blk.features & ~vc.F_PROTOCOL)
        ring = blk.rings[0]
        ring.configure(blk.client)
        blk.client.set_vring_kick(0, ring.kick_fd)
        assert blk.request(IN, 0, read=512).status == OK


@pytest.mark.parametrize("enabled", [True, False], ids=["enabled", "disabled"])
def test_ring_states_configuration_changes_on_the_fly(disk, enabled):
    with session(disk) as blk:
        ring, client = blk.rings[0], blk.client
        blk.write(0, b"\x19" * 512)
        client.set_vring_enable(0, enabled)
        for _ in range(3):
            client.set_mem_table(blk.memory)
            for flags in (1, 0):                    # VHOST_VRING_F_LOG on and off
                client.set_vring_addr(0, *(blk.memory.uaddr(g) for g in (
                    ring.desc_gpa, ring.used_gpa, ring.avail_gpa)), flags)
            client.set_vring_call(0, ring.call_fd)
            client.set_vring_err(0, ring.err_fd)
            client.set_vring_kick(0, ring.kick_fd)
            client.set_features(blk.features)
        client.set_vring_enable(0, True)
        assert blk.read(0, 512) == b"\x19" * 512


# Front-end message types

def in_flight(blk: Blk, count: int = 60, size: int = 1 << 16) -> None:
    """Put reads into a ring and wait until the target has begun with them."""
    ring = blk.rings[0]
    for i in range(count):
        ring.chain([(blk.header(IN), 16, 0), (blk.scratch, size, WRITE), (blk.status(), 1, WRITE)],
                   [3 * i, 3 * i + 1, 3 * i + 2])
    ring.submit(*range(0, 3 * count, 3))
    ring.wait_call()


STOPS = {
    "GET_VRING_BASE": lambda client: client.get_vring_base(0),
    "RESET_DEVICE": lambda client: client.reset_device(),
    "SET_STATUS-0": lambda client: client.set_status(0),
    "SET_VRING_ENABLE-0": lambda client: client.set_vring_enable(0, False),
}


@pytest.mark.parametrize("stop", STOPS.values(), ids=STOPS)
def test_get_vring_base_finishes_what_is_in_flight_and_then_nothing_happens(thread_disk, stop):
    with session(thread_disk) as blk:
        ring, resets = blk.rings[0], stop in (STOPS["RESET_DEVICE"], STOPS["SET_STATUS-0"])
        for _ in range(3):
            in_flight(blk)
            stop(blk.client)
            done, memory = ring.pending(), blk.memory.regions[0].bytes.copy()
            ring.wait_call(0)
            time.sleep(SILENCE_S)
            assert ring.pending() == done
            assert not ring.wait_call(0)
            assert (blk.memory.regions[0].bytes == memory).all()
            base = blk.client.get_vring_base(0)
            assert base == (0 if resets else done)  # as many as were taken off the ring
            ring.reset(0)
            blk.client.set_features(blk.features)
            ring.start(blk.client)


def test_set_vring_base_is_where_get_vring_base_was(disk):
    with session(disk, start=False) as blk:
        for base in (0, 1, 65535):
            blk.client.set_vring_base(0, base)
            assert blk.client.get_vring_base(0) == base


def test_set_vring_kick_without_descriptor_means_polling(disk):
    with session(disk, start=False) as blk:
        configure(blk)
        blk.client.set_vring_call(0, blk.rings[0].call_fd)
        blk.client.set_vring_kick(0, None)
        blk.client.set_vring_enable(0, True)
        for _ in range(3):
            offer_read(blk)
            assert blk.rings[0].wait() == [(0, 513)]
        assert blk.client.get_vring_base(0) == 3


def test_set_vring_call_without_descriptor_means_polling(disk):
    with session(disk) as blk:
        blk.client.set_vring_call(0, None)
        while blk.rings[0].wait_call(0):
            pass
        blk.read(0, 512)
        assert not blk.rings[0].wait_call(SILENCE_S)


def test_set_vring_err_is_signalled_on_an_error(disk):
    with session(disk) as blk:
        blk.rings[0].submit(60000)
        assert blk.rings[0].wait_err()


def test_reset_device_disables_all_rings_and_keeps_the_owner_and_memory(disk):
    with session(disk, queues=4) as blk:
        blk.client.set_status(ALL_OK)
        for queue in range(4):
            blk.write(queue, bytes([queue + 1]) * 512, queue)
        blk.client.reset_device()
        assert blk.client.get_status() == 0
        for queue in range(4):
            offer_read(blk, queue)
            blk.rings[queue].kick()
        assert all(idle(ring) for ring in blk.rings)
        blk.client.set_features(blk.features)
        for ring in blk.rings:
            assert blk.client.get_vring_base(ring.index) == 0
            ring.configure(blk.client)
            blk.client.set_vring_kick(ring.index, ring.kick_fd)
            offer_read(blk, ring.index)
            ring.kick()
        assert all(idle(ring) for ring in blk.rings)
        for queue, ring in enumerate(blk.rings):
            blk.client.get_vring_base(queue)
            ring.reset(0)
            ring.start(blk.client)
            assert blk.read(queue, 512, queue) == bytes([queue + 1]) * 512


def test_reset_device_forgets_the_features(disk):
    with session(disk) as blk:
        blk.client.set_status(ACKNOWLEDGE | FEATURES_OK)
        blk.client.reset_device()
        blk.client.set_status(ACKNOWLEDGE | FEATURES_OK)
        assert blk.client.get_status() == ACKNOWLEDGE


# In-band notifications

def test_vring_kick_starts_a_ring_and_notifies(disk):
    with session(disk, inband=True, start=False) as blk:
        configure(blk)
        blk.client.set_vring_call(0, blk.rings[0].call_fd)
        blk.client.set_vring_enable(0, True)
        offer_read(blk)
        assert idle(blk.rings[0])
        for _ in range(3):
            blk.client.vring_kick(0)
            assert blk.rings[0].wait() == [(0, 513)]
            offer_read(blk)
        blk.client.vring_kick(0)
        assert blk.rings[0].wait() == [(0, 513)]
        assert blk.client.get_vring_base(0) == 4
        offer_read(blk)
        assert idle(blk.rings[0])
        blk.client.vring_kick(0)                    # it starts again, as after the first
        assert blk.rings[0].wait() == [(0, 513)]


def test_vring_kick_before_the_ring_is_told_is_refused_and_counts_later(disk):
    with session(disk, inband=True, start=False) as blk:
        blk.client.set_vring_enable(0, True)
        with pytest.raises(Refused):
            blk.client.vring_kick(0)
        configure(blk)
        offer_read(blk)
        blk.client.vring_kick(0)
        assert blk.rings[0].wait() == [(0, 513)]


def test_vring_kick_number_must_be_zero(disk):
    with session(disk, inband=True) as blk, pytest.raises(Refused):
        blk.client.tell_state(Msg.VRING_KICK, 0, 1)


def test_vring_kick_a_descriptor_is_preferred(disk):
    with session(disk, inband=True) as blk:
        with pytest.raises(Refused):
            blk.client.vring_kick(0)
        assert blk.request(IN, 0, read=512).status == OK


def test_vring_call_is_sent_where_no_descriptor_was_given(disk):
    with session(disk, inband=True, start=False, queues=2) as blk:
        for queue in (0, 1):
            configure(blk, queue)
            blk.client.set_vring_enable(queue, True)
            blk.client.vring_kick(queue)
        call = (BackendMsg.VRING_CALL, vc.VERSION | vc.NEED_REPLY)
        started = [blk.client.recv_backend() for _ in range(2)]
        assert sorted(started) == [(*call, struct.pack("=II", queue, 0)) for queue in (0, 1)]
        blk.client.answer_backend(BackendMsg.VRING_CALL)
        blk.client.answer_backend(BackendMsg.VRING_CALL)
        for _ in range(5):
            offer_read(blk, 1)
            blk.client.vring_kick(1)
            assert blk.client.recv_backend() == (*call, struct.pack("=II", 1, 0))
            assert blk.rings[1].wait() == [(0, 513)]
            blk.client.answer_backend(BackendMsg.VRING_CALL)


@pytest.mark.parametrize("fd", ["eventfd", "none"])
def test_vring_call_is_not_sent_where_a_descriptor_or_polling_was_chosen(disk, fd):
    with session(disk, inband=True, start=False) as blk:
        configure(blk)
        blk.client.set_vring_call(0, blk.rings[0].call_fd if fd == "eventfd" else None)
        blk.client.set_vring_enable(0, True)
        blk.client.vring_kick(0)
        assert blk.request(IN, 0, read=512).status == OK
        blk.client.backend.settimeout(SILENCE_S)
        with pytest.raises(TimeoutError):
            blk.client.recv_backend()


def test_vring_call_gives_way_to_a_descriptor(target, disk):
    with session(disk, inband=True, start=False) as blk:
        configure(blk)
        blk.client.set_vring_enable(0, True)
        blk.client.vring_kick(0)
        blk.client.recv_backend()
        blk.client.answer_backend(BackendMsg.VRING_CALL)
        fds = target.fds()
        for _ in range(10):
            blk.client.set_vring_call(0, blk.rings[0].call_fd)
        target.await_fds(fds)
        blk.client.vring_kick(0)
        assert blk.request(IN, 0, read=512).status == OK
        assert blk.rings[0].wait_call()


def test_vring_err_is_sent_where_no_descriptor_was_given(disk):
    with session(disk, inband=True, start=False) as blk:
        configure(blk)
        blk.client.set_vring_call(0, None)
        blk.client.set_vring_enable(0, True)
        blk.rings[0].publish(60000)
        blk.client.vring_kick(0)
        assert blk.client.recv_backend() == (
            BackendMsg.VRING_ERR, vc.VERSION | vc.NEED_REPLY, struct.pack("=II", 0, 0))


def test_inband_notifications_to_a_client_that_never_reads(disk):
    with Blk(disk) as witness, session(disk, inband=True, start=False) as blk:
        blk.client.backend.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        configure(blk)
        blk.client.set_vring_enable(0, True)
        for _ in range(300):
            offer_read(blk)
            blk.client.vring_kick(0)
            blk.rings[0].wait()
        assert witness.request(IN, 0, read=512).status == OK


@pytest.mark.parametrize("when", ["before", "after"])
def test_inband_notifications_to_a_client_that_closed_its_channel(disk, when):
    with session(disk, inband=True, start=False) as blk:
        configure(blk)
        blk.client.set_vring_enable(0, True)
        if when == "after":
            blk.client.vring_kick(0)
        blk.client.backend.close()
        for _ in range(10):
            offer_read(blk)
            blk.client.vring_kick(0)
            blk.rings[0].wait()


# The device status

def test_status_is_told_as_it_was_set_and_only_grows(disk):
    with session(disk) as blk:
        assert blk.client.get_status() == 0
        so_far = 0
        for bit in (ACKNOWLEDGE, DRIVER, FEATURES_OK, DRIVER_OK):
            so_far |= bit
            blk.client.set_status(so_far)
            assert blk.client.get_status() == so_far
        blk.client.set_status(ACKNOWLEDGE)
        assert blk.client.get_status() == so_far


def test_status_features_ok_needs_features(disk):
    with vc.Client(disk) as client:
        client.set_protocol_features(FEATURES)
        client.set_status(ACKNOWLEDGE | DRIVER | FEATURES_OK)
        assert client.get_status() == ACKNOWLEDGE | DRIVER
        client.set_features(client.get_features())
        client.set_status(ACKNOWLEDGE | DRIVER | FEATURES_OK)
        assert client.get_status() == ACKNOWLEDGE | DRIVER | FEATURES_OK


@pytest.mark.parametrize("status", [256, 1 << 32, (1 << 64) - 1], ids=hex)
def test_status_has_eight_bits(disk, status):
    with session(disk) as blk:
        with pytest.raises(Refused):
            blk.client.set_status(status)
        assert blk.client.get_status() == 0


def test_status_0_resets_the_device(disk):
    with session(disk) as blk:
        blk.client.set_status(ALL_OK)
        blk.client.set_status(0)
        assert blk.client.get_status() == 0
        offer_read(blk)
        blk.rings[0].kick()
        assert idle(blk.rings[0])
        blk.client.set_features(blk.features)
        blk.rings[0].reset(0)
        blk.rings[0].start(blk.client)
        assert blk.request(IN, 0, read=512).status == OK


def test_status_0_stops_a_ring_as_qemu_does_and_goes_on(disk):
    """SET_VRING_ENABLE 0, GET_VRING_BASE, status 0; then everything but the memory again."""
    with session(disk, queues=2) as blk:
        for _ in range(5):
            blk.client.set_features(blk.features)
            for status in (FEATURES_OK, ALL_OK):
                blk.client.set_status(status)
            for queue in (0, 1):
                assert blk.request(IN, 0, read=512, queue=queue).status == OK
            bases = blk.stop()
            blk.client.set_status(0)
            blk.client.set_features(blk.features)
            for ring, base in zip(blk.rings, bases, strict=True):
                assert base == ring.next_avail
                ring.start(blk.client, base)


def test_status_says_when_a_broken_ring_needs_a_reset(disk):
    with session(disk, queues=2) as blk:
        blk.client.set_status(ALL_OK)
        blk.rings[1].submit(60000)
        assert blk.rings[1].wait_err()
        assert blk.client.recv_backend() == (
            BackendMsg.CONFIG_CHANGE, vc.VERSION | vc.NEED_REPLY, b"")
        assert blk.client.get_status() == ALL_OK | NEEDS_RESET
        blk.client.set_status(ALL_OK)
        assert blk.client.get_status() == ALL_OK | NEEDS_RESET
        blk.client.answer_backend(BackendMsg.CONFIG_CHANGE)
        blk.client.set_status(0)
        assert blk.client.get_status() == 0


def test_status_needs_reset_is_not_announced_before_the_driver_is_there(disk):
    with session(disk) as blk:
        blk.rings[0].submit(60000)
        assert blk.rings[0].wait_err()
        blk.client.backend.settimeout(SILENCE_S)
        with pytest.raises(TimeoutError):
            blk.client.recv_backend()
        assert blk.client.get_status() == NEEDS_RESET


def test_status_is_of_the_connection(disk):
    with session(disk) as blk:
        blk.client.set_status(ALL_OK)
    with session(disk) as blk:
        assert blk.client.get_status() == 0


def test_status_of_a_driver_that_gave_up(target, disk):
    with session(disk) as blk:
        blk.client.set_status(FAILED)
        assert blk.client.get_status() == FAILED
    assert "the driver has given the device up" in target.stderr()
