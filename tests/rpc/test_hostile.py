"""Hostile clients of the RPC: each gets an error, and the target goes on serving the others.

What is wrong for a parameter is generated from the schema that the target itself gives.
"""
import json
import os
import random
import socket

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from tests.lib.rpc_server import Client, request
from tests.lib.target import Target
from vhostrt.rpc.method import METHODS
from vhostrt.rpc.methods import METHODS as ALL
from vhostrt.rpc.schema import schema_of

assert ALL is METHODS
SCHEMA = schema_of(METHODS)
PARAMETERS = [(name, field) for name, about in SCHEMA.items()
              for field in about["params"]["properties"]]
PARSE, INVALID, MISSING, PARAMS, INTERNAL = -32700, -32600, -32601, -32602, -32603
MIB = 1 << 20
# Called with good values, these end the target, or wait for something that does not come.
NOT_CALLED = {"spdk_kill_instance", *(name for name, known in METHODS.items() if known.waits)}


class Arena:
    """A target under attack and a client that must not notice."""

    def __init__(self):
        self.target = Target(disks=("malloc:8M",))
        self.witness = Client(str(self.target.rpc_path))

    def client(self):
        return Client(str(self.target.rpc_path))

    def check_unharmed(self):
        names = [bdev["name"] for bdev in self.witness.call("bdev_get_bdevs")["result"]]
        assert "Disk0" in names
        with self.client() as fresh:
            assert "result" in fresh.call("spdk_get_version")
        said = self.target.stderr()
        for word in ("Traceback", "failed:", "Exception ignored"):
            assert word not in said, said

    def memory(self):
        """Return how many bytes the target has in memory."""
        with open(f"/proc/{self.target.pid}/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.fixture(scope="module")
def arena():
    running = Arena()
    yield running
    running.witness.close()
    running.target.stop()


@pytest.fixture
def unharmed(arena):
    yield arena
    arena.check_unharmed()


def error_of(reply):
    assert reply.get("jsonrpc") == "2.0" and reply.keys() == {"jsonrpc", "id", "error"}, reply
    error = reply["error"]
    assert isinstance(error["code"], int) and error["message"]
    assert "\n" not in error["message"] and "Traceback" not in error["message"]
    return error["code"]


texts = st.text(max_size=20) | st.text("ab/\0\n\x7f\u20ac", max_size=300)
scalars = (st.none() | st.booleans() | st.integers(-2**70, 2**70) | st.floats() | texts
           | st.sampled_from([0, -1, 1, 2**31, 2**32, 2**63, 2**64, 1.5, -0.0, 1e300, "", "0"]))
values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3)
                      | st.dictionaries(texts, inner, max_size=3), max_leaves=6)


def fits(form, value):
    """Return whether the schema takes a value; what JSON has no word for, it does not."""
    try:
        json.dumps(value, allow_nan=False)
    except ValueError:
        return False
    return Draft202012Validator(form).is_valid(value)


def good(form):
    """Return a value that the schema of a parameter takes."""
    for value in (1, "x", 512, True, 2**20, "0x1", "NOTICE", [], [1], {}):
        if fits(form, value):
            return value
    raise AssertionError(f"no value fits {form}")


def others(about, field):
    """Return good values of the parameters that a method needs beside one."""
    return {name: good(about["params"]["properties"][name])
            for name in about["params"].get("required", ()) if name != field}


@pytest.mark.parametrize("name, field", PARAMETERS, ids=".".join)
def test_a_wrong_value_of_each_parameter_is_refused(unharmed, name, field):
    about = SCHEMA[name]
    form = about["params"]["properties"][field]
    beside = others(about, field)
    with unharmed.client() as client:
        @settings(max_examples=15, deadline=None, database=None,
                  suppress_health_check=list(HealthCheck))
        @given(values.filter(lambda value: not fits(form, value)))
        def refused(value):
            reply = client.call(name, {field: value, **beside})
            assert error_of(reply) in (PARAMS, PARSE, -1), (value, reply)
        refused()


