"""Cuts a byte stream into the JSON values that follow one another on it.

Nothing stands between the values but white space, if that.  A value may come in many pieces and a
piece may hold many values.  Only brackets and strings are looked at: what a value says, and whether
it is JSON at all, is for the decoder of the whole value to find.

Fails:    FramingError when the stream cannot be cut any further.  The values before that point
          are given first, and the splitter takes no more data after it.
"""
import re
from collections.abc import Iterator

# UTF-8 needs no attention: no byte of a longer sequence equals one of these ASCII characters.
BLANKS = re.compile(rb"[ \t\r\n]*+")
BEGIN = re.compile(rb'[\[{"]|[-0-9tfn]')
# Atomic groups around repeated choices: "(...|...)*+" is matched wrongly before Python 3.11.5.
STRING_REST = re.compile(rb'(?>(?:[^"\\]++|\\.)*)', re.DOTALL)
# All up to the next brackets, strings that are whole included, and those brackets.  It stops short
# of a string that is not whole.
BRACKETS = re.compile(rb'(?>(?:[^"\[\]{}]++|"(?>(?:[^"\\]++|\\.)*)")*)([\[{]*+)([\]}]*+)',
                      re.DOTALL)
SCALAR_REST = re.compile(rb"[-+.0-9A-Za-z]*+")

OPENING = b"[{"
QUOTE = ord('"')

BETWEEN, NESTED, STRING, SCALAR = range(4)


class FramingError(ValueError):
    """The stream does not continue with a JSON value, or the value is too large."""


class Splitter:
    """Takes bytes with feed() and gives whole values with values().

    limit: int, bytes that one value may have.  Each byte is looked at once, however small the
    pieces are in which it comes: the place and the nesting are kept between the pieces.
    Threads: one at a time.
    """

    def __init__(self, limit: int):
        self.limit = limit
        self._buffer = bytearray()
        self._position = 0              # all before it has been looked at
        self._depth = 0                 # brackets open at _position
        self._state = BETWEEN
        self._failed: FramingError | None = None

    def feed(self, data: bytes) -> None:
        """Append data (bytes-like, copied); nothing once the stream has failed."""
        if self._failed is None:
            self._buffer += data

    def values(self) -> Iterator[bytes]:
        """Give every value that is complete, in order, each once.

        Raises FramingError, now and at each later call, where the stream cannot be cut.
        """
        while (value := self._next()) is not None:
            yield value
        if self._failed is not None:
            raise self._failed

    @property
    def partial(self) -> bool:
        """True when the stream has begun a value that is not complete."""
        return self._state != BETWEEN

    def finish(self) -> Iterator[bytes]:
        """At the end of the stream: give the number or word that only the end completes."""
        if self._state == SCALAR and self._failed is None:
            self._position = len(self._buffer)
            yield self._cut()

    def _next(self) -> bytes | None:
        if self._failed is not None or (self._state == BETWEEN and not self._begin()):
            return None
        if not self._scan():
            if len(self._buffer) > self.limit:
                self._fail(f"a request has more than {self.limit} bytes")
            return None
        if self._position > self.limit:
            self._fail(f"a request has more than {self.limit} bytes")
            return None
        return self._cut()

    def _begin(self) -> bool:
        """Drop white space and find what kind of value comes; False when there is none."""
        del self._buffer[:BLANKS.match(self._buffer).end()]
        if not self._buffer:
            return False
        if not BEGIN.match(self._buffer):
            self._fail(f"byte 0x{self._buffer[0]:02x} cannot begin a JSON value")
            return False
        first = self._buffer[0]
        self._state = NESTED if first in OPENING else STRING if first == QUOTE else SCALAR
        self._position = 0 if self._state == NESTED else 1
        self._depth = 0
        return True

    def _scan(self) -> bool:
        """Go on to the end of the value; False when that has not come yet."""
        if self._state == SCALAR:
            self._position = SCALAR_REST.match(self._buffer, self._position).end()
            return self._position < len(self._buffer)
        while True:
            if self._state == STRING:
                if not self._skip_string():
                    return False
                if self._depth == 0:
                    return True
                self._state = NESTED
            if not self._skip_brackets():
                return False
            if self._state == NESTED:
                return True

    def _skip_string(self) -> bool:
        """Go behind the closing quote; False when the string goes on behind the buffer."""
        # The match ends at the quote, at the end, or at a backslash whose partner is to come.
        end = STRING_REST.match(self._buffer, self._position).end()
        closed = end < len(self._buffer) and self._buffer[end] == QUOTE
        self._position = end + closed
        return closed

    def _skip_brackets(self) -> bool:
        """Go behind the bracket that ends the value (state NESTED) or into a string (STRING).

        The kinds of brackets are not matched: the decoder refuses what does not fit.
        """
        position, depth = self._position, self._depth
        end = len(self._buffer)
        while position < end:
            found = BRACKETS.match(self._buffer, position)
            if found.end() == position:
                self._state, self._depth, self._position = STRING, depth, position + 1
                return True
            position = found.end()
            depth += found.end(1) - found.start(1)
            if depth <= position - found.start(2):
                self._position = found.start(2) + depth
                return True
            depth -= position - found.start(2)
        self._depth, self._position = depth, end
        return False

    def _cut(self) -> bytes:
        value = bytes(memoryview(self._buffer)[:self._position])
        del self._buffer[:self._position]
        self._position = 0
        self._state = BETWEEN
        return value

    def _fail(self, why: str) -> None:
        self._failed = FramingError(why)
        self._buffer.clear()
