"""Notifications: what has happened that clients may want to hear of.

    notifications.register("bdev_register", "a bdev has been made; ctx is its name")
    notifications.send("bdev_register", bdev.name)

Who makes something happen sends one; the newest KEPT_MAX are kept for clients to fetch or to wait
for (vhostrt/rpc/notify.py). Ids count from 0 since the process began, so a client sees what it has
missed.

Owner:   this module; types are registered when the modules that send them are imported.
Threads: the control thread.
Fails:   never; an unregistered type is a defect, and a KeyError.
"""
import asyncio
import time
from collections import deque
from itertools import islice
from typing import Any

KEPT_MAX = 1024                         # as SPDK keeps

Event = dict[str, Any]


class Notifications:
    """The newest notifications of a process, kept_max at most; next_id: of the next one."""

    def __init__(self, kept_max: int = KEPT_MAX) -> None:
        self.types: dict[str, str] = {}         # name -> what it says
        self.kept: deque[Event] = deque(maxlen=kept_max)
        self.next_id = 0
        self.sent = asyncio.Event()             # set with the next one, and replaced

    def register(self, name: str, meaning: str) -> None:
        """Make a type known; meaning: what has happened, and what ctx is."""
        self.types[name] = meaning

    def send(self, name: str, ctx: str, **details: Any) -> None:
        """Tell that something has happened. ctx: the name of what it happened to."""
        self.types[name]
        event = {"type": name, "ctx": ctx, "id": self.next_id, "time": round(time.time(), 6)}
        self.kept.append(event | {"details": details} if details else event)
        self.next_id += 1
        sent, self.sent = self.sent, asyncio.Event()
        sent.set()

    @property
    def oldest_id(self) -> int:
        """The id of the oldest one that is kept, next_id when there is none."""
        return self.next_id - len(self.kept)

    def since(self, first: int) -> list[Event]:
        """Return those that are kept, from the id `first` on."""
        return list(islice(self.kept, max(first - self.oldest_id, 0), None))

    async def wait(self, first: int) -> None:
        """Return when there is one with the id `first` or a later one."""
        while self.next_id <= first:
            await self.sent.wait()


notifications = Notifications()
