"""The JSON file, from the viewpoint of a user who saved one with SPDK or wrote one."""
import asyncio
import json

import pytest

from vhostrt.config import ConfigError
from vhostrt.config.foreign import IGNORED
from vhostrt.config.json_config import RUNTIME, STARTUP, Replay, parse


def text_of(*entries, subsystem="bdev"):
    return json.dumps({"subsystems": [{"subsystem": subsystem, "config": list(entries)}]})


def refusal(text):
    with pytest.raises(ConfigError) as caught:
        parse(text, "f")
    return caught.value.lines


def test_calls_in_order_with_their_place():
    text = json.dumps({"comment": 1, "subsystems": [
        {"subsystem": "scsi", "config": None}, {"subsystem": "nbd"},
        {"subsystem": "bdev", "config": [{"method": "a", "params": {"x": 1}}, {"method": "b"}]}]})
    calls = parse(text, "f")
    assert [(c.subsystem, c.method, c.params, c.position) for c in calls] == [
        ("bdev", "a", {"x": 1}, "subsystems[2].config[0]"),
        ("bdev", "b", None, "subsystems[2].config[1]")]


@pytest.mark.parametrize("text, start", [
    ("{", "f:1:2: "), ('{\n"a": }', "f:2:6: "), ("[" * 100000, "f: it is nested too deeply"),
    ('{"a": ' + "9" * 5000 + "}", "f: Exceeds"),
    ("[]", 'f: the file needs a list "subsystems"'), ("{}", 'f: the file needs a list'),
    ('{"subsystems": {}}', 'f: the file needs a list'),
    ('{"subsystems": [1]}', 'f:1: subsystems[0] needs a name "subsystem"'),
    ('{"subsystems": [{"subsystem": 1}]}', 'f:1: subsystems[0] needs a name "subsystem"'),
    ('{"subsystems": [{"subsystem": "a", "config": {}}]}',
     'f:1: subsystems[0]: "config" has to be a list'),
    (text_of(1), 'f:1: subsystems[0].config[0] needs a name "method"'),
    (text_of({"method": 3}), 'f:1: subsystems[0].config[0] needs a name "method"'),
    (text_of({"method": "a", "params": []}), "f:1: subsystems[0].config[0]: \"params\" of 'a'"),
], ids=range(13))
def test_refused_with_the_place(text, start):
    assert refusal(text)[0].startswith(start)


def test_everything_wrong_is_named():
    assert len(refusal(text_of(1, {"method": "a"}, {}, {"method": "b", "params": 1}))) == 3


MASKS = {"both": STARTUP | RUNTIME, "early": STARTUP, "late": RUNTIME}


def replay(text, ignore_errors=False, failing=()):
    """Run both passes; return the calls made, with "init" where the subsystems would start."""
    made = []

    async def invoke(method, params):
        await asyncio.sleep(0)
        made.append((method, params))
        if method in failing:
            raise ValueError("no such bdev")

    async def life():
        passes = Replay(parse(text, "f"), "f", MASKS.get, invoke, ignore_errors)
        await passes.run(STARTUP)
        made.append("init")
        await passes.run(RUNTIME)
    try:
        asyncio.run(life())
    except ConfigError as error:
        made.append(error.lines)
    return made


def test_two_passes():
    text = text_of(*({"method": word} for word in ("late", "both", "early")),
                   {"method": "late", "params": {"x": 1}})
    assert replay(text) == [("both", None), ("early", None), "init", ("late", None),
                            ("late", {"x": 1})]


ADVICE = ": remove the entry, or pass over what fails with --json-ignore-init-errors"


def test_an_unknown_method_stops_before_anything_is_called():
    text = text_of({"method": "early"}, {"method": "nvmf_create_subsystem"}, {"method": "x"})
    assert replay(text) == [[
        "f:1: subsystems[0].config[1]: Method 'nvmf_create_subsystem' not found" + ADVICE,
        "f:1: subsystems[0].config[2]: Method 'x' not found" + ADVICE]]


