"""Many checked requests a second from Python: batches made and verified by NumPy.

Each sector's contents follow from its number and from how often it was written (its generation),
so a model of the whole disk is one array of generations.
"""
import time

import numpy as np

from tests.lib.blk_client import IN, OK, OUT, SCRATCH, UNTOUCHED
from tests.lib.split_ring import DESC, NEXT, WRITE

HEADER = np.dtype([("type", "<u4"), ("reserved", "<u4"), ("sector", "<u8")])
WORDS = 64                              # 64-bit words of a sector
CHUNK = 8                               # sectors of the longest request
SALT = np.arange(WORDS, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)


def contents(sectors: np.ndarray, generations: np.ndarray) -> np.ndarray:
    """Return the 64 words of every sector; a sector of generation 0 is all zero."""
    seed = sectors.astype(np.uint64) << np.uint64(24) | generations.astype(np.uint64)
    words = seed[..., None] + SALT
    return np.where(generations[..., None] == 0, np.uint64(0), words)


class Lane:
    """One queue with its share of the disk, and the batch that is under way on it.

    Every ring slot of three descriptors is one request; the descriptor table is written once and
    afterwards only lengths and directions change.
    """

    def __init__(self, blk, queue: int, first: int, sectors: int, rng):
        self.ring, self.first, self.rng = blk.rings[queue], first, rng
        self.generation = np.zeros(sectors, np.uint32)
        self.slots = n = self.ring.size // 3
        memory = blk.memory
        gpa = memory.alloc(n * 16, 16)
        self.headers = memory.view(gpa, n * 16).view(HEADER)
        data = memory.alloc(n * CHUNK * 512, 4096)
        self.data = memory.view(data, n * CHUNK * 512).view("<u8").reshape(n, CHUNK, WORDS)
        status = memory.alloc(n, 16)
        self.status = memory.view(status, n)
        place = np.arange(n)
        table = np.zeros(3 * n, DESC)
        table["addr"][0::3], table["len"][0::3] = gpa + 16 * place, 16
        table["addr"][1::3], table["next"][0::3] = data + 512 * CHUNK * place, 3 * place + 1
        table["addr"][2::3], table["len"][2::3] = status + place, 1
        table["flags"][0::3], table["flags"][2::3] = NEXT, WRITE
        table["next"][1::3] = 3 * place + 2
        self.ring.desc[:3 * n] = table
        self.heads = None               # of the batch under way

    def submit(self, n: int) -> None:
        """Make `n` requests of one random length, reads and writes of different sectors."""
        count = int(self.rng.choice((1, 4, CHUNK)))
        places = self.rng.choice(len(self.generation) // CHUNK, n, replace=False) * CHUNK
        sectors = places[:, None] + np.arange(count)
        writes = self.rng.random(n) < 0.5
        self.generation[sectors[writes]] += 1
        self.count, self.writes = count, writes
        self.want = contents(self.first + sectors, self.generation[sectors])
        self.headers["type"][:n] = np.where(writes, OUT, IN)
        self.headers["sector"][:n] = self.first + places
        self.data[:n, :count] = np.where(writes[:, None, None], self.want, np.uint64(2**64 - 1))
        self.status[:n] = UNTOUCHED
        self.ring.desc["len"][1:3 * n:3] = count * 512
        self.ring.desc["flags"][1:3 * n:3] = np.where(writes, NEXT, NEXT | WRITE)
        self.heads = self.rng.permutation(n) * 3
        at = (self.ring.next_avail + np.arange(n)) % self.ring.size
        self.ring.avail[at] = self.heads
        self.ring.publish_to(n)
        self.ring.kick_if_wanted()

    def finish(self, timeout: float = 20.0) -> int:
        """Wait for the batch and check every byte of it; return how many requests it had."""
        n, ring = len(self.heads), self.ring
        end = time.monotonic() + timeout
        while ring.pending() < n:
            if time.monotonic() > end:
                raise TimeoutError(f"queue {ring.index}: {ring.pending()} of {n} completions")
            time.sleep(0)
        assert ring.pending() == n, f"{ring.pending()} completions of {n} requests"
        used = ring.take(n)
        order = np.argsort(used["id"])
        assert np.array_equal(used["id"][order], np.arange(n) * 3), "completed heads differ"
        lengths = np.where(self.writes, 1, self.count * 512 + 1)
        assert np.array_equal(used["len"][order], lengths), "lengths in the used ring differ"
        assert (self.status[:n] == OK).all(), f"statuses {np.unique(self.status[:n])}"
        bad = np.nonzero((self.data[:n, :self.count] != self.want).any(axis=(1, 2)))[0]
        assert not len(bad), f"wrong data at sectors {self.headers['sector'][bad][:8]}"
        self.heads = None
        return n


def zero_disk(blk) -> None:
    """Write zeros all over the disk."""
    sectors = blk.capacity()
    for at in range(0, sectors, SCRATCH // 512):
        blk.write(at, bytes(min(SCRATCH, (sectors - at) * 512)))


def checked_load(blk, requests: int, seed: int = 1, base: int = 0) -> int:
    """Run at least `requests` checked reads and writes over all queues of `blk`.

    The queues divide the disk from sector `base` on, which must be all zero there. Returns the
    number of requests completed.
    """
    rng = np.random.default_rng(seed)
    share = (blk.capacity() - base) // len(blk.rings) // CHUNK * CHUNK
    lanes = [Lane(blk, r.index, base + i * share, share, rng) for i, r in enumerate(blk.rings)]
    done = sent = 0
    while done < requests:
        for lane in lanes:
            if lane.heads is not None:
                done += lane.finish()
            if sent < requests:
                n = min(lane.slots, share // CHUNK, requests - sent)
                lane.submit(n)
                sent += n
    return done


def load_while(blk, condition, seed: int = 1) -> int:
    """Run checked reads and writes over all queues of `blk`, as checked_load, as long as
    condition() holds. Returns the number of requests completed."""
    rng = np.random.default_rng(seed)
    share = blk.capacity() // len(blk.rings) // CHUNK * CHUNK
    lanes = [Lane(blk, r.index, i * share, share, rng) for i, r in enumerate(blk.rings)]
    done = 0
    while condition():
        for lane in lanes:
            if lane.heads is not None:
                done += lane.finish()
            lane.submit(min(lane.slots, share // CHUNK))
    return done + sum(lane.finish() for lane in lanes if lane.heads is not None)
