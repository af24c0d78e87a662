"""A well-behaved virtio-blk front end over tests.lib.vhost_client and tests.lib.split_ring."""
import struct
from typing import NamedTuple, Self

from tests.lib import vhost_client as vc
from tests.lib.guest_memory import Memory
from tests.lib.split_ring import WRITE, Ring

IN, OUT, FLUSH, GET_ID, DISCARD, WRITE_ZEROES = 0, 1, 4, 8, 11, 13
OK, IOERR, UNSUPP = 0, 1, 2
UNTOUCHED = 0xEE                        # what a status byte holds before the device writes it

F_SEG_MAX, F_RO, F_BLK_SIZE, F_FLUSH, F_MQ = 1 << 2, 1 << 5, 1 << 6, 1 << 9, 1 << 12
F_INDIRECT, F_EVENT_IDX, F_VERSION_1 = 1 << 28, 1 << 29, 1 << 32
WANTED = (F_SEG_MAX | F_RO | F_BLK_SIZE | F_FLUSH | F_MQ | F_INDIRECT | F_VERSION_1
          | vc.F_PROTOCOL)
PROTOCOL = vc.P_MQ | vc.P_REPLY_ACK | vc.P_CONFIG | vc.P_BACKEND_REQ
SCRATCH = 1 << 20                       # longest data of Blk.request(), bytes


class Reply(NamedTuple):
    """What came back: status byte, data read, bytes the device says that it wrote."""

    status: int
    data: bytes
    written: int


class Blk:
    """One session that is ready for requests: negotiated, memory shared, rings started.

    Use it as a context manager; it owns the connection, the rings and, unless given, the memory.
    `event_idx` asks for EVENT_IDX. `base` is the ring index to begin with. With `start=False` the
    rings exist and are not told to the back end.
    """

    def __init__(self, path, queues: int = 1, size: int = 256, event_idx: bool = False,
                 base: int = 0, memory: Memory | None = None, start: bool = True,
                 timeout: float = 20.0):
        self.client = vc.Client(path, timeout)
        self.timeout = timeout
        wanted = WANTED | (F_EVENT_IDX if event_idx else 0)
        self.offered = self.client.get_features()
        self.features = self.offered & wanted
        self.protocol = self.client.get_protocol_features() & PROTOCOL
        self.client.set_protocol_features(self.protocol)
        self.client.set_owner()
        self.client.set_features(self.features)
        self.memory = memory or Memory.of_sizes((16 << 20) + queues * 64 * size, 8 << 20)
        self.client.set_mem_table(self.memory)
        self.rings = [Ring(self.memory, i, size, event_idx) for i in range(queues)]
        self.scratch = self.memory.alloc(SCRATCH + 32, 4096)
        for ring in self.rings:
            ring.reset(base)
            if start:
                ring.start(self.client)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection without stopping the rings, as a killed front end does."""
        self.client.close()
        for ring in self.rings:
            ring.close()
        self.memory.close()

    def stop(self) -> list[int]:
        """Stop every ring as QEMU does; return the base of each."""
        for ring in self.rings:
            self.client.set_vring_enable(ring.index, False)
        return [self.client.get_vring_base(ring.index) for ring in self.rings]

    def capacity(self) -> int:
        """Return the capacity in sectors of 512 bytes."""
        return struct.unpack("<Q", self.client.get_config(0, 8))[0]

    # Buffers.

    def put(self, data: bytes, region: int = 0) -> int:
        """Copy `data` to a fresh buffer; return its guest address."""
        gpa = self.memory.alloc(len(data), 16, region)
        self.memory.view(gpa, len(data))[:] = list(data)
        return gpa

    def get(self, gpa: int, length: int) -> bytes:
        """Return the bytes at a guest address."""
        return self.memory.view(gpa, length).tobytes()

    def header(self, kind: int, sector: int = 0, region: int = 0) -> int:
        """Make a request header in a fresh buffer; return its guest address."""
        return self.put(struct.pack("<IIQ", kind, 0, sector), region)

    def status(self, region: int = 0) -> int:
        """Make an untouched status byte; return its guest address."""
        return self.put(bytes([UNTOUCHED]), region)

    # Requests, one at a time.

    def run(self, head: int, status: int, queue: int = 0) -> tuple[int, int]:
        """Submit a chain and wait for it; return its status byte and the bytes written."""
        ring = self.rings[queue]
        ring.submit(head)
        [(got, written)] = ring.wait(1, self.timeout)
        assert got == head, f"chain {head} completed as {got}"
        return int(self.memory.view(status, 1)[0]), written

    def request(self, kind: int, sector: int = 0, out: bytes = b"", read: int = 0,
                queue: int = 0) -> Reply:
        """Do one request of three descriptors, of two when it has no data."""
        mem, at = self.memory, self.scratch
        data, status = at + 16, at + 16 + max(len(out), read)
        mem.view(at, 16)[:] = list(struct.pack("<IIQ", kind, 0, sector))
        mem.view(data, len(out))[:] = memoryview(out)
        mem.view(status, 1)[0] = UNTOUCHED
        parts = [(at, 16, 0)]
        if out:
            parts.append((data, len(out), 0))
        if read:
            mem.view(data, read)[:] = UNTOUCHED
            parts.append((data, read, WRITE))
        parts.append((status, 1, WRITE))
        code, written = self.run(self.rings[queue].chain(parts), status, queue)
        return Reply(code, self.get(data, read), written)

    def read(self, sector: int, length: int, queue: int = 0) -> bytes:
        """Read `length` bytes at `sector`."""
        reply = self.request(IN, sector, read=length, queue=queue)
        assert reply.status == OK, f"read of {length} bytes at {sector}: status {reply.status}"
        assert reply.written == length + 1, f"{reply.written} bytes written, want {length + 1}"
        return reply.data

    def write(self, sector: int, data: bytes, queue: int = 0) -> None:
        """Write `data` at `sector`."""
        reply = self.request(OUT, sector, out=data, queue=queue)
        assert reply.status == OK, f"write of {len(data)} bytes at {sector}: {reply.status}"
        assert reply.written == 1, f"{reply.written} bytes written, want the status byte alone"

    def flush(self, queue: int = 0) -> None:
        """Flush the disk."""
        reply = self.request(FLUSH, queue=queue)
        assert reply.status == OK, f"flush: status {reply.status}"

    def get_id(self) -> bytes:
        """Return the 20 bytes of the serial."""
        reply = self.request(GET_ID, read=20)
        assert reply.status == OK, f"get_id: status {reply.status}"
        return reply.data
