"""vhostrt/rpc/server.py and request.py: over real sockets, with clients of every kind."""
import fcntl
import json
import os
import socket
import subprocess
import sys

import pytest

from tests.lib.rpc_server import Client, RunningServer, State, request
from vhostrt.rpc.server import AHEAD_MAX

PARSE, INVALID, MISSING, PARAMS, INTERNAL = -32700, -32600, -32601, -32602, -32603


@pytest.fixture
def address(tmp_path):
    return str(tmp_path / "rpc.sock")


@pytest.fixture
def server(address):
    with RunningServer(address) as running:
        yield running


@pytest.fixture
def client(server):
    with Client(server.address) as connected:
        yield connected


def result(value, key=1):
    return {"jsonrpc": "2.0", "id": key, "result": value}


def error(reply):
    return reply["error"]["code"], reply["error"]["message"]


def test_a_request_is_answered(client):
    assert client.call("echo", {"value": "a"}) == result("a")
    assert client.call("old_echo", {"value": 7}, key="x") == result(7, "x")
    assert client.call("echo", key=None) == result("", None)
    assert client.call("echo", [], key=1.5) == result("", 1.5)


def test_pipelined_requests_are_answered_in_order(client):
    for count in (1, 3, 500):
        client.send(b"".join(json.dumps(request("echo", {"value": i}, i)).encode()
                             for i in range(count)))
        assert [client.reply() for _ in range(count)] == [result(i, i) for i in range(count)]


def test_a_fragmented_request_is_put_together(client):
    for byte in json.dumps(request("echo", {"value": '}]"\u20ac'}), ensure_ascii=False).encode():
        client.send(bytes([byte]))
    assert client.reply() == result('}]"\u20ac')


def test_answers_are_ascii(client):
    client.send(request("echo", {"value": "\u20ac\U0001f600"}))
    raw = client.sock.recv(4096)
    assert raw.isascii() and json.loads(raw)["result"] == "\u20ac\U0001f600"


def test_a_large_request_in_small_pieces(client):
    raw = json.dumps(request("echo", {"value": "\\\"" * 500_000})).encode()
    for i in range(0, len(raw), 100_000):
        client.send(raw[i:i + 100_000])
    assert client.reply() == result("\\\"" * 500_000)


def test_a_notification_gets_no_answer(client, server):
    client.send({"jsonrpc": "2.0", "method": "echo", "params": {"value": "quiet"}},
                {"jsonrpc": "2.0", "method": "no_such_method"})
    assert client.call("echo", {"value": "loud"}) == result("loud")
    assert server.events == ["quiet", "loud"]


def test_a_batch_is_answered_as_one(client):
    client.send([request("echo", {"value": "a"}, 1), request("nothing", None, 2),
                 {"method": "echo"}, 5, request("echo", {"value": "b"}, 3)])
    reply = client.reply()
    assert [r["id"] for r in reply] == [1, 2, None, 3]
    assert reply[0]["result"] == "a" and reply[3]["result"] == "b"
    assert error(reply[1])[0] == MISSING and error(reply[2])[0] == INVALID


def test_a_batch_of_notifications_gets_no_answer(client):
    client.send([{"method": "echo"}], request("echo", {"value": "next"}))
    assert client.reply() == result("next")


def test_the_size_of_a_batch_is_bounded(client, monkeypatch):
    client.send([], [request("echo")] * 5000)
    for _ in range(2):
        assert error(client.reply())[0] == INVALID
    monkeypatch.setattr("vhostrt.rpc.request.BATCH_REPLY_MAX", 1 << 20)
    client.send([request("fill", {"size": 1 << 15})] * 40)
    reply = client.reply()
    assert len(reply) == 40 and "too large" in error(reply[-1])[1]


