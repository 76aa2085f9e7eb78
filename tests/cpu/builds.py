"""Builds of the native loop for tests alone: with sanitizers, with counters, for another processor.

They lie in the ignored folder `build` and are brought up to date by the next test that asks.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
_EMPTY = "int main() {}"


def compiles(compiler: str, *options: str) -> str:
    """Why `compiler` cannot link an empty program with these options; "" if it can."""
    if not shutil.which(compiler):
        return f"{compiler} is not installed"
    command = [compiler, *options, "-x", "c++", "-", "-o", os.devnull]
    done = subprocess.run(command, input=_EMPTY, capture_output=True, text=True, check=False)
    return done.stderr.strip()[-300:] if done.returncode else ""


def configure(name: str, **options: str) -> Path:
    """The folder of a build with these CMake options. Skips the test where there is no cmake or compiler."""
    if not shutil.which("cmake"):
        pytest.skip("cmake is not installed")
    if why := compiles(options.get("CMAKE_CXX_COMPILER", "c++")):
        pytest.skip(f"no C++ compiler: {why}")
    folder = ROOT / "build" / name
    generator = ["-G", "Ninja"] if shutil.which("ninja") else []
    given = [f"-D{key}={value}" for key, value in options.items()]
    _run("cmake", "-S", str(ROOT), "-B", str(folder), *generator, *given)
    return folder


def build(folder: Path) -> None:
    jobs = len(os.sched_getaffinity(0))
    _run("cmake", "--build", str(folder), "-j", os.environ.get("CMAKE_BUILD_PARALLEL_LEVEL", str(jobs)))


def native_test(name: str, **options: str) -> Path:
    """The stand-alone test (tests/native) built with these CMake options."""
    folder = configure(name, RIDGELINE_TESTS="ON", **options)
    build(folder)
    return folder / "native_test"


def counting_module() -> Path:
    """The Python module in its counting build, for the least ISA level."""
    nanobind = pytest.importorskip("nanobind", reason="nanobind is not installed")
    folder = configure(
        "counting", RIDGELINE_COUNT="ON", RIDGELINE_LEVELS="portable", nanobind_DIR=nanobind.cmake_dir(),
        Python_EXECUTABLE=sys.executable,
    )  # fmt: skip
    build(folder)
    return next(folder.glob("_native*.so"))


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}:\n{done.stdout[-4000:]}{done.stderr[-4000:]}"
