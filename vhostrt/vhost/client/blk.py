"""A virtio block device behind a vhost-user socket, as its driver sets it up and takes it down.

Threads: one.
Fails:   TargetError, from the connection and for a device that cannot be used.
"""
import contextlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field

from vhostrt.vhost.client.connection import Connection, Refused, TargetError
from vhostrt.vhost.client.memory import SharedMemory
from vhostrt.vhost.messages import (ADDRESS, CONFIG, REGION, STATE, TABLE, U64, Feature,
                                    ProtocolFeature, Request, bits)

SECTOR = 512
# Feature bits of the block device (virtio 1.4, 5.2.3).
F_SIZE_MAX, F_RO, F_BLK_SIZE, F_FLUSH, F_MQ, F_DISCARD = 1, 5, 6, 9, 12, 13
WANTED = bits(F_RO, F_BLK_SIZE, F_FLUSH, F_MQ, F_DISCARD, Feature.EVENT_IDX, Feature.INDIRECT_DESC,
              Feature.VERSION_1)
PROTOCOL_WANTED = bits(ProtocolFeature.MQ, ProtocolFeature.REPLY_ACK, ProtocolFeature.CONFIG)
# The config space (virtio 1.4, 5.2.4) as far as write_zeroes_may_unmap, and how much to ask for: a
# device refuses more than it has.
FIELDS = struct.Struct("<QIIHBBIBBHIBxHIIIIIB3x")
CONFIG_SIZES = (60, 36, 24, 8)
# Where the shared memory lies, for the device and in the addresses of our messages.
GUEST, USER = 0x1_0000_0000, 0x7f00_0000_0000


@dataclass(frozen=True)
class Device:
    """What the device tells of itself; 0 where it does not."""

    capacity: int = 0                   # bytes
    size_max: int = 0                   # bytes of the longest segment
    block_size: int = SECTOR
    queues: int = 1
    discard_max: int = 0                # bytes of one request


@dataclass(frozen=True)
class Ring:
    """One ring to be started: offsets in the shared memory, and eventfds."""

    index: int
    size: int
    desc: int
    avail: int
    used: int
    kick_fd: int
    call_fd: int


@dataclass
class BlkFrontEnd:
    """The session of a driver.  negotiate(), start(), stop(), in this order."""

    connection: Connection
    features: int = 0                   # offered, and wanted
    protocol: int = 0
    device: Device = field(default_factory=Device)
    rings: Sequence[Ring] = ()

    def has(self, feature: int) -> bool:
        """Return whether both sides have a feature."""
        return bool(self.features >> feature & 1)

    def speaks(self, feature: ProtocolFeature) -> bool:
        """Return whether both sides have a protocol feature."""
        return bool(self.protocol >> feature & 1)

    def negotiate(self) -> None:
        """Agree on what both sides can, and read what the device tells of itself."""
        connection = self.connection
        offered = connection.ask_u64(Request.GET_FEATURES)
        self.features = offered & (WANTED | bits(Feature.PROTOCOL_FEATURES))
        if self.has(Feature.PROTOCOL_FEATURES):
            self.protocol = connection.ask_u64(Request.GET_PROTOCOL_FEATURES) & PROTOCOL_WANTED
            connection.tell(Request.SET_PROTOCOL_FEATURES, U64.pack(self.protocol))
            connection.acknowledged = self.speaks(ProtocolFeature.REPLY_ACK)
        queues = connection.ask_u64(Request.GET_QUEUE_NUM) if self.speaks(ProtocolFeature.MQ) else 1
        connection.tell(Request.SET_OWNER)
        self.device = self._device(offered, queues)

    def _device(self, offered: int, queues: int) -> Device:
        if not self.speaks(ProtocolFeature.CONFIG):
            return Device(queues=queues)
        (sectors, size_max, _, _, _, _, block_size, _, _, _, _, _, num_queues, discard_max, _, _, _,
         _, _) = FIELDS.unpack(self._config())
        if self.has(F_MQ) and num_queues:
            queues = min(queues, num_queues)
        if not self.has(F_BLK_SIZE):
            block_size = SECTOR
        if not sectors or block_size % SECTOR or not SECTOR <= block_size <= 1 << 20:
            raise TargetError(f"{self.connection.name}: the target says that its disk has "
                              f"{sectors} sectors in blocks of {block_size} bytes, which cannot "
                              "be")
        return Device(sectors * SECTOR, size_max if offered >> F_SIZE_MAX & 1 else 0, block_size,
                      queues, discard_max * SECTOR if self.has(F_DISCARD) else 0)

    def _config(self) -> bytes:
        """Return the config space, as much as the device has of it."""
        for size in CONFIG_SIZES:
            try:
                answer = self.connection.ask(Request.GET_CONFIG, CONFIG.pack(0, size, 0)
                                             + bytes(size))
            except Refused:
                continue
            if not answer:
                continue
            if len(answer) != CONFIG.size + size:
                raise self.connection.nonsense(Request.GET_CONFIG, f"{len(answer)} bytes instead "
                                               f"of {CONFIG.size + size}")
            return answer[CONFIG.size:].ljust(FIELDS.size, b"\0")
        raise TargetError(f"{self.connection.name}: the target does not tell how large its disk is")

    def start(self, memory: SharedMemory, rings: Sequence[Ring]) -> None:
        """Share the memory and have the rings served."""
        connection = self.connection
        connection.tell(Request.SET_FEATURES, U64.pack(self.features))
        connection.tell(Request.SET_MEM_TABLE, TABLE.pack(1, 0)
                        + REGION.pack(GUEST, memory.size, USER, 0), [memory.fd])
        for ring in rings:
            connection.tell(Request.SET_VRING_NUM, STATE.pack(ring.index, ring.size))
            connection.tell(Request.SET_VRING_BASE, STATE.pack(ring.index, 0))
            connection.tell(Request.SET_VRING_ADDR, ADDRESS.pack(
                ring.index, 0, USER + ring.desc, USER + ring.used, USER + ring.avail, 0))
            connection.tell(Request.SET_VRING_CALL, U64.pack(ring.index), [ring.call_fd])
            connection.tell(Request.SET_VRING_KICK, U64.pack(ring.index), [ring.kick_fd])
        self.rings = rings
        if self.has(Feature.PROTOCOL_FEATURES):
            for ring in rings:
                connection.tell(Request.SET_VRING_ENABLE, STATE.pack(ring.index, 1))
        # Without acknowledgements a refusal shows as a closed connection, at the next answer.
        connection.ask_u64(Request.GET_FEATURES)

    def stop(self) -> None:
        """Take the rings back; returns when the device touches the memory no more."""
        for ring in self.rings:
            if self.has(Feature.PROTOCOL_FEATURES):
                with contextlib.suppress(Refused):      # GET_VRING_BASE stops it all the same
                    self.connection.tell(Request.SET_VRING_ENABLE, STATE.pack(ring.index, 0))
            self.connection.ask(Request.GET_VRING_BASE, STATE.pack(ring.index, 0))
        self.rings = ()
