"""The configuration file of today: a list of RPC calls, replayed through the RPC's own dispatcher.

Fails: ConfigError with the position in the file, subsystems[i].config[j], of what is wrong.
"""
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Any

from vhostrt import log
from vhostrt.config import ConfigError
from vhostrt.values import shown

STARTUP, RUNTIME = 1, 2                 # the states of the RPC, as a method's mask has them

# Settings of SPDK modules that have no counterpart here. A file saved by SPDK carries them even
# where nobody set anything. Nothing that makes an object is in this list.
FOREIGN_METHODS = frozenset((
    "bdev_nvme_set_hotplug", "bdev_nvme_set_options", "bdev_raid_set_options", "bdev_set_options",
    "bdev_virtio_blk_set_hotplug", "bdev_wait_for_examine", "bdev_iscsi_set_options",
    "iscsi_set_options", "nvmf_set_config", "nvmf_set_crdt", "nvmf_set_max_subsystems",
    "vmd_enable",
))
FOREIGN_PREFIXES = ("accel_", "iobuf_", "keyring_", "sock_")


@dataclass(slots=True, frozen=True)
class Call:
    """One entry of the file."""

    subsystem: str
    method: str
    params: dict[str, Any] | None       # None: the entry has none
    position: str                       # "subsystems[6].config[2]"


def parse(text: str, path: str) -> list[Call]:
    """Return the calls of a file's text, in order. Fails: ConfigError."""
    import json
    try:
        root = json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError([f"{path}:{error.lineno}:{error.colno}: {error.msg}"]) from None
    except RecursionError:
        raise ConfigError([f"{path}: it is nested too deeply"]) from None
    except ValueError as error:
        raise ConfigError([f"{path}: {error}"]) from None
    wrong: list[str] = []
    if isinstance(root, dict) and isinstance(root.get("subsystems"), list):
        calls = list(read_subsystems(root["subsystems"], wrong))
    else:
        calls = []
        wrong.append('the file needs a list "subsystems" at its top')
    if wrong:
        raise ConfigError([f"{path}: {sentence}" for sentence in wrong])
    return calls


def read_subsystems(subsystems: list[Any], wrong: list[str]) -> Iterator[Call]:
    for i, subsystem in enumerate(subsystems):
        where = f"subsystems[{i}]"
        if not isinstance(subsystem, dict) or not isinstance(subsystem.get("subsystem"), str):
            wrong.append(f'{where} needs a name "subsystem"')
            continue
        entries = subsystem.get("config")
        if entries is None:
            continue                    # SPDK writes null for a subsystem that has nothing to say
        if not isinstance(entries, list):
            wrong.append(f'{where}: "config" has to be a list')
            continue
        for j, entry in enumerate(entries):
            call = read_entry(entry, subsystem["subsystem"], f"{where}.config[{j}]", wrong)
            if call:
                yield call


def read_entry(entry: Any, subsystem: str, where: str, wrong: list[str]) -> Call | None:
    if not isinstance(entry, dict) or not isinstance(entry.get("method"), str):
        wrong.append(f'{where} needs a name "method"')
        return None
    params = entry.get("params")
    if not (params is None or isinstance(params, dict)):
        wrong.append(f'{where}: "params" of {shown(entry["method"])} has to be an object')
        return None
    return Call(subsystem, entry["method"], params, where)


def foreign(method: str) -> bool:
    """True for a setting of an SPDK module that vhostrt does not have."""
    return method in FOREIGN_METHODS or method.startswith(FOREIGN_PREFIXES)


class Replay:
    """The calls of one file, made in two passes: before the subsystems start, and after.

    A method allowed in both states is called in the first pass only, as in SPDK.
    """

    def __init__(self, calls: list[Call], path: str,
                 mask_of: Callable[[str], int | None],
                 invoke: Callable[[str, dict[str, Any] | None], Awaitable[Any]],
                 ignore_errors: bool) -> None:
        """Take the calls of one file.

        mask_of        the states a method is allowed in, STARTUP | RUNTIME; None: no such method
        invoke         makes the call as an RPC client would; raises what the client would be told
        ignore_errors  log what fails and go on
        """
        self.calls, self.path = calls, path
        self.mask_of, self.invoke, self.ignore_errors = mask_of, invoke, ignore_errors
        self.known = self.keep_known()

    def keep_known(self) -> list[Call]:
        """Leave out foreign calls, named once each. Fails: ConfigError for unknown ones."""
        unknown = [call for call in self.calls if self.mask_of(call.method) is None]
        ignored = sorted({call.method for call in unknown if foreign(call.method)})
        if ignored:
            log.notice(f"{self.path}: ignored, settings of modules that vhostrt does not have: "
                       + ", ".join(ignored))
        self.fail([f"{self.path}: {call.position}: Method {shown(call.method)} not found"
                   for call in unknown if not foreign(call.method)])
        return [call for call in self.calls if call not in unknown]

    def fail(self, sentences: list[str]) -> None:
        if sentences and not self.ignore_errors:
            raise ConfigError(sentences)
        for sentence in sentences:
            log.error(sentence)

    async def run(self, state: int) -> None:
        """Make the calls of one state, one after the other. Fails: ConfigError."""
        for call in self.known:
            mask = self.mask_of(call.method) or 0
            first = STARTUP if mask & STARTUP else RUNTIME
            if state != first:
                continue
            try:
                await self.invoke(call.method, call.params)
            except Exception as error:      # noqa: BLE001 - as a client is told it, whatever it is
                why = str(error) or type(error).__name__
                self.fail([f"{self.path}: {call.position}: {call.method}: {why}"])
