"""vhostrt-rpc: the real command against running targets of this version and of others."""
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.lib.target import Target
from vhostrt.rpc.methods import METHODS

ROOT = Path(__file__).resolve().parents[2]
COMMAND = [sys.executable, "-m", "vhostrt.tools.rpc"]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "100"}


def run(address, *words, stdin="", status=0):
    """Run the command; return what it printed on stdout, or on stderr when it is to fail."""
    done = subprocess.run([*COMMAND, "-s", str(address), *map(str, words)], input=stdin, cwd="/",
                          capture_output=True, text=True, timeout=60, env=ENVIRONMENT)
    assert done.returncode == status, (done.returncode, done.stdout, done.stderr)
    assert "Traceback" not in done.stderr, done.stderr
    if status == 0:
        assert done.stderr == ""
    return done.stderr if status else done.stdout


@pytest.fixture(scope="module")
def target():
    with Target(disks=()) as running:
        yield running


@pytest.fixture
def rpc(target):
    """Run the command at the target."""
    return lambda *words, **how: run(target.rpc_path, *words, **how)


def test_values_by_name_and_by_place(rpc):
    assert rpc("bdev_malloc_create", 2048, 512, "--name", "a") == "a\n"
    assert rpc("bdev_malloc_create", "--name=b", "--num-blocks", "0x100", "--block_size", 4096,
               "--numa-id", -1, "--no-md-interleave", "--json") == '"b"\n'
    assert rpc("bdev_malloc_create", 512, "--num-blocks", 16, "--name", "c") == "c\n"
    bdevs = json.loads(rpc("bdev_get_bdevs"))
    assert [(b["name"], b["num_blocks"], b["block_size"]) for b in bdevs] == [
        ("a", 2048, 512), ("b", 256, 4096), ("c", 16, 512)]
    assert json.loads(rpc("bdev_get_bdevs", "--name", "b")) == bdevs[1:2]
    for name in "abc":
        assert rpc("bdev_malloc_delete", name) == ""
    assert rpc("get_bdevs") == "[]\n"           # by an older name


def test_params_as_json(rpc, tmp_path):
    made = '{"name": "n", "num_blocks": 8, "block_size": 512}'
    file = tmp_path / "params.json"
    file.write_text(made)
    for words, stdin in ((("--params", made), ""), (("--params", "-"), made),
                         (("--params", f"@{file}"), "")):
        assert rpc("bdev_null_create", *words, stdin=stdin) == "n\n"
        assert rpc(*words, "bdev_null_create", stdin=stdin, status=1).endswith("(error -17)\n")
        assert rpc("bdev_null_delete", "n", "--json") == "true\n"


@pytest.mark.parametrize("words, sentence", [
    ((), "name a method"),
    (("bdev_get_bdev",), "the target has no method 'bdev_get_bdev'; did you mean bdev_get_bdevs"),
    (("bdev_malloc_create", 8), "missing --block-size"),
    (("bdev_malloc_create", 8, 512, 3), "argument '3' is one too many"),
    (("bdev_malloc_create", "x", 512), "--num-blocks: 'x' is not an integer"),
    (("bdev_malloc_create", 8, 512, "--bogus"), "unrecognized arguments: --bogus"),
    (("log_set_level", "LOUD"), "--level: 'LOUD' is none of DEBUG, ERROR"),
    (("bdev_get_bdevs", "--params", "{"), "--params: it is not JSON"),
    (("bdev_get_bdevs", "--params", "[1]"), "--params: it is not an object"),
    (("bdev_get_bdevs", "--params", "@/no/file"), "'/no/file' cannot be read: No such file"),
    (("bdev_get_bdevs", "--params", "{}", "--name", "x"), "others are given beside it"),
    (("bdev_get_bdevs", "--name"), "expected one argument"),
    (("-t", "0", "bdev_get_bdevs"), "'0' is not a number of seconds"),
    (("--bogus", "bdev_get_bdevs"), "unrecognized arguments"),
    (("--script", "/no/file"), "No such file"),
    (("--script", "-", "bdev_get_bdevs"), "--script takes no method beside it"),
])
def test_bad_usage(rpc, words, sentence):
    assert sentence in rpc(*words, status=2)


def test_an_error_of_the_target(rpc):
    assert rpc("bdev_get_bdevs", "--name", "none", status=1) == \
        "vhostrt-rpc: bdev_get_bdevs: bdev none does not exist (error -19)\n"
    assert json.loads(rpc("bdev_get_bdevs", "--name", "none", "--json", status=1)) == {
        "code": -19, "message": "bdev none does not exist"}


