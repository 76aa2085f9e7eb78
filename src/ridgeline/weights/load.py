"""From a model on disk to what programs ask for: its config, and each weight made of the rows of stored tensors.

Recipes are row-wise, so a block format passes through unchanged: concatenation of merged weights, slices of sharded
ones; layout.py puts a family's stored rows in our order.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ridgeline.errors import ModelFileError, Unsupported
from ridgeline.models.config import ModelConfig
from ridgeline.models.gguf import from_gguf
from ridgeline.models.hf import from_hf
from ridgeline.models.names import GGUF, HF, names_of
from ridgeline.program.ir import Weight
from ridgeline.quant.format import FORMATS
from ridgeline.quant.pack import F32
from ridgeline.weights.gguf import GGUFFile
from ridgeline.weights.layout import arrange, stored_shape, take, vector
from ridgeline.weights.repack import repacked
from ridgeline.weights.source import GGUFSource, Raw, SafetensorsSource, WeightSource

_MAX_JSON = 16 << 20
_COMPARED = 1 << 12  # rows at a time
_SPARE = ("rope_freqs.weight", "rotary_emb.inv_freq")  # read with the config, or computed from it
_KINDS = {"hf": HF, "gguf": GGUF}


@dataclass(frozen=True)
class Checkpoint:
    """A model's config and the source of its tensors; `kind` is the source's naming scheme: hf, gguf, random (ours).
    `scales` are the vectors that weights' `smooth` names."""

    config: ModelConfig
    source: WeightSource
    kind: str
    where: str
    metadata: Mapping[str, Any]
    scales: Mapping[str, F32] = field(default_factory=dict)

    def format_of(self, w: Weight) -> str:
        """Stored format of a declared weight; vectors are held in float32. Its shape is checked here, from the
        header: before anything is read, and while each weight is still one tensor."""
        stored = self.stored(w.parts[0])
        info = self.source.info(stored)
        wanted = self._stored_shape(w)
        if len(w.parts) == 1 and not w.rows and w.columns is None and info.shape != wanted:
            raise self._misfit(stored, info.shape, wanted)
        return "f32" if len(w.shape) == 1 else info.format

    def check_all_used(self, declared: Iterable[Weight]) -> None:
        """Refuse a file with a tensor that no declared weight reads: the model has a part that is not computed."""
        used = {self.stored(part) for w in declared for part in w.parts}
        spare = _SPARE if self.kind == "random" else (*_SPARE, *names_of(self.config).spare)
        spare = (*spare, "lm_head.weight") if self.config.tied else spare  # a tied head that is stored all the same
        left = [name for name in self.source.names() if name not in used and not name.endswith(spare)]
        if left:
            raise Unsupported(f"{self.where}: tensor {left[0]!r} is not understood for {self.config.family}")

    def read(self, w: Weight) -> Raw:
        """The packed rows of a weight, all parts, cut, smoothed and packed anew as asked. Shapes are checked against
        the declaration."""
        pieces = [self._part(w, i) for i in range(len(w.parts))]
        if len(w.shape) == 1:
            values = np.concatenate([p.float32() for p in pieces])
            whole = vector(values / self.scales[w.smooth] if w.smooth else values)
        else:
            formats = {p.format for p in pieces}
            assert len(formats) == 1, f"{w.name} merges parts of different formats {formats}"
            data = pieces[0].data if len(pieces) == 1 else np.concatenate([p.data for p in pieces])
            whole = Raw(pieces[0].format, (len(data), w.shape[1]), data)
        if whole.shape != w.shape:
            raise self._misfit(", ".join(self.stored(p) for p in w.parts), whole.shape, w.shape)
        return whole

    def _misfit(self, stored: str, got: tuple[int, ...], wanted: tuple[int, ...]) -> ModelFileError:
        return ModelFileError(f"{self.where}: {stored} has shape {got}; the config asks for {wanted}")

    def stored(self, part: str) -> str:
        """The file's name of a weight, with or without the prefix that files of the bare model leave out."""
        if self.kind == "random":
            return part
        known = names_of(self.config)
        stored = known.stored(part, _KINDS[self.kind])
        bare = stored.removeprefix(known.hf_prefix)
        return bare if bare != stored and stored not in self.names and bare in self.names else stored

    @cached_property
    def names(self) -> frozenset[str]:
        """What the file calls its tensors."""
        return frozenset(self.source.names())

    def _stored_shape(self, w: Weight) -> tuple[int, ...]:
        if self.kind == "random":
            return w.shape
        return stored_shape(self.config, w.parts[0], _KINDS[self.kind], w.shape)

    def _part(self, w: Weight, index: int) -> Raw:
        part = w.parts[index]
        raw = self.source.read(self.stored(part))
        if len(raw.shape) != len(w.shape):
            raise self._misfit(self.stored(part), raw.shape, w.shape)
        if self.kind != "random":
            raw = arrange(self.config, part, _KINDS[self.kind], raw)
        if w.rows:
            raw = take(raw, slice(*w.rows[index]))
        if w.columns is not None:
            raw = _columns(raw, *w.columns)
        if raw.shape[1:] != w.shape[1:]:
            raise self._misfit(self.stored(part), raw.shape, w.shape)
        if len(w.shape) > 1 and (w.repack or w.smooth):
            return repacked(raw, w.repack or raw.format, self.scales[w.smooth] if w.smooth else None)
        return raw


