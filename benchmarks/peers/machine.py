"""The machine beside the engines: core-to-core hand-over, and a load-only loop over as many bytes as a model has.

On virtual machines both change while a program runs: figures of one state only belong together. `python -m
peers.machine THREADS BYTES` prints GB/s: measured in a process of its own, as the engines are.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping

from peers.child import output
from peers.engines import Limits
from peers.work import Work

LOADS = "loads only"
_LEAST = 64 << 20  # bytes: a smaller model would be read from a cache that its engine shares with everything else


class Loads:
    """A session as engines have them: decoding a model of `weights` bytes if nothing but reading them took time."""

    def __init__(self, weights: int, limits: Limits) -> None:
        self.weights, self._limits = weights, limits

    def run(self, work: Work, seed: int) -> Mapping[str, float]:
        """Tokens per second of decode; nothing for other work."""
        if work.kind not in ("stream", "long") or not self.weights:
            return {}
        command = [sys.executable, "-m", "peers.machine", str(self._limits.threads), str(max(self.weights, _LEAST))]
        return {"decode": float(output(command, self._limits.seconds)) * 1e9 / self.weights}

    def close(self) -> None:
        pass


def main() -> None:
    """Print the rate of reading, in GB/s."""
    from ridgeline.analysis.probe import read_gb_s

    print(read_gb_s(int(sys.argv[1]), int(sys.argv[2])))


if __name__ == "__main__":
    main()
