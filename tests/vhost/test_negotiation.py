"""What a front end and the target agree on before any request, seen from the wire."""
import os
import struct

import pytest

from tests.lib import vhost_client as vc
from tests.lib.blk_client import (
    F_BLK_SIZE,
    F_EVENT_IDX,
    F_FLUSH,
    F_INDIRECT,
    F_MQ,
    F_RO,
    F_SEG_MAX,
    F_VERSION_1,
    Blk,
)
from tests.lib.vhost_client import NEED_REPLY, VERSION, Closed, Msg, Refused

pytestmark = pytest.mark.timeout(120)

F_BARRIER, F_SCSI, F_CONFIG_WCE = 1 << 0, 1 << 7, 1 << 11
CAPACITY, SEG_MAX, BLK_SIZE, WRITEBACK, NUM_QUEUES = 0, 12, 20, 32, 34
CONFIG_SIZE = 60
SECTORS = (64 << 20) // 512


@pytest.fixture
def client(disk):
    """A fresh connection, nothing negotiated."""
    with vc.Client(disk) as connection:
        yield connection


@pytest.fixture
def ready(client):
    """A connection with REPLY_ACK, CONFIG, MQ and BACKEND_REQ."""
    client.set_protocol_features(vc.P_MQ | vc.P_REPLY_ACK | vc.P_CONFIG | vc.P_BACKEND_REQ)
    return client


def refused(call, *args) -> None:
    """Check that a message is answered with an error or ends the connection."""
    with pytest.raises((Refused, Closed)):
        call(*args)


@pytest.mark.parametrize("bit", [
    F_SEG_MAX, F_BLK_SIZE, F_FLUSH, F_MQ, F_INDIRECT, F_EVENT_IDX, F_VERSION_1, vc.F_PROTOCOL,
], ids=["SEG_MAX", "BLK_SIZE", "FLUSH", "MQ", "INDIRECT", "EVENT_IDX", "VERSION_1", "PROTOCOL"])
def test_feature_is_offered(client, bit):
    assert client.get_features() & bit


@pytest.mark.parametrize("bit", [F_BARRIER, F_SCSI, F_RO], ids=["BARRIER", "SCSI", "RO"])
def test_feature_is_not_offered(client, bit):
    assert not client.get_features() & bit


def test_read_only_disk_says_so(read_only_disk):
    with vc.Client(read_only_disk) as client:
        assert client.get_features() & F_RO


@pytest.mark.parametrize("bit", [vc.P_MQ, vc.P_REPLY_ACK, vc.P_CONFIG, vc.P_BACKEND_REQ],
                         ids=["MQ", "REPLY_ACK", "CONFIG", "BACKEND_REQ"])
def test_protocol_feature_is_offered(client, bit):
    assert client.get_protocol_features() & bit


def test_features_stay_the_same(client):
    assert client.get_features() == client.get_features()


@pytest.mark.parametrize("bit", [F_SCSI, 1 << 49, 1 << 63], ids=["SCSI", "49", "63"])
def test_feature_that_is_not_offered_is_refused(ready, bit):
    refused(ready.set_features, ready.get_features() | bit)


def test_protocol_feature_that_is_not_offered_is_refused(ready):
    refused(ready.set_protocol_features, ready.get_protocol_features() | 1 << 63)


def test_features_may_be_set_again(ready):
    bits = ready.get_features() & (F_VERSION_1 | vc.F_PROTOCOL)
    ready.set_features(bits)
    ready.set_features(bits)
    ready.set_owner()


# Configuration.

def test_config_describes_the_disk(ready):
    config = ready.get_config(0, CONFIG_SIZE)
    assert struct.unpack_from("<Q", config, CAPACITY)[0] == SECTORS
    assert struct.unpack_from("<I", config, BLK_SIZE)[0] in (512, 4096)
    assert struct.unpack_from("<I", config, SEG_MAX)[0] > 0
    assert struct.unpack_from("<H", config, NUM_QUEUES)[0] == ready.get_queue_num() >= 4


