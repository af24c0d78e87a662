"""Completion of vhostrt-rpc's words in bash and zsh: methods, their options, and names of things.

The shell runs the command at each Tab with _ARGCOMPLETE in its environment (argcomplete); what is
offered is asked of the target that the words so far name, and is this version's own without one.

Fails: never; where nothing can be found out nothing is offered.
"""
import argparse
import os
from collections.abc import Callable
from typing import Any

import argcomplete

from vhostrt.tools import rpc, rpc_watch
from vhostrt.tools.rpc_client import Client, LostError, RpcError
from vhostrt.tools.rpc_words import choices_of, kinds_of, parser_of

TIMEOUT_S = 1.0
# Whose values are names of what the target has: parameter, or method and parameter -> the method
# that lists them, and the key of the names.
BDEVS, CONTROLLERS = ("bdev_get_bdevs", "name"), ("vhost_get_controllers", "ctrlr")
NAMES = {"dev_name": BDEVS, "ctrlr": CONTROLLERS, "vhost_get_controllers.name": CONTROLLERS,
         "log_set_flag.flag": ("log_get_flags", ""), "log_clear_flag.flag": ("log_get_flags", ""),
         "rpc_get_schema.method": ("rpc_get_methods", "")}
FILES = {"filename", "socket"}          # whose values are


def script(command: str) -> str:
    """Return what a shell has to evaluate; it is the same for bash and zsh."""
    return argcomplete.shellcode([command])


def words_before(text: str, point: int) -> list[str]:
    """Return the words of a command line up to the cursor, without the command."""
    split = argcomplete.split_line(text, point)
    return split[3][1:]


class Target:
    """What the target that the words name says of itself, asked once for each."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.answers: dict[str, Any] = {}

    def ask(self, method: str) -> Any:
        """Return the answer of a method, None when there is none."""
        if method not in self.answers:
            self.answers[method] = None
            try:
                with Client(self.address, TIMEOUT_S) as client:
                    self.answers[method] = client.call(method)
            except (ConnectionError, LostError, RpcError):
                pass
        return self.answers[method]

    def schema(self) -> dict[str, Any]:
        """Return the methods that there are, and what they take."""
        try:
            with Client(self.address, TIMEOUT_S) as client:
                return rpc.schema_by(client)
        except (ConnectionError, LostError, RpcError):
            return rpc.own_schema()

    def names(self, method: str, key: str) -> list[str]:
        """Return the names of what a method lists."""
        listed = self.ask(method) or ()
        return [str(each[key] if key else each) for each in listed]


def complete(command: str) -> None:
    """Answer the shell and end the process, where this is called by one."""
    text, point = os.environ.get("COMP_LINE", ""), int(os.environ.get("COMP_POINT", "0"))
    words = words_before(text, point)
    target = Target(address_in(words))
    argcomplete.autocomplete(parser_for(command, words, target), always_complete_options="long")


def address_in(words: list[str]) -> str:
    """Return the address of the target that the words so far name."""
    for at, word in enumerate(words):
        if word in ("-s", "--socket") and at + 1 < len(words):
            return words[at + 1]
        if word.startswith("--socket="):
            return word.partition("=")[2]
    return rpc.RPC_ADDR


def parser_for(command: str, words: list[str], target: Target) -> argparse.ArgumentParser:
    """Make a parser of the whole command; of the methods only the one that is named has options."""
    top = rpc.top_parser(method=False)
    methods = top.add_subparsers(dest="method")
    for name, about in target.schema().items():
        if name in words and about:
            parser = parser_of(command, name, about)
            add_completers(parser, name, about, target)
            parser.prog = name
            methods.add_parser(name, parents=[parser], add_help=False, conflict_handler="resolve",
                               help=first_line(about))
        else:
            methods.add_parser(name, help=first_line(about))
    watch = methods.add_parser("watch", parents=[rpc_watch.parser_of(command)], add_help=False,
                               conflict_handler="resolve", help="Print notifications.")
    for action in watch._actions:
        if action.dest == "types":
            action.completer = lambda **_: target.names("notify_get_types", "")  # type: ignore
    return top


def first_line(about: dict[str, Any]) -> str:
    """Return what zsh shows beside a method."""
    return about.get("description", "").partition("\n")[0].replace("%", "%%")


def add_completers(parser: argparse.ArgumentParser, method: str, about: dict[str, Any],
                   target: Target) -> None:
    """Say for each parameter what its values may be."""
    properties = about["params"].get("properties", {})
    by_name = {name: completer_of(method, name, form, target)
               for name, form in properties.items()}
    for action in parser._actions:
        if action.dest in by_name:
            action.completer = by_name[action.dest]             # type: ignore[attr-defined]
        elif not action.option_strings:
            first = about["params"].get("required", [None])[0]
            action.completer = by_name.get(first)               # type: ignore[attr-defined]


def completer_of(method: str, name: str, form: dict[str, Any],
                 target: Target) -> Callable[..., Any]:
    """Return what argcomplete calls for the values of one parameter."""
    if choices := choices_of(form):
        return lambda **_: choices
    if name in FILES:
        return argcomplete.FilesCompleter()
    source = NAMES.get(f"{method}.{name}") or NAMES.get(name)
    if source is None and name == "name" and method.startswith("bdev_") and "create" not in method:
        source = BDEVS
    if source is not None:
        listed = source
        return lambda **_: target.names(*listed)
    return lambda **_: [] if kinds_of(form) else None
