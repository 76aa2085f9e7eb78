"""Writes a model's program, weights and batches, and what they give at level portable, for tests/native/run.cpp.

The file's layout is documented where it is read, in tests/native/case.h.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from zoo import Model, story

from ridgeline.backends.cpu.backend import CPU, CPUStep, encoded
from ridgeline.backends.cpu.panels import packable, vector
from ridgeline.program.batch import Batch

_MAGIC = 0x4354_4C52  # "RLTC"
# Of the largest value, in millionths. Levels add in different orders; int8 or bf16 values then round differently too.
_ADDED, _ROUNDED = 2000, 150_000


def write_case(path: Path, model: Model) -> None:
    """The case of a model's `story`."""
    program, layout = model.program(), model.layout()
    step = CPU(1, "portable").compile(program, model.read, layout, model.pages)
    step.kv.fill(0xFF)  # NaN in all formats
    step._arena.fill(0xFF)
    _, _, record = encoded(program, layout, model.pages)
    out = _Writer()
    out.words(_MAGIC, _ADDED if (model.rows, model.kv) == ("float32", "f32") else _ROUNDED)
    out.blob(record.words)
    out.words(len(record.weights))
    for w in record.weights:
        fmt, data = packable(model.read(w))
        out.blob(np.frombuffer(fmt.encode(), np.uint8))
        out.words(*w.shape)
        out.blob(data)
    out.words(len(record.vectors))
    for v in record.vectors:
        out.blob(vector(v, model.read))
    _write_batches(out, step, story(layout))
    path.write_bytes(b"".join(out.parts))


def _write_batches(out: _Writer, step: CPUStep, batches: Sequence[Batch]) -> None:
    out.words(len(batches))
    for b in batches:
        step.run(b)
        out.blob(b.buffer)
        out.words(len(step._results))
        for whole in step._results:
            rows = whole[: b.size("L")]
            width = rows[0].nbytes if len(rows) else 0
            offset = whole.__array_interface__["data"][0] - step._arena.__array_interface__["data"][0]
            out.words(offset, whole.strides[0], width, len(rows), rows.dtype == np.float32)
            out.blob(rows)


class _Writer:
    def __init__(self) -> None:
        self.parts: list[bytes] = []

    def words(self, *values: Any) -> None:
        self.parts.append(struct.pack(f"<{len(values)}q", *map(int, values)))

    def blob(self, x: NDArray[Any]) -> None:
        data = np.ascontiguousarray(x).tobytes()
        self.words(len(data))
        self.parts.append(data + bytes(-len(data) % 8))