@pytest.mark.parametrize("raw, code, text", [
    (b'{"a": }', PARSE, "Parse error: JSON is malformed: invalid character (byte 6)"),
    (b"{]", PARSE, "Parse error: "),
    (b'{"method": "\xff"}', PARSE, "Parse error: 'utf-8'"),
    (b'{"method": "\\ud800"}', PARSE, "Parse error: "),
    (b"[" * 100_000 + b"]" * 100_000, PARSE, "Parse error: maximum recursion"),
    (b'{"id": 1e999}', PARSE, "Parse error: "),
    (b'"text"', INVALID, 'Invalid request: it must be an object, not "text"'),
    (b"17 ", INVALID, "Invalid request: it must be an object, not 17"),
    (b"null ", INVALID, "Invalid request: it must be an object, not null"),
    (b"{}", INVALID, "Invalid request: missing 'method'"),
    (b'{"method": 1}', INVALID, "Invalid request: 'method' must be a string"),
    (b'{"method": "echo", "jsonrpc": "1.0"}', INVALID, "Invalid request: 'jsonrpc' must be"),
    (b'{"method": "echo", "id": true}', INVALID, "Invalid request: 'id' must be"),
    (b'{"method": "echo", "id": {}}', INVALID, "Invalid request: 'id' must be"),
    (b'{"method": "echo", "id": 99999999999999999999}', INVALID, "Invalid request: 'id' must be"),
    (b'{"method": "echo", "id": "' + b"x" * 129 + b'"}', INVALID, "Invalid request: 'id' must"),
    (b'{"method": "none", "id": 1}', MISSING, 'Method not found: "none"'),
    (b'{"method": "echo", "id": 1, "params": 3}', PARAMS, "Invalid parameters: they must be an ob"),
    (b'{"method": "echo", "id": 1, "params": [1]}', PARAMS, "Invalid parameters: they must be an"),
    (b'{"method": "only_startup", "id": 1}', -1, "only_startup can be called only before"),
    (b'{"method": "fail_errno", "id": 1}', -2, "/nonexistent/file: No such file or directory"),
    (b'{"method": "fail_rpc", "id": 1}', -17, "bdev \u20ac\\udc80 exists"),
])
def test_mistakes_are_answered_and_the_connection_goes_on(client, raw, code, text):
    client.send(raw)
    got = error(client.reply())
    assert got[0] == code and got[1].startswith(text), got
    assert client.call("echo", {"value": "on"}) == result("on")


@pytest.mark.parametrize("name, where", [("fail_bug", "KeyError"), ("fail_encode", "TypeError")])
def test_an_unexpected_exception_is_logged_in_one_line(client, capfd, name, where):
    code, text = error(client.call(name))
    assert code == INTERNAL and text == "Internal error: the log of the program says more"
    assert client.call("echo", {"value": "on"}) == result("on")
    logged = capfd.readouterr().err
    assert logged.count("\n") == 1 and name in logged and where in logged
    assert "Traceback" not in logged


@pytest.mark.parametrize("raw", [b"GET / HTTP/1.1\r\n\r\n", b"\0\1\2", b"}", b"\xef\xbb\xbf{}",
                                 os.urandom(100).replace(b"{", b"").replace(b"[", b"") + b"\0"])
def test_junk_is_refused_and_ends_the_connection(client, server, raw):
    client.send(request("echo", {"value": "before"}), raw)
    assert client.reply() == result("before")
    reply = client.reply()
    while reply.get("error", {}).get("code") == INVALID:       # random bytes may hold a number
        reply = client.reply()
    assert error(reply)[0] == PARSE and reply["id"] is None
    assert client.at_end()
    with Client(server.address) as other:
        assert other.call("echo") == result("")


def test_an_oversize_request_is_refused_and_read_to_its_end(address):
    with RunningServer(address, request_max=10_000) as server, Client(address) as client:
        client.send(b'{"x": "')
        for _ in range(100):
            client.send(b"y" * 100_000)
        assert error(client.reply()) == (PARSE, "Parse error: a request has more than 10000 bytes")
        with Client(address) as other:
            assert other.call("echo") == result("")
        assert len(server.call(lambda: server.server.connections)) == 1


