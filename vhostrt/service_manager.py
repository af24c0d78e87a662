"""What the service manager is told: that we are ready, stopping, what we do, and that we live.

The protocol of sd_notify(3): datagrams of NAME=VALUE lines to the socket in NOTIFY_SOCKET. Where
WATCHDOG_USEC asks for it, WATCHDOG=1 is sent as long as the control thread's loop turns and every
reactor answers; a reactor that is stuck ends that, and the service manager starts us anew.

Owner:   the step that makes it.
Threads: the control thread.
Fails:   never; a message that the manager does not take is lost.
"""
import asyncio
import os
import socket
from collections.abc import Mapping
from typing import Any

from vhostrt import log


class Manager:
    """The service manager.  address: of its socket; watchdog_s: seconds, 0 without a watchdog."""

    def __init__(self, address: str, watchdog_s: float = 0) -> None:
        # An abstract address is written with an @ in the place of its NUL.
        self.address = "\0" + address[1:] if address.startswith("@") else address
        self.watchdog_s = watchdog_s
        self.watching: asyncio.Task[None] | None = None

    def send(self, **what: Any) -> None:
        """Send one message: send(READY=1, STATUS="...")."""
        text = "\n".join(f"{name}={log.printable(str(value))}" for name, value in what.items())
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
                sock.setblocking(False)
                sock.sendto(text.encode("utf-8", "surrogateescape"), self.address)
        except OSError as error:
            log.debug("app", f"the service manager cannot be told {text!r}: {error.strerror}")

    def ready(self, status: str) -> None:
        """Everything runs; from here on the watchdog is told that it does."""
        self.send(READY=1, STATUS=status)
        if self.watchdog_s:
            self.watching = asyncio.get_running_loop().create_task(self.watch())

    def stopping(self) -> None:
        """The end has begun."""
        self.send(STOPPING=1, STATUS="stopping")
        if self.watching is not None:
            self.watching.cancel()
            self.watching = None

    async def watch(self) -> None:
        """Send WATCHDOG=1 three times in its time, each time after every reactor has answered."""
        from vhostrt.event import call, reactor
        while True:
            try:
                answers = [call.on_reactor(lcore, None, None) for lcore in reactor.lcores()]
                await asyncio.gather(*answers)
                self.send(WATCHDOG=1)
            except OSError as error:    # its ring is full: it does not run what is sent to it
                log.warning(f"the watchdog is not told that all is well: {error}")
            await asyncio.sleep(self.watchdog_s / 3)


def find(environment: Mapping[str, str] = os.environ) -> Manager | None:
    """Return the service manager that started us, or None."""
    address = environment.get("NOTIFY_SOCKET", "")
    if address[:1] not in ("/", "@") or len(address) < 2:
        return None
    return Manager(address, watchdog_seconds(environment))


def watchdog_seconds(environment: Mapping[str, str]) -> float:
    """Return the time in which the watchdog wants to hear from us; 0 when it does not."""
    microseconds = environment.get("WATCHDOG_USEC", "")
    if environment.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return 0
    return int(microseconds) / 1e6 if microseconds.isdecimal() else 0
