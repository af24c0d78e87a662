"""The JSON-RPC server: connections over unix and TCP sockets on the control thread's loop.

The requests of one connection are answered in their order, those of different connections beside
one another.  What a client sends ahead and what it does not fetch is bounded, by not reading on;
each gets one read and one request a turn, so that none keeps the others waiting.

Threads:  the control thread.
Fails:    listen() raises OSError with one sentence.  A client's mistakes are its answers.
"""
import asyncio
import errno
import select
from collections import deque
from typing import Any

from vhostrt.rpc.framing import FramingError, Splitter
from vhostrt.rpc.listener import Listener, open_listener
from vhostrt.rpc.method import PARSE_ERROR, Dispatcher, Method, RpcError, internal
from vhostrt.rpc.request import answer, failure

REQUEST_MAX = 4 << 20                   # bytes of one request
CONNECTIONS_MAX = 128
READ_SIZE = 8 << 10                     # bytes in one turn; their scan takes under 3 ms at worst
AHEAD_MAX = 64                          # requests received and not begun, of one connection
AHEAD_BYTES_MAX = 64 << 10
UNSENT_MAX = 256 << 10                  # bytes that wait for a client before its next request does
SEND_TIMEOUT_S = 60
LINGER_S = 5                            # for a client to fetch the reason why it is cut off
LOOK_S = 1                              # between two looks whether a silent client is still there


def broken(why: str) -> RpcError:
    return RpcError(PARSE_ERROR, f"Parse error: {why}")


class Connection(asyncio.BufferedProtocol):
    """One client: its requests in their order, its answers, and the bounds on both."""

    def __init__(self, server: "Server"):
        self.server = server
        self.transport: Any = None
        self.chunk = memoryview(bytearray(READ_SIZE))
        self.splitter = Splitter(server.request_max)
        self.ahead: deque[bytes | RpcError] = deque()
        self.ahead_bytes = 0
        self.task: asyncio.Task | None = None   # works on `ahead` while there is something in it
        self.must_finish = False                # a method runs that may not be cancelled
        self.waiting = False                    # one runs that only waits
        self.deaf = False                       # nothing more is taken from the client
        self.ended = False                      # the client sends no more
        self.fetching = asyncio.Event()         # off while too much is unsent
        self.fetching.set()
        self.lost = asyncio.Event()

    def connection_made(self, transport) -> None:
        self.transport = transport
        transport.set_write_buffer_limits(high=UNSENT_MAX)
        most, present = self.server.connections_max, len(self.server.connections)
        self.server.connections.add(self)
        if self.server.closing or present >= 2 * most:
            transport.abort()
        elif present >= most:
            self.refuse(RpcError(-errno.EBUSY, f"there are {most} connections already"))

    def get_buffer(self, sizehint: int) -> memoryview:
        return self.chunk

    def buffer_updated(self, size: int) -> None:
        if not self.deaf:
            self.splitter.feed(self.chunk[:size])
            self.take()

    def eof_received(self) -> bool:
        """Return True, to keep the way to the client open, while there is something to answer."""
        self.ended = True
        self.take()
        if self.task is None:
            return False
        self.server.loop.call_later(LOOK_S, self.look)
        return True

    def look(self) -> None:
        """Cut the connection when the client is gone, which the event loop does not tell us."""
        if self.task is None or self.lost.is_set():
            return
        poll = select.poll()
        poll.register(self.transport.get_extra_info("socket").fileno(), 0)
        if poll.poll(0):                # nothing was asked for: only a hang-up or error is told
            self.transport.abort()
        else:
            self.server.loop.call_later(LOOK_S, self.look)

    def connection_lost(self, error: Exception | None) -> None:
        self.server.connections.discard(self)
        self.deaf = True
        self.ahead.clear()
        self.lost.set()
        self.fetching.set()
        if self.task is not None and not self.must_finish:
            self.task.cancel()

    def pause_writing(self) -> None:
        self.fetching.clear()

    def resume_writing(self) -> None:
        self.fetching.set()

    def take(self) -> None:
        """Queue whole requests, as many as may wait; read on only while fewer do."""
        if self.deaf:
            return
        try:
            for raw in self.splitter.values():
                self.ahead.append(raw)
                self.ahead_bytes += len(raw)
                if self.too_many_ahead():
                    break
            else:
                if self.ended:
                    self.take_end()
        except FramingError as e:
            self.refuse(broken(str(e)))
        self.begin()
        # Behind the end there is nothing to hold back, and reading on would find the end again.
        if self.ended:
            return
        if self.too_many_ahead():
            self.transport.pause_reading()
        else:
            self.transport.resume_reading()

    def take_end(self) -> None:
        for raw in self.splitter.finish():
            self.ahead.append(raw)
            self.ahead_bytes += len(raw)
        if self.splitter.partial:
            self.refuse(broken("the connection ends within a request"))

    def refuse(self, why: RpcError) -> None:
        """Take nothing more, and say why behind the answers to what came before."""
        self.deaf = True
        self.ahead.append(why)
        self.begin()

    def begin(self) -> None:
        if self.ahead and self.task is None:
            self.task = self.server.loop.create_task(self.work())

    def too_many_ahead(self) -> bool:
        return len(self.ahead) > AHEAD_MAX or self.ahead_bytes > AHEAD_BYTES_MAX

    async def work(self) -> None:
        """Answer what has come, then end; begin() starts it anew."""
        try:
            while self.ahead:
                await self.server.running.wait()
                await self.answer_next()
                if self.ahead:
                    await asyncio.sleep(0)
        except Exception as e:
            internal("an RPC connection", e)
            self.transport.abort()
        finally:
            self.task = None
            if self.ended or self.server.closing:
                self.transport.close()

    async def answer_next(self) -> None:
        if not self.ahead:
            return                      # dropped by close() during the wait
        raw = self.ahead.popleft()
        if isinstance(raw, RpcError):
            self.dismiss(raw)
            return
        self.ahead_bytes -= len(raw)
        text = await answer(self.server.dispatcher, raw, self.started)
        if text is not None:
            await self.send(text)
        if not self.ahead:
            self.take()

    def started(self, known: Method | None) -> None:
        self.must_finish = known is not None and not known.waits
        self.waiting = known is not None and known.waits
        if known is not None and known.waits and self.lost.is_set():
            self.task.cancel()          # nobody hears how the wait ends

    async def send(self, text: bytes) -> None:
        """Give the client its answer, and wait while it has too many to fetch."""
        if self.lost.is_set():
            return
        self.transport.write(text)
        if self.fetching.is_set():
            return
        try:
            async with asyncio.timeout(SEND_TIMEOUT_S):
                await self.fetching.wait()
        except TimeoutError:
            self.transport.abort()

    def dismiss(self, why: RpcError) -> None:
        """Say why nothing more is taken, and close when the client has had time to read it.

        What it still sends is read and dropped: closing earlier would take the answer from it.
        """
        self.transport.write(failure(None, why))
        self.transport.write_eof()
        self.transport.resume_reading()
        self.server.loop.call_later(LINGER_S, self.transport.abort)


