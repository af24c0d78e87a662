"""RPC methods: how one is declared, checked and called, by clients and within the process.

A method is an async function of the dispatcher and, where it has parameters, of one structure that
declares them:

    class Params(Parameters):
        name: Name
        timeout: Count = 0

    @method("bdev_get_bdevs", aliases=("get_bdevs",))
    async def bdev_get_bdevs(rpc: Dispatcher, params: Params) -> list: ...

Threads:  the control thread.
Fails:    RpcError, and OSError for a negative errno; Dispatcher.call turns everything else into
          RpcError with INTERNAL_ERROR and one line in the log.
"""
import asyncio
import contextlib
import enum
import errno
import os
import re
import traceback
import typing
from collections.abc import Awaitable, Callable, Iterable
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from vhostrt import log

PARSE_ERROR = -32700
INVALID_REQUEST = -32600
METHOD_NOT_FOUND = -32601
INVALID_PARAMS = -32602
INTERNAL_ERROR = -32603
INVALID_STATE = -1

# What parameters are made of.  The description is the second half of "'name' must be ...".
INT_MAX = 2**63 - 1
Name = Annotated[str, Meta(min_length=1, max_length=255, description="a string of 1 to 255 "
                           "characters")]
Path = Annotated[str, Meta(min_length=1, max_length=4095, pattern=r"^[^\0]+$",
                           description="a path of 1 to 4095 characters without NUL")]
Count = Annotated[int, Meta(ge=0, le=INT_MAX, description="an integer that is not negative")]
Positive = Annotated[int, Meta(ge=1, le=INT_MAX, description="a positive integer")]

NOUNS = {str: "a string", bool: "true or false", int: "an integer", float: "a number",
         list: "an array", dict: "an object"}