def test_no_target(tmp_path):
    said = run(tmp_path / "none", "bdev_get_bdevs", status=3)
    assert f"{tmp_path}/none" in said and "is it running" in said
    assert "is it running" in run("127.0.0.1:1", "bdev_get_bdevs", status=3)
    assert "not the name of a host" in run("a..b:1", "bdev_get_bdevs", status=3)
    assert "not a whole number" in run("h:x", "bdev_get_bdevs", status=3)
    said = run(tmp_path / "none", "bdev_malloc_create", "--help")
    assert "--num-blocks" in said and "(required)" in said
    listed = run(tmp_path / "none", "--help")
    assert "no target runs" in listed
    for known in METHODS.values():
        assert f"\n  {known.name} " in listed


@contextmanager
def fake(tmp_path, answers):
    """Serve a socket whose target knows these methods: name -> result, or a whole answer."""
    listener = socket.socket(socket.AF_UNIX)
    path = tmp_path / "fake.sock"
    listener.bind(str(path))
    listener.listen()
    asked = []

    def serve():
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            with client:
                while raw := client.recv(65536):
                    request = json.loads(raw)
                    asked.append((request["method"], request.get("params")))
                    answer = answers.get(request["method"], missing)
                    if answer is None:
                        break
                    if not callable(answer):
                        answer = {"result": answer}
                    else:
                        answer = answer(request)
                    client.sendall(json.dumps({"id": request["id"], **answer}).encode())

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield path, asked
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(10)


def missing(request):
    return {"error": {"code": -32601, "message": "Method not found"}}


def test_a_target_that_does_not_describe_itself(tmp_path):
    answers = {"rpc_get_methods": ["rpc_get_methods", "bdev_get_bdevs", "bdev_lvol_rename"],
               "bdev_get_bdevs": [{"name": "x"}], "bdev_lvol_rename": True}
    with fake(tmp_path, answers) as (path, asked):
        assert json.loads(run(path, "bdev_get_bdevs", "--name", "x")) == [{"name": "x"}]
        assert asked[-1] == ("bdev_get_bdevs", {"name": "x"})
        run(path, "bdev_lvol_rename", "--old-name", "a", "--new_name=b", "--n", "3")
        assert asked[-1] == ("bdev_lvol_rename", {"old_name": "a", "new_name": "b", "n": 3})
        assert run(path, "bdev_lvol_rename", "--params", '{"a": 1}', "--json") == "true\n"
        assert asked[-1] == ("bdev_lvol_rename", {"a": 1})
        assert "has no name" in run(path, "bdev_lvol_rename", "a", status=2)
        assert "no method 'bdev_null_create'" in run(path, "bdev_null_create", status=2)
        assert "does not describe it" in run(path, "bdev_lvol_rename", "--help")
        assert "bdev_lvol_rename" in run(path, "--help")


def test_a_newer_target(tmp_path):
    about = {"description": "Do what is new.", "aliases": [], "states": ["runtime"],
             "result": {}, "params": {"required": ["what"], "properties": {
                 "what": {"type": "string"}, "json": {"type": "integer"},
                 "sizes": {"type": "array", "items": {"type": "string"}},
                 "more": {"anyOf": [{"type": "object"}, {"type": "null"}]},
                 "share": {"type": "number"}}}}
    answers = {"rpc_get_schema": {"methods": {"new": about}}, "new": {"done": 1}}
    with fake(tmp_path, answers) as (path, asked):
        said = run(path, "new", "w", "--json", "7", "--sizes", "a,b", "--more", '{"x": [1]}',
                   "--share", "0.5")
        assert json.loads(said) == {"done": 1}
        assert asked[-1] == ("new", {"what": "w", "json": 7, "sizes": ["a", "b"],
                                     "more": {"x": [1]}, "share": 0.5})
        assert "Do what is new." in run(path, "new", "--help")


def test_a_target_that_gives_no_answer(tmp_path):
    with fake(tmp_path, {"bdev_get_bdevs": None, "spdk_kill_instance": None}) as (path, _):
        said = run(path, "--params", "{}", "bdev_get_bdevs", status=4)
        assert "ended the connection without an answer" in said
        assert run(path, "--params", '{"sig_name": "KILL"}', "spdk_kill_instance") == ""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "mute"))
    listener.listen()
    with listener:
        said = run(tmp_path / "mute", "-t", "0.2", "bdev_get_bdevs", status=4)
        assert "no answer of the target within 0.2 s" in said


def test_a_script(rpc):
    script = "# two disks\nbdev_null_create n 8 512\n\nbdev_null_create 'm' 8 512 # one more\n"
    assert rpc("--script", "-", stdin=script) == "n\nm\n"
    said = rpc("--script", "-", stdin="bdev_null_delete n\nbdev_null_delete n\nbdev_null_delete m",
               status=1)
    assert "bdev_null_delete: bdev n does not exist" in said
    assert rpc("--script", "-", stdin="bdev_null_delete m\n") == ""
    assert "line 1: No closing quotation" in rpc("--script", "-", stdin="'", status=2)
    assert "line 1" in rpc("--script", "-", stdin="watch\n", status=2)