class Server:
    """Listens on any number of addresses and answers with a Dispatcher.

    paused: clients may connect and send, and wait for resume() with their answers.
    request_max: bytes of one request or batch.  connections_max: of all addresses together.
    """

    def __init__(self, dispatcher: Dispatcher, *, paused: bool = False,
                 request_max: int = REQUEST_MAX, connections_max: int = CONNECTIONS_MAX):
        self.dispatcher = dispatcher
        self.request_max = request_max
        self.connections_max = connections_max
        self.connections: set[Connection] = set()
        self.listeners: list[tuple[asyncio.Server, Listener]] = []
        self.loop = asyncio.get_running_loop()
        self.running = asyncio.Event()
        self.closing = False
        if not paused:
            self.running.set()

    async def listen(self, address: str, mode: int = 0o600,
                     owner: tuple[int, int] = (-1, -1)) -> Listener:
        """Listen on the path of a unix socket or on host[:port].

        mode: permissions of the unix socket.  owner: user and group that it is given to, by number;
        -1 for the process's own.
        """
        listener = await open_listener(address, mode, owner)
        try:
            acceptor = await self.loop.create_server(lambda: Connection(self), sock=listener.sock,
                                                     backlog=512)
        except BaseException:
            listener.close()
            raise
        self.listeners.append((acceptor, listener))
        return listener

    def pause(self) -> None:
        """Begin no further request; those that run go on."""
        self.running.clear()

    def resume(self) -> None:
        self.running.set()

    async def close(self, grace_s: float = 1.0) -> None:
        """Accept nothing more, let running requests end for grace_s seconds, close and tidy up.

        Methods that only wait are not waited for.
        """
        self.closing = True
        for acceptor, listener in self.listeners:
            acceptor.close()
            listener.close()
        self.listeners.clear()
        connections = list(self.connections)
        for connection in connections:
            connection.deaf = True
            connection.ahead.clear()
            if connection.task is None:
                connection.transport.close()
            elif connection.waiting:
                connection.task.cancel()
        self.running.set()
        try:
            async with asyncio.timeout(grace_s):
                for connection in connections:
                    await connection.lost.wait()
        except TimeoutError:
            for connection in self.connections:
                if connection.task is not None:
                    connection.task.cancel()
                connection.transport.abort()
        await asyncio.sleep(0)          # aborted connections are told so in the next turn