class Parameters(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Base of the structures that declare a method's parameters."""


class State(enum.IntFlag):
    """How far the start has come; a method says in which states it may be called."""

    STARTUP = 1         # the subsystems are not initialised
    RUNTIME = 2


ANY_STATE = State.STARTUP | State.RUNTIME


class RpcError(Exception):
    """What a client gets instead of a result.  code: int; message: str, one sentence."""

    def __init__(self, code: int, message: str):
        super().__init__(message)
        self.code = code
        self.message = message


class Method(typing.NamedTuple):
    """A declared method.  parameters is None where it takes none."""

    name: str
    function: Callable[..., Awaitable[Any]]
    parameters: type[Parameters] | None
    states: State
    aliases: tuple[str, ...]
    waits: bool         # only waits: may be cancelled when nobody is left to hear the answer


METHODS: dict[str, Method] = {}


def method(name: str, *, states: State = State.RUNTIME, aliases: tuple[str, ...] = (),
           waits: bool = False, table: dict[str, Method] = METHODS):
    """Declare the decorated async function as the RPC method `name`.

    aliases: older names that work too.  waits: it changes nothing, and may be cancelled.
    """
    def declare(function):
        parameters = typing.get_type_hints(function).get("params")
        known = Method(name, function, parameters, states, aliases, waits)
        for each in (name, *aliases):
            if each in table:
                raise ValueError(f"the RPC method {each} is declared twice")
            table[each] = known
        return function
    return declare


def refuse(why: str) -> RpcError:
    """Return the error for parameters that cannot be taken."""
    return RpcError(INVALID_PARAMS, f"Invalid parameters: {why}")


@contextlib.contextmanager
def refusing():
    """Around what checks values: its ValueError, one sentence, becomes the refusal of them."""
    try:
        yield
    except ValueError as e:
        raise refuse(str(e)) from e


class Target(typing.Protocol):
    """What the methods need of the program that they are methods of."""

    subsystems: Any                     # vhostrt.subsystem.Registry
    cpu_times: Any                      # vhostrt.event.cpus.Times at its start
    monitor: Any                        # vhostrt.event.monitor.ContextSwitchMonitor

    async def start_init(self) -> None:
        """Have the subsystems initialised, and return when they are; SubsystemError."""


class Dispatcher:
    """Calls methods by name.

    table: the methods.  target: the running program, for the methods that need it.
    allowed: the names that clients may call, or None for all; the process itself may call all.
    """

    def __init__(self, target: Target | None = None, *, table: dict[str, Method] = METHODS,
                 allowed: Iterable[str] | None = None):
        self.table = table
        self.target = target
        self.state = State.STARTUP
        self.initialised = asyncio.Event()
        # Awaited with the name of a method that may have changed something; OSError: not kept.
        self.keep: Callable[[str], Awaitable[None]] | None = None
        self.allowed = None if allowed is None else frozenset(allowed)
        if self.allowed is not None and (unknown := self.allowed - table.keys()):
            raise ValueError(f"no RPC method is named {', '.join(sorted(unknown))}")

    def enter_runtime(self) -> None:
        """Go over to State.RUNTIME and let those go on who wait for it."""
        self.state = State.RUNTIME
        self.initialised.set()

    def states_of(self, name: str) -> State | None:
        """Return in which states the method `name` (str) may be called; None: no such method."""
        known = self.table.get(name)
        return known.states if known else None

    def exposes(self, name: str) -> bool:
        """Return whether clients may call `name` (str)."""
        return name in self.table and (self.allowed is None or name in self.allowed)

    async def call(self, name: str, params: Any = None) -> Any:
        """Call a method and return its result, of plain JSON types.

        params: dict by name, or None (an empty list is taken as None).
        Raises RpcError and nothing else, save CancelledError.
        """
        known = self.table.get(name)
        if known is None:
            raise RpcError(METHOD_NOT_FOUND, "Method not found")
        if not known.states & self.state:
            raise RpcError(INVALID_STATE, wrong_state(name, known))
        arguments = check(known, params)
        try:
            return await known.function(self, *arguments)
        except RpcError:
            raise
        except OSError as e:
            raise of_os_error(e) from e
        except MemoryError as e:
            raise RpcError(-errno.ENOMEM, f"not enough memory for {name}") from e
        except Exception as e:
            raise internal(f"RPC method {name}", e) from e

    async def serve(self, name: str, params: Any = None) -> Any:
        """Call a method for a client: what it changes is kept before it is answered."""
        if self.keep is None or not may_change(self.table[name]):
            return await self.call(name, params)
        try:
            result = await self.call(name, params)
        except RpcError:
            with contextlib.suppress(RpcError):     # it may have done a part
                await self.keep_change(name)
            raise
        await self.keep_change(name)
        return result

    async def keep_change(self, name: str) -> None:
        """Have what a method has changed kept.  RpcError when it is not.

        Before the subsystems are initialised nothing is: their start keeps it with the rest.
        """
        if self.state & State.STARTUP:
            return
        try:
            await self.keep(name)
        except OSError as e:
            raise of_os_error(e) from e
        except Exception as e:
            raise internal(f"keeping what {name} has done", e) from e


def may_change(known: Method) -> bool:
    """Return whether a method may change what is kept: one that only reads or waits does not."""
    return not known.waits and "_get_" not in known.name and known.name != "save_config"


def internal(where: str, error: Exception) -> RpcError:
    """Log an error that nobody expected, in one line, and return what the client is told."""
    place, line, function = "", 0, ""
    for frame, at in traceback.walk_tb(error.__traceback__):    # the last is where it was raised
        code, line = frame.f_code, at
        place, function = code.co_filename.rpartition("/")[2], code.co_name
    log.record(log.ERROR, place, line, function, f"{where} failed: {error!r}")
    return RpcError(INTERNAL_ERROR, "Internal error: the log of the program says more")


def of_os_error(error: OSError) -> RpcError:
    """Return the RpcError with the negative errno of an OSError and the best text it has."""
    code = -error.errno if error.errno else INTERNAL_ERROR
    text = error.strerror or (os.strerror(error.errno) if error.errno else str(error))
    name = error.filename
    return RpcError(code, f"{os.fsdecode(name)}: {text}" if isinstance(name, str | bytes) else text)


def wrong_state(name: str, known: Method) -> str:
    if known.states & State.RUNTIME:
        return f"{name} can be called only after the subsystems are initialised " \
               "(framework_start_init, framework_wait_init)"
    return f"{name} can be called only before the subsystems are initialised " \
           "(start with --wait-for-rpc)"


def check(known: Method, params: Any) -> tuple:
    """Return the arguments of a method's function behind the first; RpcError when they are wrong.
    """
    if params is None or params == []:
        params = {}
    if not isinstance(params, dict):
        raise refuse("they must be an object, that is, given by name")
    if known.parameters is None:
        if params:
            raise refuse(f"{known.name} takes no parameters, not {shown(next(iter(params)))}")
        return ()
    # 4.0 and 4e0 are the number 4 in JSON, and to SPDK.
    params = {key: int(value) if isinstance(value, float) and value.is_integer() else value
              for key, value in params.items()}
    try:
        return (msgspec.convert(params, known.parameters),)
    except (msgspec.ValidationError, RecursionError) as e:
        raise refuse(explain(str(e), params, known)) from e


MESSAGE = re.compile(r"(?s)(?P<reason>.*?)(?: - at `(?P<path>\$[^`]*)`)?\Z")
FIELD = re.compile(r"\$\.(\w+)")
QUOTED = re.compile(r"(?s)`(.*)`")


def explain(text: str, params: dict, known: Method) -> str:
    """Say in this program's words what msgspec found (text) in the parameters of a method."""
    found = MESSAGE.match(text)
    path, reason = found["path"] or "$", found["reason"]
    field = FIELD.match(path)
    if field is None:
        quoted = QUOTED.search(reason)
        if reason.startswith("Object missing") and quoted:
            return f"missing '{quoted[1]}'"
        if reason.startswith("Object contains unknown") and quoted:
            return f"{known.name} has no parameter {shown(quoted[1])}"
        return reason
    hint = typing.get_type_hints(known.parameters, include_extras=True)[field[1]]
    inner = field[0] != path or reason.startswith("Object")
    where = f" ({reason} at {path[2:]})" if inner else ""
    return f"'{field[1]}' must be {described(hint)}, not {shown(params.get(field[1]))}{where}"


def described(hint: Any) -> str:
    """Return in words what a type hint allows: "a positive integer"."""
    for meta in getattr(hint, "__metadata__", ()):
        if isinstance(meta, Meta) and meta.description:
            return meta.description
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return described(arguments[0])
    if origin is typing.Literal:
        return "one of " + ", ".join(map(str, arguments))
    if arguments and origin not in (list, dict, tuple):
        return " or ".join(described(a) for a in arguments if a is not type(None))
    return NOUNS.get(origin or hint, "an object")


def shown(value: Any) -> str:
    """Return a value as JSON, cut to a length that fits into a sentence."""
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else "an array"
    try:
        text = msgspec.json.encode(value).decode()
    except (OverflowError, UnicodeEncodeError):
        return "what cannot be shown"
    return text if len(text) <= 60 else text[:57] + "..."
