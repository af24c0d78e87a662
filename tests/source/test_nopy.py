"""Code without the GIL does not touch Python, seen in the C that Cython made of it."""
import re

import pytest
from Cython.Build import cythonize

from tests.source.cysource import PYX, module_name, nogil_functions
from tests.source.nopy import c_name, violations

MODULES = sorted(PYX.rglob("*.pyx"))


def functions_of(root) -> dict[str, bool]:
    """Return C name -> noexcept of every nogil function with a body in the tree at `root`."""
    return {c_name(module_name(path, root), function): function.noexcept
            for kind in ("*.pyx", "*.pxd") for path in root.rglob(kind)
            for function in nogil_functions(path.read_text())}


@pytest.fixture(scope="module")
def functions():
    return functions_of(PYX)


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PYX)))
def test_module(path, functions):
    made = path.with_suffix(".c")
    assert made.exists(), f"{made.name} is not there: build with setup.py build_ext --inplace"
    assert made.stat().st_mtime >= path.stat().st_mtime, f"{made.name} is older than its source"
    wrong, seen = violations(made.read_text(), functions)
    assert wrong == []
    name = module_name(path)
    own = {c_name(name, function) for function in nogil_functions(path.read_text())}
    assert own <= seen, "nogil functions of the source that were not found in the C"


PXD = """
cdef inline int inline_hole(object w) noexcept nogil:
    if w == "abc":
        return 1
    return 0

cdef inline int inline_sound(int x) noexcept nogil:
    return x + 1
"""
MODULE = """
cdef int function_hole(str w) noexcept nogil:
    if w == "abc":
        return 1
    return 0

cdef class K:
    cdef int n

    cdef int method_hole(self, bytes w) noexcept nogil:
        return 1 if w == b"abc" else 0

    cdef int method_sound(self) noexcept nogil:
        return self.n

cdef int unraisable_hole(int x) noexcept nogil:
    return raises_sound(x)

cdef int raises_sound(int x) except -1 nogil:
    if x < 0:
        with gil:
            raise ValueError("x")
    return inline_sound(x)

cdef object argument_sound(int (*fn)(int) noexcept nogil):
    return [fn(1)]

def block_hole(str w):
    cdef int r = 0
    with nogil:
        if w == "abc":
            r = 1
    return r

def block_sound(w):
    cdef int r
    with nogil:
        r = inline_sound(3)
        with gil:
            print(r)
    return inline_hole(w) + r
"""


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """What the check says of a module with holes: the names of the functions at fault."""
    root = tmp_path_factory.mktemp("planted")
    (root / "holes.pxd").write_text(PXD)
    (root / "holes.pyx").write_text(MODULE)
    cythonize([str(root / "holes.pyx")], language_level=3, quiet=True)
    wrong, seen = violations((root / "holes.c").read_text(), functions_of(root))
    return [re.match(r"\w+", line)[0] for line in wrong], seen


HOLES = ["inline_hole", "function_hole", "method_hole", "unraisable_hole", "block_hole"]


@pytest.mark.parametrize("name", HOLES)
def test_hole_is_found(planted, name):
    assert any(found.endswith(name) for found in planted[0]), planted[0]


def test_only_holes_are_found(planted):
    assert len(planted[0]) == len(HOLES), planted[0]
    assert {n.rpartition("_5holes_")[2] for n in planted[1]} == {
        "inline_hole", "inline_sound", "function_hole", "1K_method_hole", "1K_method_sound",
        "unraisable_hole", "raises_sound"}