def test_a_stream_that_ends_within_a_request(client):
    client.send(request("echo"), b'{"method"')
    client.sock.shutdown(socket.SHUT_WR)
    assert client.reply() == result("")
    assert error(client.reply()) == (PARSE, "Parse error: the connection ends within a request")
    assert client.at_end()


def test_a_client_that_ends_its_side_still_gets_its_answers(client):
    client.send(*[request("echo", {"value": i}, i) for i in range(200)])
    client.sock.shutdown(socket.SHUT_WR)
    assert [client.reply() for _ in range(200)] == [result(i, i) for i in range(200)]
    assert client.at_end()


def test_requests_of_a_client_that_left_are_done(server):
    with Client(server.address) as client:
        client.send({"method": "echo", "params": {"value": "a"}},
                    {"method": "echo", "params": {"value": "b"}})
    server.wait_for(lambda: server.events == ["a", "b"] and not server.server.connections)


def test_a_client_that_does_not_fetch_is_held_back_alone(server):
    with Client(server.address) as slow, Client(server.address) as other:
        flood = json.dumps(request("fill", {"size": 100_000})).encode()
        slow.sock.settimeout(0.2)
        sent = 0
        try:
            while sent < 20_000:
                slow.send(flood)
                sent += 1
        except TimeoutError:
            pass
        assert sent < 20_000
        assert other.call("echo", {"value": "served"}) == result("served")
        held, = (c for c in server.server.connections if c.ahead)
        # Neither what it asked nor what it does not fetch grows with what it sends.
        assert held.transport.get_write_buffer_size() < 1 << 20
        assert len(held.ahead) < 2000
        slow.sock.settimeout(30)
        for _ in range(sent):
            assert len(slow.reply()["result"]) == 100_000


def test_one_method_that_takes_long_holds_only_its_own_connection(server):
    with Client(server.address) as first, Client(server.address) as other:
        first.send(request("work_behind_gate", {"gate": "g"}, 1), request("echo", None, 2))
        server.wait_for(lambda: server.events == ["enter g"])
        assert other.call("echo", {"value": "served"}) == result("served")
        server.open_gate("g")
        assert first.reply() == result("g", 1) and first.reply() == result("", 2)


def test_a_wait_of_a_dead_client_is_cancelled_and_work_is_not(server):
    with Client(server.address) as client:
        client.send(request("wait_gate", {"gate": "w"}), request("echo", {"value": "dropped"}))
        server.wait_for(lambda: server.events == ["enter w"])
    server.wait_for(lambda: server.events == ["enter w", "cancelled w"])
    with Client(server.address) as client:
        client.send(request("work_behind_gate", {"gate": "g"}),
                    request("echo", {"value": "dropped"}))
        server.wait_for(lambda: server.events[2:] == ["enter g"])
    server.wait_for(lambda: not server.server.connections)
    server.open_gate("g")
    server.wait_for(lambda: server.events[2:] == ["enter g", "leave g"])


def test_a_wait_in_a_batch_of_a_dead_client_is_cancelled(server):
    with Client(server.address) as client:
        client.send([request("work_behind_gate", {"gate": "g"}),
                     request("wait_gate", {"gate": "w"})])
        server.wait_for(lambda: server.events == ["enter g"])
    server.wait_for(lambda: not server.server.connections)
    server.open_gate("g")
    server.wait_for(lambda: server.events == ["enter g", "leave g", "enter w", "cancelled w"])


def test_many_connections_at_once(server):
    clients = [Client(server.address) for _ in range(100)]
    for key, client in enumerate(clients):
        client.send(request("echo", {"value": key}, key))
    assert [c.reply() for c in clients] == [result(k, k) for k in range(100)]
    for client in clients:
        client.close()
    server.wait_for(lambda: not server.server.connections)


