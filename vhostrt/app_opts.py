"""What an application is asked to be.

Threads: any, before the application starts.
Fails:   ValueError with one sentence that names the field and its value.
"""
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from types import NoneType, UnionType
from typing import Any, get_args, get_origin

from vhostrt import log
from vhostrt.options import TABLE, RuntimeOptions, check_environment, check_together
from vhostrt.subsystem import Subsystem
from vhostrt.values import shown
from vhostrt.words import HelpAsked, UsageError

# What reads a field from the words of the command line, and whether there may be several.
READERS = {option.field: (option.value, option.many) for option in TABLE if option.argument}

KINDS = {str: "a str", int: "a whole number", bool: "True or False", tuple: "a list of such",
         Callable: "a function", Iterable: "a list of vhostrt.app.Subsystem", NoneType: "None"}


@dataclass(slots=True, kw_only=True)
class AppOpts(RuntimeOptions):
    """What an application is asked to be; the fields that follow, and those of RuntimeOptions.

    name            for the log and the environment
    subsystems      the parts it is made of; none, its own, those of the vhost target
    shutdown_cb     called on the first SIGINT, SIGTERM or SIGHUP with the running App, instead of
                    its stop(), which it has to call in the end; may be a coroutine function
    signal_handlers have these signals stop the application, as long as it runs
    rpc_addr        one address or several; none, its own: there is no RPC server

    A field may be given in the words of the command line: cores="0x3", mem_size="64M",
    lcore_map="0@2,1@3"; cores also as numbers, lcore_map as a dict. mem_size is in MiB.
    """

    name: str = "app"
    subsystems: Iterable[Subsystem] = ()
    shutdown_cb: Callable[[Any], Any] | None = None
    signal_handlers: bool = True

    def __post_init__(self) -> None:
        """Read and check the fields. Fails: ValueError."""
        for field in fields(self):
            value = getattr(self, field.name)
            if value is not field.default:
                kinds = kinds_of(field.type)
                value = self.read(field.name, value, kinds)
                check_kind(field.name, value, kinds)
                setattr(self, field.name, value)
        self.subsystems = tuple(self.subsystems)
        if not all(isinstance(each, Subsystem) for each in self.subsystems):
            raise ValueError(f"AppOpts subsystems: {shown(repr(self.subsystems))} are not all of "
                             "vhostrt.app.Subsystem")
        try:
            check_together(self)
            check_environment(self)
        except UsageError as error:
            raise ValueError(f"AppOpts: {error}") from None
        except HelpAsked:
            raise ValueError("AppOpts env_context: there is nothing to start when it asks for "
                             "help") from None

    def read(self, name: str, value: Any, kinds: tuple[Any, ...]) -> Any:
        """Return a field's value in the form that it is used in."""
        reader, many = READERS.get(name, (None, False))
        try:
            if name == "print_level":
                return read_level(value)
            if many and value is None:
                return ()
            if many:
                texts = [value] if isinstance(value, str) else value
                return tuple(reader(text) for text in texts)
            if reader is not None and isinstance(value, str):
                return reader(value)
            if name == "cores" and value is not None:
                return read_numbers(value)
            if name == "lcore_map" and isinstance(value, dict):
                return tuple(sorted((lcore, read_numbers(cpus)) for lcore, cpus in value.items()))
            if reader is not None and int in kinds and type(value) is int:
                return reader(str(value))
        except (ValueError, TypeError) as error:
            raise ValueError(f"AppOpts {name}: {error}") from None
        return tuple(value) if isinstance(value, list) else value


def kinds_of(hint: Any) -> tuple[Any, ...]:
    """Return the types that a hint allows, without what is in them."""
    hints = get_args(hint) if isinstance(hint, UnionType) else (hint,)
    return tuple(get_origin(each) or each for each in hints)


def check_kind(name: str, value: Any, kinds: tuple[Any, ...]) -> None:
    """Refuse a value that is not of a kind that a field has. Fails: ValueError."""
    if not isinstance(value, kinds) or isinstance(value, bool) and bool not in kinds:
        words = [KINDS[kind] for kind in kinds if kind in KINDS]
        raise ValueError(f"AppOpts {name}: {shown(repr(value))} must be {' or '.join(words)}")


def read_numbers(value: Any) -> tuple[int, ...]:
    """Read numbers of CPUs: one, or several."""
    found = sorted({value} if isinstance(value, int) else set(value))
    if not found or not all(isinstance(n, int) and 0 <= n < 65536 for n in found):
        raise ValueError(f"{value!r} are no numbers of CPUs")
    return tuple(found)


def read_level(value: Any) -> int:
    """Read a print level: ERROR to DEBUG, by name or number."""
    if value in log.NAMES:
        return log.NAMES.index(value)
    if isinstance(value, int) and 0 <= value < len(log.NAMES):
        return value
    raise ValueError(f"{shown(str(value))} is none of {', '.join(log.NAMES)}")