def test_file_disk_has_the_size_of_its_file(file_disk):
    with vc.Client(file_disk) as client:
        client.set_protocol_features(vc.P_CONFIG)
        assert struct.unpack("<Q", client.get_config(CAPACITY, 8))[0] == (32 << 20) // 512


@pytest.mark.parametrize("size", [1, 8, 36, 48, 57, 60, 96, 256])
def test_config_of_any_length(ready, size):
    want = ready.get_config(0, CONFIG_SIZE)
    assert ready.get_config(0, size)[:CONFIG_SIZE] == want[:size]


@pytest.mark.parametrize("offset", [1, 8, 12, 20, 33, 34, 59])
def test_config_honours_the_offset(ready, offset):
    want = ready.get_config(0, CONFIG_SIZE)
    for size in (1, CONFIG_SIZE - offset):
        assert ready.get_config(offset, size) == want[offset:offset + size]


@pytest.mark.parametrize(("offset", "data"), [
    (CAPACITY, bytes(8)), (CAPACITY, b"\xff" * 8), (SEG_MAX, bytes(4)), (BLK_SIZE, bytes(4)),
    (NUM_QUEUES, bytes(2)), (WRITEBACK - 1, bytes(2)), (WRITEBACK, bytes(2)), (0, bytes(60)),
], ids=["capacity-0", "capacity-max", "seg_max", "blk_size", "num_queues", "before-writeback",
        "beyond-writeback", "all"])
def test_config_write_of_a_fixed_field_is_refused(ready, disk, offset, data):
    want = ready.get_config(0, CONFIG_SIZE)
    refused(ready.set_config, offset, data)
    with vc.Client(disk) as other:
        other.set_protocol_features(vc.P_CONFIG)
        assert other.get_config(0, CONFIG_SIZE) == want


def test_config_write_of_writeback_needs_its_feature(ready):
    offered = ready.get_features()
    ready.set_features(offered & (F_VERSION_1 | vc.F_PROTOCOL | F_CONFIG_WCE))
    if offered & F_CONFIG_WCE:
        for value in (b"\0", b"\1"):
            ready.set_config(WRITEBACK, value)
            assert ready.get_config(WRITEBACK, 1) == value
    else:
        refused(ready.set_config, WRITEBACK, b"\0")


# Replies and acknowledgements.

def test_no_acknowledgement_before_reply_ack(client):
    client.send(Msg.SET_OWNER, VERSION | NEED_REPLY)
    assert client.get_features()                    # asserts that the next reply is its own


def test_acknowledgement_when_asked(ready):
    ready.send(Msg.SET_OWNER, VERSION | NEED_REPLY)
    ready.expect_ack(Msg.SET_OWNER)


def test_no_acknowledgement_unasked(ready):
    ready.send(Msg.SET_OWNER, VERSION)
    assert ready.get_features()


def test_one_reply_where_the_message_has_its_own(ready):
    ready.send(Msg.GET_FEATURES, VERSION | NEED_REPLY)
    assert ready.recv()[0] == Msg.GET_FEATURES
    assert ready.get_queue_num() >= 1


def test_error_is_acknowledged_or_ends_the_session(ready):
    refused(ready.set_vring_num, 0, 3)


def test_message_in_single_bytes(client):
    for byte in struct.pack("=III", Msg.GET_FEATURES, VERSION, 0):
        client.send_bytes(bytes([byte]))
    assert client.recv()[0] == Msg.GET_FEATURES


def test_many_messages_at_once(client):
    client.send_bytes(struct.pack("=III", Msg.GET_FEATURES, VERSION, 0) * 500)
    assert len({client.recv()[2] for _ in range(500)}) == 1


def test_backend_channel_is_taken_and_may_close(ready):
    ready.set_backend_req_fd()
    ready.backend.close()
    assert ready.get_features()
    ready.set_backend_req_fd()
    assert ready.get_features()


# Enabling rings.

