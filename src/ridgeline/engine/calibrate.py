"""Calibration: what a model's linears read on a text, and the scales that smoothing takes from it.

The model runs on its own backend, as stored and with float32 rows, so nothing more than the packed weights has to fit
in memory. Results are kept in the cache, by model and text.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ridgeline.backends.base import Backend
from ridgeline.config import EngineConfig
from ridgeline.engine.single import ROWS, steps, windows
from ridgeline.errors import ConfigError
from ridgeline.models import build
from ridgeline.ops.attention import PAGE
from ridgeline.ops.spec import Array
from ridgeline.program.batch import BatchLayout, Limits
from ridgeline.program.ir import Program, Weight
from ridgeline.program.passes import pipeline
from ridgeline.program.passes.observe import observe
from ridgeline.program.passes.smooth import smoothed
from ridgeline.text.tokenizer import Tokenizer
from ridgeline.weights.fingerprint import fingerprint
from ridgeline.weights.load import Checkpoint
from ridgeline.weights.source import Raw

TOKENS = 2560
_WINDOW = 512
_LEAST_TOKENS = 64
_MAX_TEXT = 1 << 20
_TEXT = "calibration.txt"
_SAMPLES = 1 << 16  # of what one matrix reads, for quantiles
_PIECE = 1 << 20  # weights unpacked at a time

Visit = Callable[[tuple[str, ...], Array], None]  # (stored matrices, the rows [T, K] they read)


@dataclass(frozen=True)
class Calibrator:
    """A model, where it runs, and the text it is calibrated on."""

    checkpoint: Checkpoint
    backend: Backend
    tokenizer: Tokenizer
    text: str

    @property
    def name(self) -> str:
        """What results depend on: model and text."""
        return f"{fingerprint(self.checkpoint)}-{hashlib.sha256(self.text.encode()).hexdigest()[:16]}"

    def scales(self, program: Program, strength: float, cache: Path) -> Mapping[str, Array]:
        """The vector of every scale that `program` names, from the cache or measured now."""
        wanted = smoothed(program)
        if not wanted:
            return {}
        file = cache / "calibration" / f"{self.name}-smooth-{strength:g}.npz"
        found = _stored(file)
        if found is None or {k: len(v) for k, v in found.items()} != {k: v[0].shape[0] for k, v in wanted.items()}:
            found = self._measured(wanted, strength)
            _store(file, found)
        return found

    def _measured(self, wanted: Mapping[str, list[Weight]], strength: float) -> dict[str, Array]:
        rows: dict[str, Array] = {}

        def visit(readers: tuple[str, ...], x: Array) -> None:
            largest = np.abs(x).max(axis=0)
            for name in readers:
                rows[name] = np.maximum(rows.get(name, largest), largest)

        self.observe(visit)
        found, declared = {}, build(self.checkpoint.config).weights
        for name, weights in wanted.items():
            parts = [part for w in weights if len(w.shape) > 1 for part in w.parts]
            columns = np.max([self._column_maxima(declared[part]) for part in parts], axis=0)
            found[name] = scale_of(rows[parts[0]], columns, strength)
        return found

    def _column_maxima(self, w: Weight) -> Array:
        """max |w| of each column, as stored."""
        raw, largest = self.checkpoint.read(w), np.zeros(w.shape[1], np.float32)
        step = max(1, _PIECE // w.shape[1])
        for at in range(0, w.shape[0], step):
            data = raw.data[at : at + step]
            values = Raw(raw.format, (len(data), w.shape[1]), data).float32()
            largest = np.maximum(largest, np.abs(values).max(axis=0))
        return largest

    def thresholds(self, part: float, cache: Path) -> Mapping[str, float]:
        """Below which value the given part of what each of forward's matrices reads lies; cached or measured now."""
        file = cache / "calibration" / f"{self.name}-sparse-{part:g}.npz"
        found = _stored(file)
        if found is None:
            found = self._quantiles(part)
            _store(file, found)
        return {name: float(v[0]) for name, v in found.items()}

    def _quantiles(self, part: float) -> dict[str, Array]:
        samples: dict[str, list[Array]] = {}

        def visit(readers: tuple[str, ...], x: Array) -> None:
            stride = max(1, x.shape[1] * TOKENS // _SAMPLES)
            while math.gcd(stride, x.shape[1]) > 1:  # so that every column is met alike
                stride += 1
            values = np.abs(x.reshape(-1)[::stride])
            for name in readers:
                samples.setdefault(name, []).append(values)

        self.observe(visit)
        least = np.float32(1e-30)  # a threshold of 0 would ask for nothing
        return {
            name: np.maximum(np.quantile(np.concatenate(v), [part]).astype(np.float32), least)
            for name, v in samples.items()
        }

    def observe(self, visit: Visit) -> None:
        """Show `visit` the rows that linears of the exact model read on the text.

        Where the tokenizer has a BOS, every second window starts with it: texts come with it and without.
        """
        program, readers = self._program()
        bos, ids = self.tokenizer.bos_id, self.tokenizer.encode(self.text, add_special=False, parse_special=False)
        if len(ids) < _LEAST_TOKENS:
            raise ConfigError(f"the calibration text has {len(ids)} tokens; give at least {_LEAST_TOKENS}")
        window = min(_WINDOW, self.checkpoint.config.context)
        limits = Limits(
            tokens=ROWS, requests=1, rows=1, pages=-(-window // PAGE), vocab=self.checkpoint.config.vocab,
            hidden=self.checkpoint.config.hidden,
        )  # fmt: skip
        layout = BatchLayout.of(limits, program.states)
        step = self.backend.compile(program, self.checkpoint.read, layout, limits.pages * len(program.states))
        for i, text in enumerate(windows(ids, window, TOKENS)):
            given = [bos, *text[: window - 1]] if i % 2 and bos is not None else text
            for result in steps(step, layout, given, want=0):
                for names, x in zip(readers, result.extra, strict=True):
                    visit(names, x)

    def _program(self) -> tuple[Program, tuple[tuple[str, ...], ...]]:
        listed = pipeline.passes(self.checkpoint.format_of, "bf16", held_as=self.backend.held_as)
        return observe(pipeline.run(build(self.checkpoint.config), listed))


def text_of(config: EngineConfig) -> str:
    """The calibration text of a config: its file, or one of ours."""
    if not config.calibration:
        return Path(__file__).with_name(_TEXT).read_text("utf-8")
    path = Path(config.calibration)
    try:
        with path.open("rb") as f:
            return f.read(_MAX_TEXT).decode("utf-8", errors="strict" if path.stat().st_size <= _MAX_TEXT else "ignore")
    except OSError as wrong:
        raise ConfigError(f"calibration text {path} cannot be read: {wrong.strerror}") from wrong
    except UnicodeDecodeError as wrong:
        raise ConfigError(f"calibration text {path} is not UTF-8: byte {wrong.start} is invalid") from wrong


def scale_of(rows: Array, columns: Array, strength: float) -> Array:
    """max|x|^a / max|w|^(1-a) of each column; 1 where a column is 0 on either side."""
    alive = (rows > 0) & (columns > 0)
    x, w = np.where(alive, rows, 1).astype(np.float64), np.where(alive, columns, 1).astype(np.float64)
    s: Array = np.clip(x**strength / w ** (1 - strength), 1e-6, 1e6).astype(np.float32)
    return s


def _stored(file: Path) -> dict[str, Array] | None:
    """The vectors of a file; None where there is none, or it does not hold finite positive float32 vectors."""
    from zipfile import BadZipFile  # not at the top: few loads calibrate

    try:
        with np.load(file, allow_pickle=False) as found:
            vectors = {name: found[name] for name in found.files}
    except (OSError, ValueError, KeyError, EOFError, BadZipFile):
        return None
    good = (v.dtype == np.float32 and v.ndim == 1 and bool(np.all(np.isfinite(v) & (v > 0))) for v in vectors.values())
    return vectors if all(good) else None


def _store(file: Path, vectors: Mapping[str, Array]) -> None:
    """Keep vectors for the next load; where the cache cannot be written they are measured again."""
    import tempfile

    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.NamedTemporaryFile(dir=file.parent, suffix=".npz", delete=False) as f:
            np.savez(f, **vectors)  # type: ignore[arg-type]  # numpy's stub takes them for its own options
        os.replace(f.name, file)
