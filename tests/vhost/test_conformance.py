"""What the vhost-user text demands of a back end about messages, one test for each demand.

Source: vhost-user protocol (docs/interop/vhost-user.rst of QEMU); a test begins with the name of
        its section. Rings are in test_conformance_rings, regions in test_memory_slots.
"""
import os
import socket
import struct

import pytest

from tests.lib import vhost_client as vc
from tests.lib.blk_client import Blk
from tests.lib.guest_memory import Memory
from tests.lib.vhost_client import NEED_REPLY, NO_FD, REPLY, VERSION, Closed, Msg, Refused

pytestmark = pytest.mark.timeout(120)

ALL = (vc.P_MQ | vc.P_REPLY_ACK | vc.P_BACKEND_REQ | vc.P_CONFIG | vc.P_RESET_DEVICE | vc.P_INBAND
       | vc.P_CONFIGURE_MEM_SLOTS | vc.P_STATUS)
QUEUES = 256


@pytest.fixture
def client(disk):
    """A fresh connection, nothing negotiated."""
    with vc.Client(disk) as connection:
        yield connection


@pytest.fixture
def ready(client):
    """A connection with every protocol feature."""
    client.set_protocol_features(ALL)
    client.set_features(client.get_features())
    return client


def state(index: int, num: int) -> bytes:
    return struct.pack("=II", index, num)


def config(size: int) -> bytes:
    return struct.pack("=III", 0, size, 0) + bytes(size)


# Messages with a reply of their own: a payload that is right, and the size of the reply.
REPLYING = {
    Msg.GET_FEATURES: (b"", 8), Msg.GET_PROTOCOL_FEATURES: (b"", 8), Msg.GET_QUEUE_NUM: (b"", 8),
    Msg.GET_VRING_BASE: (state(0, 0), 8), Msg.GET_CONFIG: (config(60), 72),
    Msg.GET_MAX_MEM_SLOTS: (b"", 8), Msg.GET_STATUS: (b"", 8),
}

# Messages without one: payloads that are right, and one that is wrong.
SILENT = {
    Msg.SET_FEATURES: (struct.pack("=Q", vc.F_PROTOCOL), struct.pack("=Q", 1 << 63)),
    Msg.SET_OWNER: (b"", None), Msg.RESET_OWNER: (b"", None),
    Msg.SET_VRING_NUM: (state(0, 64), state(0, 0)),
    Msg.SET_VRING_ADDR: (struct.pack("=IIQQQQ", 0, 0, 0, 0, 0, 0),
                         struct.pack("=IIQQQQ", QUEUES, 0, 0, 0, 0, 0)),
    Msg.SET_VRING_BASE: (state(0, 7), state(QUEUES, 7)),
    Msg.SET_VRING_ENABLE: (state(0, 1), state(0, 2)),
    Msg.SET_VRING_CALL: (struct.pack("=Q", NO_FD), struct.pack("=Q", 0)),
    Msg.SET_VRING_ERR: (struct.pack("=Q", NO_FD), struct.pack("=Q", 0)),
    Msg.RESET_DEVICE: (b"", None),
    Msg.SET_STATUS: (struct.pack("=Q", 1), struct.pack("=Q", 256)),
}
WRONG = {message: wrong for message, (_, wrong) in SILENT.items() if wrong is not None}


# Header

@pytest.mark.parametrize("message", REPLYING, ids=lambda m: m.name)
def test_header_a_reply_has_the_request_the_version_and_the_reply_flag(ready, message):
    payload, size = REPLYING[message]
    ready.send(message, VERSION, payload)
    request, flags, answer, fds = ready.recv()
    assert (request, flags, len(answer), fds) == (message, VERSION | REPLY, size, [])


# Communication

@pytest.mark.parametrize("message", SILENT, ids=lambda m: m.name)
def test_communication_other_messages_have_no_reply(ready, message):
    ready.send(message, VERSION, SILENT[message][0])
    assert ready.get_queue_num() == QUEUES          # asserts that the next reply is its own


def test_communication_set_mem_table_takes_descriptors(ready):
    memory = Memory.of_sizes(*[1 << 20] * 8)
    ready.set_mem_table(memory)
    memory.close()


def test_communication_protocol_features_bit_is_offered(client):
    assert client.get_features() & vc.F_PROTOCOL


