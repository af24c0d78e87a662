"""JSON-RPC: a client's round trip to the running program; SPDK's takes 8.0 ms."""
import json

import pytest

from tests.lib.rpc_server import Client, request
from tests.lib.target import Target

PIPELINED = 1000


@pytest.fixture(scope="module")
def target():
    with Target(disks=()) as running:
        yield running


@pytest.fixture
def client(target):
    with Client(str(target.rpc_path)) as connected:
        yield connected


def bench_rpc_round_trip(benchmark, client):
    benchmark.pedantic(client.call, ("spdk_get_version",), rounds=2000, warmup_rounds=100)


def bench_rpc_connect_and_round_trip(benchmark, target):
    def call():
        with Client(str(target.rpc_path)) as client:
            client.call("spdk_get_version")

    benchmark.pedantic(call, rounds=500, warmup_rounds=20)


def bench_rpc_1000_pipelined(benchmark, client):
    text = json.dumps(request("spdk_get_version")).encode() * PIPELINED

    def call():
        client.send(text)
        for _ in range(PIPELINED):
            client.reply()

    benchmark.pedantic(call, rounds=10, warmup_rounds=1)


def bench_rpc_100_bdevs_listed(benchmark, client):
    for i in range(100):
        client.call("bdev_null_create", {"name": f"n{i}", "num_blocks": 8, "block_size": 512})
    try:
        benchmark.pedantic(client.call, ("bdev_get_bdevs",), rounds=100, warmup_rounds=5)
    finally:
        for i in range(100):
            client.call("bdev_null_delete", {"name": f"n{i}"})
