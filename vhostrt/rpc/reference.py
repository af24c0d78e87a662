"""The reference page of the RPC methods, docs/rpc.md, made of their schema.

    python -m vhostrt.rpc.reference >docs/rpc.md        # make docs

Fails: never.
"""
import json
from collections.abc import Iterator
from typing import Any

HEAD = """\
# RPC methods

Made by `make docs` from what the methods declare; RPC `rpc_get_schema` answers the same as JSON
Schema, and `vhostrt-rpc METHOD --help` prints it. Names, parameters and results are SPDK's where
SPDK has the method. [vhostrt-rpc.md](vhostrt-rpc.md) is about the socket, the command and
notifications.

A request is a JSON-RPC 2.0 object, `{"jsonrpc": "2.0", "id": 1, "method": NAME, "params": {...}}`;
parameters are given by name. Errors:

| code | meaning |
| --- | --- |
| -32700 | it is no JSON |
| -32600 | it is JSON, and no request |
| -32601 | there is no such method, or `--rpcs-allowed` leaves it out |
| -32602 | the parameters are wrong; the message names the one |
| -32603 | an error of vhostrt's own; the log says more |
| -1 | not in this state: before, or after, the subsystems are initialised |
| another, negative | an errno of Linux: -19 none of that name, -17 one already, -16 in use |
"""
STATES = {("startup",): "Only before the subsystems are initialised (`--wait-for-rpc`).",
          ("runtime",): "", ("startup", "runtime"): "Also before the subsystems are initialised."}


def page(schema: dict[str, Any]) -> str:
    """Return the page as Markdown. schema: of vhostrt.rpc.schema.schema_of."""
    lines = [HEAD]
    groups: dict[str, list[str]] = {}
    for name in schema:
        groups.setdefault(name.split("_", 1)[0], []).append(name)
    lines += [f"- {', '.join(f'[{name}](#{name})' for name in names)}"
              for names in groups.values()]
    for name, about in schema.items():
        lines += ["", *section(name, about)]
    return "\n".join(lines) + "\n"


def section(name: str, about: dict[str, Any]) -> Iterator[str]:
    """Yield the lines about one method."""
    yield f"## {name}"
    yield ""
    yield about["description"]
    if state := STATES[tuple(about["states"])]:
        yield f"\n{state}"
    if about["aliases"]:
        yield f"\nOlder name: {', '.join(f'`{alias}`' for alias in about['aliases'])}."
    properties = about["params"]["properties"]
    if properties:
        required = about["params"].get("required", ())
        yield "\n| parameter | what | meaning |\n| --- | --- | --- |"
        for field, form in properties.items():
            given = "" if field in required else default_of(form)
            yield f"| `{field}` | {cell(form['title'])}{given} | {cell(form['description'])} |"
    result = shape(about["result"], about["result"].get("$defs", {}))
    yield f"\nResult:\n\n```text\n{result}\n```" if "\n" in result else f"\nResult: {result}"


def cell(text: str) -> str:
    return text.replace("|", "\\|")


def default_of(form: dict[str, Any]) -> str:
    default = form.get("default")
    return "; may be left out" if default is None else f"; default {json.dumps(default)}"


def shape(form: dict[str, Any], definitions: dict[str, Any], indent: str = "") -> str:
    """Return what a schema allows, in the form of what it allows; "key"? may be left out."""
    if "$ref" in form:
        return shape(definitions[form["$ref"].rpartition("/")[2]], definitions, indent)
    if "anyOf" in form:
        return " or ".join(shape(choice, definitions, indent) for choice in form["anyOf"])
    if "enum" in form:
        return " or ".join(map(json.dumps, form["enum"]))
    kind = form.get("type", "any value")
    if kind == "array":
        return f"[{shape(form.get('items', {}), definitions, indent)}, ...]"
    if "properties" in form:
        required, inner = form.get("required", ()), indent + "  "
        fields = (f'\n{inner}"{name}"{"" if name in required else "?"}: '
                  f"{shape(value, definitions, inner)}"
                  for name, value in form["properties"].items())
        return "{" + ",".join(fields) + f"\n{indent}}}"
    more = form.get("additionalProperties")
    if isinstance(more, dict) and more:
        return f"{{string: {shape(more, definitions, indent)}, ...}}"
    return " or ".join(kind) if isinstance(kind, list) else str(kind)


def main() -> int:
    """Print the page of what the target has."""
    from vhostrt.options import Options
    from vhostrt.rpc.common import table_of
    from vhostrt.rpc.schema import schema_of
    from vhostrt.subsystems import all_subsystems
    print(page(schema_of(table_of(all_subsystems(Options())))), end="")
    return 0


if __name__ == "__main__":
    main()
