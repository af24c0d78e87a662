"""The grammar of the old configuration file: sections of keys with values.

Fails: ConfigError with one line `file:line: why` for each thing that is wrong; the original logs
       those lines and goes on.
Source: lib/conf of SPDK v18.04.
"""
from collections.abc import Iterator
from dataclasses import dataclass, field

from vhostrt.config import ConfigError
from vhostrt.values import shown

QUOTES = "\"'"
BLANKS = " \t"


@dataclass(slots=True)
class Item:
    """One line `key value ...` of a section."""

    key: str
    values: list[str]
    line: int                           # of the file, from 1

    @property
    def words(self) -> list[str]:
        """The values, less a comment: the grammar knows none behind a value; files have them, and
        were read without harm."""
        ends = (i for i, word in enumerate(self.values) if i and word.startswith("#"))
        return self.values[:next(ends, None)]


@dataclass(slots=True)
class Section:
    """A section; a repeated heading continues it."""

    name: str                           # as first written
    line: int                           # of its first heading
    items: list[Item] = field(default_factory=list)

    @property
    def number(self) -> int:
        """The first run of digits in the name, else 0."""
        start = next((i for i, c in enumerate(self.name) if c in "0123456789"), len(self.name))
        digits = self.name[start:]
        end = next((i for i, c in enumerate(digits) if c not in "0123456789"), len(digits))
        return int(digits[:end] or 0)

    def named(self, key: str) -> list[Item]:
        """Return the items of this key, whatever its case, in order."""
        return [item for item in self.items if item.key.lower() == key.lower()]


def split_words(text: str) -> list[str]:
    r"""Split at blanks; quotes group, and \ takes the next character as it is (not inside '...').

    Fails: ValueError for a quote that is not closed.
    """
    words: list[str] = []
    word: str | None = None             # None between words; quotes may make an empty one
    quote = ""
    rest = iter(text)
    for char in rest:
        if char == "\\" and quote != "'":
            word = (word or "") + next(rest, "")
        elif quote:
            if char == quote:
                quote = ""
            else:
                word = (word or "") + char
        elif char in QUOTES:
            quote, word = char, word or ""
        elif char not in BLANKS:
            word = (word or "") + char
        elif word is not None:
            words.append(word)
            word = None
    if quote:
        raise ValueError(f"the quote {quote} is not closed")
    return words if word is None else [*words, word]


def joined_lines(text: str) -> Iterator[tuple[int, str]]:
    """Yield (number of its first line, text) with lines that end in a backslash joined."""
    held, first = "", 0
    for number, line in enumerate(text.split("\n"), 1):
        line = line.removesuffix("\r")
        first = first or number
        # A comment is over at the end of its line; the original looks before it joins, too.
        if line.endswith("\\") and not (held + line).lstrip().startswith("#"):
            held += line[:-1]
            continue
        yield first, held + line
        held, first = "", 0
    if held:
        yield first, held


def parse(text: str, path: str) -> list[Section]:
    """Return the sections of a file's text, in order. Fails: ConfigError."""
    sections: dict[str, Section] = {}
    section: Section | None = None
    wrong = []
    for number, line in joined_lines(text):
        line = line.strip(BLANKS + "\r\f\v")
        try:
            if line.startswith("["):
                name = heading(line)
                section = sections.setdefault(name.lower(), Section(name, number))
            elif line and not line.startswith("#"):
                words = split_words(line)
                if section is None:
                    raise ValueError(f"unknown section: {shown(words[0])} stands before the first "
                                     "[section]")
                section.items.append(Item(words[0], words[1:], number))
        except ValueError as error:
            wrong.append(f"{path}:{number}: {error}")
    if not wrong and not sections:
        wrong.append(f"Invalid config file {path}: it has no [section]")
    if wrong:
        raise ConfigError(wrong)
    return list(sections.values())


def heading(line: str) -> str:
    name, bracket, rest = line[1:].partition("]")
    if not bracket or rest or not name:
        raise ValueError(f"broken section: {shown(line)} is not [name] alone")
    return name
