"""Subsystems: the parts of the program that start one after another and stop in reverse.

Owner:   a Registry belongs to the application and owns the subsystems registered in it.
Threads: the control thread.
Fails:   SubsystemError with a sentence that names the subsystem.
"""
from collections.abc import Iterable
from typing import Any

from vhostrt import log


class SubsystemError(Exception):
    """A subsystem is missing, depends on itself, or could not start; the text says which."""


class Subsystem:
    """A part of the program with a start, a stop and a configuration of its own.

    name        as framework_get_subsystems lists it
    depends_on  names of the subsystems that have to run before
    rpc         modules that declare its RPC methods; imported when a program with it starts
    """

    name = ""
    depends_on: tuple[str, ...] = ()
    rpc: tuple[str, ...] = ()

    async def init(self) -> None:
        """Start; raise what goes wrong. fini() follows in that case, too."""

    async def fini(self) -> None:
        """Stop, also after an init() that failed or was cancelled half-way."""

    def config(self) -> list[dict[str, Any]]:
        """Return the calls {"method":, "params":} that would make the present state again."""
        return []

    def kept(self) -> list[dict[str, Any]]:
        """Return these calls for the file of --state: what was left to the program is left to it
        again, which may have been started with other options then."""
        return self.config()


class Registry:
    """The subsystems of one run, in registration order."""

    def __init__(self, subsystems: Iterable[Subsystem] = ()) -> None:
        self.registered: dict[str, Subsystem] = {}
        self.started: list[Subsystem] = []      # in the order of their start
        for subsystem in subsystems:
            self.register(subsystem)

    def register(self, subsystem: Subsystem) -> None:
        """Take a subsystem in, before start(). Fails: SubsystemError when its name is taken."""
        if subsystem.name in self.registered:
            raise SubsystemError(f"subsystem {subsystem.name} is registered twice")
        self.registered[subsystem.name] = subsystem

    def order(self) -> list[Subsystem]:
        """Return the subsystems in starting order: dependencies first, else as registered.

        Fails: SubsystemError for a dependency that is missing, or a circle of them.
        """
        for subsystem in self.registered.values():
            for name in subsystem.depends_on:
                if name not in self.registered:
                    raise SubsystemError(f"subsystem {subsystem.name} dependency {name} is missing")
        ordered: dict[str, Subsystem] = {}
        while len(ordered) < len(self.registered):
            before = len(ordered)
            for name, subsystem in self.registered.items():
                if name not in ordered and all(word in ordered for word in subsystem.depends_on):
                    ordered[name] = subsystem
            if len(ordered) == before:
                circle = ", ".join(name for name in self.registered if name not in ordered)
                raise SubsystemError(f"subsystems wait for each other: {circle}")
        return list(ordered.values())

    async def start(self) -> None:
        """Start all, one at a time. When one fails, stop it and those before it, in reverse.

        Fails: SubsystemError; what a cancelled init() raises is passed on as it is.
        """
        for subsystem in self.order():
            self.started.append(subsystem)
            log.debug("app", f"subsystem {subsystem.name} starts")
            try:
                await subsystem.init()
            except BaseException as error:
                await self.stop()
                if not isinstance(error, Exception):
                    raise
                raise SubsystemError(
                    f"Init subsystem {subsystem.name} failed: {text_of(error)}") from error

    async def stop(self) -> None:
        """Stop what was started, last first; an error is logged and the next one is stopped."""
        while self.started:
            subsystem = self.started.pop()
            log.debug("app", f"subsystem {subsystem.name} stops")
            try:
                await subsystem.fini()
            except Exception as error:      # noqa: BLE001 - the rest has to stop, whatever this is
                log.error(f"Fini subsystem {subsystem.name} failed: {text_of(error)}")

    def describe(self) -> list[dict[str, Any]]:
        """Return what framework_get_subsystems answers."""
        return [{"subsystem": subsystem.name, "depends_on": list(subsystem.depends_on)}
                for subsystem in self.order()]

    def config(self, name: str) -> list[dict[str, Any]]:
        """Return the configuration of one subsystem. Fails: SubsystemError for an unknown name."""
        if name not in self.registered:
            raise SubsystemError(f"there is no subsystem {name!a}")
        return self.registered[name].config()

    def save(self) -> dict[str, Any]:
        """Return the whole configuration, in the form that --config reads."""
        return {"subsystems": [{"subsystem": subsystem.name, "config": subsystem.config()}
                               for subsystem in self.order()]}

    def kept(self) -> dict[str, Any]:
        """Return it as --state keeps it."""
        return {"subsystems": [{"subsystem": subsystem.name, "config": subsystem.kept()}
                               for subsystem in self.order()]}


def text_of(error: BaseException) -> str:
    """Return an error's text, or its kind where it has none."""
    return str(error) or type(error).__name__
