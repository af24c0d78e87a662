"""The command vhostrt-rpc: the RPC methods of a running target, each a subcommand.

What a method takes is asked of the target, so that it fits whichever version runs; without one, or
from a target that cannot tell, this version's own description is used.

Exit status: 0 done; 1 the target answered with an error; 2 bad usage; 3 no target can be reached;
4 the target ended, or took too long, before it answered. One sentence on stderr says what.
"""
import argparse
import json
import os
import shlex
import sys
from typing import Any

from vhostrt import stdio
from vhostrt.rpc.address import RPC_ADDR
from vhostrt.tools.rpc_client import (
    INVALID_PARAMS,
    METHOD_NOT_FOUND,
    Client,
    EndedError,
    LostError,
    RpcError,
)
from vhostrt.tools.rpc_words import (
    JSON,
    PARAMS,
    WORDS,
    add_common,
    free_params,
    params_of,
    parser_of,
)
from vhostrt.values import shown
from vhostrt.words import UsageError

NAME = "vhostrt-rpc"
ERROR, USAGE, UNREACHABLE, LOST = 1, 2, 3, 4
TIMEOUT_S = 60.0
KILL = "spdk_kill_instance"             # after which there may be no answer
EXAMPLES = f"""examples:
  {NAME} bdev_malloc_create 131072 512 --name ram0
  {NAME} vhost_create_blk_controller disk0 ram0
  {NAME} bdev_get_bdevs --json
  {NAME} bdev_null_create --params '{{"name": "n", "num_blocks": 8, "block_size": 512}}'
  {NAME} watch                        notifications as they come
  {NAME} METHOD --help                what a method takes
  eval "$({NAME} --completion)"       completion in bash or zsh

docs/vhostrt-rpc.md says more."""

Schema = dict[str, Any]                 # of one method, as rpc_get_schema describes it


def main(words: list[str] | None = None) -> int:
    """Run the command; return its exit status."""
    stdio.prepare()
    words = sys.argv[1:] if words is None else words
    try:
        if "_ARGCOMPLETE" in os.environ:
            from vhostrt.tools import rpc_complete
            rpc_complete.complete(NAME)
        return follow(words)
    except KeyboardInterrupt:
        return 128 + 2
    finally:
        stdio.settle()


def follow(words: list[str]) -> int:
    """Do what the words say, and say what keeps it from being done."""
    top = top_parser()
    asked = top.parse_args(words)
    try:
        if asked.completion:
            from vhostrt.tools import rpc_complete
            return say(rpc_complete.script(NAME))
        if asked.help:
            return say(top.format_help() + "\n" + method_list(asked))
        if asked.script is not None:
            return run_script(asked)
        if asked.method is None:
            raise UsageError("name a method (--help lists them)")
        return run(asked, None)
    except UsageError as error:
        return failed(f"{error}\nTry '{NAME} {asked.method or ''}'".rstrip("' ") + " --help'.",
                      USAGE)
    except RpcError as error:
        return refused(asked, error)
    except ConnectionError as error:
        return failed(str(error), UNREACHABLE)
    except LostError as error:
        return failed(str(error), LOST)


def failed(why: str, status: int) -> int:
    print(f"{NAME}: {why}", file=sys.stderr)
    return status


def refused(asked: argparse.Namespace, error: RpcError) -> int:
    """Print what the target answered: as JSON, where JSON is asked for."""
    if getattr(asked, JSON):
        print(json.dumps({"code": error.code, "message": error.message}), file=sys.stderr)
        return ERROR
    return failed(f"{asked.method}: {error.message} (error {error.code})", ERROR)


def say(text: str) -> int:
    """Print on stdout; return the exit status."""
    why = stdio.say(text)
    return failed(f"cannot print on stdout: {why}", LOST) if why else 0


