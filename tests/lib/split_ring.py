"""Driver's side of a virtio split ring over tests.lib.guest_memory, written from the specification.

Nothing is hidden: descriptor table, available and used ring are NumPy arrays over the shared
memory, so that a test can put anything there.
"""
import os
import select
import threading
import time

import numpy as np

NEXT, WRITE, INDIRECT = 1, 2, 4
NO_INTERRUPT = 1
NO_NOTIFY = 1
DESC = np.dtype([("addr", "<u8"), ("len", "<u4"), ("flags", "<u2"), ("next", "<u2")])
USED = np.dtype([("id", "<u4"), ("len", "<u4")])

_lock = threading.Lock()


def fence() -> None:
    """Order our stores before our later loads: taking a lock is a full barrier."""
    with _lock:
        pass


def need_event(event: int, new: int, old: int) -> bool:
    """Return whether moving an index from `old` to `new` passes `event` (virtio, 2.7.10)."""
    return (new - event - 1) & 0xFFFF < (new - old) & 0xFFFF


class Ring:
    """One split ring of `size` entries in region number `region`; it owns kick, call and err.

    `memory` stays the caller's. `event_idx` says whether that feature was negotiated.
    """

    def __init__(self, memory, index: int, size: int, event_idx: bool = False, region: int = 0):
        self.memory, self.index, self.size, self.event_idx = memory, index, size, event_idx
        self.desc_gpa = memory.alloc(16 * size, 16, region)
        self.avail_gpa = memory.alloc(6 + 2 * size, 2, region)
        self.used_gpa = memory.alloc(6 + 8 * size, 4, region)
        self.bind()
        self.kick_fd, self.call_fd, self.err_fd = (
            os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC) for _ in range(3))
        self.reset(0)

    def bind(self) -> None:
        """Make the NumPy views of the three parts."""
        size, view = self.size, self.memory.view
        self.desc = view(self.desc_gpa, 16 * size).view(DESC)
        avail = view(self.avail_gpa, 6 + 2 * size).view("<u2")
        self.avail_flags, self.avail_idx = avail[0:1], avail[1:2]
        self.avail, self.used_event = avail[2:2 + size], avail[2 + size:]
        used = view(self.used_gpa, 6 + 8 * size)
        self.used_flags, self.used_idx = used[0:2].view("<u2"), used[2:4].view("<u2")
        self.used = used[4:4 + 8 * size].view(USED)
        self.avail_event = used[4 + 8 * size:].view("<u2")

    def reset(self, base: int) -> None:
        """Empty the ring, with both indices at `base`."""
        self.desc[:] = 0
        self.next_avail = self.next_used = self.kicked = base
        self.avail_flags[0] = self.used_flags[0] = 0
        self.avail_idx[0] = self.used_idx[0] = base
        self.used_event[0] = base
        self.avail_event[0] = base

    def configure(self, client, base: int | None = None, num: int | None = None) -> None:
        """Send the messages before the kick: NUM, BASE, ADDR, CALL, ERR."""
        client.set_vring_num(self.index, self.size if num is None else num)
        client.set_vring_base(self.index, self.next_avail if base is None else base)
        client.set_vring_addr(self.index, *(self.memory.uaddr(g) for g in
                                            (self.desc_gpa, self.used_gpa, self.avail_gpa)))
        client.set_vring_call(self.index, self.call_fd)
        client.set_vring_err(self.index, self.err_fd)

    def start(self, client, base: int | None = None) -> None:
        """Configure the ring, hand over the kick and enable it."""
        self.configure(client, base)
        client.set_vring_kick(self.index, self.kick_fd)
        client.set_vring_enable(self.index, True)

    def close(self) -> None:
        """Close the three eventfds."""
        for fd in (self.kick_fd, self.call_fd, self.err_fd):
            os.close(fd)

    # Requests.

    def chain(self, parts, slots=None) -> int:
        """Write one descriptor for each (gpa, length, flags) of `parts` and link them.

        `slots` are the places in the table, by default 0, 1, 2...; NEXT is set by itself.
        Returns the head.
        """
        slots = list(range(len(parts))) if slots is None else list(slots)
        fill_chain(self.desc, parts, slots)
        return slots[0]

    def indirect(self, parts, slot: int = 0, order=None) -> int:
        """Write `parts` into a fresh indirect table and point descriptor `slot` to it.

        `order` are the places in the table, first 0 as the head must be.
        """
        order = list(range(len(parts))) if order is None else list(order)
        length = 16 * (max(order) + 1)
        gpa = self.memory.alloc(length, 16)
        fill_chain(self.memory.view(gpa, length).view(DESC), parts, order)
        self.desc[slot] = (gpa, length, INDIRECT, 0)
        return slot

    def publish(self, *heads: int) -> None:
        """Put the heads into the available ring and move its index, without a kick."""
        for i, head in enumerate(heads):
            self.avail[(self.next_avail + i) % self.size] = head
        self.publish_to(len(heads))

    def publish_to(self, n: int) -> None:
        """Move the available index by `n` entries that are written already, without a kick."""
        self.next_avail = (self.next_avail + n) & 0xFFFF
        self.avail_idx[0] = self.next_avail

    def kick(self) -> None:
        """Notify the device."""
        os.eventfd_write(self.kick_fd, 1)

    def kick_if_wanted(self) -> bool:
        """Notify the device if it asks for it, by event index or flag; return whether."""
        fence()
        old, self.kicked = self.kicked, self.next_avail
        if self.event_idx:
            wanted = need_event(int(self.avail_event[0]), self.next_avail, old)
        else:
            wanted = not self.used_flags[0] & NO_NOTIFY
        if wanted:
            self.kick()
        return wanted

    def submit(self, *heads: int) -> None:
        """Publish the heads and kick."""
        self.publish(*heads)
        self.kicked = self.next_avail
        self.kick()

    # Completions.

    def pending(self) -> int:
        """Return how many used entries wait to be collected."""
        return (int(self.used_idx[0]) - self.next_used) & 0xFFFF

    def collect(self) -> list[tuple[int, int]]:
        """Take what is in the used ring: a list of (head, bytes written)."""
        n = self.pending()
        assert n <= self.size, f"the used index jumped by {n} on a ring of {self.size}"
        return [(int(e["id"]), int(e["len"])) for e in self.take(n)]

    def take(self, n: int) -> np.ndarray:
        """Take `n` used entries as an array of USED; ask for an interrupt at the next one."""
        at = (self.next_used + np.arange(n)) % self.size
        self.next_used = (self.next_used + n) & 0xFFFF
        self.used_event[0] = self.next_used
        return self.used[at]

    def wait(self, n: int = 1, timeout: float = 20.0) -> list[tuple[int, int]]:
        """Poll the used ring until `n` entries are there and take them; TimeoutError."""
        end = time.monotonic() + timeout
        while self.pending() < n:
            if time.monotonic() > end:
                raise TimeoutError(f"{self.pending()} of {n} completions after {timeout} s")
            time.sleep(0)
        return self.collect()

    def wait_call(self, timeout: float = 20.0) -> int:
        """Wait for the call eventfd and return its count; 0 when it stays silent."""
        return wait_eventfd(self.call_fd, timeout)

    def wait_err(self, timeout: float = 20.0) -> int:
        """Wait for the err eventfd and return its count; 0 when it stays silent."""
        return wait_eventfd(self.err_fd, timeout)


def fill_chain(table, parts, slots) -> None:
    """Write (gpa, length, flags) parts into the places `slots` of `table`, linked by next."""
    for i, ((gpa, length, flags), slot) in enumerate(zip(parts, slots, strict=True)):
        last = i == len(parts) - 1
        table[slot] = (gpa, length, flags | (0 if last else NEXT), 0 if last else slots[i + 1])


def wait_eventfd(fd: int, timeout: float) -> int:
    """Return the count of an eventfd once it is not 0; 0 after `timeout` seconds."""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return os.eventfd_read(fd) if poll.poll(timeout * 1000) else 0