@pytest.mark.parametrize("name", sorted(set(SCHEMA) - NOT_CALLED))
def test_whatever_fits_is_answered(unharmed, name):
    about = SCHEMA[name]
    fields = about["params"]["properties"]

    def fitting(form):
        return values.filter(lambda value: fits(form, value)) | st.just(good(form))

    strategy = st.fixed_dictionaries({field: fitting(form) for field, form in fields.items()
                                      if field in about["params"].get("required", ())})
    with unharmed.client() as client:
        @settings(max_examples=10, deadline=None, database=None,
                  suppress_health_check=list(HealthCheck))
        @given(strategy)
        def answered(params):
            reply = client.call(name, params)
            assert "result" in reply or error_of(reply) != INTERNAL, (params, reply)
        answered()


@pytest.mark.parametrize("name", SCHEMA)
def test_an_unknown_or_missing_parameter_is_refused(unharmed, name):
    about = SCHEMA[name]
    with unharmed.client() as client:
        assert error_of(client.call(name, {"bogus": 1})) in (PARAMS, -1)
        for params in (7, "text", [1], True):
            assert error_of(client.call(name, params)) in (PARAMS, -1)
        for field in about["params"].get("required", ()):
            reply = client.call(name, others(about, field))
            assert error_of(reply) in (PARAMS, -1)


@settings(max_examples=60, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(st.binary(max_size=400) | st.text("{}[]\":,0123456789eE+-.truefalsn \n\\u", max_size=200)
       .map(str.encode))
def test_garbage(arena, raw):
    with arena.client() as client:
        client.send(raw)
        client.sock.shutdown(socket.SHUT_WR)
        received = b""
        while piece := client.sock.recv(65536):
            received += piece
    for line in received.splitlines():
        reply = json.loads(line)
        for one in reply if isinstance(reply, list) else [reply]:
            assert error_of(one) in (PARSE, INVALID, MISSING)
    assert "result" in arena.witness.call("spdk_get_version")


@pytest.mark.parametrize("opening, closing", [(b"[", b"]"), (b'{"a":', b"}"),
                                              (b'{"method":"rpc_get_methods","params":[', b"]}")])
@pytest.mark.parametrize("depth", [500, 100_000])
def test_deep_nesting(unharmed, opening, closing, depth):
    with unharmed.client() as client:
        client.send(opening * depth + b"1" + closing * depth)
        reply = client.reply()
        for one in reply if isinstance(reply, list) else [reply]:
            assert error_of(one) in (PARSE, INVALID, PARAMS)
        client.send(request("bdev_null_create", {"name": {"a": [[[[1]]]]}}))
        assert error_of(client.reply()) == PARAMS


@pytest.mark.parametrize("head, piece", [
    (b'{"jsonrpc": "2.0", "id": 1, "method": "rpc_get_methods", "params": {"x": "', b"y" * MIB),
    (b"[", b'{"method": "rpc_get_methods", "id": 1},'.ljust(MIB)),
    (b"[", b"[" * MIB), (b"1", b"1" * MIB), (b" ", b" " * MIB)],
    ids=["string", "batch", "brackets", "digits", "blanks"])
def test_100_mib(unharmed, head, piece):
    before = unharmed.memory()
    with unharmed.client() as client:
        client.send(head)
        try:
            for _ in range(100):
                client.send(piece)
                assert "result" in unharmed.witness.call("spdk_get_version")
            if piece[0] != ord(" "):
                assert error_of(client.reply()) == PARSE
            else:
                assert "result" in client.call("spdk_get_version")
        except (BrokenPipeError, ConnectionResetError):
            pass                        # it was cut off, after the answer and some patience
    assert unharmed.memory() - before < 64 * MIB


def test_many_who_send_nothing_whole(unharmed):
    clients = [unharmed.client() for _ in range(60)]
    pieces = random.Random(1)
    for client in clients:
        raw = json.dumps(request("bdev_get_bdevs", {"name": "Disk0"})).encode()
        client.send(raw[:pieces.randrange(1, len(raw))])
    assert "result" in unharmed.witness.call("bdev_get_bdevs")
    for client in clients:
        client.close()
