"""Every file keeps the style of the house."""
import ast
import os
import re
import shutil
import subprocess
import sys

import pytest

from tests.source.cysource import ROOT

COLUMNS, LINES, FUNCTION_LINES = 100, 600, 75
CODE = {".py", ".pyx", ".pxd", ".h"}
TEXT = CODE | {".md", ".toml", ".sh", ".yml", ".yaml", ".json", ".service", ".in", ""}
# Put together from parts, so that this file does not hold what it looks for.
UNFINISHED = re.compile(r"\b(TO" r"DO|FIX" r"ME|XX" r"X|HA" r"CK|NotImplemented" r"Error)\b")
SKIPPED = re.compile(r"pytest\.(skip|importor" r"skip|xfail|mark\.(skip|skipif|xfail))"
                     r"|unittest\.skip")
MACHINE = re.compile(r"/(?:wo" r"rk|opt/v" r"h|opt/py" r"pi|opt/wh" r"eels|tmp/w" r"t|tmp/h|root)/")


def project_files():
    """Return the project's files as git sees them, or all of a tree that is no clone."""
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT,
                            capture_output=True, text=True)
    if listed.returncode == 0:
        return sorted(ROOT / name for name in listed.stdout.splitlines())
    return sorted(p for top in ("pyx", "vhostrt", "tests", "bench", "docker", "docs")
                  for p in (ROOT / top).rglob("*") if "__pycache__" not in p.parts)


FILES = [p for p in project_files() if p.is_file() and p.suffix in TEXT]
CODES = [p for p in FILES if p.suffix in CODE]


def name_of(path):
    return str(path.relative_to(ROOT))


def indented_functions(source):
    """Yield (line, length) of the functions of Cython source, by their indentation."""
    lines = source.splitlines()
    for at, line in enumerate(lines):
        if not re.match(r"\s*(async\s+)?(def|cdef|cpdef)\b[^=]*\(", line):
            continue
        indent, end = len(line) - len(line.lstrip()), at + 1
        while end < len(lines) and (not lines[end].strip() or lines[end].lstrip()[0] in ")#"
                                    or len(lines[end]) - len(lines[end].lstrip()) > indent):
            end += 1
        yield at + 1, len("\n".join(lines[at:end]).rstrip().splitlines())


def function_lengths(path, source):
    """Return (line, length) of each function of a file."""
    if path.suffix == ".py":
        return [(node.lineno, node.end_lineno - node.lineno + 1)
                for node in ast.walk(ast.parse(source))
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    if path.suffix == ".h":
        return [(source.count("\n", 0, body.start()) + 1, body[0].count("\n"))
                for body in re.finditer(r"^\{.*?^\}", source, re.M | re.S)]
    return list(indented_functions(source))


def headless(path, source):
    """Return whether a file of code does not begin by saying what it is."""
    if path.suffix == ".h":
        return not source.startswith("/*")
    if path.suffix == ".py":
        source = source.removeprefix("#!/usr/bin/env python3\n")
    return bool(source) and not re.match(r'(?:#[^\n]*\n)*r?"""\S', source)


def faults(path, source):
    """Return what is wrong with a file: "LINE: what"."""
    rows = list(enumerate(source.split("\n"), 1))
    wrong = [f"{at}: unfinished: {m[0]}" for at, row in rows if (m := UNFINISHED.search(row))]
    wrong += [f"{at}: a path of one machine" for at, row in rows if MACHINE.search(row)]
    wrong += [f"{at}: a test that is skipped" for at, row in rows if SKIPPED.search(row)]
    if path.suffix in CODE:
        wrong += [f"{at}: {len(row)} columns" for at, row in rows if len(row) > COLUMNS]
        wrong += [f"{at}: a tab" for at, row in rows if "\t" in row]
        wrong += [f"{at}: not ASCII" for at, row in rows if not row.isascii()]
        wrong += [f"{len(rows)} lines"] if len(rows) > LINES + 1 else []
        wrong += [f"{at}: a function of {length} lines"
                  for at, length in function_lengths(path, source) if length > FUNCTION_LINES]
        wrong += ["does not begin with what it is"] if headless(path, source) else []
    return wrong


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_file(path):
    assert faults(path, path.read_text()) == []


LONG = "def f():\n" + "    x = 1\n" * FUNCTION_LINES
FAULTS = {
    "columns": ("a.py", '"""A."""\n' + "x" * 101 + "\n"),
    "lines": ("a.pyx", '"""A."""\n' + "x = 1\n" * LINES),
    "function.py": ("a.py", '"""A."""\n' + LONG),
    "function.pyx": ("a.pyx", '"""A."""\nc' + LONG),
    "function.h": ("a.h", "/* A */\nint f(void)\n{\n" + "    x();\n" * FUNCTION_LINES + "}\n"),
    "ascii": ("a.pxd", '"""A\u2026"""\n'),
    "unfinished": ("a.md", "TO" "DO\n"),
    "skip": ("a.py", '"""A."""\npytest' ".skip()\n"),
    "machine": ("a.toml", 'x = "/wo' 'rk/a"\n'),
    "head": ("a.pyx", "x = 1\n"),
    "tab": ("a.h", "/* A */\n\tint x;\n"),
}


@pytest.mark.parametrize(("name", "source"), FAULTS.values(), ids=FAULTS)
def test_fault_is_found(name, source):
    assert len(faults(ROOT / name, source)) == 1


def run_tool(name, *arguments):
    """Run a tool of this interpreter's environment; the tools that it runs are found there too."""
    path = os.pathsep.join([os.path.dirname(sys.executable), os.environ["PATH"]])
    done = subprocess.run([shutil.which(name, path=path) or name, *arguments], cwd=ROOT,
                          capture_output=True, text=True, env={**os.environ, "PATH": path},
                          timeout=250)
    assert done.returncode == 0, done.stdout + done.stderr


def test_ruff():
    run_tool("ruff", "check", *[name_of(p) for p in CODES if p.suffix == ".py"])


def test_cython_lint():
    run_tool("cython-lint", *[name_of(p) for p in CODES if p.suffix in {".pyx", ".pxd"}])