def test_connections_above_the_limit_are_told_so(address):
    with RunningServer(address, connections_max=2) as server:
        first, second, third = (Client(address) for _ in range(3))
        assert error(third.reply()) == (-16, "there are 2 connections already")
        assert third.at_end()
        third.close()
        first.close()
        server.wait_for(lambda: len(server.server.connections) == 1)
        with Client(address) as again:
            assert again.call("echo") == result("")
        second.close()


def test_few_requests_are_taken_ahead(address):
    with RunningServer(address, paused=True) as server, Client(address) as client:
        client.send(b'{"method":"echo","id":1}' * 5000)
        server.wait_for(lambda: any(c.ahead for c in server.server.connections))
        held, = server.server.connections
        assert len(held.ahead) == AHEAD_MAX + 1
        server.call(server.server.resume)
        assert [client.reply() for _ in range(5000)] == [result("")] * 5000


def test_a_paused_server_answers_after_resume(address):
    with RunningServer(address, paused=True) as server, Client(address) as client:
        client.send(request("echo", {"value": "early"}))
        server.wait_for(lambda: any(c.ahead for c in server.server.connections))
        assert server.events == []
        server.call(server.server.resume)
        assert client.reply() == result("early")


def test_methods_that_are_not_allowed_do_not_exist(address):
    with RunningServer(address, allowed=["echo"]) as server, Client(address) as client:
        assert client.call("echo") == result("")
        assert error(client.call("fill", {"size": 1}))[0] == MISSING
        assert server.run(server.dispatcher.call("fill", {"size": 1})) == "x"
    with pytest.raises(ValueError, match="no RPC method is named bogus"):
        RunningServer(address, allowed=["echo", "bogus"])


def test_startup_state(address):
    with RunningServer(address, state=State.STARTUP), Client(address) as client:
        assert client.call("only_startup") == result(True)
        assert client.call("echo") == result("")
        assert error(client.call("fill", {"size": 1}))[0] == -1


def test_closing_lets_a_running_request_end(address):
    server = RunningServer(address)
    with Client(address) as client, Client(address) as idle, Client(address) as stuck:
        client.send(request("work_behind_gate", {"gate": "g"}))
        stuck.send(request("work_behind_gate", {"gate": "never"}))
        server.wait_for(lambda: len(server.events) == 2)
        server.loop.call_soon_threadsafe(server.loop.call_later, 0.05, server.gates["g"].set)
        server.close(grace_s=0.5)
        assert client.reply() == result("g")
        for each in (client, idle, stuck):
            assert each.at_end()
    assert "cancelled never" in server.events


def test_closing_does_not_wait_for_those_who_only_wait(address):
    server = RunningServer(address)
    with Client(address) as client:
        client.send(request("wait_gate", {"gate": "w"}))
        server.wait_for(lambda: server.events == ["enter w"])
        server.close(grace_s=1000)      # more than the test may take
        assert client.at_end()
    assert server.events == ["enter w", "cancelled w"]


def test_the_socket_has_its_mode_and_goes_at_the_end(address):
    with RunningServer(address, mode=0o620):
        assert os.stat(address).st_mode & 0o777 == 0o620
        assert os.stat(address + ".lock").st_mode & 0o777 == 0o600
    assert not os.path.exists(address) and not os.path.exists(address + ".lock")
    with RunningServer(address):
        assert os.stat(address).st_mode & 0o777 == 0o600


def test_the_socket_is_given_to_others(address):
    """To any with root; without it to a group that the user is in."""
    owner = (12345, 23456) if os.geteuid() == 0 else (-1, os.getgroups()[0])
    with RunningServer(address, mode=0o660, owner=owner):
        about = os.stat(address)
        assert about.st_gid == owner[1] and about.st_mode & 0o777 == 0o660
        assert about.st_uid == (owner[0] if owner[0] >= 0 else os.geteuid())