def test_disabled_ring_does_not_serve(disk):
    with Blk(disk) as blk:
        blk.write(0, b"\x11" * 512)
        blk.client.set_vring_enable(0, False)
        status = blk.status()
        parts = [(blk.header(0), 16, 0), (blk.put(bytes(512)), 512, 2), (status, 1, 2)]
        blk.rings[0].submit(blk.rings[0].chain(parts))
        with pytest.raises(TimeoutError):
            blk.rings[0].wait(1, 0.2)
        blk.client.set_vring_enable(0, True)
        assert blk.rings[0].wait() == [(0, 513)]
        assert blk.get(parts[1][0], 512) == b"\x11" * 512


def test_ring_that_is_named_before_the_features_waits_to_be_enabled(disk):
    with vc.Client(disk) as client, Blk(disk, start=False) as blk:
        client.set_vring_call(0, blk.rings[0].call_fd)          # as QEMU does on connecting
        client.set_protocol_features(blk.protocol)
        client.set_features(blk.features)
        client.set_mem_table(blk.memory)
        ring = blk.rings[0]
        parts = [(blk.header(0), 16, 0), (blk.put(bytes(512)), 512, 2), (blk.status(), 1, 2)]
        ring.configure(client)
        client.set_vring_kick(0, ring.kick_fd)
        ring.submit(ring.chain(parts))
        with pytest.raises(TimeoutError):
            ring.wait(1, 0.2)
        client.set_vring_enable(0, True)
        assert ring.wait() == [(0, 513)]


def test_rings_are_enabled_without_protocol_features(disk):
    with Blk(disk, start=False) as blk:
        blk.client.set_features(blk.features & ~vc.F_PROTOCOL)
        blk.rings[0].configure(blk.client)
        blk.client.set_vring_kick(0, blk.rings[0].kick_fd)
        blk.write(0, b"\x22" * 512)
        assert blk.read(0, 512) == b"\x22" * 512


# Connections.

@pytest.mark.parametrize("clean", [True, False], ids=["stopped", "cut-off"])
def test_reconnect(target, disk, clean):
    open_before = target.fds()
    for i in range(10):
        with Blk(disk, queues=2) as blk:
            if i:
                assert blk.read(0, 1024) == bytes([i - 1]) * 1024
            blk.write(0, bytes([i]) * 1024, queue=i % 2)
            if clean:
                assert sum(blk.stop()) == (2 if i else 1)
    target.await_fds(open_before)


@pytest.mark.parametrize("which", ["disk", "file_disk", "thread_disk"])
def test_disconnect_with_requests_in_flight(target, request, which):
    disk = request.getfixturevalue(which)
    with Blk(disk) as blk:                          # what a first session leaves open stays
        blk.read(0, 512)
    open_before = target.fds()
    for _ in range(10):
        with Blk(disk) as blk:
            parts = [(blk.header(0), 16, 0), (blk.scratch, 1 << 20, 2), (blk.status(), 1, 2)]
            ring = blk.rings[0]
            for i in range(64):
                ring.chain(parts, [3 * i, 3 * i + 1, 3 * i + 2])
            ring.submit(*range(0, 192, 3))
    with Blk(disk) as blk:
        blk.read(0, 512)
    target.await_fds(open_before)


def test_second_connection_leaves_the_first_alone(disk):
    with Blk(disk) as blk:
        blk.write(0, b"first" + bytes(507))
        with vc.Client(disk):
            assert blk.read(0, 512)[:5] == b"first"
        assert blk.read(0, 512)[:5] == b"first"


def test_kick_and_call_may_be_changed(disk):
    with Blk(disk) as blk:
        ring = blk.rings[0]
        old, ring.call_fd = ring.call_fd, os.eventfd(0, os.EFD_NONBLOCK)
        os.close(old)
        blk.client.set_vring_call(0, ring.call_fd)
        while ring.wait_call(0.1):
            pass
        blk.write(0, bytes(512))
        assert ring.wait_call()
