"""The machine beside the engines: a loop that only loads as many bytes as a model has, on as many threads.

It runs in a process of its own, as the engines do.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping

from peers.child import output
from peers.engines import Limits
from peers.work import Work

LOADS = "loads only"
LOAD = "import sys; from ridgeline.analysis.probe import load_only; print(load_only(*map(int, sys.argv[1:]), 0.5))"


class Loads:
    """A session as engines have them: decoding a model of `weights` bytes if nothing but reading them took time."""

    def __init__(self, weights: int, limits: Limits) -> None:
        self.weights, self._limits = weights, limits

    def run(self, work: Work, seed: int) -> Mapping[str, float]:
        """Tokens per second of decode; nothing for other work."""
        if work.kind not in ("stream", "long") or not self.weights:
            return {}
        command = [sys.executable, "-c", LOAD, str(self.weights), str(self._limits.threads)]
        return {"decode": float(output(command, self._limits.seconds)) * 1e9 / self.weights}

    def close(self) -> None:
        pass
