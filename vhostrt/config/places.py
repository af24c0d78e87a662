"""Where the entries of a JSON configuration stand: the line of each, for what is said of them.

The text has been read before: it is known to be JSON, nested no deeper than can be read.
"""
import json
from collections.abc import Iterator

BLANKS = " \t\n\r"
decoder = json.JSONDecoder()


def lines_of(text: str) -> dict[str, int]:
    """Return the line, from 1, on which each subsystem and each entry begins, by position."""
    found: list[tuple[str, int]] = []
    for start in values_at(text, skip(text, 0), "subsystems"):
        for i, subsystem in enumerate(items(text, start)):
            found.append((f"subsystems[{i}]", subsystem))
            for config in values_at(text, subsystem, "config"):
                found += entries_at(text, config, f"subsystems[{i}].config")
    lines: dict[str, int] = {}
    line, before = 1, 0
    for position, start in found:       # ascending, save where a key is doubled
        line, before = (line, before) if start >= before else (1, 0)
        line += text.count("\n", before, start)
        before = start
        lines[position] = line
    return lines


def entries_at(text: str, start: int, where: str) -> Iterator[tuple[str, int]]:
    for i, entry in enumerate(items(text, start)):
        yield f"{where}[{i}]", entry
        if where.endswith(".config"):
            yield from entries_at(text, entry, f"{where}[{i}]")


def skip(text: str, at: int) -> int:
    """Return the place of the next character that is not blank."""
    while at < len(text) and text[at] in BLANKS:
        at += 1
    return at


def items(text: str, at: int) -> Iterator[int]:
    """Yield where each item of the array at this place begins; nothing where there is none."""
    if text[at] != "[":
        return
    at = skip(text, at + 1)
    while text[at] != "]":
        yield at
        at = skip(text, decoder.raw_decode(text, at)[1])
        if text[at] == ",":
            at = skip(text, at + 1)


def values_at(text: str, at: int, name: str) -> Iterator[int]:
    """Yield where each value with this name begins, in the object at this place."""
    if text[at] != "{":
        return
    at = skip(text, at + 1)
    while text[at] != "}":
        key, at = decoder.raw_decode(text, at)
        at = skip(text, skip(text, at) + 1)     # behind the colon
        if key == name:
            yield at
        at = skip(text, decoder.raw_decode(text, at)[1])
        if text[at] == ",":
            at = skip(text, at + 1)
