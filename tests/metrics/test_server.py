"""vhostrt.metrics.server: what clients get, also those that mean harm, and that others still get
theirs."""
import asyncio
import contextlib
import functools
import inspect
import os
import socket
import stat

import pytest

from vhostrt.metrics import server as module
from vhostrt.metrics.server import CLIENTS_MAX, HEAD_MAX, Server

BODY = b"metric 1.0\n"


def run(test):
    """Make an ordinary test of a coroutine function."""
    @functools.wraps(test)
    def wrapped(**arguments):
        asyncio.run(asyncio.wait_for(test(**arguments), 60))
    wrapped.__signature__ = inspect.signature(test)
    return wrapped


@contextlib.asynccontextmanager
async def serving(tmp_path, page=None, unix=True):
    """A Server, and how to connect to it: an async function that returns (reader, writer)."""
    async def body():
        return BODY

    one = Server(page or body, "text/plain")
    if unix:
        address = str(tmp_path / "metrics.sock")
        connect = functools.partial(asyncio.open_unix_connection, address)
    else:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        address = f"127.0.0.1:{port}"
        connect = functools.partial(asyncio.open_connection, "127.0.0.1", port)
    await one.listen(address)
    try:
        yield connect, one
    finally:
        await one.close()


async def ask(connect, request):
    """Send bytes and return (status, header fields, body) of the answer."""
    reader, writer = await connect()
    writer.write(request)
    raw = await reader.read()
    writer.close()
    head, _, body = raw.partition(b"\r\n\r\n")
    line, *fields = head.decode().split("\r\n")
    version, status, _ = line.split(" ", 2)
    assert version == "HTTP/1.1"
    return int(status), {k.lower(): v for k, v in (f.split(": ", 1) for f in fields)}, body


GET = b"GET /metrics HTTP/1.1\r\nHost: here\r\n\r\n"
REQUESTS = {
    "get": (GET, 200, BODY),
    "get of http 1.0": (b"GET /metrics HTTP/1.0\r\n\r\n", 200, BODY),
    "get with a query": (b"GET /metrics?a=b HTTP/1.1\r\n\r\n", 200, BODY),
    "get with a body": (b"GET /metrics HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello", 200, BODY),
    "head": (b"HEAD /metrics HTTP/1.1\r\n\r\n", 200, b""),
    "another page": (b"GET / HTTP/1.1\r\n\r\n", 404, b"there is only /metrics here\n"),
    "a page below": (b"GET /metrics/a HTTP/1.1\r\n\r\n", 404, b"there is only /metrics here\n"),
    "a longer name": (b"HEAD /metricsx HTTP/1.1\r\n\r\n", 404, b"there is only /metrics here\n"),
    "post": (b"POST /metrics HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc", 405,
             b"/metrics can be asked for by GET or HEAD\n"),
    "a method of small letters": (b"get /metrics HTTP/1.1\r\n\r\n", 405,
                                  b"/metrics can be asked for by GET or HEAD\n"),
    "http 2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400, b"this is no HTTP/1 request\n"),
    "two words": (b"GET /metrics\r\n\r\n", 400, b"this is no HTTP/1 request\n"),
    "four words": (b"GET /metrics a HTTP/1.1\r\n\r\n", 400, b"this is no HTTP/1 request\n"),
    "nothing": (b"\r\n\r\n", 400, b"this is no HTTP/1 request\n"),
    "bytes": (bytes(range(256)) + b"\r\n\r\n", 400, b"this is no HTTP/1 request\n"),
    "a head without an end": (b"GET /metrics HTTP/1.1\r\nA: " + b"a" * 3 * HEAD_MAX, 431,
                              b"a request has 8192 bytes at most\n"),
    "a long head": (b"GET /metrics HTTP/1.1\r\nA: " + b"a" * HEAD_MAX + b"\r\n\r\n", 431,
                    b"a request has 8192 bytes at most\n"),
}


