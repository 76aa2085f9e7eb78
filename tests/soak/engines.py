"""Engines for scenarios: tiny models written to a folder, loaded with a scenario's settings, on a virtual clock."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import msgspec

import tiny
import toy
from ridgeline.backends.base import Step
from ridgeline.config import CacheConfig, EngineConfig
from ridgeline.engine.engine import Engine
from ridgeline.engine.executor import LocalExecutor
from ridgeline.engine.load import Loaded, load
from ridgeline.engine.output import ChoiceText
from ridgeline.errors import RidgelineError
from ridgeline.program.batch import Batch, StepResult
from ridgeline.weights import hub
from soak.scenario import REAL, TINY, Scenario

Commit = Callable[[int], bool]  # whether the system has memory for so many more pages

_CONTEXT = 512
_SETTINGS = {"vocab_size": 260, "max_position_embeddings": _CONTEXT}
_CONFIGS = {
    "full": tiny.changed(tiny.CONFIGS["llama"], **_SETTINGS),
    "windowed": tiny.changed(tiny.CONFIGS["mistral"], **_SETTINGS),
    "mixed": tiny.changed(tiny.CONFIGS["gemma3s"], **_SETTINGS),
}
assert set(_CONFIGS) == set(TINY)


class Clock:
    """Virtual seconds; whoever asks twice hears two times."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 1e-6
        return self.now


class Timed:
    """A Step whose tokens take virtual time. It counts its steps, and sums up the batches it was given."""

    def __init__(self, step: Step, clock: Clock, token_s: float) -> None:
        self.layout, self._step, self._clock, self._token_s = step.layout, step, clock, token_s
        self.steps = self.digest = 0

    def run(self, batch: Batch) -> StepResult:
        self.steps += 1
        self.digest = zlib.crc32(batch.buffer, self.digest)
        self._clock.now += self._token_s * (4 + batch.size("T"))
        return self._step.run(batch)


class Engines:
    """Loads what scenarios need; `folder` is where the tiny models are written."""

    def __init__(self, folder: Path) -> None:
        self._paths = {name: str(toy.write(folder / name, config)) for name, config in _CONFIGS.items()}
        self.missing = _missing()
        self.page_bytes = lru_cache(None)(self._page_bytes)
        self.whole = lru_cache(4)(self._whole)

    def config(self, s: Scenario) -> EngineConfig:
        """What the engine process of a scenario gets; its pool holds the scenario's pages."""
        page, groups = self.page_bytes(s.model, s.kv_format, s.format)
        return replace(self._plain(s.model, s.kv_format, s.format), **s.settings(), kv_memory=s.pages * groups * page)

    def crowded(self, s: Scenario, clock: Clock, commit: Commit | None) -> tuple[Engine, Timed]:
        """The engine of a scenario in this process, its pages full of NaN."""
        loaded = load(self.config(s))
        step = Timed(loaded.step, clock, s.token_s)
        return _engine(loaded, step, s.depth, clock, commit), step

    def alone(self, model: str, kv_format: str, format: str) -> Engine:
        """A fresh engine of the model with room for anything, in one step and with one in flight."""
        loaded = self.whole(model, kv_format, format)
        return _engine(loaded, loaded.step, 1, Clock())

    def _plain(self, model: str, kv_format: str, format: str) -> EngineConfig:
        path = self._paths.get(model, model)
        kept = EngineConfig.packed_cache if model == REAL else 0
        return EngineConfig(path, threads=1, kv_format=kv_format, format=format, context=_CONTEXT, packed_cache=kept)

    def _page_bytes(self, model: str, kv_format: str, format: str) -> tuple[int, int]:
        """Bytes of a page, and the groups that each need their own."""
        info = load(replace(self._plain(model, kv_format, format), kv_memory=64 << 20)).engine.info
        return info.page_bytes, len(info.groups)

    def _whole(self, model: str, kv_format: str, format: str) -> Loaded:
        page, groups = self.page_bytes(model, kv_format, format)
        plain = self._plain(model, kv_format, format)
        return load(replace(plain, kv_memory=40 * groups * page, step_tokens=512, step_ms=0, max_requests=8))


def _engine(loaded: Loaded, step: Step, depth: int, clock: Callable[[], float], commit: Commit | None = None) -> Engine:
    loaded.step.kv.fill(0xFF)  # NaN in every format
    tokenizer, info = loaded.opened.tokenizer, msgspec.structs.replace(loaded.engine.info, depth=depth)
    executor = LocalExecutor(step, depth)
    return Engine(
        executor, step.layout, info, tokenizer.eos_ids, lambda r: ChoiceText(tokenizer, r.params), clock=clock,
        commit=commit,
    )  # fmt: skip


def _missing() -> str:
    """Why the real model is not there, or "": a soak fetches nothing."""
    try:
        hub.resolve(REAL, cache=CacheConfig.from_env().path, offline=True)
    except RidgelineError as why:
        return str(why)
    return ""
