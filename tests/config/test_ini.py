"""The grammar of the INI file, from the viewpoint of a user who still has one."""
import pytest

from vhostrt.config import ConfigError, ini


def items(text):
    """Parse and return (section, key, values) of every line."""
    return [(section.name, item.key, item.values)
            for section in ini.parse(text, "f") for item in section.items]


def refusal(text):
    with pytest.raises(ConfigError) as caught:
        ini.parse(text, "f")
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
