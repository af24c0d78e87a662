"""RPC methods described for programs: what they take and answer, as JSON Schema (2020-12).

rpc_get_schema answers it; the options of vhostrt-rpc and the page docs/rpc.md are made of it. What
a parameter means is in the docstring of the structure that declares it:

    class Query(Parameters):
        \"\"\"name: of the one to describe.  timeout: milliseconds to wait for it.\"\"\"

Threads:  any; imported when somebody asks.
Fails:    never.
"""
import functools
import inspect
import re
import typing
from typing import Any

import msgspec

from vhostrt.rpc.method import Method, Parameters, State, described
from vhostrt.rpc.results import RESULTS

NOTHING = {"type": "object", "properties": {}, "required": [], "additionalProperties": False}


def schema_of(table: dict[str, Method]) -> dict[str, Any]:
    """Return name -> description of each method of a table, by its present name alone."""
    return {name: describe(known) for name, known in sorted(table.items()) if name == known.name}


@functools.cache
def describe(known: Method) -> dict[str, Any]:
    """Return what there is to say of one method; params and result each are a schema."""
    return {"description": inspect.getdoc(known.function) or "",
            "aliases": list(known.aliases),
            "states": [str(state.name).lower() for state in State if known.states & state],
            "params": NOTHING if known.parameters is None else parameters(known.parameters),
            "result": whole(result_of(known))}


def result_of(known: Method) -> Any:
    """Return the type of a method's result."""
    return RESULTS.get(known.name, typing.get_type_hints(known.function).get("return", Any))


def whole(kind: Any) -> dict[str, Any]:
    """Return the schema of a type, with what it refers to."""
    schema = msgspec.json.schema(kind)
    target = schema.get("$ref", "").removeprefix("#/$defs/")
    if target in schema.get("$defs", {}) and not refers_to(schema["$defs"], target):
        schema = schema["$defs"].pop(target) | schema
        del schema["$ref"]
    return {key: value for key, value in schema.items() if key != "$defs" or value}


def refers_to(schema: Any, name: str) -> bool:
    """Return whether a schema has a reference to this definition somewhere."""
    if isinstance(schema, dict):
        return schema.get("$ref") == f"#/$defs/{name}" or any(
            refers_to(value, name) for value in schema.values())
    return isinstance(schema, list) and any(refers_to(value, name) for value in schema)


def parameters(declared: type[Parameters]) -> dict[str, Any]:
    """Return the schema of a method's parameters: each with its form, as title, and meaning."""
    schema = whole(declared)
    schema.pop("description", None)
    hints = typing.get_type_hints(declared, include_extras=True)
    notes = notes_of(declared)
    for name, about in schema["properties"].items():
        about.pop("description", None)
        for choice in about.get("anyOf", ()):
            choice.pop("description", None)
        about["title"] = described(hints[name])
        if name in notes:
            about["description"] = notes[name]
    return schema


def notes_of(declared: type[Parameters]) -> dict[str, str]:
    """Return what the docstring of a structure says of each field: "a, b: what.  c: what."."""
    name = "|".join(map(re.escape, declared.__struct_fields__))
    text = " ".join((declared.__doc__ or "").split())
    # What stands before the first field belongs to none.
    pieces = re.split(rf"(?:^|(?<= ))((?:{name})(?:, (?:{name}))*): ", text)[1:]
    return {field: meaning.strip() for fields, meaning in zip(pieces[::2], pieces[1::2],
                                                              strict=True)
            for field in fields.split(", ")}
