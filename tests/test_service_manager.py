"""vhostrt.service_manager: what a service manager hears of the program, and when no more."""
import asyncio
import contextlib
import ctypes
import os
import socket
import time

import pytest

from tests.lib.command import Place
from tests.lib.reactors import reactors
from vhostrt import service_manager
from vhostrt.service_manager import Manager, find

PATIENCE_S = 60


class Listener:
    """The socket of a service manager; a context manager."""

    def __init__(self, address):
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.sock.bind(address)
        self.sock.settimeout(PATIENCE_S)

    def __enter__(self):
        return self

    def __exit__(self, *_exc):
        self.sock.close()

    def read(self):
        """Return the next message as a dict."""
        return dict(line.split("=", 1) for line in self.sock.recv(4096).decode().splitlines())

    def pending(self):
        """Return how many messages wait, and drop them."""
        self.sock.setblocking(False)
        count = 0
        with contextlib.suppress(BlockingIOError):
            while self.sock.recv(4096):
                count += 1
        self.sock.settimeout(PATIENCE_S)
        return count


def addresses(folder):
    """Return (address to listen at, what NOTIFY_SOCKET says of it) of both kinds."""
    name = f"vhostrt-test-{os.getpid()}-{time.monotonic_ns()}"
    return {"path": (str(folder / "notify"),) * 2, "abstract": ("\0" + name, "@" + name)}


@pytest.mark.parametrize("kind", ["path", "abstract"])
def test_messages_reach_the_socket(tmp_path, kind):
    address, said = addresses(tmp_path)[kind]
    with Listener(address) as listener:
        manager = find({"NOTIFY_SOCKET": said})
        manager.send(STATUS="one\nline", READY=1)
        assert listener.read() == {"STATUS": "one\\nline", "READY": "1"}


@pytest.mark.parametrize("said", ["", "relative", "/", "@", "vsock:2:1234"])
def test_no_service_manager(said):
    assert find({"NOTIFY_SOCKET": said}) is None
    assert find({}) is None


def test_a_manager_that_is_gone_is_no_error(tmp_path):
    Manager(str(tmp_path / "nobody")).send(READY=1)
    Manager("/" + "x" * 300).send(READY=1)


@pytest.mark.parametrize("environment, seconds", [
    ({}, 0), ({"WATCHDOG_USEC": "3000000"}, 3), ({"WATCHDOG_USEC": "x"}, 0),
    ({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": str(os.getpid())}, 3),
    ({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "1"}, 0),
    ({"WATCHDOG_USEC": "-5"}, 0),
])
def test_the_time_of_the_watchdog(environment, seconds):
    assert service_manager.watchdog_seconds(environment) == seconds


# The watchdog

LIBC = ctypes.CDLL(None)


class Gate:
    """A semaphore, as somebody who holds a reactor waits for it."""

    def __init__(self):
        self.memory = ctypes.create_string_buffer(64)
        self.wait = ctypes.CDLL(None).sem_wait
        LIBC.sem_init(self.memory, 0, 0)

    def open(self):
        LIBC.sem_post(self.memory)


@pytest.mark.parametrize("stuck", [0, 1])
def test_a_stuck_reactor_ends_the_pings(tmp_path, stuck):
    from vhostrt.event import call

    async def main():
        with Listener(str(tmp_path / "notify")) as listener:
            loop = asyncio.get_running_loop()
            manager = Manager(str(tmp_path / "notify"), 0.03)
            manager.ready("on")
            for _ in range(3):
                await loop.run_in_executor(None, listener.read)
            gate = Gate()
            held = call.on_reactor(stuck, gate.wait, gate.memory)
            await asyncio.sleep(0.05)       # a ping may have been on its way
            listener.pending()
            await asyncio.sleep(0.3)
            assert listener.pending() == 0
            gate.open()
            await held
            assert await loop.run_in_executor(None, listener.read) == {"WATCHDOG": "1"}
            manager.stopping()
            await asyncio.sleep(0.05)
            listener.pending()
            await asyncio.sleep(0.1)
            assert listener.pending() == 0

    async def with_reactors():
        async with reactors(2):
            await main()
    asyncio.run(with_reactors())


def test_a_sleeping_reactor_answers(tmp_path):
    async def main():
        async with reactors(1, idle="interrupt"):
            with Listener(str(tmp_path / "notify")) as listener:
                manager = Manager(str(tmp_path / "notify"), 0.03)
                manager.ready("on")
                for _ in range(4):
                    await asyncio.get_running_loop().run_in_executor(None, listener.read)
                manager.stopping()
    asyncio.run(main())


# The program

@pytest.fixture
def place():
    with Place() as one:
        yield one


@pytest.mark.parametrize("kind", ["path", "abstract"])
def test_ready_is_said_when_it_serves(place, kind):
    address, said = addresses(place.folder)[kind]
    place.environment["NOTIFY_SOCKET"] = said
    with Listener(address) as listener, \
            place.start("--disk", "malloc:8M", ready=False) as run:
        assert listener.read() == {"STATUS": "starting"}
        assert listener.read() == {"READY": "1", "STATUS": "serving on 1 cores"}
        # At once, with no second try.
        assert len(run.rpc("vhost_get_controllers")) == 1
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(place.sockets / "vhost.0"))
        run.stop()
        assert listener.read() == {"STOPPING": "1", "STATUS": "stopping"}
        assert listener.pending() == 0
    (place.folder / "notify").unlink(missing_ok=True)


def test_a_start_that_waits_is_not_ready(place):
    address, said = addresses(place.folder)["abstract"]
    place.environment["NOTIFY_SOCKET"] = said
    with Listener(address) as listener, place.start("--wait-for-rpc") as run:
        assert listener.read() == {"STATUS": "starting"}
        assert listener.read() == {"STATUS": "waiting for the RPC framework_start_init"}
        assert run.rpc("framework_start_init") is True
        assert listener.read()["READY"] == "1"
        run.stop()


def test_a_start_that_fails_is_never_ready(place):
    address, said = addresses(place.folder)["abstract"]
    place.environment["NOTIFY_SOCKET"] = said
    with Listener(address) as listener:
        assert place.run("--disk", "/nowhere/disk").returncode == 1
        assert listener.read() == {"STATUS": "starting"}
        assert listener.read() == {"STOPPING": "1", "STATUS": "stopping"}


def test_the_watchdog_hears_of_the_program(place):
    address, said = addresses(place.folder)["abstract"]
    place.environment |= {"NOTIFY_SOCKET": said, "WATCHDOG_USEC": "60000"}
    with Listener(address) as listener, place.start("--idle", "interrupt") as run:
        messages = [listener.read() for _ in range(6)]
        assert messages[2:] == [{"WATCHDOG": "1"}] * 4
        run.stop()
