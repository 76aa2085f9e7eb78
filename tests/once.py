"""Test runs that follow each other: what has passed in one of them is left out of the next ones."""

from __future__ import annotations

from pathlib import Path

import pytest


class Once:
    """Remembers in a file what has passed: one line for each test."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._passed = set(file.read_text().splitlines()) if file.exists() else set()

    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        before = [item for item in items if item.nodeid in self._passed]
        config.hook.pytest_deselected(items=before)
        items[:] = [item for item in items if item.nodeid not in self._passed]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" and report.passed:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with self._file.open("a") as file:
                file.write(f"{report.nodeid}\n")
