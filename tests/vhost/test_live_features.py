"""SET_FEATURES while rings run: what may change then, on a device that offers a dirty log.

The session is in this process, with a controller of a few lines: none that offers a log yet has
rings to be told about.
"""
import asyncio
import socket
import struct

import pytest

from tests.lib.vhost_client import F_LOG_ALL, F_PROTOCOL, NEED_REPLY, P_REPLY_ACK, VERSION, Msg
from vhostrt.log_limit import Limit
from vhostrt.vhost.session import Session

F_VERSION_1, F_EVENT_IDX = 1 << 32, 1 << 29
LIVE = F_VERSION_1 | F_PROTOCOL
pytestmark = pytest.mark.timeout(60)


class Controller:
    """What a session asks of its controller."""

    name = "test"
    features = F_VERSION_1 | F_EVENT_IDX | F_LOG_ALL
    rings_max = 1
    limit = Limit("test")

    def check_rings(self) -> None:
        """There is room."""

    def forget(self, session: Session) -> None:
        """It has ended."""


async def tell(sock: socket.socket, request: int, value: int) -> int:
    """Send a message with a number; return what it is acknowledged with."""
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(sock, struct.pack("=IIIQ", request, VERSION | NEED_REPLY, 8, value))
    return struct.unpack("=IIIQ", await loop.sock_recv(sock, 20))[3]


@pytest.mark.parametrize(("changed", "running", "refused"), [
    (F_LOG_ALL, True, False), (F_EVENT_IDX, True, True), (F_EVENT_IDX | F_LOG_ALL, True, True),
    (F_PROTOCOL, True, True), (F_EVENT_IDX | F_LOG_ALL, False, False),
], ids=["log", "other", "log-and-other", "protocol", "stopped"])
def test_features_of_a_live_device(changed, running, refused):
    async def within():
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        session = Session(Controller(), theirs)
        with ours:
            loop = asyncio.get_running_loop()
            await loop.sock_sendall(ours, struct.pack(
                "=IIIQ", Msg.SET_PROTOCOL_FEATURES, VERSION, 8, P_REPLY_ACK))
            assert await tell(ours, Msg.SET_FEATURES, LIVE) == 0
            session.ring(0).queue = object() if running else None
            for _ in range(100):
                assert bool(await tell(ours, Msg.SET_FEATURES, LIVE ^ changed)) == refused
                assert session.features == LIVE ^ (0 if refused else changed)
                assert await tell(ours, Msg.SET_FEATURES, LIVE) == 0
            session.ring(0).queue = None
        await session.task
    asyncio.run(within())
