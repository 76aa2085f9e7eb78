"""Test runs that follow each other: what has passed in one of them is left out of the next ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest


class Once:
    """Remembers in a file what has passed: one line for each test.

    Of processes that share the tests out (pytest-xdist) each leaves out the same, also one that takes a dead one's
    place: the file changes when all is done. And only the process that hears of every test writes it.
    """

    def __init__(self, file: Path, writes: bool = True) -> None:
        self._file, self._writes = file, writes
        self._passed = file.read_text().splitlines() if file.exists() else []
        self._new: list[str] = []
        self._left_out = 0

    @pytest.hookimpl(trylast=True)  # what is not asked for is gone then
    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        passed = set(self._passed)
        before = [item for item in items if item.nodeid in passed]
        config.hook.pytest_deselected(items=before)
        items[:] = [item for item in items if item.nodeid not in passed]
        self._left_out = len(before)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" and report.passed:
            self._new.append(report.nodeid)

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        """A process that had its share of the tests is done, or dead."""
        self._left_out += getattr(node, "workeroutput", {}).get("left_out", 0)

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Where there was nothing to run as all of it has passed, that is no failure, as it is to pytest."""
        if hasattr(session.config, "workeroutput"):
            session.config.workeroutput["left_out"] = self._left_out
        if self._left_out and session.exitstatus == pytest.ExitCode.NO_TESTS_COLLECTED:
            session.exitstatus = pytest.ExitCode.OK
        if self._writes and self._new:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            self._file.write_text("".join(f"{name}\n" for name in self._passed + self._new))
