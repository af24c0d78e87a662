"""Every nogil declaration says how it fails: without it each call takes the GIL to look."""
import pytest

from tests.source.cysource import PYX
from tests.source.nogil_contract import violations

SOURCES = sorted([*PYX.rglob("*.pyx"), *PYX.rglob("*.pxd")])


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(PYX)))
def test_contract(path):
    assert violations(path.read_text()) == []


HOLES = {
    "function": "cdef void f() nogil:\n    pass\n",
    "value": "cdef int f(int *p) nogil\n",
    "inline": "cdef inline int f() nogil:\n    return 1\n",
    "method": "cdef class K:\n    cdef int m(self) nogil:\n        return 1\n",
    "several_lines": "cdef int f(int a,\n           int b) nogil:\n    return 1\n",
    "typedef": "ctypedef int (*fn)(void *ctx) nogil\n",
    "field": "cdef struct s:\n    int (*fn)(void *ctx) nogil\n",
    "argument": "cdef int f(int (*fn)(int) nogil) noexcept nogil:\n    return 1\n",
    "value_of_argument": "def f(x):\n    use(<int (*)(int) nogil>x)\n",
    "after_extern": 'cdef extern from "a.h" nogil:\n    int g()\ncdef int f() nogil\n',
    "comment": "cdef int f() nogil:    # noexcept\n    return 1\n",
    "object": "cdef int f(str w) noexcept nogil:\n    return 1\n",
}


@pytest.mark.parametrize("source", HOLES.values(), ids=HOLES)
def test_hole_is_found(source):
    assert len(violations(source)) == 1


SOUND = {
    "noexcept": "cdef void f() noexcept nogil:\n    pass\n",
    "value": "cdef int f() except -1 nogil\n",
    "extern": 'cdef extern from "a.h" nogil:\n    int f(int)\n    ctypedef int (*fn)(int) nogil\n',
    "argument": "cdef K new(str w, int (*fn)(int) noexcept nogil):\n    return K()\n",
    "block": "def f():\n    with nogil:\n        g()\n",
    "text": '"""f() nogil"""\ncdef int f():     # not nogil\n    return 1\n',
}


@pytest.mark.parametrize("source", SOUND.values(), ids=SOUND)
def test_sound_passes(source):
    assert violations(source) == []