def test_a_socket_that_cannot_be_given_away(address, monkeypatch):
    def refuse(path, uid, gid):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "chown", refuse)
    with pytest.raises(OSError, match="cannot be given to user 5 and group 7: Operation not per"):
        RunningServer(address, owner=(5, 7))
    assert not os.path.exists(address + ".lock")


def test_a_live_server_is_left_alone(address):
    with RunningServer(address), Client(address) as client:
        with pytest.raises(OSError, match="in use by a running program: choose another"):
            RunningServer(address)
        assert client.call("echo") == result("")
        with Client(address) as another:
            assert another.call("echo") == result("")


def test_a_live_server_without_a_lock_is_left_alone(address):
    with socket.socket(socket.AF_UNIX) as foreign:
        foreign.bind(address)
        foreign.listen()
        with pytest.raises(OSError, match="in use by a running program"):
            RunningServer(address)
        assert os.path.exists(address) and not os.path.exists(address + ".lock")


def test_a_held_lock_is_enough(address):
    with RunningServer(address):
        os.unlink(address)
        with pytest.raises(OSError, match="in use by a running program"):
            RunningServer(address)
    fd = os.open(address + ".lock", os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(fd, fcntl.LOCK_EX)
    with pytest.raises(OSError, match="in use by a running program"):
        RunningServer(address)
    os.close(fd)
    with RunningServer(address):
        pass


def test_what_a_killed_server_left_is_replaced(address):
    program = ("import fcntl, os, socket, sys\n"
               "fd = os.open(sys.argv[1] + '.lock', os.O_RDWR | os.O_CREAT, 0o600)\n"
               "fcntl.flock(fd, fcntl.LOCK_EX)\n"
               "s = socket.socket(socket.AF_UNIX); s.bind(sys.argv[1]); s.listen()\n"
               "os.kill(os.getpid(), 9)\n")
    subprocess.run([sys.executable, "-c", program, address], check=False)
    assert os.path.exists(address) and os.path.exists(address + ".lock")
    with RunningServer(address), Client(address) as client:
        assert client.call("echo") == result("")


def test_a_socket_that_another_program_put_in_place_is_not_removed(address):
    with RunningServer(address):
        os.unlink(address)
        with socket.socket(socket.AF_UNIX) as foreign:
            foreign.bind(address)
    assert os.path.exists(address)


def test_paths_that_cannot_be_listened_on(tmp_path):
    (tmp_path / "file").write_text("mine")
    for path, why in ((tmp_path / "file", "no socket"), (tmp_path / "no" / "dir", "No such file"),
                      (tmp_path / ("x" * 108), "longer than 107 bytes")):
        with pytest.raises(OSError, match=why) as refused:
            RunningServer(str(path))
        assert str(path)[:40] in str(refused.value)
    assert (tmp_path / "file").read_text() == "mine"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_tcp():
    with RunningServer("127.0.0.1:0") as server:
        port = server.listener.sock.getsockname()[1]
        with Client(f"127.0.0.1:{port}") as client:
            assert client.call("echo", {"value": "tcp"}) == result("tcp")
        with pytest.raises(OSError, match="cannot be listened on: Address already in use"):
            RunningServer(f"127.0.0.1:{port}")


@pytest.mark.parametrize("address, why", [
    ("127.0.0.1:99999", "not between 0 and 65535"), ("127.0.0.1:x", "not a whole number"),
    (":1", "not host"), ("[::1", "not host"), ("[::1]5", "not host"),
    ("no.such.host.invalid", "cannot be looked up"), ("a..b", "cannot be looked up"),
])
def test_bad_tcp_addresses(address, why):
    with pytest.raises(OSError, match=why) as refused:
        RunningServer(address)
    assert address in str(refused.value)


def test_several_addresses(tmp_path):
    paths = [str(tmp_path / name) for name in ("a", "b")]
    with RunningServer(paths[0]) as server:
        server.run(server.server.listen(paths[1]))
        for path in paths:
            with Client(path) as client:
                assert client.call("echo", {"value": path}) == result(path)
    assert list(tmp_path.iterdir()) == []
