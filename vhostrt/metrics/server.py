"""A small HTTP server that tells one page: GET /metrics, one request a connection.

Clients are not trusted: what each may send, how long it may take and how many there are is bounded,
and none of them holds up the loop.

Owner:   who made the server closes it.
Threads: the control thread.
Fails:   listen: OSError with one sentence.
"""
import asyncio
from collections.abc import Awaitable, Callable
from http import HTTPStatus

from vhostrt import log
from vhostrt.rpc.listener import Listener, open_listener

PATH = "/metrics"
HEAD_MAX = 8192                         # bytes of a request's head
HEAD_S = 5.0                            # for the head to come
SEND_S = 10.0                           # for the answer to be taken
LINGER_S = 1.0                          # for what a client still sends: else it loses the answer
LINGER_BYTES = 65536
CLIENTS_MAX = 16
SOCKET_MODE = 0o660


class Refusal(Exception):
    """What a client gets instead of the page."""

    def __init__(self, status: HTTPStatus, text: str) -> None:
        super().__init__(text)
        self.status = status


class Server:
    """page: returns the page. content_type: what it is."""

    def __init__(self, page: Callable[[], Awaitable[bytes]], content_type: str) -> None:
        self.page = page
        self.content_type = content_type
        self.listener: Listener | None = None
        self.server: asyncio.Server | None = None
        self.clients: dict[asyncio.Task, asyncio.StreamWriter] = {}

    async def listen(self, address: str) -> None:
        """Answer clients at `host:port`, or at the path of a unix socket."""
        self.listener = await open_listener(address, SOCKET_MODE, what="metrics")
        kind = (asyncio.start_unix_server if "/" in address else asyncio.start_server)
        self.server = await kind(self.serve, sock=self.listener.sock, limit=HEAD_MAX)

    async def close(self) -> None:
        """End the clients and give the address back."""
        if self.server is not None:
            self.server.close()
        # Their tasks end by that; to cancel one has asyncio's streams of 3.11 print a traceback.
        for writer in self.clients.values():
            writer.transport.abort()
        if self.clients:
            await asyncio.wait(tuple(self.clients))
        if self.listener is not None:
            self.listener.close()
            self.listener = None

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One client, from its first byte to its last."""
        task = asyncio.current_task()
        self.clients[task] = writer
        writer.transport.set_write_buffer_limits(high=0)        # drain: all of it has been taken
        try:
            answer = await self.answer(reader)
            writer.write(answer)
            async with asyncio.timeout(SEND_S):
                await writer.drain()
            await linger(reader, writer)
        except (OSError, EOFError):     # it has gone, or took too long
            pass
        finally:
            del self.clients[task]
            writer.transport.abort()

    async def answer(self, reader: asyncio.StreamReader) -> bytes:
        """Read a request and return the whole answer."""
        head_only = False
        try:
            if len(self.clients) > CLIENTS_MAX:
                raise Refusal(HTTPStatus.SERVICE_UNAVAILABLE, f"{CLIENTS_MAX} clients are served "
                              "already")
            method = check(await head_of(reader))
            head_only = method == "HEAD"
            return response(HTTPStatus.OK, self.content_type, await self.told(), head_only)
        except Refusal as refusal:
            return response(refusal.status, "text/plain; charset=utf-8",
                            f"{refusal}\n".encode(), head_only)

    async def told(self) -> bytes:
        """Return the page; a defect of ours is logged for who can do something about it."""
        try:
            return await self.page()
        except Exception as error:
            log.error(f"the metrics cannot be told: {error!r}")
            raise Refusal(HTTPStatus.INTERNAL_SERVER_ERROR,
                          "the log of the program says more") from None


async def head_of(reader: asyncio.StreamReader) -> bytes:
    """Return the request line and header fields; EOFError when the client goes before their end."""
    try:
        async with asyncio.timeout(HEAD_S):
            return await reader.readuntil(b"\r\n\r\n")
    except asyncio.LimitOverrunError:
        raise Refusal(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
                      f"a request has {HEAD_MAX} bytes at most") from None
    except TimeoutError:
        raise Refusal(HTTPStatus.REQUEST_TIMEOUT,
                      f"no whole request came in {HEAD_S:g} seconds") from None


def check(head: bytes) -> str:
    """Return the method of a request for the page; Refusal for every other request."""
    line, _, _ = head.partition(b"\r\n")
    words = line.decode("latin-1").split(" ")
    if len(words) != 3 or not all(words) or not words[2].startswith("HTTP/1."):
        raise Refusal(HTTPStatus.BAD_REQUEST, "this is no HTTP/1 request")
    method, target, _ = words
    if target.partition("?")[0] != PATH:
        raise Refusal(HTTPStatus.NOT_FOUND, f"there is only {PATH} here")
    if method not in ("GET", "HEAD"):
        raise Refusal(HTTPStatus.METHOD_NOT_ALLOWED, f"{PATH} can be asked for by GET or HEAD")
    return method


def response(status: HTTPStatus, content_type: str, body: bytes, head_only: bool) -> bytes:
    allow = "Allow: GET, HEAD\r\n" if status == HTTPStatus.METHOD_NOT_ALLOWED else ""
    head = (f"HTTP/1.1 {status.value} {status.phrase}\r\nContent-Type: {content_type}\r\n"
            f"Content-Length: {len(body)}\r\n{allow}Connection: close\r\n\r\n")
    return head.encode() + (b"" if head_only else body)


async def linger(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Let the client see the end of the answer before the connection ends."""
    left = LINGER_BYTES
    writer.write_eof()
    async with asyncio.timeout(LINGER_S):
        while left > 0 and (read := await reader.read(left)):
            left -= len(read)
