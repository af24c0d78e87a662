"""The package as others get it: an sdist, the wheel made of it, an editable install."""
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile

import pytest

from tests.source.cysource import ROOT

pytestmark = pytest.mark.timeout(900)       # the whole package is compiled once
SOURCES = ["setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE", "Makefile",
           ".coveragerc", ".ci", "docker", "docs", "pyx", "vhostrt", "tests", "bench"]
BUILT = shutil.ignore_patterns("*.so", "*.c", "__pycache__", "results")
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
QUICK = {"VHOSTRT_PROFILE": "debug"}        # compiled in a third of the time that release takes
INSTALL = ["install", "-q", "--no-index", "--no-deps", "--no-build-isolation"]

THIRD_PARTY = '''
from libc.stdint cimport uint32_t
from vhostrt.base.atomics cimport fetch_add_u32
from vhostrt.base.errors cimport ok
def count(uint32_t n, int rc):
    return ok(fetch_add_u32(&n, 2) + rc, "third party") + n
'''
THIRD_PARTY_SETUP = '''
import vhostrt
from Cython.Build import cythonize
from setuptools import Extension, setup
where = vhostrt.get_include()
setup(ext_modules=cythonize([Extension("third", ["third.pyx"], include_dirs=[where])],
                            include_path=[where], language_level=3))
'''


