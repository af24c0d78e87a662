"""The old configuration file: sections of keys with values, as SPDK read them until v20.10.

Fails: ConfigError with one line `file:line: why` for each thing that is wrong; the original logs
       those lines and goes on.
"""
from collections.abc import Callable, Iterator
from copy import copy
from dataclasses import dataclass, field
from typing import Any

from vhostrt import values
from vhostrt.config import ConfigError
from vhostrt.options import Options, number_between
from vhostrt.values import shown

YES, NO = ("yes", "y", "true"), ("no", "n", "false")
QUOTES = "\"'"
BLANKS = " \t"


@dataclass(slots=True)
class Item:
    """One line `key value ...` of a section."""

    key: str
    values: list[str]
    line: int                           # of the file, from 1


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


def read_flag(text: str) -> bool:
    if text.lower() not in YES + NO:
        raise ValueError(f"{shown(text)} is neither Yes nor No")
    return text.lower() in YES


# Key of [Global], in lower case: the field of Options it sets, its reader, and what the field has
# when the command line did not say it; the command line wins.
GLOBAL_KEYS: dict[str, tuple[str, Callable[[str], Any], tuple[Any, ...]]] = {
    "sharedmemoryid": ("shm_id", number_between(-values.INT_MAX, values.INT_MAX), (None, -1)),
    "reactormask": ("cores", values.read_cpus, (None,)),
    "nopci": ("no_pci", read_flag, (False,)),
    "tpointgroupmask": ("tpoint_groups", values.read_tpoint_groups, (None,)),
}


def apply_item(options: Options, given: Options, item: Item) -> str | None:
    """Take one line of [Global] over; return a warning when it means nothing here.

    Fails: ValueError.
    """
    if item.key.lower() == "comment":
        return None
    if item.key.lower() not in GLOBAL_KEYS:
        return f"[Global] {shown(item.key)} means nothing to vhostrt"
    name, reader, unsaid = GLOBAL_KEYS[item.key.lower()]
    # The grammar knows no comment behind a value; files have them, and were read without harm.
    words = item.values[:1] if item.values[1:] and item.values[1][:1] == "#" else item.values
    if len(words) != 1:
        raise ValueError(f"{item.key} needs one value and has {len(words)}")
    try:
        value = reader(words[0])
    except ValueError as error:
        raise ValueError(f"{item.key}: {error}") from None
    if getattr(given, name) in unsaid and not (name == "cores" and given.lcore_map):
        setattr(options, name, value)
    return None


def apply(sections: list[Section], options: Options, path: str) -> list[str]:
    """Take [Global] over into options, where the command line left room; return warnings.

    Fails: ConfigError, also for any other section: its module is not there yet.
    """
    given, wrong, warnings = copy(options), [], []
    for section in sections:
        if section.name.lower() != "global":
            wrong.append(f"{path}:{section.line}: the module of section [{section.name}] is not "
                         "there yet")
            continue
        seen = set()
        for item in section.items:
            try:
                if item.key.lower() in seen and item.key.lower() != "comment":
                    raise ValueError(f"{item.key} is given twice")
                seen.add(item.key.lower())
                warning = apply_item(options, given, item)
            except ValueError as error:
                wrong.append(f"{path}:{item.line}: {error}")
            else:
                warnings += [f"{path}:{item.line}: {warning}"] if warning else []
    if wrong:
        raise ConfigError(wrong)
    return warnings