def test_files_that_are_no_text(rpc, tmp_path):
    odd = tmp_path / "odd"
    odd.write_bytes(b"\xff\xfe")
    for words in (("--script", odd), ("bdev_get_bdevs", "--params", f"@{odd}")):
        assert "cannot be read: 'utf-8' codec" in rpc(*words, status=2)
    assert "Is a directory" in rpc("--script", tmp_path, status=2)


def test_a_target_that_tells_nothing_but_answers():
    with Target(disks=(), extra=["--rpcs-allowed", "spdk_get_version,get_bdevs"]) as target:
        assert run(target.rpc_path, "get_bdevs") == "[]\n"
        assert "Method not found" in run(target.rpc_path, "bdev_null_create", "n", 8, 512, status=1)
        assert "bdev_get_bdevs" in run(target.rpc_path, "--help")


def test_tcp():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    with Target(disks=(), extra=["-r", address]) as target:
        for where in (address, target.rpc_path):
            assert "vhostrt v" in run(where, "spdk_get_version")


def test_every_method_has_its_help(rpc):
    for name in {known.name for known in METHODS.values()}:
        known = METHODS[name]
        if known.parameters is not None and name.startswith(("bdev", "vhost", "notify", "log")):
            said = rpc(name, "--help")
            for field in known.parameters.__struct_fields__:
                assert "--" + field.replace("_", "-") in said, name


def on_terminal(target, *words):
    """Run the command on a terminal of 100 columns; return what it shows."""
    import pexpect
    shown, status = pexpect.run(
        " ".join([*COMMAND, "-s", str(target.rpc_path), *words]), env=ENVIRONMENT,
        withexitstatus=True, timeout=60, encoding="utf-8", cwd="/")
    assert status == 0, shown
    return shown.replace("\r\n", "\n")


def test_tables_on_a_terminal(target, rpc):
    rpc("bdev_malloc_create", 131072, 512, "--name", "ram0")
    rpc("vhost_create_blk_controller", "disk0", "ram0")
    try:
        head, rule, row = on_terminal(target, "bdev_get_bdevs").splitlines()
        assert head.split() == ["name", "product", "size", "block", "size", "claimed", "uuid"]
        assert set(rule) == {"-", " "}
        assert re.match(r"ram0 +Malloc disk +64 MiB +512 +no +[-0-9a-f]{36}$", row)
        row = on_terminal(target, "vhost_get_controllers").splitlines()[2]
        assert row.split() == ["disk0", "ram0", "0x1", "0", "0", str(target.folder / "disk0")]
        assert json.loads(on_terminal(target, "bdev_get_bdevs", "--json"))[0]["name"] == "ram0"
        said = on_terminal(target, "thread_get_stats")
        assert "tick_rate" in said and re.search(r"^app_thread +1 +1 ", said, re.M)
        assert re.search(r"^ *0 ", on_terminal(target, "framework_get_reactors"), re.M)
        assert "bdev_get_bdevs\n" in on_terminal(target, "rpc_get_methods")
        for method in ("log_get_flags", "framework_get_subsystems", "spdk_get_version",
                       "notify_get_notifications", "trace_get_info", "thread_get_pollers"):
            said = on_terminal(target, method)
            assert said.strip() and not said.startswith(("{", "[")), said
    finally:
        rpc("vhost_delete_controller", "disk0")
        rpc("bdev_malloc_delete", "ram0")


def test_output_that_nobody_takes(target):
    done = subprocess.run([*COMMAND, "-s", str(target.rpc_path), "rpc_get_methods"], cwd="/",
                          stdout=open("/dev/full", "w"), stderr=subprocess.PIPE, text=True,
                          env=ENVIRONMENT, timeout=60)
    assert done.returncode == 4 and "No space left" in done.stderr


def test_ctrl_c(target):
    waiting = subprocess.Popen([*COMMAND, "-s", str(target.rpc_path), "bdev_get_bdevs", "--name",
                                "none", "--timeout", "60000"], env=ENVIRONMENT, cwd="/",
                               stderr=subprocess.PIPE, text=True)
    with pytest.raises(subprocess.TimeoutExpired):
        waiting.wait(1.5)
    waiting.send_signal(signal.SIGINT)
    assert waiting.wait(30) == 130 and waiting.stderr.read() == ""
    waiting.stderr.close()


def test_it_starts_fast(target):
    done = subprocess.run([sys.executable, "-X", "importtime", *COMMAND[1:], "-s",
                           str(target.rpc_path), "bdev_get_bdevs"], env=ENVIRONMENT, cwd="/",
                          capture_output=True, text=True, timeout=60)
    names = set(re.findall(r"\| +(\S+)$", done.stderr, re.M))
    assert {"argparse", "json", "vhostrt.tools"} <= names
    assert not names & {"numpy", "asyncio", "msgspec", "tabulate", "argcomplete", "ssl", "logging",
                        "vhostrt.rpc.method", "vhostrt.life", "vhostrt.options", "dataclasses"}
