"""Cython source as the checks see it: logical lines without comments and insides of strings."""
import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
PYX = ROOT / "pyx"

_TOKEN = re.compile(r'"""(?:[^\\]|\\.)*?"""|\'\'\'(?:[^\\]|\\.)*?\'\'\''
                    r'|"(?:[^"\\\n]|\\.)*"|\'(?:[^\'\\\n]|\\.)*\'|#[^\n]*', re.S)


class Line(NamedTuple):
    """A logical line: its text on one row, the row where it begins (from 1) and its indentation."""
    text: str
    at: int
    indent: int


class Function(NamedTuple):
    """A cdef function that runs without the GIL."""
    name: str
    scope: tuple[str, ...]      # the classes around it
    noexcept: bool
    at: int


def blank(match: re.Match) -> str:
    """Keep the quotes of a string and the number of its lines."""
    text = match[0]
    return "" if text.startswith("#") else '""' + "\\\n" * text.count("\n")


def logical_lines(source: str) -> list[Line]:
    """Return the logical lines of `source`, joined over brackets and backslashes; no empty ones."""
    lines, text, at = [], "", 0
    for row, part in enumerate(_TOKEN.sub(blank, source).splitlines(), 1):
        if not text:
            if not part.strip():
                continue
            at, indent = row, len(part) - len(part.lstrip())
        text = f"{text} {part.strip()}" if text else part.strip()
        if text.endswith("\\"):
            text = text[:-1]
        elif sum(map(text.count, "([{")) <= sum(map(text.count, ")]}")):
            lines.append(Line(text, at, indent))
            text = ""
    return lines


def own_lines(source: str) -> list[Line]:
    """Return the logical lines outside `cdef extern` blocks: what they declare is not ours."""
    lines, extern = [], None
    for line in logical_lines(source):
        if extern is not None and line.indent <= extern:
            extern = None
        if re.match(r"cdef\s+extern\b", line.text):
            extern = line.indent
        if extern is None:
            lines.append(line)
    return lines


def says_nogil(line: Line) -> bool:
    """Return whether `line` declares a function or method, not just an argument, as nogil."""
    _, closed, suffix = line.text.rpartition(")")
    return bool(closed and re.search(r"\bnogil\b", suffix))


def nogil_functions(source: str) -> list[Function]:
    """Return the functions that `source` defines (with a body) as nogil."""
    found, classes = [], []
    for line in own_lines(source):
        classes = [(name, indent) for name, indent in classes if line.indent > indent]
        if new := re.match(r"(?:cdef\s+)?class\s+(\w+)", line.text):
            classes.append((new[1], line.indent))
        elif says_nogil(line) and re.match(r"c(?:p)?def\b", line.text) and line.text.endswith(":"):
            name = re.match(r"[^(]*?(\w+)\s*\(", line.text)[1]
            found.append(Function(name, tuple(c for c, _ in classes),
                                  bool(re.search(r"\bnoexcept\b", line.text)), line.at))
    return found


def module_name(path: Path, root: Path = PYX) -> str:
    """Return the dotted name of the module whose .pyx or .pxd is `path`."""
    return ".".join(path.relative_to(root).with_suffix("").parts)