def top_parser(method: bool = True) -> argparse.ArgumentParser:
    """Make the reader of what stands before a method's own words.

    method: also of the method, which takes all words behind it.
    """
    top = argparse.ArgumentParser(
        NAME, usage=f"{NAME} [options] METHOD [parameters]", add_help=False, allow_abbrev=False,
        description="Call an RPC method of a running vhostrt.", epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    top.add_argument("-h", "--help", action="store_true",
                     help="print this text and the methods there are, and exit")
    top.add_argument("-s", "--socket", metavar="ADDR", default=RPC_ADDR,
                     help="where the target listens, as its -r says (default: %(default)s)")
    top.add_argument("-t", "--timeout", metavar="S", type=seconds, default=TIMEOUT_S,
                     help="seconds that an answer may take (default: %(default)g)")
    add_common(top)
    top.add_argument("--script", metavar="FILE",
                     help="call what stands in a file, - for stdin: a method and its parameters a "
                     "line; ends with the first error")
    top.add_argument("--completion", action="store_true",
                     help="print what bash or zsh needs to complete this command's words, and exit")
    if method:
        top.add_argument("method", nargs="?", metavar="METHOD",
                         help="or watch: print notifications")
        top.add_argument("words", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    return top


def seconds(text: str) -> float:
    """Read a number of seconds, more than none."""
    value = float(text)
    if not 0 < value < 1e9:
        raise argparse.ArgumentTypeError(f"{shown(text)} is not a number of seconds")
    return value


# What a target says of its methods.

def own_schema() -> dict[str, Schema]:
    """Return what this version says of its methods."""
    from vhostrt.rpc.methods import METHODS
    from vhostrt.rpc.schema import schema_of
    return schema_of(METHODS)


def own_of(name: str) -> Schema | None:
    """Return what this version says of one method, by its name or an older one."""
    return next((about for known, about in own_schema().items()
                 if name == known or name in about["aliases"]), None)


def schema_by(client: Client) -> dict[str, Schema]:
    """Return what a target says of its methods; {} for those that it only has names of."""
    try:
        return client.call("rpc_get_schema")["methods"]
    except RpcError as error:
        if error.code != METHOD_NOT_FOUND:
            raise
    own = own_schema()
    names = names_of(client, older=False)
    return own if names is None else {name: own.get(name, {}) for name in names}


def names_of(client: Client, older: bool = True) -> list[str] | None:
    """Return the names of a target's methods, and older ones; None when it does not tell them."""
    try:
        return client.call("rpc_get_methods", {"include_aliases": older})
    except RpcError as error:
        if error.code != METHOD_NOT_FOUND:
            raise
    return None


def schema_for(client: Client, name: str) -> Schema:
    """Return what a target says of one method, {} when it cannot say.

    Fails: UsageError when the target has no such method.
    """
    try:
        methods = client.call("rpc_get_schema", {"method": name})["methods"]
        return next(iter(methods.values()))
    except RpcError as error:
        if error.code == INVALID_PARAMS:
            raise unknown(name, names_of(client) or []) from None
        if error.code != METHOD_NOT_FOUND:
            raise
    names = names_of(client)
    if names is not None and name not in names:
        raise unknown(name, names)
    return own_of(name) or {}


def unknown(name: str, names: list[str]) -> UsageError:
    """Return the refusal of a method that the target has not got, and what may be meant."""
    from difflib import get_close_matches
    close = get_close_matches(name, names, 3)
    meant = f"; did you mean {' or '.join(close)}?" if close else ""
    return UsageError(f"the target has no method {shown(name)}{meant}")


def method_list(asked: argparse.Namespace) -> str:
    """Return the methods, each with the first sentence about it."""
    try:
        with Client(asked.socket, asked.timeout) as client:
            schema, whose = schema_by(client), f"methods of the target at {asked.socket}:"
    except (ConnectionError, LostError):
        schema, whose = own_schema(), "methods (no target runs that could be asked for its own):"
    width = max(map(len, schema), default=0)
    return "\n".join([whose, *(
        f"  {name:{width}}  {about.get('description', '').partition(chr(10))[0]}".rstrip()
        for name, about in sorted(schema.items()))])


# Calls

def run(asked: argparse.Namespace, client: Client | None) -> int:
    """Call the method that is asked for. client: None for a connection of its own."""
    if asked.method == "watch":
        return run_watch(asked)
    if "-h" in asked.words or "--help" in asked.words:
        return help_of(asked)
    if client is None:
        with Client(asked.socket, asked.timeout) as own:
            return call(asked, own)
    return call(asked, client)


def call(asked: argparse.Namespace, client: Client) -> int:
    params = read_words(asked, client)
    try:
        result = client.call(asked.method, params)
    except EndedError:
        if asked.method != KILL:
            raise
        result = True
    return show(asked, result)


def read_words(asked: argparse.Namespace, client: Client) -> Any:
    """Return the parameters that the words behind the method say. Fails: UsageError."""
    if getattr(asked, PARAMS) is not None and not asked.words:
        return read_params(getattr(asked, PARAMS))
    about = schema_for(client, asked.method)
    if about:
        given = vars(parser_of(NAME, asked.method, about).parse_intermixed_args(asked.words))
        rest = given.pop(WORDS, [])
    else:
        common = argparse.ArgumentParser(f"{NAME} {asked.method}", add_help=False,
                                         argument_default=argparse.SUPPRESS, allow_abbrev=False)
        add_common(common, argparse.SUPPRESS)
        known, rest = common.parse_known_args(asked.words)
        given = vars(known)
    for key in (JSON, PARAMS):
        if key in given:
            setattr(asked, key, given.pop(key))
    if getattr(asked, PARAMS) is None:
        return params_of(given, rest, about) if about else free_params(rest)
    if given or rest:
        raise UsageError("--params has all parameters, and others are given beside it")
    return read_params(getattr(asked, PARAMS))


def read_params(text: str) -> Any:
    """Read --params: JSON, @FILE or - for stdin. Fails: UsageError."""
    if text == "-" or text.startswith("@"):
        text = read_file("--params", text.removeprefix("@"))
    try:
        params = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"--params: it is not JSON: {error}") from None
    if not isinstance(params, dict):
        raise UsageError("--params: it is not an object")
    return params


def read_file(option: str, name: str) -> str:
    """Return the text of a file, of stdin for -. Fails: UsageError."""
    try:
        with open(0 if name == "-" else name, encoding="utf-8", closefd=name != "-") as file:
            return file.read()
    except (OSError, ValueError) as error:
        raise UsageError(f"{option}: {shown(name)} cannot be read: "
                         f"{getattr(error, 'strerror', None) or error}") from None


def help_of(asked: argparse.Namespace) -> int:
    """Print what a method takes."""
    try:
        with Client(asked.socket, asked.timeout) as client:
            about = schema_for(client, asked.method)
    except (ConnectionError, LostError):
        own = own_of(asked.method)
        if own is None:
            raise unknown(asked.method, list(own_schema())) from None
        about = own
    if not about:
        return say(f"{asked.method}: the target does not describe it; write --name VALUE for a "
                   "parameter, or --params JSON")
    return say(parser_of(NAME, asked.method, about).format_help().rstrip())


def show(asked: argparse.Namespace, result: Any) -> int:
    """Print a result: a table on a terminal, else JSON."""
    if getattr(asked, JSON):
        return say(json.dumps(result, indent=2))
    from vhostrt.tools import rpc_show
    width = None
    if sys.stdout is not None and sys.stdout.isatty():
        from shutil import get_terminal_size
        width = get_terminal_size().columns
    text = rpc_show.text_of(asked.method, result, width)
    return say(text) if text else 0


def run_watch(asked: argparse.Namespace) -> int:
    from vhostrt.tools import rpc_watch
    given = rpc_watch.parser_of(NAME).parse_args(asked.words)
    given.json |= getattr(asked, JSON)
    with Client(asked.socket, asked.timeout) as client:
        try:
            return rpc_watch.watch(client, given, say)
        except KeyboardInterrupt:
            return 0


def run_script(asked: argparse.Namespace) -> int:
    """Call what stands in the lines of a file, over one connection. The first error ends it."""
    if asked.method is not None:
        raise UsageError(f"--script takes no method beside it, and {shown(asked.method)} is given")
    lines = read_file("--script", asked.script).splitlines()
    with Client(asked.socket, asked.timeout) as client:
        for number, line in enumerate(lines, 1):
            try:
                words = shlex.split(line, comments=True)
            except ValueError as error:
                raise UsageError(f"line {number}: {error}") from None
            if not words:
                continue
            one = top_parser().parse_args(words)
            asked.method = one.method
            one.__dict__[JSON] |= getattr(asked, JSON)
            if one.method in (None, "watch") or one.script is not None:
                raise UsageError(f"line {number}: a method and its parameters have to stand there")
            if status := run(one, client):
                return status
    return 0


if __name__ == "__main__":
    sys.exit(main())
