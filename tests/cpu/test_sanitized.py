"""The native loop alone (tests/native): under sanitizers, with 1 to 4 threads, and built for another processor.

Every tiny model's story runs at every ISA level this machine has; results must be the same bits for any number of
threads, and near what the installed module gives at level portable.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest
import zoo
from builds import compiles, native_test
from cases import write_case
from harness import ISAS

pytestmark = [pytest.mark.slow, pytest.mark.timeout(7200)]
_CROSS = "aarch64-linux-gnu-g++"
_QEMU = ("qemu-aarch64", "qemu-aarch64-static")
_SYSROOT = Path("/usr/aarch64-linux-gnu")
_FEW = ("llama", "odd", "odd-int8", "many-heads", "two-terms", "gpt2", "bloom", "falcon", "gemma")


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("cases")
    found = {model.name: folder / f"{model.name}.case" for model in zoo.MODELS}
    for model in zoo.MODELS:
        write_case(found[model.name], model)
    return found


def run(binary: Path, paths: Sequence[Path], *options: str, through: Sequence[str] = (), **settings: str) -> str:
    command = [*through, str(binary), *options, *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **settings})
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    return done.stdout


@pytest.mark.parametrize("sanitizers", ["address,undefined", "thread"])
def test_sanitizers_find_nothing(cases: dict[str, Path], sanitizers: str) -> None:
    if why := compiles("c++", f"-fsanitize={sanitizers}"):
        pytest.skip(f"the compiler has no sanitizers {sanitizers}: {why}")
    # Levels this machine lacks are compiled in every install; here they would take minutes and never run.
    binary = native_test(sanitizers.partition(",")[0], RIDGELINE_SANITIZE=sanitizers, RIDGELINE_LEVELS=";".join(ISAS))
    fixed = ["setarch", "-R"] if shutil.which("setarch") else []  # the thread sanitizer wants addresses in their place
    out = run(binary, list(cases.values()), through=fixed, UBSAN_OPTIONS="print_stacktrace=1")
    assert all(f"level {isa}: {len(cases)} cases" in out for isa in ISAS) and "all good" in out


def test_an_arm_build_gives_the_same(cases: dict[str, Path]) -> None:
    """Cross-compiled without a warning, and run where there is an emulator."""
    if why := compiles(_CROSS):
        pytest.skip(f"no compiler for aarch64: {why}")
    binary = native_test(
        "aarch64", CMAKE_SYSTEM_NAME="Linux", CMAKE_SYSTEM_PROCESSOR="aarch64", CMAKE_CXX_COMPILER=_CROSS,
        CMAKE_CXX_FLAGS="-Werror",
    )  # fmt: skip
    emulator = next(filter(shutil.which, _QEMU), None)
    if emulator is None:
        pytest.skip(f"built; not run, for want of {_QEMU[0]}")
    few = [cases[name] for name in _FEW]
    assert "all good" in run(binary, few, "--threads", "2", through=[emulator, "-L", str(_SYSROOT)])
    rest = [path for name, path in cases.items() if name not in _FEW]
    assert "all good" in run(binary, rest, "--threads", "1", through=[emulator, "-L", str(_SYSROOT)])
