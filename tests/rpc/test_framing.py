"""vhostrt/rpc/framing.py: values are found whole however the stream is cut."""
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vhostrt.rpc.framing import FramingError, Splitter

LIMIT = 4096


def split(pieces, limit=LIMIT):
    """Return the values found and the text of the failure, or None."""
    splitter, found = Splitter(limit), []
    try:
        for piece in pieces:
            splitter.feed(piece)
            found.extend(splitter.values())
        found.extend(splitter.finish())
    except FramingError as e:
        return found, str(e)
    return found, None


def cut(data, places):
    edges = [0, *sorted(p % (len(data) + 1) for p in places), len(data)]
    return [data[a:b] for a, b in zip(edges, edges[1:], strict=False)]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12)
nested = st.lists(json_values, max_size=4) | st.dictionaries(st.text(), json_values, max_size=4)
places = st.lists(st.integers(0, 1 << 16), max_size=20)
blanks = st.text(" \t\r\n", max_size=3)


@given(st.lists(st.tuples(nested, blanks, st.booleans()), max_size=6), places)
def test_values_survive_any_cut(items, where):
    texts = [json.dumps(v, ensure_ascii=a).encode("utf-8", "surrogatepass") for v, _, a in items]
    stream = b"".join(t + b.encode() for t, (_, b, _) in zip(texts, items, strict=True))
    assert split(cut(stream, where), 1 << 20) == (texts, None)


junk = st.lists(st.sampled_from([b"{", b"}", b"[", b"]", b'"', b"\\", b"\\\"", b" ", b"1", b"-",
                                 b"true", b"x", b",", b"\xff", b"\0", b"\n", "\u20ac".encode()]),
                max_size=40).map(b"".join)


@settings(max_examples=300)
@given(junk, places, st.integers(1, 40))
def test_junk_gives_the_same_in_any_cut(data, where, limit):
    whole = split([data], limit)
    assert split(cut(data, where), limit) == whole
    assert split([data[i:i + 1] for i in range(len(data))], limit) == whole


@pytest.mark.parametrize("stream, values", [
    (b"{}{}", [b"{}", b"{}"]),
    (b' {"a": "}"} \n[1]', [b'{"a": "}"}', b"[1]"]),
    (rb'{"a\"}": "\\"}{}', [rb'{"a\"}": "\\"}', b"{}"]),
    (b'"a" 12 true{}', [b'"a"', b"12", b"true", b"{}"]),
    (b'"{"[]', [b'"{"', b"[]"]),
    (b"12", [b"12"]),
    (b"{]{}", [b"{]", b"{}"]),
    (b"", []),
    (b" \r\n\t", []),
])
def test_examples(stream, values):
    assert split([stream]) == (values, None)
    assert split([stream[i:i + 1] for i in range(len(stream))]) == (values, None)


def test_a_byte_that_begins_no_value_ends_the_stream():
    assert split([b"{}}{}"]) == ([b"{}"], "byte 0x7d cannot begin a JSON value")
    assert split([b"GET / HTTP/1.1"])[1] == "byte 0x47 cannot begin a JSON value"


def test_a_failed_stream_stays_failed():
    splitter = Splitter(LIMIT)
    splitter.feed(b"x")
    for _ in range(2):
        with pytest.raises(FramingError):
            list(splitter.values())
        splitter.feed(b"{}")


def test_the_limit_holds_for_whole_and_for_unfinished_values():
    fits = b'["' + b"x" * (LIMIT - 4) + b'"]'
    assert len(fits) == LIMIT
    assert split([fits + fits]) == ([fits, fits], None)
    for large in (b'["' + b"x" * LIMIT + b'"]', b"[" * (LIMIT + 1), b'"' + b"x" * LIMIT,
                  b"1" * (LIMIT + 1)):
        assert split([b"{}" + large]) == ([b"{}"], f"a request has more than {LIMIT} bytes")


def test_white_space_is_not_kept():
    splitter = Splitter(8)
    for _ in range(100):
        splitter.feed(b" " * 100)
        assert list(splitter.values()) == []
    splitter.feed(b"[1]")
    assert list(splitter.values()) == [b"[1]"]


def test_partial_tells_of_an_unfinished_value():
    splitter = Splitter(LIMIT)
    for piece, partial in ((b"{", True), (b"}", False), (b' "', True), (b'"', False)):
        splitter.feed(piece)
        list(splitter.values())
        assert splitter.partial is partial


class Counted:
    """A pattern that adds up how many bytes its matches went over."""

    def __init__(self, pattern):
        self.pattern, self.bytes = pattern, 0

    def match(self, buffer, position=0):
        found = self.pattern.match(buffer, position)
        self.bytes += found.end() - position if found else 0
        return found


def test_no_byte_is_looked_at_twice(monkeypatch):
    from vhostrt.rpc import framing
    stream = json.dumps({"a": ["{" * 50, "\\\"" * 50, {"b": [1] * 500}]}).encode() * 3
    counted = [Counted(getattr(framing, name)) for name in ("BRACKETS", "STRING_REST")]
    monkeypatch.setattr(framing, "BRACKETS", counted[0])
    monkeypatch.setattr(framing, "STRING_REST", counted[1])
    values, why = split([stream[i:i + 1] for i in range(len(stream))], 1 << 20)
    assert len(values) == 3 and why is None
    # A backslash at the end of a piece is looked at again with its partner.
    assert sum(c.bytes for c in counted) <= 2 * len(stream)
