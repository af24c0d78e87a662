"""A command line taken apart as getopt_long does, over any table of options.

Fails: UsageError with one sentence that names the option.
"""
from collections.abc import Iterator, Mapping
from typing import Protocol, TypeVar

from vhostrt.values import shown


class UsageError(Exception):
    """The command line cannot be followed; the text is the sentence for the user."""


class HelpAsked(Exception):
    """The words ask for help; the text is it."""


class Named(Protocol):
    """What a table of options has to say of one.

    names     as typed, separated by blanks: "-m --cpumask"
    argument  what the help calls the value; "" when there is none, "[...]" when it may be left out
    """

    @property
    def names(self) -> str: ...
    @property
    def argument(self) -> str: ...


T = TypeVar("T", bound=Named)


def find_long(word: str, table: Mapping[str, T]) -> tuple[str, T]:
    """Find a long option by its name or, as getopt_long does, by a beginning only it has."""
    if word in table:
        return word, table[word]
    names = [name for name in table if name.startswith(word)]
    if not names:
        raise UsageError(f"there is no option {shown(word)}")
    if len({table[name].names for name in names}) > 1:
        raise UsageError(f"option {shown(word)} may mean {' or '.join(names)}")
    return names[0], table[names[0]]


def split_words(words: list[str], table: Mapping[str, T]) -> Iterator[tuple[str, T, str]]:
    """Yield (name, option, text) for each option among the words, in order.

    table: name -> option.  name: in full, as in the table.  text: "" without a value.
    """
    rest = Rest(words)
    for word in rest:
        if word.startswith("--") and word != "--":
            name, equals, text = word.partition("=")
            name, option = find_long(name, table)
            if equals and not option.argument:
                raise UsageError(f"option {name} takes no value, and {shown(text)} was given")
            yield name, option, text if equals else rest.value(name, option)
        elif word.startswith("-") and word not in ("-", "--"):
            yield from split_letters(word[1:], rest, table)
        else:
            stray = next(rest, None) if word == "--" else word
            if stray is not None:
                raise UsageError(f"argument {shown(stray)} belongs to no option")


def split_letters(letters: str, rest: "Rest", table: Mapping[str, T]) -> Iterator[
        tuple[str, T, str]]:
    """Yield what one word of short options says: `qd`, `m0x3`, `qm 0x3`."""
    while letters:
        name, letters = "-" + letters[0], letters[1:]
        option = table.get(name)
        if option is None:
            raise UsageError(f"there is no option {shown(name)}")
        if option.argument:
            yield name, option, letters or rest.value(name, option)
            return
        yield name, option, ""


class Rest:
    """The words that are not read yet."""

    def __init__(self, words: list[str]) -> None:
        self.words = words
        self.at = 0

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        if self.at == len(self.words):
            raise StopIteration
        self.at += 1
        return self.words[self.at - 1]

    def value(self, name: str, option: Named) -> str:
        """Take the next word as the value of an option that has one; "" for one without.

        A value that may be left out is not a word that begins as an option does.
        """
        if not option.argument:
            return ""
        missing = self.at == len(self.words)
        if option.argument.startswith("["):
            return "" if missing or self.words[self.at].startswith("-") else next(self)
        if missing:
            raise UsageError(f"option {name} needs a value")
        return next(self)