def run(*command, cwd, **environment):
    """Run a command that must succeed; return what it printed."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("VHOSTRT_", "PYTHONPATH"))}
    done = subprocess.run([str(c) for c in command], cwd=cwd, env=clean | QUICK | environment,
                          text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert done.returncode == 0, done.stdout
    return done.stdout


class Environment:
    """A virtual environment with nothing of its own; what this one has is seen behind it."""

    def __init__(self, path):
        run(sys.executable, "-m", "venv", "--without-pip", path, cwd=path.parent)
        self.python = path / "bin" / "python"
        self.command = path / "bin" / "vhostrt"
        self.site = next(path.glob("lib/python3*/site-packages"))
        (self.site / "behind.pth").write_text(sysconfig.get_path("purelib") + "\n")

    def install(self, what, cwd, **environment):
        return run(*PIP, "--python", self.python, *INSTALL, *what, cwd=cwd, **environment)


def copy_tree(to, names=tuple(SOURCES)):
    """Copy the project without what was built in it."""
    to.mkdir()
    for name in names:
        source, target = ROOT / name, to / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=BUILT)
        else:
            shutil.copy2(source, target)
    return to


@pytest.fixture(scope="module")
def top(tmp_path_factory):
    return tmp_path_factory.mktemp("package")


@pytest.fixture(scope="module")
def sdist(top):
    run(sys.executable, "setup.py", "-q", "sdist", "-d", top / "dist",
        cwd=copy_tree(top / "checkout"))
    return next((top / "dist").glob("vhostrt-*.tar.gz"))


@pytest.fixture(scope="module")
def unpacked(top, sdist):
    """The tree of the sdist."""
    shutil.unpack_archive(sdist, top / "sdist")
    return next((top / "sdist").iterdir())


@pytest.fixture(scope="module")
def wheel(unpacked):
    run(*PIP, "wheel", "-q", "--no-index", "--no-deps", "--no-build-isolation", "-w",
        unpacked.parent, ".", cwd=unpacked)
    return next(unpacked.parent.glob("vhostrt-*.whl"))


@pytest.fixture(scope="module")
def installed(top, wheel):
    environment = Environment(top / "installed")
    environment.install([wheel], cwd=top)
    return environment


@pytest.fixture(scope="module")
def editable(top, unpacked, wheel):
    # The modules are those of the wheel: newer than their sources, so not compiled once more.
    with zipfile.ZipFile(wheel) as archive:
        modules = [name for name in archive.namelist() if name.endswith(".so")]
        archive.extractall(unpacked / "build/lib.inplace", modules)
    environment = Environment(top / "editable")
    environment.install(["-e", "."], cwd=unpacked)
    return environment


@pytest.fixture(params=["installed", "editable"])
def environment(request):
    return request.getfixturevalue(request.param)


def test_sdist_holds_sources_only(sdist):
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"setup.py", "pyx/vhostrt/base/atomics.h", "tests/conftest.py", "bench/conftest.py",
            "Makefile", "LICENSE", ".ci/run"} <= names
    assert not [name for name in names if name.endswith((".so", ".c", ".pyc"))]


def test_wheel_holds_the_program(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    want = {str(p.relative_to(ROOT / "pyx")) for kind in ("*.pxd", "*.h")
            for p in (ROOT / "pyx").rglob(kind)}
    want |= {str(p.relative_to(ROOT)) for p in (ROOT / "vhostrt").rglob("*.py")}
    assert want <= set(names)
    assert "vhostrt/base/errors" + sysconfig.get_config_var("EXT_SUFFIX") in names
    assert not [n for n in names if n.startswith(("tests", "bench", "pyx")) or n.endswith(".pyx")]


def test_command(environment, top):
    assert run(environment.command, "--help", cwd=top).startswith("vhostrt")
    version = run(environment.python, "-c", "import importlib.metadata as m, vhostrt as v;"
                  "assert m.version('vhostrt') == v.__version__; print(v.__version__)", cwd=top)
    assert run(environment.command, "-v", cwd=top) == f"vhostrt v{version}"


def test_third_party_cimports(environment, tmp_path):
    (tmp_path / "third.pyx").write_text(THIRD_PARTY)
    (tmp_path / "setup.py").write_text(THIRD_PARTY_SETUP)
    run(environment.python, "setup.py", "-q", "build_ext", "--inplace", cwd=tmp_path)
    assert run(environment.python, "-c", "import third; print(third.count(5, 0))",
               cwd=tmp_path) == "12\n"


def test_editable_is_the_tree(editable, unpacked, top):
    where = run(editable.python, "-c", "import vhostrt; print(vhostrt.__file__)", cwd=top)
    assert where == f"{unpacked}/vhostrt/__init__.py\n"


@pytest.mark.parametrize("missing", [False, True], ids=["found", "missing"])
def test_library_that_is_missing(tmp_path, missing):
    tree = copy_tree(tmp_path / "tree", ("setup.py", "pyproject.toml", "README.md", "LICENSE",
                                         "vhostrt/__init__.py", "pyx/vhostrt/base"))
    for package in ("base", "bdev"):
        (tree / "vhostrt" / package).mkdir()
        (tree / "vhostrt" / package / "__init__.py").touch()
    (tree / "pyx/vhostrt/bdev").mkdir()
    (tree / "pyx/vhostrt/bdev/uring.pyx").write_text('"""Nothing."""\n')
    compiler = tmp_path / "cc"
    compiler.write_text('#!/bin/sh\ncase "$*" in *-luring*) exit 1; esac\nexec gcc "$@"\n')
    compiler.chmod(0o755)
    printed = run(sys.executable, "setup.py", "-q", "build_ext", "--inplace", cwd=tree,
                  **({"CC": str(compiler)} if missing else {}))
    assert bool(list((tree / "vhostrt/bdev").glob("uring*.so"))) != missing
    assert list((tree / "vhostrt/base").glob("errors*.so"))
    assert ("vhostrt.bdev.uring is left out" in printed) == missing


def test_unknown_profile_is_refused():
    done = subprocess.run([sys.executable, "setup.py", "--version"], cwd=ROOT, text=True,
                          env={**os.environ, "VHOSTRT_PROFILE": "fast"}, capture_output=True)
    assert done.returncode == 1
    assert done.stderr == ("VHOSTRT_PROFILE=fast: the profiles are release, debug, trace, asan, "
                           "tsan\n")
