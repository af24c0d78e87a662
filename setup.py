"""Compile pyx/vhostrt/**/X.pyx into the extension module vhostrt.**.X.

Everything that changes the build is an environment variable, so that one command line serves
people, CI and docker/:

    VHOSTRT_PROFILE=release|debug|trace|asan|tsan     default release
    VHOSTRT_NATIVE=1                                  -march=native, never for a wheel
    VHOSTRT_WERROR=1                                  a compiler warning is an error
    VHOSTRT_TESTS=1                                   also build {tests,bench}/**/cy_*.pyx
"""
import hashlib
import os
import shutil
import sys
import tempfile
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py
from setuptools.errors import CompileError, LinkError

os.chdir(Path(__file__).parent)
PYX = Path("pyx")                       # include root of .pxd and of .h
JOBS = len(os.sched_getaffinity(0))


def flag(name: str) -> bool:
    return os.environ.get(name, "0") not in ("", "0")


BASE = ["-std=gnu11", "-fno-strict-aliasing", "-fvisibility=hidden", "-Wall", "-Wextra",
        "-Wno-unused-function", "-Wno-unused-parameter"]
SAN = ["-O1", "-g", "-fno-omit-frame-pointer", "-DVH_DEBUG=1"]
PROFILES = {                            # (compile, link)
    "release": (["-O3", "-g1"], []),
    "debug": (["-Og", "-g3", "-DVH_DEBUG=1"], []),
    "trace": (["-O0", "-DCYTHON_TRACE=1", "-DCYTHON_TRACE_NOGIL=1",
               "-DCYTHON_USE_SYS_MONITORING=0"], []),
    "asan": ([*SAN, "-fsanitize=address,undefined"], ["-fsanitize=address,undefined"]),
    "tsan": ([*SAN, "-fsanitize=thread"], ["-fsanitize=thread"]),
}
PROFILE = os.environ.get("VHOSTRT_PROFILE") or "release"
if PROFILE not in PROFILES:
    sys.exit(f"VHOSTRT_PROFILE={PROFILE}: the profiles are {', '.join(PROFILES)}")
CFLAGS, LDFLAGS = BASE + PROFILES[PROFILE][0], PROFILES[PROFILE][1]
if flag("VHOSTRT_NATIVE"):
    CFLAGS.append("-march=native")
WERROR = ["-Werror"] if flag("VHOSTRT_WERROR") else []      # makes no other code: no rebuild
# Modules that need a C library which may be missing: (library, header, what is lost without it).
OPTIONAL = {
    "vhostrt.bdev.uring": ("uring", "liburing.h", "files are served by helper threads"),
}

DIRECTIVES = {
    "language_level": 3, "boundscheck": False, "wraparound": False, "cdivision": True,
    "initializedcheck": False, "auto_pickle": False, "embedsignature": True,
    "embedsignature.format": "python", "freethreading_compatible": True,
    "linetrace": PROFILE == "trace",
}


def clean_if_changed():
    """Remove what other flags have built: neither Cython nor setuptools looks at them."""
    stamp = Path("build/stamp")
    want = hashlib.sha256(repr((sys.version, CFLAGS, LDFLAGS, DIRECTIVES)).encode()).hexdigest()
    if stamp.exists() and stamp.read_text() == want:
        return
    for old in (*stamp.parent.glob("temp.*"), *stamp.parent.glob("lib.*")):
        shutil.rmtree(old)
    for built in (p for top in (PYX, "vhostrt", "tests", "bench") for p in Path(top).rglob("*.*")):
        if built.suffix == ".so" or built.suffix == ".c" and built.with_suffix(".pyx").exists():
            built.unlink()
    stamp.parent.mkdir(exist_ok=True)
    stamp.write_text(want)


def extension(pyx: Path, root: Path) -> Extension:
    name = ".".join(pyx.relative_to(root).with_suffix("").parts)
    return Extension(name, [str(pyx)], include_dirs=[str(PYX)], depends=HEADERS,
                     extra_compile_args=CFLAGS + WERROR, extra_link_args=LDFLAGS,
                     libraries=[OPTIONAL[name][0]] if name in OPTIONAL else [])


class BuildPy(build_py):
    """Ship .pxd and .h beside the modules, so that others can cimport them."""

    def run(self):
        super().run()
        if self.editable_mode:
            return
        for src in (*PYX.rglob("*.pxd"), *PYX.rglob("*.h")):
            dst = Path(self.build_lib, src.relative_to(PYX))
            dst.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(src, dst)


class BuildExt(build_ext):
    """Translate and compile, in parallel, what has changed; an sdist or metadata need neither.

    Optional modules whose C library is not there are left out.
    """

    def finalize_options(self):
        clean_if_changed()
        self.distribution.ext_modules[:] = cythonize(
            EXTENSIONS, include_path=[str(PYX)], compiler_directives=DIRECTIVES, nthreads=JOBS,
            emit_linenums=PROFILE in ("debug", "asan", "tsan"))
        super().finalize_options()
        self.parallel = self.parallel or JOBS
        if self.inplace or self.editable_mode:
            # The two share what they have compiled; setuptools has the second start anew.
            self.build_lib, self.build_temp = "build/lib.inplace", "build/temp.inplace"

    def build_extensions(self):
        self.extensions[:] = [e for e in self.extensions
                              if e.name not in OPTIONAL or self.has_library(e.name)]
        super().build_extensions()

    def has_library(self, name: str) -> bool:
        library, header, lost = OPTIONAL[name]
        with tempfile.TemporaryDirectory() as work:
            probe = Path(work, "probe.c")
            probe.write_text(f"#include <{header}>\nint main(void) {{ return 0; }}\n")
            try:
                objects = self.compiler.compile([str(probe)], output_dir=work)
                self.compiler.link_executable(objects, "probe", output_dir=work,
                                              libraries=[library])
                return True
            except (CompileError, LinkError):
                print(f"{name} is left out, as {header} or lib{library} is missing: {lost}.")
                return False


HEADERS = [str(p) for p in PYX.rglob("*.h")]
EXTENSIONS = [extension(p, PYX) for p in sorted(PYX.rglob("*.pyx"))]
if flag("VHOSTRT_TESTS"):
    EXTENSIONS += [extension(p, Path(".")) for top in ("tests", "bench")
                   for p in sorted(Path(top).rglob("cy_*.pyx"))]

setup(
    packages=find_packages(include=["vhostrt", "vhostrt.*"]),
    ext_modules=list(EXTENSIONS),
    cmdclass={"build_py": BuildPy, "build_ext": BuildExt},
    zip_safe=False,
)
