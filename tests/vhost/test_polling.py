"""Rings whose kicks are polled for, or come as messages, on reactors that sleep without work."""
import pytest

from tests.lib import vhost_client as vc
from tests.lib.blk_client import IN, OK, Blk
from tests.lib.target import Target

pytestmark = pytest.mark.timeout(120)
FEATURES = vc.P_MQ | vc.P_REPLY_ACK | vc.P_BACKEND_REQ | vc.P_CONFIG | vc.P_INBAND


@pytest.fixture(scope="module", params=["yield", "sleep", "interrupt"])
def disk(request):
    """The socket of a target with this idle policy."""
    with Target(idle=request.param) as running:
        yield running.socket()


def configure(blk: Blk) -> None:
    """Tell all of ring 0 but its descriptors."""
    ring, uaddr = blk.rings[0], blk.memory.uaddr
    blk.client.set_vring_num(0, ring.size)
    blk.client.set_vring_base(0, 0)
    blk.client.set_vring_addr(0, uaddr(ring.desc_gpa), uaddr(ring.used_gpa), uaddr(ring.avail_gpa))
    blk.client.set_vring_enable(0, True)


def read(blk: Blk) -> None:
    """Read a sector without a kick by descriptor."""
    blk.memory.view(blk.scratch, 1)[0] = 0
    status = blk.status()
    ring = blk.rings[0]
    ring.publish(ring.chain([(blk.header(IN), 16, 0), (blk.scratch, 512, 2), (status, 1, 2)]))


def test_a_ring_without_a_kick_descriptor_is_polled(disk):
    with Blk(disk, start=False) as blk:
        configure(blk)
        blk.client.set_vring_call(0, None)
        blk.client.set_vring_kick(0, None)
        for _ in range(20):
            read(blk)
            assert blk.rings[0].wait() == [(0, 513)]
        blk.client.set_vring_kick(0, blk.rings[0].kick_fd)      # and no longer
        assert blk.request(IN, 0, read=512).status == OK
        blk.client.set_vring_kick(0, None)                      # and again
        read(blk)
        assert blk.rings[0].wait() == [(0, 513)]


def test_a_kick_by_message_wakes(disk):
    with Blk(disk, start=False) as blk:
        blk.client.set_protocol_features(FEATURES)
        configure(blk)
        blk.client.set_vring_call(0, blk.rings[0].call_fd)
        for i in range(20):
            read(blk)
            blk.client.vring_kick(0)
            assert blk.rings[0].wait() == [(0, 513)]
            while blk.rings[0].wait_call(0.02 if i % 2 else 0):
                pass


def test_a_call_by_message(disk):
    with Blk(disk, start=False) as blk:
        blk.client.set_protocol_features(FEATURES)
        blk.client.set_backend_req_fd()
        configure(blk)
        blk.client.vring_kick(0)
        for _ in range(20):
            assert blk.client.recv_backend()[0] == vc.BackendMsg.VRING_CALL
            blk.client.answer_backend(vc.BackendMsg.VRING_CALL)
            read(blk)
            blk.client.vring_kick(0)
            assert blk.rings[0].wait() == [(0, 513)]
        assert blk.client.recv_backend()[0] == vc.BackendMsg.VRING_CALL