def _columns(raw: Raw, start: int, stop: int) -> Raw:
    fmt = FORMATS[raw.format]
    assert start % fmt.block == 0 and stop % fmt.block == 0, f"columns {start}:{stop} cut a block of {fmt.name}"
    head, blocks = np.split(raw.data, [fmt.row_header], axis=1)
    cut = blocks[:, start // fmt.block * fmt.block_bytes : stop // fmt.block * fmt.block_bytes]
    return Raw(raw.format, (raw.shape[0], stop - start), np.concatenate([head, cut], axis=1) if head.size else cut)


def open_checkpoint(path: Path) -> Checkpoint:
    """Read a `.gguf` file's header, or a directory's config.json, and check it. No tensor is read, but for a head that
    lies beside the embedding it should be tied to."""
    if path.is_dir():
        config = from_hf(read_json(path / "config.json"))
        return _untied(Checkpoint(config, SafetensorsSource(path), "hf", str(path), {}))
    file = GGUFFile(path)
    source = GGUFSource(file)

    def values(name: str) -> list[float]:
        info = source.info(name)
        if len(info.shape) != 1 or info.shape[0] > 4096:
            raise ModelFileError(f"{path}: {name} has shape {info.shape}; expected a vector of at most 4096")
        return [float(x) for x in source.read(name).float32()]

    config = from_gguf(file.metadata, file.tensors.keys(), values, str(path))
    return Checkpoint(config, source, "gguf", str(path), file.metadata)


def _untied(checkpoint: Checkpoint) -> Checkpoint:
    """A config that ties the head counts only if no other head is stored, as in transformers."""
    head, table = (checkpoint.stored(name) for name in ("head.weight", "embed.weight"))
    if not checkpoint.config.tied or not {head, table} <= checkpoint.names:
        return checkpoint
    one, other = (checkpoint.source.info(name) for name in (head, table))
    if one == other and _same_rows(checkpoint.source, head, table, one.shape[0]):
        return checkpoint
    return replace(checkpoint, config=replace(checkpoint.config, tied=False))


def _same_rows(source: WeightSource, one: str, other: str, rows: int) -> bool:
    parts = (slice(at, at + _COMPARED) for at in range(0, rows, _COMPARED))
    return all(np.array_equal(source.read(one, part).data, source.read(other, part).data) for part in parts)


def read_json(path: Path) -> Mapping[str, Any]:
    """A JSON object from a bounded file; ModelFileError names the path."""
    try:
        if path.stat().st_size > _MAX_JSON:
            raise ModelFileError(f"{path} is over {_MAX_JSON} bytes")
        data = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise ModelFileError(f"{path} does not exist; a model directory needs it") from None
    except (ValueError, RecursionError, OSError) as wrong:
        raise ModelFileError(f"{path} is not valid JSON: {wrong}") from None
    if not isinstance(data, dict):
        raise ModelFileError(f"{path} must hold a JSON object")
    return data
