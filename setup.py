"""Compile pyx/vhostrt/**/X.pyx into the extension module vhostrt.**.X.

Everything that changes the build is an environment variable, so that one command line serves
people, CI and docker/:

    VHOSTRT_PROFILE=release|debug|trace|asan|tsan     default release
    VHOSTRT_NATIVE=1                                  -march=native, never for a wheel
    VHOSTRT_TESTS=1                                   also build tests/**/cy_*.pyx
"""
import hashlib
import os
import shutil
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, find_packages, setup
from setuptools.command.build_py import build_py

os.chdir(Path(__file__).parent)
PYX = Path("pyx")                       # include root of .pxd and of .h
PROFILE = os.environ.get("VHOSTRT_PROFILE", "release")

BASE = ["-std=gnu11", "-fno-strict-aliasing", "-fvisibility=hidden", "-Wall", "-Wextra", *(["-Werror"] if os.environ.get("VHOSTRT_WERROR") else []),
        "-Wno-unused-function", "-Wno-unused-parameter"]
SAN = ["-O1", "-g", "-fno-omit-frame-pointer", "-DVH_DEBUG=1"]
PROFILES = {                            # (compile, link)
    "release": (["-O3", "-g1"], []),
    "debug": (["-Og", "-g3", "-DVH_DEBUG=1"], []),
    "trace": (["-O0", "-DCYTHON_TRACE=1", "-DCYTHON_TRACE_NOGIL=1", "-DCYTHON_USE_SYS_MONITORING=0"], []),
    "asan": ([*SAN, "-fsanitize=address,undefined"], ["-fsanitize=address,undefined"]),
    "tsan": ([*SAN, "-fsanitize=thread"], ["-fsanitize=thread"]),
}
CFLAGS, LDFLAGS = BASE + PROFILES[PROFILE][0], PROFILES[PROFILE][1]
if os.environ.get("VHOSTRT_NATIVE"):
    CFLAGS.append("-march=native")

DIRECTIVES = {
    "language_level": 3, "boundscheck": False, "wraparound": False, "cdivision": True,
    "initializedcheck": False, "auto_pickle": False, "embedsignature": True,
    "embedsignature.format": "python", "freethreading_compatible": True,
    "linetrace": PROFILE == "trace",
}


def changed() -> bool:
    """True when flags differ from those of the last build: neither Cython nor setuptools looks."""
    stamp = Path("build/stamp")
    want = hashlib.sha256(repr((CFLAGS, LDFLAGS, DIRECTIVES)).encode()).hexdigest()
    if stamp.exists() and stamp.read_text() == want:
        return False
    stamp.parent.mkdir(exist_ok=True)
    stamp.write_text(want)
    shutil.rmtree("build/temp", ignore_errors=True)
    return True


def extension(pyx: Path, root: Path) -> Extension:
    return Extension(".".join(pyx.relative_to(root).with_suffix("").parts), [str(pyx)],
                     include_dirs=[str(PYX)], depends=HEADERS,
                     extra_compile_args=CFLAGS, extra_link_args=LDFLAGS)


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


HEADERS = [str(p) for p in PYX.rglob("*.h")]
EXTENSIONS = [extension(p, PYX) for p in sorted(PYX.rglob("*.pyx"))]
if os.environ.get("VHOSTRT_TESTS"):
    EXTENSIONS += [extension(p, Path(".")) for p in sorted(Path("tests").rglob("cy_*.pyx"))]
FORCE = changed()
for ext in EXTENSIONS if FORCE else ():
    ext.force = True

setup(
    packages=find_packages(include=["vhostrt", "vhostrt.*"]),
    ext_modules=cythonize(EXTENSIONS, include_path=[str(PYX)], compiler_directives=DIRECTIVES,
                          force=FORCE, emit_linenums=PROFILE in ("debug", "asan", "tsan")),
    cmdclass={"build_py": BuildPy},
    options={"build_ext": {"force": FORCE}},
    zip_safe=False,
)