@pytest.mark.parametrize("message", [2**31, 0, 45, 99], ids=str)
def test_communication_an_unknown_request_is_an_error(ready, message):
    with pytest.raises((Refused, Closed)):
        ready.tell(message, bytes(8))


# Multiple queue support

def test_multiple_queue_the_number_can_be_asked_for(ready):
    assert ready.get_protocol_features() & vc.P_MQ
    assert ready.get_queue_num() == QUEUES
    assert struct.unpack("<H", ready.get_config(34, 2))[0] == QUEUES


def test_multiple_queue_each_is_known_by_its_index(disk):
    with Blk(disk, queues=QUEUES, size=16) as blk:
        for queue in range(QUEUES):
            blk.write(queue, bytes([queue]) * 512, queue)
        for queue in range(QUEUES):
            assert blk.read(QUEUES - 1 - queue, 512, queue) == bytes([QUEUES - 1 - queue]) * 512
        assert blk.stop() == [2] * QUEUES


# Back-end communication

def test_backend_communication_a_socket_is_acknowledged(ready):
    ready.set_backend_req_fd()                      # Refused if it were not


@pytest.mark.parametrize("kind", ["eventfd", "pipe", "datagram", "none", "two"])
def test_backend_communication_anything_else_is_not(ready, kind):
    pair = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    pipe, event = os.pipe(), os.eventfd(0)
    fds = {"eventfd": [event], "pipe": [pipe[1]], "datagram": [pair[0].fileno()], "none": [],
           "two": [pair[0].fileno()] * 2}[kind]
    try:
        with pytest.raises(Refused):
            ready.tell(Msg.SET_BACKEND_REQ_FD, b"", fds)
    finally:
        for sock in pair:
            sock.close()
        for fd in (*pipe, event):
            os.close(fd)


# In-band notifications

@pytest.mark.parametrize("without", [vc.P_REPLY_ACK, vc.P_BACKEND_REQ,
                                     vc.P_REPLY_ACK | vc.P_BACKEND_REQ],
                         ids=["REPLY_ACK", "BACKEND_REQ", "both"])
@pytest.mark.parametrize("flags", [VERSION, VERSION | NEED_REPLY], ids=["plain", "need-reply"])
def test_inband_notifications_alone_close_the_connection(client, without, flags):
    client.set_protocol_features(vc.P_REPLY_ACK)
    client.send(Msg.SET_PROTOCOL_FEATURES, flags, struct.pack("=Q", ALL & ~without))
    with pytest.raises(Closed):
        client.recv()


# Protocol features

@pytest.mark.parametrize("number", [0, 3, 5, 9, 13, 14, 15, 16], ids=str)
def test_protocol_features_bit_is_offered(client, number):
    assert client.get_protocol_features() >> number & 1


@pytest.mark.parametrize("number", [1, 2, 4, 6, 7, 8, 10, 11, 12, 17, 18, 19, 20, 21, 22, 63],
                         ids=str)
def test_protocol_features_bit_that_is_not_offered_is_refused(ready, number):
    assert not ready.get_protocol_features() >> number & 1
    with pytest.raises(Refused):
        ready.set_protocol_features(ALL | 1 << number)
    ready.set_owner()                               # acknowledged: those from before hold


def test_protocol_features_are_told_and_taken_before_set_features(client):
    client.set_protocol_features(client.get_protocol_features())
    client.set_owner()


def test_protocol_features_need_not_be_acknowledged_by_set_features(client):
    client.set_features(client.get_features() & ~vc.F_PROTOCOL)
    client.set_protocol_features(ALL)
    assert client.get_status() == 0


@pytest.mark.parametrize("bit", [vc.F_LOG_ALL, 1 << 7, 1 << 31, 1 << 50, 1 << 63], ids=hex)
def test_features_that_are_not_offered_are_refused(ready, bit):
    assert not ready.get_features() & bit
    with pytest.raises(Refused):
        ready.set_features(ready.get_features() | bit)


# Front-end message types

def test_reset_owner_keeps_the_connection_and_its_memory(disk):
    with Blk(disk) as blk:
        blk.write(0, b"\x31" * 512)
        blk.client.reset_owner()
        blk.client.set_vring_enable(0, True)
        assert blk.read(0, 512) == b"\x31" * 512