def test_a_failing_call_stops_the_rest():
    text = text_of({"method": "late"}, {"method": "late"})
    assert replay(text, failing=["late"]) == [
        "init", ("late", None), ["f:1: subsystems[0].config[0]: late: no such bdev"]]


def test_errors_are_logged_and_passed_over_where_asked(capsys):
    text = text_of({"method": "early"}, {"method": "x"}, {"method": "late"})
    assert replay(text, ignore_errors=True, failing=["early"]) == [
        ("early", None), "init", ("late", None)]
    errors = capsys.readouterr().err
    assert "*ERROR*: f:1: subsystems[0].config[0]: early: no such bdev" in errors
    assert "*ERROR*: f:1: subsystems[0].config[1]: Method 'x' not found" in errors


def test_settings_of_foreign_modules_are_named_once_and_ignored(capsys):
    text = text_of({"method": "sock_impl_set_options"}, {"method": "sock_impl_set_options"},
                   {"method": "bdev_raid_set_options"}, {"method": "late"})
    assert replay(text) == ["init", ("late", None)]
    line = capsys.readouterr().err
    assert line.count("\n") == 1 and "*NOTICE*: f: ignored" in line
    assert line.endswith(": bdev_raid_set_options, sock_impl_set_options\n")


def test_what_a_disk_is_made_of_is_never_ignored():
    for method in ("bdev_nvme_attach_controller", "vhost_create_scsi_controller",
                   "bdev_raid_create", "bdev_lvol_create", "bdev_set_qos_limit",
                   "virtio_blk_create_transport", "nvmf_create_subsystem"):
        assert method not in IGNORED


def test_what_would_wait_for_the_file_is_refused():
    masks = {"framework_start_init": STARTUP, "late": RUNTIME}
    calls = parse(text_of({"method": "late"}, {"method": "framework_start_init"}), "f")
    with pytest.raises(ConfigError, match=r"^f:1: subsystems\[0\].config\[1\]: framework_start_init"
                       " has no place in a configuration: remove the entry$"):
        Replay(calls, "f", masks.get, None, False)


def test_a_batch_is_its_calls_one_by_one():
    text = text_of([{"method": "early"}, {"method": "late", "params": {"x": 1}}], [],
                   {"method": "late"})
    assert replay(text) == [("early", None), "init", ("late", {"x": 1}), ("late", None)]
    assert [call.position for call in parse(text, "f")] == [
        "subsystems[0].config[0][0]", "subsystems[0].config[0][1]", "subsystems[0].config[2]"]
    assert refusal(text_of([[{"method": "a"}]])) == [
        'f:1: subsystems[0].config[0][0] needs a name "method"']


@pytest.mark.parametrize("indent", [None, 0, 3])
def test_every_entry_has_its_line(indent):
    """Where it begins, whatever else the file has in front of it."""
    subsystems = [{"config": [{"method": f"m{i}{j}", "params": {"a": [1, {"b": '"]}\\'}]}}
                              for j in range(3)], "subsystem": f"s{i}"} for i in range(3)]
    subsystems.insert(1, {"subsystem": "none", "config": None})
    root = {"first": {"subsystems": [1, 2]}, "subsystems": subsystems, "last": []}
    text = "\n\r\t " + json.dumps(root, indent=indent)
    calls = parse(text, "f")
    assert len(calls) == 9
    for call in calls:
        first = "\n".join(text.split("\n")[call.line - 1:]).partition('"method": "')[2]
        assert first.startswith("m00" if indent is None else call.method)
        assert indent is not None or call.line == 2


def test_of_a_doubled_key_the_last_counts():
    entry = '{"subsystem": "a", "config": [\n{"method": "m"}]}'
    call, = parse(f'{{"subsystems": [{entry}],\n"subsystems": [{entry}]}}', "f")
    assert call.line == 4
