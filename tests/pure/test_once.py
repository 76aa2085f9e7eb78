"""`--once`: the next run leaves out what has passed, and nothing else."""

from __future__ import annotations

from types import SimpleNamespace

from once import Once


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
    assert kept(Once(file), names) == ["t.py::bad", "t.py::absent"]
    assert kept(Once(tmp_path / "other"), names) == names
