"""`--once`: the next run leaves out what has passed, and nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from once import Once

PROBE = """
def test_one(): pass
def test_two(): pass
def test_bad(): assert False
"""


def kept(once: Once, names: list[str]) -> list[str]:
    """Of tests of these names, those that are run; the others must be told."""
    items, told = [SimpleNamespace(nodeid=name) for name in names], []

    def deselected(items: list) -> None:
        told.extend(items)

    config = SimpleNamespace(hook=SimpleNamespace(pytest_deselected=deselected))
    once.pytest_collection_modifyitems(config, items)
    found = [item.nodeid for item in items]
    assert sorted(found + [item.nodeid for item in told]) == sorted(names)
    return found


def test_what_has_passed_is_left_out(tmp_path):
    file, names = tmp_path / "build" / "passed", ["t.py::good", "t.py::many[a b]", "t.py::bad", "t.py::absent"]
    once = Once(file)
    assert kept(once, names) == names
    for name, when, passed in (
        ("t.py::good", "setup", True), ("t.py::good", "call", True), ("t.py::many[a b]", "call", True),
        ("t.py::bad", "setup", True), ("t.py::bad", "call", False), ("t.py::absent", "setup", True),
    ):  # fmt: skip
        once.pytest_runtest_logreport(SimpleNamespace(nodeid=name, when=when, passed=passed))
    assert kept(Once(file), names) == names  # as the process would that takes a dead one's place
    session = SimpleNamespace(config=SimpleNamespace(), exitstatus=1)
    once.pytest_sessionfinish(session)
    assert session.exitstatus == 1
    assert kept(Once(file), names) == ["t.py::bad", "t.py::absent"]
    assert kept(Once(tmp_path / "other"), names) == names


@pytest.mark.parametrize("shared", [(), ("-p", "xdist", "-n", "2")], ids=["alone", "shared out"])
@pytest.mark.soak
def test_each_that_passed_is_written_once(tmp_path, shared):
    """Also where processes share the tests out, and a second run adds to the first. One of which all was left out is no
    failure, but one of which there was nothing else is."""
    tests, file = Path(__file__).parents[1], tmp_path / "passed"
    (tmp_path / "conftest.py").write_text((tests / "conftest.py").read_text())
    (tmp_path / "test_probe.py").write_text(PROBE)
    command = [sys.executable, "-m", "pytest", "-c", "/dev/null", "--rootdir", str(tmp_path), f"--once={file}", *shared]
    for name, left, status in (
        ("test_one", "test_one", 0), ("test_one", "test_one", 0), ("test_none", "test_one", 5), ("", "test_two", 1),
        ("test_two", "test_two", 0), ("", "test_two", 1),
    ):  # fmt: skip
        chosen = ["-k", name] if name else []
        done = subprocess.run(
            [*command, *chosen, str(tmp_path)], capture_output=True, text=True, cwd=tmp_path, check=False,
            env={**os.environ, "PYTHONPATH": os.pathsep.join((str(tests), str(tests.parent / "src")))},
        )  # fmt: skip
        assert done.returncode == status, done.stdout
        lines = file.read_text().splitlines()
        assert lines[-1] == f"test_probe.py::{left}" and len(lines) == len(set(lines)), done.stdout
    assert len(lines) == 2