@pytest.mark.parametrize(("request_", "status", "body"), REQUESTS.values(), ids=REQUESTS)
@pytest.mark.parametrize("unix", [True, False], ids=["unix", "tcp"])
@run
async def test_answer(tmp_path, request_, status, body, unix):
    async with serving(tmp_path, unix=unix) as (connect, _):
        got, fields, text = await ask(connect, request_)
        assert (got, text) == (status, body)
        assert fields["connection"] == "close"
        assert fields.get("allow") == ("GET, HEAD" if status == 405 else None)
        assert int(fields["content-length"]) == len(BODY if status == 200 else body)


@run
async def test_clients_that_say_nothing_hold_up_nobody(tmp_path, monkeypatch):
    """They are ended in time; more of them than there may be are turned away."""
    monkeypatch.setattr(module, "HEAD_S", 0.5)
    async with serving(tmp_path) as (connect, one):
        silent = [await connect() for _ in range(CLIENTS_MAX - 1)]
        for _, writer in silent[::2]:
            writer.write(b"GET /metrics HT")
        while len(one.clients) < CLIENTS_MAX - 1:
            await asyncio.sleep(0.001)
        assert (await ask(connect, GET))[0] == 200
        silent.append(await connect())
        while len(one.clients) < CLIENTS_MAX:
            await asyncio.sleep(0.001)
        status, _, text = await ask(connect, GET)
        assert status == 503 and text == b"16 clients are served already\n"
        for reader, writer in silent:
            assert (await reader.read()).startswith(b"HTTP/1.1 408 ")
            writer.close()
        while one.clients:
            await asyncio.sleep(0.001)
        assert (await ask(connect, GET))[0] == 200


@run
async def test_a_client_that_takes_nothing_is_ended(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "SEND_S", 0.3)

    async def page():
        return b"x" * (16 << 20)

    async with serving(tmp_path, page) as (connect, one):
        reader, writer = await connect()
        reader._transport.pause_reading()
        writer.write(GET)
        while not one.clients:
            await asyncio.sleep(0.001)
        status, _, text = await ask(connect, GET)
        assert (status, len(text)) == (200, 16 << 20)
        while one.clients:
            await asyncio.sleep(0.001)
        writer.close()


@run
async def test_clients_that_go_at_any_time(tmp_path):
    async with serving(tmp_path) as (connect, one):
        for cut in range(0, len(GET), 3):
            _, writer = await connect()
            writer.write(GET[:cut])
            writer.transport.abort()
        while one.clients:
            await asyncio.sleep(0.001)
        assert (await ask(connect, GET))[0] == 200


@run
async def test_a_page_that_fails_is_told_and_logged(tmp_path, capfd):
    async def page():
        raise OSError("this is broken")

    async with serving(tmp_path, page) as (connect, _):
        status, _, text = await ask(connect, GET)
        assert status == 500 and text == b"the log of the program says more\n"
    assert "the metrics cannot be told: OSError('this is broken')" in capfd.readouterr().err


@run
async def test_the_end_does_not_wait_for_clients(tmp_path):
    async with serving(tmp_path) as (connect, one):
        reader, writer = await connect()
        while not one.clients:
            await asyncio.sleep(0.001)
        await one.close()
        assert await reader.read() == b""
        writer.close()
        assert not (tmp_path / "metrics.sock").exists()


@run
async def test_the_socket_is_not_for_everybody_and_not_taken_from_anybody(tmp_path):
    async with serving(tmp_path):
        assert stat.S_IMODE(os.stat(tmp_path / "metrics.sock").st_mode) == 0o660
        with pytest.raises(OSError, match="metrics socket .* is in use by a running program"):
            async with serving(tmp_path):
                pass


@pytest.mark.parametrize("address, text", [
    ("192.0.2.1:9464", "metrics address '192.0.2.1:9464' cannot be listened on"),
    ("no such host:9464", "metrics address 'no such host:9464' cannot be looked up"),
    ("/nowhere/at/all", "metrics socket '/nowhere/at/all' cannot be made"),
])
@run
async def test_addresses_that_cannot_be_had(address, text):
    one = Server(None, "text/plain")
    with pytest.raises(OSError, match=text):
        await one.listen(address)
    await one.close()
