"""The words behind a method's name, read by the schema of its parameters.

Each parameter is an option of its name, --num-blocks for num_blocks; those that are required may
stand without their names, in their order. A yes-or-no is --readonly or --no-readonly.

Fails:    argparse ends the program with status 2 and a sentence; UsageError likewise.
"""
import argparse
import json
from collections.abc import Iterable, Iterator
from typing import Any

from vhostrt.values import shown
from vhostrt.words import UsageError

Form = dict[str, Any]                   # the schema of one parameter

# Where argparse puts what is no parameter: names that no parameter has.
JSON, PARAMS, WORDS = "@json", "@params", "@words"


class HelpFormat(argparse.HelpFormatter):
    """Help with room for the names of parameters."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=34)


def kinds_of(form: Form) -> set[str]:
    """Return the JSON types that a schema allows, null left out; empty: any."""
    found: set[str] = set()
    for choice in form.get("anyOf", (form,)):
        kinds = choice.get("type", ())
        found |= {kinds} if isinstance(kinds, str) else set(kinds)
        found |= {json_kind(value) for value in choice.get("enum", ())}
    return found - {"null"}


def json_kind(value: Any) -> str:
    return "string" if isinstance(value, str) else "integer"


def choices_of(form: Form) -> list[str]:
    """Return the words that a parameter may be, where only certain ones are taken."""
    return [str(value) for choice in form.get("anyOf", (form,))
            for value in choice.get("enum", ())]


def read_value(form: Form, text: str) -> Any:
    """Return the value that a word means for a parameter. Fails: ValueError with a sentence."""
    kinds, choices = kinds_of(form), choices_of(form)
    if choices and text not in choices:
        raise ValueError(f"{shown(text)} is none of {', '.join(choices)}")
    if not kinds or kinds & {"array", "object"}:
        return read_json(text, kinds)
    if "integer" in kinds:
        try:
            return int(text, 0)
        except ValueError:
            if not kinds & {"string", "number"}:
                raise ValueError(f"{shown(text)} is not an integer") from None
    if "number" in kinds:
        try:
            return float(text)
        except ValueError:
            raise ValueError(f"{shown(text)} is not a number") from None
    if kinds == {"boolean"}:
        if text not in ("true", "false"):
            raise ValueError(f"{shown(text)} is neither true nor false")
        return text == "true"
    return text


def read_json(text: str, kinds: set[str]) -> Any:
    """Return what a word means in JSON; where an array may be, it may be a comma list of words."""
    try:
        return json.loads(text)
    except ValueError:
        if not kinds:
            return text
        if "array" in kinds and text[:1] not in ("[", "{"):
            return text.split(",")
        raise ValueError(f"{shown(text)} is not JSON") from None


def parser_of(prog: str, method: str, about: dict[str, Any]) -> argparse.ArgumentParser:
    """Make the reader of one method's words. about: what rpc_get_schema says of the method."""
    properties = about["params"].get("properties", {})
    required = about["params"].get("required", ())
    usage = " ".join([f"{prog} {method} [options]", *(name.upper() for name in required)])
    parser = argparse.ArgumentParser(
        prog=f"{prog} {method}", usage=usage, description=about["description"],
        formatter_class=HelpFormat, argument_default=argparse.SUPPRESS, allow_abbrev=False,
        conflict_handler="resolve")     # a parameter named as an option of ours has the name
    add_common(parser, argparse.SUPPRESS)
    if not properties:
        return parser
    group = parser.add_argument_group(
        "parameters", "those in the usage may be given in its order, without their names")
    for name, form in properties.items():
        add_parameter(group, name, form, name in required)
    if required:
        parser.add_argument(WORDS, nargs="*", help=argparse.SUPPRESS)
    return parser


def add_common(parser: argparse.ArgumentParser, default: Any = None) -> None:
    """Add the options that may stand before and behind a method's name."""
    parser.add_argument("--json", action="store_true", dest=JSON, default=default or False,
                        help="print the result as JSON, also on a terminal")
    parser.add_argument("--params", metavar="JSON", dest=PARAMS, default=default,
                        help="all parameters as a JSON object: itself, @FILE, or - for stdin")


def add_parameter(group: Any, name: str, form: Form, required: bool) -> None:
    """Add the option of one parameter."""
    flags = ["--" + name.replace("_", "-")]
    if "_" in name:
        flags.append("--" + name)
    text = about_form(form, required).replace("%", "%%")
    if kinds_of(form) == {"boolean"}:
        group.add_argument(*flags[:1], dest=name, action=argparse.BooleanOptionalAction, help=text)
    else:
        group.add_argument(*flags, dest=name, metavar=metavar_of(form), help=text)


def about_form(form: Form, required: bool) -> str:
    """Return what the help says of a parameter."""
    parts = [form.get("description") or form.get("title", "")]
    if required:
        parts.append("(required)")
    elif form.get("default") not in (None, False, "", []):
        parts.append(f"(default: {json.dumps(form['default'])})")
    return " ".join(filter(None, parts))


def metavar_of(form: Form) -> str:
    """Return what the help calls a parameter's value."""
    if choices := choices_of(form):
        return "{" + ",".join(choices) + "}"
    kinds = kinds_of(form)
    return {frozenset({"integer"}): "N", frozenset({"string"}): "TEXT",
            frozenset({"number"}): "X"}.get(frozenset(kinds), "JSON" if not kinds & {
                "string", "integer"} else "VALUE")


def params_of(given: dict[str, Any], values: list[str], about: dict[str, Any]) -> dict[str, Any]:
    """Return the parameters of a call. given: of the options; values: the words without a name.

    Fails: UsageError.
    """
    properties = about["params"].get("properties", {})
    required = about["params"].get("required", ())
    texts = {name: value for name, value in given.items() if name in properties}
    for text in values:
        free = next((name for name in required if name not in texts), None)
        if free is None:
            raise UsageError(f"argument {shown(text)} is one too many")
        texts[free] = text
    missing = [name for name in required if name not in texts]
    if missing:
        raise UsageError(f"missing {', '.join(option_of(name) for name in missing)}")
    return {name: value if isinstance(value, bool) else
            named(option_of(name), properties[name], value) for name, value in texts.items()}


def option_of(name: str) -> str:
    return "--" + name.replace("_", "-")


def named(what: str, form: Form, text: str) -> Any:
    """Read a value; the sentence that refuses it names the option."""
    try:
        return read_value(form, text)
    except ValueError as error:
        raise UsageError(f"{what}: {error}") from None


def free_params(words: Iterable[str]) -> dict[str, Any]:
    """Read --name VALUE words for a method whose parameters nobody describes. Fails: UsageError."""
    return dict(pairs_of(iter(words)))


def pairs_of(words: Iterator[str]) -> Iterator[tuple[str, Any]]:
    for word in words:
        if not word.startswith("--") or word == "--":
            raise UsageError(f"argument {shown(word)} has no name: the target does not describe "
                             "this method; write --name VALUE, or --params JSON")
        name, equals, text = word[2:].partition("=")
        value = text if equals else next(words, None)
        if value is None:
            raise UsageError(f"option {shown(word)} needs a value")
        yield name.replace("-", "_"), read_json(value, set())
