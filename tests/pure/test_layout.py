"""The shape of the tree: who may import whom, and how long files and functions may be."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "ridgeline"
FILES = sorted(p for p in SOURCE.rglob("*.py"))
NATIVE = sorted(p for p in (SOURCE / "backends" / "cpu" / "native").glob("*") if p.suffix in (".cpp", ".h"))

# What each package may import of ours. Dependencies point down only.
ALLOWED = {
    "errors": set(),
    "config": {"errors"},
    "cgroups": set(),
    "cores": {"cgroups"},
    "memory": {"cgroups"},
    "ops": {"errors"},
    "quant": {"errors"},
    "text": {"errors"},
    "guidance": {"errors", "text"},
    "program": {"errors", "ops", "quant"},
    "models": {"errors", "ops", "program", "weights"},
    "weights": {"errors", "config", "quant", "models", "program"},
    "backends": {"errors", "config", "cores", "ops", "quant", "program", "weights"},
    "engine": {
        "errors",
        "config",
        "cores",
        "memory",
        "ops",
        "program",
        "models",
        "weights",
        "backends",
        "text",
        "guidance",
    },
    "llm": {"errors", "config", "program", "engine", "text"},
    "server": {"errors", "config", "engine", "text", "weights", "guidance"},
    "offline": {"errors", "config", "engine", "server"},
    "analysis": None,  # None: all but server
    "tools": None,
    "cli": None,
}


def _package(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def _imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{a.name}" for a in node.names] if node.module == "ridgeline" else [node.module]
        elif isinstance(node, ast.Import):
            names = [a.name for a in node.names]
        found |= {n.split(".")[1] for n in names if n.startswith("ridgeline.") and "__" not in n}
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_dependencies_point_down(path):
    package, used = _package(path), _imports(path)
    if package in ("__init__", "__main__"):
        return
    allowed = ALLOWED[package]
    if allowed is None:
        assert package == "cli" or "server" not in used, f"{path} imports the server"
    else:
        assert used <= allowed | {package}, f"{path} imports {used - allowed - {package}}"


def test_models_import_no_backend_and_kernels_nothing_of_ours():
    for path in (SOURCE / "models").glob("*.py"):
        if path.name not in ("random.py",):
            assert not _imports(path) & {"backends", "engine", "weights"}, path


@pytest.mark.parametrize("path", FILES + NATIVE, ids=lambda p: str(p.relative_to(SOURCE)))
def test_file_budget(path):
    assert len(path.read_text().splitlines()) <= 400


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_function_budget(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            length = (node.end_lineno or 0) - node.lineno + 1
            assert length <= 60, f"{path.name}: {node.name} has {length} lines"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_module_docstring(path):
    assert ast.get_docstring(ast.parse(path.read_text())), f"{path} does not say what it owns"


def test_importing_the_package_loads_nothing_heavy():
    code = "import sys, ridgeline; print([m for m in sys.modules if m.split('.')[0] in ('numpy', 'torch', 'jinja2')])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_environment_is_read_in_one_place():
    readers = [p for p in FILES if "os.environ" in p.read_text() or "os.getenv" in p.read_text()]
    assert {p.relative_to(SOURCE).as_posix() for p in readers} <= {"config.py"}
