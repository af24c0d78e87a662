"""The state file from the viewpoint of who writes it: all of a change is kept, or the old state."""
import asyncio
import json
import os
import stat

import pytest

from vhostrt.config import ConfigError, state
from vhostrt.config.state import State
from vhostrt.process import StartError


def config(*names):
    return {"subsystems": [{"subsystem": "bdev", "config": [
        {"method": "bdev_null_create", "params": {"name": name}} for name in names]}]}


def names_of(calls):
    return [call.params["name"] for call in calls]


class Kept:
    """A State with something to keep; `names` is that."""

    def __init__(self, path, *names):
        self.names, self.state = list(names), State(str(path))
        self.calls = self.state.open()

    async def begin(self):
        await self.state.begin(lambda: config(*self.names))
        return self

    async def add(self, name):
        self.names.append(name)
        await self.state.keep(f"adding {name}")


def read(path):
    """Return the names in a state file, as the next start finds them; the lock is given back."""
    other = State(str(path))
    try:
        return names_of(other.open())
    finally:
        other.release()


def run(coroutine):
    return asyncio.run(coroutine)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "state.json"


def test_a_change_is_there_when_keep_returns(path):
    async def life():
        kept = await Kept(path).begin()
        assert kept.calls is None
        for name in "abc":
            await kept.add(name)
            written = json.loads(path.read_text())["subsystems"][0]["config"]
            assert [entry["params"]["name"] for entry in written] == kept.names
        await kept.state.close()
        kept.state.release()
    run(life())
    assert read(path) == ["a", "b", "c"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert {each.name for each in path.parent.iterdir()} == {"state.json", "state.json.lock"}


def test_what_is_not_changed_is_not_written(path):
    async def life():
        kept = await Kept(path, "a").begin()
        before = path.stat().st_ino
        await kept.state.keep("nothing")
        assert path.stat().st_ino == before
        await kept.add("b")
        assert path.stat().st_ino != before
    run(life())


def test_changes_at_once_are_all_there(path):
    async def life():
        kept = await Kept(path).begin()
        await asyncio.gather(*(kept.add(f"n{i}") for i in range(50)))
        kept.state.release()
        assert read(path) == [f"n{i}" for i in range(50)]
    run(life())


def test_a_change_before_the_restored_state_is_complete_waits(path):
    async def life():
        kept = Kept(path, "restored")
        change = asyncio.create_task(kept.add("early"))
        await asyncio.sleep(0.05)
        assert not change.done() and not path.exists()
        await kept.begin()
        await change
        kept.state.release()
        assert read(path) == ["restored", "early"]
    run(life())


def test_nothing_is_written_after_the_end(path):
    async def life():
        kept = await Kept(path, "a").begin()
        await kept.state.close()
        with pytest.raises(OSError, match="adding late was done, but .* the program is stopping"):
            await kept.add("late")
        kept.state.release()
        assert read(path) == ["a"]
    run(life())


def test_a_link_is_followed(path):
    place = path.parent / "elsewhere"
    place.mkdir()
    path.symlink_to(place / "real.json")
    async def life():
        kept = await Kept(path).begin()
        await kept.add("a")
        kept.state.release()
    run(life())
    assert path.is_symlink() and read(place / "real.json") == ["a"]


# What cannot be written

def test_a_place_that_is_gone_loses_nothing(path):
    folder = path.parent / "folder"
    folder.mkdir()

    async def life():
        kept = await Kept(folder / "state.json").begin()
        await kept.add("a")
        away = folder.rename(path.parent / "away")
        for name in ("b", "c"):
            with pytest.raises(OSError, match=f"adding {name} was done, but the state file {folder}"
                               "/state.json cannot be written: No such file or directory; it has "
                               "what was before") as caught:
                await kept.add(name)
            assert caught.value.errno == 2
        away.rename(folder)
        assert '"b"' not in (folder / "state.json").read_text()
        await kept.add("d")             # with it, what could not be written before
        kept.state.release()
        assert read(folder / "state.json") == ["a", "b", "c", "d"]
    run(life())


def test_the_end_writes_what_could_not_be_written(path):
    folder = path.parent / "folder"
    folder.mkdir()

    async def life():
        kept = await Kept(folder / "state.json").begin()
        away = folder.rename(path.parent / "away")
        with pytest.raises(OSError):
            await kept.add("a")
        away.rename(folder)
        await kept.state.close()
        kept.state.release()
        assert read(folder / "state.json") == ["a"]
    run(life())


def fail(number):
    def failing(*_arguments):
        raise OSError(number, os.strerror(number))
    return failing


@pytest.mark.parametrize("step, at", [("fsync", 1), ("fsync", 2), ("rename", 1), ("open", 1)])
def test_every_step_may_fail(path, monkeypatch, step, at):
    """The old file is there afterwards, or the new one; the next one is whole."""
    async def life():
        kept = await Kept(path, "a").begin()
        real, calls = getattr(os, step), []

        def failing(*arguments, **named):
            calls.append(arguments)
            if len(calls) == at:
                raise OSError(28, os.strerror(28))
            return real(*arguments, **named)

        monkeypatch.setattr(state.os, step, failing)
        with pytest.raises(OSError, match="No space left on device") as caught:
            await kept.add("b")
        monkeypatch.undo()
        assert caught.value.errno == 28 and len(calls) == at
        kept.state.release()
        assert read(path) == (["a", "b"] if step == "fsync" and at == 2 else ["a"])
        assert not [each for each in path.parent.iterdir() if each.name.endswith(".new")]
        await kept.add("c")
        assert read(path) == ["a", "b", "c"]
    run(life())


@pytest.mark.parametrize("step", ["fsync"])
def test_the_first_file_that_cannot_be_written_ends_the_start(path, monkeypatch, step):
    kept = Kept(path, "a")
    monkeypatch.setattr(state.os, step, fail(28))
    with pytest.raises(StartError, match="cannot be written: No space left on device"):
        run(kept.begin())


# What cannot be read

def whole():
    return state.text_of(config("a", "b"))


def broken(text):
    """Every way in which a file gets damaged that people see."""
    yield "empty", ""
    yield "blank", "\n"
    yield "zeroes", "\0" * 4096
    yield "cut", text[:len(text) // 2]
    yield "cut at the end", text.rstrip()[:-1]
    yield "zeroes in it", text[:50] + "\0" * 20 + text[70:]
    yield "a value", text.replace('"a"', '"c"')
    yield "checksum", text.replace("crc32:", "crc32:0")
    yield "an entry less", text.replace('"bdev_null_create"', '"bdev_null_delete"', 1)


@pytest.mark.parametrize("text", [text for _, text in broken(whole())],
                         ids=[name for name, _ in broken(whole())])
def test_a_damaged_file_is_refused(path, text):
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        State(str(path)).open()
    line, = caught.value.lines
    assert line.startswith(f"state file {path} is damaged: ")
    assert "put a good one in its place, or remove it to begin with nothing" in line
    assert path.read_text() == text


def test_every_byte_counts(path):
    """A changed byte is found, unless what it says is the same: blanks, or the checksum's line."""
    text = whole()
    for at in range(len(text)):
        changed = text[:at] + ("x" if text[at] != "x" else "y") + text[at + 1:]
        path.write_text(changed)
        one = State(str(path))
        try:
            calls = one.open()
        except ConfigError:
            continue
        finally:
            one.release()
        assert text.index("checksum") <= at < text.index('":'), (at, changed)
        assert names_of(calls) == ["a", "b"]


def test_one_that_was_changed_by_hand_has_no_checksum(path):
    text = "\n".join(line for line in whole().split("\n") if "checksum" not in line)
    path.write_text(text.replace('"a"', '"mine"'))
    assert read(path) == ["mine", "b"]


def test_bytes_that_are_no_text(path):
    path.write_bytes(b"{\xff")
    with pytest.raises(ConfigError, match="this is not text in UTF-8"):
        State(str(path)).open()


def test_one_process_has_it(path):
    first = State(str(path))
    first.open()
    with pytest.raises(StartError, match=f"process {os.getpid()}.*state.json.lock.*--state"):
        State(str(path)).open()
    first.release()
    second = State(str(path))
    assert second.open() is None
    second.release()


def test_no_such_directory(path):
    with pytest.raises(StartError, match="no state can be kept in .*none: No such file or "
                       "directory; make the directory, or give --state another place"):
        State(str(path.parent / "none" / "state.json")).open()
