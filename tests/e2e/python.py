"""Python and modules of it as files for a guest: the interpreter that runs the tests.

The standard library keeps its place, so that the interpreter finds it; what is not of it, vhostrt
say, is put into /site. Everything is compiled beforehand, as that takes long in an emulated guest.

Fails:    GuestError
"""
import json
import os
import py_compile
import re
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.e2e.tools import need, run

ROOT = Path(__file__).resolve().parents[2]
PYTHON = os.path.realpath(sys.executable)
SITE = "/site"
ENVIRONMENT = f"PYTHONPATH={SITE} PYTHONUTF8=1 PYTHONDONTWRITEBYTECODE=1"
COMMAND = f"{ENVIRONMENT} {PYTHON} -S"

# Imports what is asked for, and prints where each module that this took along is.
LIST = """
import importlib, json, pkgutil, sys
for name in sys.argv[1:]:
    module = importlib.import_module(name.removesuffix(".*"))
    if name.endswith(".*"):
        for below in pkgutil.walk_packages(module.__path__, module.__name__ + "."):
            importlib.import_module(below.name)
print(json.dumps([module.__spec__.origin for module in list(sys.modules.values())
                  if getattr(module, "__spec__", None) and module.__spec__.has_location
                  or getattr(module, "__file__", None)]))
"""
# What the interpreter and the standard library import inside of functions.
ALWAYS = ("encodings.ascii", "encodings.latin_1", "encodings.utf_8", "encodings.aliases",
          "traceback", "linecache", "runpy", "importlib.util", "locale", "shutil")


def python_files(modules: Sequence[str]) -> dict[str, bytes]:
    """Return path -> contents of what a guest needs to import these modules: see COMMAND.

    A name that ends in .* stands for all that is in a package, at any depth.
    """
    listed = run("env", f"PYTHONPATH={ROOT}", sys.executable, "-S", "-c", LIST, *ALWAYS, *modules)
    library = Path(os.__file__).parent
    binaries = [PYTHON]
    files = {PYTHON: Path(PYTHON).read_bytes(), str(library / "os.py"): b""}
    for name in json.loads(listed):
        path = Path(name) if name != "frozen" else library
        if not path.is_file():
            continue
        place = Path(SITE) / path.relative_to(ROOT) if path.is_relative_to(ROOT) else path
        if path.suffix == ".py":
            files[str(place)] = path.read_bytes()
            name = f"{path.stem}.{sys.implementation.cache_tag}.pyc"
            files[str(place.parent / "__pycache__" / name)] = compiled(path, place)
        else:
            files[str(place)] = path.read_bytes()
            binaries.append(str(path))
    for library_path in libraries(binaries):
        files[library_path] = Path(library_path).read_bytes()
    # The place where extension modules would be is how the interpreter knows the library.
    files.setdefault(str(library / "lib-dynload" / "none"), b"")
    return files


def compiled(path: Path, place: Path) -> bytes:
    """Return the byte code of a module, taken as it is whatever the times of the files."""
    with tempfile.TemporaryDirectory() as folder:
        made = py_compile.compile(str(path), f"{folder}/pyc", str(place), doraise=True,
                                  invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)
        return Path(made).read_bytes()


def libraries(binaries: Sequence[str]) -> set[str]:
    """Return the shared libraries that programs and modules need, by the paths they look at."""
    listed = run(need("ldd", "libc-bin"), *binaries).decode()
    return set(re.findall(r"(/\S+) \(0x", listed))