@pytest.mark.parametrize("size", [1, 36, 57, 60, 96, 255, 256])
@pytest.mark.parametrize("offset", [0, 1, 20, 100])
def test_get_config_has_the_size_that_was_asked_for(ready, offset, size):
    size = min(size, 256 - offset)
    assert ready.get_config(offset, size) == ready.get_config(0, 256)[offset:offset + size]


@pytest.mark.parametrize(("offset", "size"), [(0, 257), (256, 1), (2**32 - 1, 2)],
                         ids=["long", "beyond", "wraps"])
def test_get_config_answers_an_error_with_an_empty_payload(ready, offset, size):
    ready.send(Msg.GET_CONFIG, VERSION, struct.pack("=III", offset, size, 0) + bytes(size))
    request, _, payload, _ = ready.recv()
    assert (request, payload) == (Msg.GET_CONFIG, b"")
    assert ready.get_config(0, 8)


@pytest.mark.parametrize("flags", [0, 2, 3, 2**32 - 1], ids=hex)
@pytest.mark.parametrize("offset", [0, 8, 12, 20, 34], ids=str)
def test_set_config_must_not_change_fields_that_are_read_only(ready, offset, flags):
    before = ready.get_config(0, 60)
    with pytest.raises(Refused):
        ready.set_config(offset, bytes(b ^ 0xff for b in before[offset:offset + 2]), flags)
    assert ready.get_config(0, 60) == before


@pytest.mark.parametrize("message", [Msg.RESET_DEVICE, Msg.VRING_KICK, Msg.GET_MAX_MEM_SLOTS,
                                     Msg.ADD_MEM_REG, Msg.REM_MEM_REG, Msg.SET_STATUS,
                                     Msg.GET_STATUS], ids=lambda m: m.name)
def test_messages_of_a_feature_need_the_feature(client, message):
    client.set_protocol_features(vc.P_REPLY_ACK)
    size = {Msg.VRING_KICK: 8, Msg.ADD_MEM_REG: 40, Msg.REM_MEM_REG: 40, Msg.SET_STATUS: 8}
    with pytest.raises((Refused, Closed)):
        client.tell(message, bytes(size.get(message, 0)))


def test_get_max_mem_slots_does_not_decrease_on_reconnecting(disk):
    slots = []
    for _ in range(3):
        with vc.Client(disk) as client:
            client.set_protocol_features(ALL)
            slots.append(client.get_max_mem_slots())
    assert slots == sorted(slots)
    assert slots[0] >= 32


# REPLY_ACK

@pytest.mark.parametrize("message", SILENT, ids=lambda m: m.name)
def test_reply_ack_zero_when_done(ready, message):
    ready.send(message, VERSION | NEED_REPLY, SILENT[message][0])
    assert ready.recv() == (message, VERSION | REPLY, bytes(8), [])


@pytest.mark.parametrize("message", WRONG, ids=lambda m: m.name)
def test_reply_ack_not_zero_when_refused(ready, message):
    ready.send(message, VERSION | NEED_REPLY, WRONG[message])
    request, flags, payload, _ = ready.recv()
    assert (request, flags, len(payload)) == (message, VERSION | REPLY, 8)
    assert any(payload)
    assert ready.get_queue_num() == QUEUES


@pytest.mark.parametrize("message", REPLYING, ids=lambda m: m.name)
def test_reply_ack_changes_nothing_where_there_is_a_reply(ready, message):
    payload, size = REPLYING[message]
    ready.send(message, VERSION | NEED_REPLY, payload)
    request, flags, answer, _ = ready.recv()
    assert (request, flags, len(answer)) == (message, VERSION | REPLY, size)
    assert ready.get_queue_num() == QUEUES


@pytest.mark.parametrize("message", SILENT, ids=lambda m: m.name)
def test_reply_ack_means_nothing_before_it_is_negotiated(client, message):
    client.set_protocol_features(ALL & ~(vc.P_REPLY_ACK | vc.P_INBAND))
    client.set_features(client.get_features())
    client.send(message, VERSION | NEED_REPLY, SILENT[message][0])
    assert client.get_queue_num() == QUEUES


@pytest.mark.parametrize("message", WRONG, ids=lambda m: m.name)
def test_an_error_without_reply_ack_closes_the_connection(client, message):
    client.set_protocol_features(ALL & ~(vc.P_REPLY_ACK | vc.P_INBAND))
    client.send(message, VERSION, WRONG[message])
    with pytest.raises(Closed):
        client.recv()
