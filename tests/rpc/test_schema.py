"""vhostrt/rpc/{schema,results,reference}.py: methods describe themselves, and truly."""
import subprocess
import sys
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from tests.lib.blk_client import Blk
from tests.lib.rpc_server import Client
from tests.lib.target import Target
from vhostrt.rpc.method import Count, Method, Name, Parameters, State
from vhostrt.rpc.methods import METHODS
from vhostrt.rpc.results import RESULTS
from vhostrt.rpc.schema import describe, notes_of, schema_of

ROOT = Path(__file__).resolve().parents[2]
SCHEMA = schema_of(METHODS)


class Sample(Parameters):
    """What the whole is for.  name, other: of a thing: any.  count: how many of them.

    ratio: 0 to 1.
    """

    name: Name
    other: str | None = None
    count: Count = 3
    ratio: float = 0.5


async def sample(rpc, params: Sample) -> dict[str, int]:
    """Do something.

    And explain it.
    """
    return {}


def test_a_method_is_described():
    known = Method("sample", sample, Sample, State.STARTUP | State.RUNTIME, ("old",), False)
    about = describe(known)
    assert about["description"] == "Do something.\n\nAnd explain it."
    assert about["aliases"] == ["old"] and about["states"] == ["startup", "runtime"]
    assert about["params"]["required"] == ["name"]
    assert about["params"]["additionalProperties"] is False
    fields = about["params"]["properties"]
    assert fields["name"] == {"type": "string", "minLength": 1, "maxLength": 255,
                              "title": "a string of 1 to 255 characters",
                              "description": "of a thing: any."}
    assert fields["other"]["default"] is None and fields["other"]["title"] == "a string"
    assert fields["count"]["default"] == 3 and fields["count"]["description"] == "how many of them."
    assert about["result"] == {"type": "object", "additionalProperties": {"type": "integer"}}
    assert notes_of(Sample)["ratio"] == "0 to 1."


@pytest.mark.parametrize("name", SCHEMA)
def test_every_method_and_parameter_is_explained(name):
    about = SCHEMA[name]
    assert about["description"].split("\n")[0].endswith("."), "the first line is one sentence"
    for kind in ("params", "result"):
        Draft202012Validator.check_schema(about[kind])
    for field, form in about["params"]["properties"].items():
        assert form["title"] and form.get("description"), field


def test_no_result_is_described_of_a_method_that_is_not_there():
    assert RESULTS.keys() <= METHODS.keys()


def test_the_reference_page_is_up_to_date():
    page = subprocess.run([sys.executable, "-m", "vhostrt.rpc.reference"], cwd=ROOT, text=True,
                          capture_output=True, timeout=60, check=True).stdout
    assert page == (ROOT / "docs/rpc.md").read_text(), "make docs"
    for name in SCHEMA:
        assert f"\n## {name}\n" in page


@pytest.fixture(scope="module")
def target():
    with Target(disks=("malloc:8M", "malloc:8M")) as running:
        yield running


def check(schema, value):
    """Refuse what the schema does, and keys that it does not tell of."""
    Draft202012Validator(closed(schema)).validate(value)


def closed(schema):
    """Return a schema that allows no keys but those that it names."""
    if isinstance(schema, list):
        return [closed(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    inner = {key: closed(value) for key, value in schema.items()}
    return {"additionalProperties": False, **inner} if "properties" in inner else inner


def test_the_target_answers_what_it_says(target):
    described = target.rpc("rpc_get_schema")
    assert described["version"] == target.rpc("spdk_get_version")["version"]
    methods = described["methods"]
    assert methods == SCHEMA
    with Blk(target.socket(), queues=1):
        for name, about in methods.items():
            reads = "_get_" in name and not about["params"].get("required")
            if reads or name in ("framework_monitor_context_switch", "framework_wait_init"):
                check(about["result"], target.rpc(name))
    waited = target.rpc("notify_wait_notifications", id=0)
    check(methods["notify_wait_notifications"]["result"], waited)


def test_one_method(target):
    with Client(str(target.rpc_path)) as client:
        for name in ("bdev_get_bdevs", "get_bdevs"):
            found = client.call("rpc_get_schema", {"method": name})["result"]["methods"]
            assert found == {"bdev_get_bdevs": SCHEMA["bdev_get_bdevs"]}
        error = client.call("rpc_get_schema", {"method": "none"})["error"]
        assert error["code"] == -32602 and "not \"none\"" in error["message"]


def test_only_of_what_clients_may_call():
    names = ["rpc_get_schema", "bdev_get_bdevs", "spdk_get_version"]
    with Target(disks=(), extra=["--rpcs-allowed", ",".join(names)]) as target:
        assert list(target.rpc("rpc_get_schema")["methods"]) == sorted(names)
