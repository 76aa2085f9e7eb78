"""One soak: plays scenarios, has them judged, and counts what they met."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from soak import crash, play
from soak.engines import Engines
from soak.judge import Judge
from soak.scenario import REAL, Scenario


class Soak:
    """`counts` say what was covered; a scenario whose model is missing is left out, and counted."""

    def __init__(self, folder: Path) -> None:
        self.engines = Engines(folder)
        self._judge = Judge(self.engines)
        self.counts: Counter[str] = Counter()
        self.failed = 0

    def play(self, scenario: Scenario) -> None:
        """Raises what went wrong, and counts it."""
        if scenario.model == REAL and self.engines.missing:
            self.counts[f"left out: {self.engines.missing}"] += 1
            return
        self.counts.update(["scenarios", f"model {scenario.model}", f"kv {scenario.kv_format}"])
        try:
            played = (crash if scenario.crash else play).play(scenario, self.engines)
            ends = self._judge.judge(scenario, played.requests)
        except Exception:
            self.failed += 1
            raise
        self.counts["requests"] += len(played.requests)
        self.counts.update(played.counts)
        self.counts.update({f"ended: {why}": count for why, count in ends.items()})

    def record(self) -> dict[str, int]:
        return {"failures": self.failed, **dict(sorted(self.counts.items()))}
