"""Uses of Python in the generated C of code that runs without the GIL.

Cython's own check has holes (cython/cython#7500), so this looks at what it really emitted.
"""
import re

from tests.source.cysource import Function

_BODY = re.compile(r"^(?:static|CYTHON_\w+|__PYX_EXTERN_C)[^\n;{}]*?\b(__pyx_\w+)\([^;{}]*\)\s*\{\n"
                   r"(.*?)^\}", re.M | re.S)
_PYTHON = re.compile(r"\b_?Py[A-Z]\w*(?=\s*\()|\b__Pyx_\w+(?=\s*\()|\b__PYX_\w*MEMVIEW\w*"
                     r"|\bPy_(?:None|True|False)\b|\bPyExc_\w+|\b__pyx_mstate_global\b")
_HARMLESS = re.compile(r"__Pyx_(?:RefNanny\w*|(?:div|mod|pow|abs)_\w+|UNARY_NEG_WOULD_OVERFLOW"
                       r"|FastGIL_\w+|PyGILState_Release)")
_COMMENT = re.compile(r"/\*.*?\*/", re.S)
_STRING = re.compile(r'"(?:[^"\\\n]|\\.)*"')
_WITH_GIL = re.compile(r"\b__Pyx_PyGILState_Ensure\(\);.*?\b__Pyx_PyGILState_Release\([^;]*;", re.S)
_RELEASED = "PyEval_SaveThread();"


def c_name(module: str, function: Function) -> str:
    """Return the name that Cython gives to `function` of `module` in C."""
    return "__pyx_f_" + "".join(f"{len(part)}{part}_" for part in
                                (*module.split("."), *function.scope)) + function.name


def uses(code: str) -> list[str]:
    """Return the distinct names of Python's C-API, or of Cython's use of it, in `code`."""
    return sorted({use for use in _PYTHON.findall(code) if not _HARMLESS.fullmatch(use)})


def braced(code: str, start: int) -> str:
    """Return the text of the first {...} at or after `start`."""
    depth, begin = 0, code.index("{", start)
    for at in range(begin, len(code)):
        depth += {"{": 1, "}": -1}.get(code[at], 0)
        if not depth:
            return code[begin:at]
    return code[begin:]


def nogil_blocks(body: str) -> list[str]:
    """Return what stands between the release of the GIL and its return in a function's body."""
    starts = [found.end() for found in re.finditer(re.escape(_RELEASED), body)]
    return [braced(body, start) for start in starts]


def violations(c: str, functions: dict[str, bool]) -> tuple[list[str], set[str]]:
    """Check one generated file.

    c: its text, as made without line tracing.
    functions: C name of each nogil function that may be in it -> whether it is noexcept.  One that
    is not may take the GIL to raise; no other does.

    Return the uses of Python found, and which of the functions were.
    """
    wrong, seen = [], set()
    for name, body in _BODY.findall(_STRING.sub('""', _COMMENT.sub("", c))):
        if name in functions:
            seen.add(name)
            found = uses(body if functions[name] else _WITH_GIL.sub("", body))
            if found:
                wrong.append(f"{name}: {', '.join(found)}")
        for block in nogil_blocks(body):
            if found := uses(_WITH_GIL.sub("", block)):
                wrong.append(f"{name}, in a nogil block: {', '.join(found)}")
    return wrong, seen
