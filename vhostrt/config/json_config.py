"""The configuration file of today: a list of RPC calls, replayed through the RPC's own dispatcher.

Fails: ConfigError with the line and the position in the file, subsystems[i].config[j], of what is
       wrong.
"""
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Any

from vhostrt import log
from vhostrt.config import ConfigError
from vhostrt.config.foreign import IGNORED
from vhostrt.values import shown

STARTUP, RUNTIME = 1, 2                 # the states of the RPC, as a method's mask has them

# What would wait for the end of the file, or for that of the program.
NOT_IN_A_FILE = frozenset((
    "framework_start_init", "framework_wait_init", "load_config", "spdk_kill_instance",
    "start_subsystem_init", "wait_subsystem_init", "kill_instance",
))


@dataclass(slots=True, frozen=True)
class Call:
    """One entry of the file."""

    subsystem: str
    method: str
    params: dict[str, Any] | None       # None: the entry has none
    position: str                       # "subsystems[6].config[2]"; of an INI file its "[Section]"
    line: int = 0                       # of the file, from 1; 0: there is none

    def place(self, path: str) -> str:
        """Return where it stands, for a message. path: of the file, or "" for none."""
        return place(path, self.position, self.line)


def place(path: str, position: str, line: int = 0) -> str:
    where = f"{path}:{line}" if line else path
    return f"{where}: {position}" if where else position


def parse(text: str, path: str) -> list[Call]:
    """Return the calls of a file's text, in order. Fails: ConfigError."""
    from vhostrt.config.places import lines_of
    root = read(text, path)
    lines = lines_of(text)
    wrong: list[str] = []
    if isinstance(root, dict) and isinstance(root.get("subsystems"), list):
        calls = list(read_subsystems(root["subsystems"], Reader(path, lines, wrong)))
    else:
        calls = []
        wrong.append(f'{path}: the file needs a list "subsystems" at its top')
    if wrong:
        raise ConfigError(wrong)
    return calls


def read(text: str, path: str) -> Any:
    """Return the value that a file's text is. Fails: ConfigError."""
    import json
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError([f"{path}:{error.lineno}:{error.colno}: {error.msg}"]) from None
    except RecursionError:
        raise ConfigError([f"{path}: it is nested too deeply"]) from None
    except ValueError as error:
        raise ConfigError([f"{path}: {error}"]) from None


@dataclass(slots=True)
class Reader:
    """What reading the entries needs to say where one is wrong.

    lines  of the file, by position; none where there is no file
    wrong  one sentence for each thing that is
    """

    path: str
    lines: dict[str, int]
    wrong: list[str]

    def refuse(self, position: str, sentence: str) -> None:
        self.wrong.append(place(self.path, position, self.lines.get(position, 0)) + sentence)


def read_subsystems(subsystems: list[Any], reader: Reader) -> Iterator[Call]:
    """Yield the calls of a list of subsystems."""
    for i, subsystem in enumerate(subsystems):
        where = f"subsystems[{i}]"
        if not isinstance(subsystem, dict) or not isinstance(subsystem.get("subsystem"), str):
            reader.refuse(where, ' needs a name "subsystem"')
            continue
        entries = subsystem.get("config")
        if entries is None:
            continue                    # SPDK writes null for a subsystem that has nothing to say
        if not isinstance(entries, list):
            reader.refuse(where, ': "config" has to be a list')
            continue
        yield from read_entries(entries, subsystem["subsystem"], f"{where}.config", reader)


def read_entries(entries: list[Any], subsystem: str, where: str, reader: Reader) -> Iterator[Call]:
    """Yield the calls of one list; a list within it is a batch of v26.05, called one by one."""
    for i, entry in enumerate(entries):
        position = f"{where}[{i}]"
        if isinstance(entry, list) and where.endswith(".config"):
            yield from read_entries(entry, subsystem, position, reader)
        elif call := read_entry(entry, subsystem, position, reader):
            yield call


def read_entry(entry: Any, subsystem: str, position: str, reader: Reader) -> Call | None:
    if not isinstance(entry, dict) or not isinstance(entry.get("method"), str):
        reader.refuse(position, ' needs a name "method"')
        return None
    params = entry.get("params")
    if not (params is None or isinstance(params, dict)):
        reader.refuse(position, f': "params" of {shown(entry["method"])} has to be an object')
        return None
    return Call(subsystem, entry["method"], params, position, reader.lines.get(position, 0))


class Replay:
    """The calls of one file, made in two passes: before the subsystems start, and after.

    A method allowed in both states is called in the first pass only, as in SPDK.
    """

    def __init__(self, calls: list[Call], path: str,
                 mask_of: Callable[[str], int | None],
                 invoke: Callable[[str, dict[str, Any] | None], Awaitable[Any]],
                 ignore_errors: bool) -> None:
        """Take the calls of one file, or of none: path "".

        mask_of        the states a method is allowed in, STARTUP | RUNTIME; None: no such method
        invoke         makes the call as an RPC client would; raises what the client would be told
        ignore_errors  log what fails and go on
        """
        self.calls, self.path = calls, path
        self.mask_of, self.invoke, self.ignore_errors = mask_of, invoke, ignore_errors
        self.known = self.keep_known()

    def keep_known(self) -> list[Call]:
        """Leave out foreign calls, named once each.

        Fails: ConfigError for unknown ones, and for what has no place in a file.
        """
        unknown = [call for call in self.calls if self.mask_of(call.method) is None]
        ignored = sorted({call.method for call in unknown if call.method in IGNORED})
        if ignored:
            log.notice(place(self.path, "ignored, settings of modules that vhostrt does not have: ")
                       + ", ".join(ignored))
        self.fail([unknown_method(call, self.path) for call in unknown
                   if call.method not in IGNORED])
        known = [call for call in self.calls if self.mask_of(call.method) is not None]
        self.fail([f"{call.place(self.path)}: {call.method} has no place in a configuration: "
                   "remove the entry" for call in known if call.method in NOT_IN_A_FILE])
        return [call for call in known if call.method not in NOT_IN_A_FILE]

    def fail(self, sentences: list[str], cause: Exception | None = None) -> None:
        """Refuse, or where errors are ignored log, what these sentences say. Fails: ConfigError."""
        if sentences and not self.ignore_errors:
            raise ConfigError(sentences) from cause
        for sentence in sentences:
            log.error(sentence)

    def first_state(self, call: Call) -> int:
        """Return the state in which a call is made."""
        return STARTUP if (self.mask_of(call.method) or 0) & STARTUP else RUNTIME

    async def run(self, state: int) -> None:
        """Make the calls of one state, one after the other. Fails: ConfigError."""
        for call in self.known:
            if state == self.first_state(call):
                await self.make(call)

    async def make(self, call: Call) -> None:
        try:
            await self.invoke(call.method, call.params)
        except Exception as error:      # noqa: BLE001 - as a client is told it, whatever it is
            why = str(error) or type(error).__name__
            self.fail([f"{call.place(self.path)}: {call.method}: {why}"], error)


def unknown_method(call: Call, path: str) -> str:
    """Say that there is no such method, and what to do."""
    if call.position.startswith("["):           # of an INI file
        return (f"{call.place(path)}: the module of this section is not there yet (it needs "
                f"{call.method}): remove the section")
    return (f"{call.place(path)}: Method {shown(call.method)} not found: remove the entry, or pass "
            "over what fails with --json-ignore-init-errors")
