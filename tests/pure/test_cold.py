"""What a start loads: nothing that it does not use. How long it takes is measured by benchmarks/cold.py."""

from __future__ import annotations

import subprocess
import sys

import pytest

import toy

UNUSED = (
    "rich", "starlette", "uvicorn", "torch", "jinja2", "http.client", "ssl", "subprocess", "tempfile", "zipfile",
    "shutil", "asyncio", "multiprocessing", "numpy.random", "ridgeline.weights.fetch", "ridgeline.server",
)  # fmt: skip


def loaded(code: str, names: tuple[str, ...]) -> list[str]:
    """Which of the modules are loaded after `code`, in a process of its own."""
    whole = f"import sys\n{code}\nprint([m for m in {names!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", whole], capture_output=True, text=True, check=True)
    return eval(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("words", [["--help"], ["run", "--help"], ["serve", "--help"], ["--version"]])
def test_help_loads_neither_numpy_nor_native_code(words):
    code = f"from ridgeline.cli import main\ntry: main({words!r})\nexcept SystemExit: pass"
    native = "ridgeline.backends.cpu._native"
    assert loaded(code, ("numpy", "tokenizers", native, *UNUSED)) == []


def test_a_run_loads_only_what_it_uses(model, tmp_path):
    words = ["run", model, "hello", "--raw", "--max-tokens", "1", *toy.REFERENCE]
    code = f"import os\nos.environ['XDG_CACHE_HOME'] = {str(tmp_path)!r}\nfrom ridgeline.cli import main\n"
    assert loaded(f"{code}try: main({words!r})\nexcept SystemExit as end: assert not end.code", UNUSED) == []


def test_one_blas_thread_unless_the_user_says_otherwise(monkeypatch):
    from ridgeline.config import one_blas_thread

    for name in ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MKL_NUM_THREADS", "5")
    one_blas_thread()
    import os

    assert (os.environ["OPENBLAS_NUM_THREADS"], os.environ["MKL_NUM_THREADS"]) == ("1", "5")
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.delenv("OPENBLAS_NUM_THREADS")
    one_blas_thread()
    assert os.environ["OPENBLAS_NUM_THREADS"] == "3"
    monkeypatch.delenv("OPENBLAS_NUM_THREADS")
