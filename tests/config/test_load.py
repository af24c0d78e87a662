"""A configuration file as -c names it: the two kinds told apart, and files that cannot be read."""
import pytest

from vhostrt.config import ConfigError
from vhostrt.config.load import load
from vhostrt.options import Options, parse_args


@pytest.fixture
def loaded(tmp_path):
    def load_text(text, *words):
        path = tmp_path / "file"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        options = parse_args([*words, "-c", str(path)])
        return options, load(options)
    return load_text


def test_no_file_no_calls():
    assert load(Options()) == []


def test_the_first_character_tells(loaded):
    text = '{"subsystems": [{"subsystem": "a", "config": [{"method": "m"}]}]}'
    options, calls = loaded(" \n\t" + text)
    assert [call.method for call in calls] == ["m"]
    options, calls = loaded("# {\n[Global]\nReactorMask 0x6\n")
    assert (options.cores, calls) == ((1, 2), [])


def test_warnings_are_logged(loaded, capsys):
    loaded("[Global]\nInstanceID 1\n")
    assert "file:2: [Global] 'InstanceID' means nothing" in capsys.readouterr().err


def test_file_and_command_line_together_are_checked(loaded):
    with pytest.raises(ConfigError, match="with this file, option -p: main core 5"):
        loaded("[Global]\nReactorMask 0x6\n", "-p", "5")


@pytest.mark.parametrize("text", [b"[Global]\n\xff", b"\xff{"])
def test_not_text(loaded, text):
    with pytest.raises(ConfigError, match="file:[12]: this is not text in UTF-8"):
        loaded(text)


def test_unreadable(tmp_path):
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(ConfigError, match=f"Could not read config file {path}: "):
            load(Options(config=str(path)))
