"""The INI file, from the viewpoint of a user who still has one."""
import pytest

from vhostrt.config import ConfigError, ini
from vhostrt.options import Options, parse_args


def items(text):
    """Parse and return (section, key, values) of every line."""
    return [(section.name, item.key, item.values)
            for section in ini.parse(text, "f") for item in section.items]


def refusal(text, *words):
    with pytest.raises(ConfigError) as caught:
        options = parse_args(list(words))
        ini.apply(ini.parse(text, "f"), options, "f")
    return caught.value.lines


GRAMMAR = [
    ("[A]\nK v1 v2", [("A", "K", ["v1", "v2"])]),
    ("  # c\n\n[A]\n\t K\tv \t w ", [("A", "K", ["v", "w"])]),
    ("[A]\nK", [("A", "K", [])]),
    ("[A]\nK v # text", [("A", "K", ["v", "#", "text"])]),
    ("[A]\nK a\\\n  b \\\nc\nL", [("A", "K", ["a", "b", "c"]), ("A", "L", [])]),
    ("[A]\nK 'a b' \"c d\" e'f'g", [("A", "K", ["a b", "c d", "efg"])]),
    ("[A]\nK '' \"\"", [("A", "K", ["", ""])]),
    ("[A]\nK a\\ b \\\"c \"d\\\"e\" 'f\\g'", [("A", "K", ["a b", '"c', 'd"e', "f\\g"])]),
    ("[A]\nK 1\n[b]\nM\n[a]\nK 2", [("A", "K", ["1"]), ("A", "K", ["2"]), ("b", "M", [])]),
    ("[A]\r\nK v\r\n", [("A", "K", ["v"])]),
    ("[A]\n# c \\\nK v", [("A", "K", ["v"])]),
    ("[A]\nK v\\", [("A", "K", ["v"])]),
    ("[A]\nK " + "x" * 100000, [("A", "K", ["x" * 100000])]),
]


@pytest.mark.parametrize("text, found", GRAMMAR, ids=range(len(GRAMMAR)))
def test_grammar(text, found):
    assert items(text) == found


@pytest.mark.parametrize("name, number", [("VhostScsi12x3", 12), ("Global", 0), ("Nvme7", 7)])
def test_section_numbers(name, number):
    assert ini.parse(f"[{name}]", "f")[0].number == number


def test_keys_are_found_whatever_their_case_and_in_order():
    section = ini.parse("[A]\nKey 1\nkEY 2\nother", "f")[0]
    assert [item.values for item in section.named("KEY")] == [["1"], ["2"]]


def test_every_bad_line_is_named_with_its_place():
    assert refusal("Early 1\n[Global] # x\n[]\n[A\n[B]\nK 'open\nK \\\n\"open") == [
        "f:1: unknown section: 'Early' stands before the first [section]",
        "f:2: broken section: '[Global] # x' is not [name] alone",
        "f:3: broken section: '[]' is not [name] alone",
        "f:4: broken section: '[A' is not [name] alone",
        "f:6: the quote ' is not closed", 'f:7: the quote " is not closed']


@pytest.mark.parametrize("text", ["", "\n\n", "# only a comment\n"])
def test_a_file_without_section(text):
    assert refusal(text) == ["Invalid config file f: it has no [section]"]


def merged(text, *words):
    options = parse_args(list(words))
    warnings = ini.apply(ini.parse("[global]\n" + text, "f"), options, "f")
    return options, warnings


@pytest.mark.parametrize("text, fields", [
    ("ReactorMask 0x3", {"cores": (0, 1)}), ("reactormask [0,2]", {"cores": (0, 2)}),
    ("ReactorMask 0x3  # two", {"cores": (0, 1)}), ("ReactorMask 0x3 #two", {"cores": (0, 1)}),
    ("SharedMemoryID 3", {"shm_id": 3}), ("SharedMemoryID -1", {"shm_id": -1}),
    ("NoPci Yes", {"no_pci": True}), ("NoPci TRUE", {"no_pci": True}),
    ("NoPci n", {}), ('TpointGroupMask "0x2"', {"tpoint_groups": "0x2"}),
    ('Comment "a" b c\nComment d', {}),
])
def test_global_keys(text, fields):
    assert merged(text) == (Options(**fields), [])


@pytest.mark.parametrize("text, words, field, value", [
    ("ReactorMask 0x3", ["-m", "1"], "cores", (0,)),
    ("ReactorMask 0x3", ["--lcores", "5"], "cores", None),
    ("SharedMemoryID 3", ["-i", "0"], "shm_id", 0), ("SharedMemoryID 3", ["-i", "-1"], "shm_id", 3),
    ("NoPci No", ["-u"], "no_pci", True), ("TpointGroupMask 1", ["-e", "2"], "tpoint_groups", "2"),
])
def test_the_command_line_wins(text, words, field, value):
    assert getattr(merged(text, *words)[0], field) == value


def test_the_documented_key_that_nothing_reads():
    options, warnings = merged("InstanceID 3\nSharedMemoryID 4")
    assert options.shm_id == 4
    assert warnings == ["f:2: [Global] 'InstanceID' means nothing to vhostrt"]


def test_bad_values_and_other_sections_are_all_named():
    text = ("[Global]\nReactorMask 0x3x\nSharedMemoryID 12abc\nNoPci maybe\nTpointGroupMask a:\n"
            "[Malloc]\nNumberOfLuns 1\n[VhostBlk0]\n[global]\nReactorMask 1\nNoPci\nComment\n"
            "Comment\n")
    lines = refusal(text)
    assert [line.split(" ")[0] for line in lines] == [
        "f:2:", "f:3:", "f:4:", "f:5:", "f:10:", "f:11:", "f:6:", "f:8:"]
    assert "ReactorMask: '0x3x'" in lines[0] and "'maybe' is neither Yes nor No" in lines[2]
    assert lines[4] == "f:10: ReactorMask is given twice"
    assert lines[6] == "f:6: the module of section [Malloc] is not there yet"


@pytest.mark.parametrize("text", ["ReactorMask", "ReactorMask 1 2", "NoPci Yes No"])
def test_one_value_for_a_key(text):
    assert "needs one value" in refusal("[Global]\n" + text)[0]
