"""Fuzz target: config.json of every family, as values and as text, through the reader and into a program.

Bound: 64 MiB + 36 x the text's bytes, the program of 1000 layers included. Sizes are drawn up to the largest accepted.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from meter import MIB, Check
from mutate import chain, document, dump, value

import tiny
from ridgeline.models import build
from ridgeline.models.hf import from_hf
from ridgeline.weights.load import read_json


@dataclass(frozen=True)
class Case:
    """A config as a value, or as the bytes of its file."""

    config: Any


class Fuzz:
    """Keys of all families are offered to each, so that one family meets another's."""

    def __init__(self, scratch: Path) -> None:
        self.configs = list(tiny.CONFIGS.values())
        inner = [v for c in self.configs for v in c.values() if isinstance(v, dict)]
        self.keys = sorted({key for c in (*self.configs, *inner) for key in c})
        self._file = scratch / "config.json"

    def mutate(self, rng: Random) -> Case:
        config = rng.choice(self.configs)
        if rng.random() < 0.2:
            return Case(document(rng, config, self.keys))
        if rng.random() < 0.2:
            config = _large(rng, config)
            return Case(config if rng.random() < 0.5 else value(rng, config, self.keys))
        if rng.random() < 0.2:  # another family's value under the same key
            other = rng.choice(self.configs)
            config = {**config, **{k: other[k] for k in rng.sample(list(other), 2)}}
        return Case(chain(rng, config, lambda r, c: value(r, c, self.keys)))

    def parse(self, data: bytes) -> Case:
        return Case(data)

    def corpus(self) -> list[bytes]:
        return [json.dumps(config).encode() for config in self.configs]

    def run(self, case: Case, check: Check) -> None:
        data = case.config
        room = len(data) if isinstance(data, bytes) else len(dump(data))
        if isinstance(data, bytes):
            self._file.write_bytes(data)
            data = read_json(self._file)
        try:
            build(from_hf(data))
        finally:
            check("building", 64 * MIB + 36 * room)


def _large(rng: Random, config: dict[str, Any]) -> dict[str, Any]:
    """Sizes that agree with each other and are near what a reader may accept."""
    heads = rng.choice((1, 2, 64, 1024, 4096, 1 << 20))
    width = rng.choice((2, 64, 256, 1024, 1 << 14, 1 << 16, 1 << 20, 1 << 24))
    many = {
        "num_attention_heads": heads,
        "num_key_value_heads": rng.choice((1, heads)),
        "head_dim": width,
        "hidden_size": min(heads * width, rng.choice((heads * width, 1 << 24))),
        "intermediate_size": rng.choice((1, 1 << 16, 1 << 24)),
        "vocab_size": rng.choice((1, 1 << 18, 1 << 24)),
        "num_hidden_layers": rng.choice((1, 2, 10, 100, 300)),
        "max_position_embeddings": rng.choice((1, 1 << 20, 1 << 24)),
    }
    picked = {key: many[key] for key in many if rng.random() < 0.6}
    layers = picked.get("num_hidden_layers", config.get("num_hidden_layers", 2))
    types = config.get("layer_types")
    if isinstance(types, list) and types:
        picked["layer_types"] = [rng.choice(types) for _ in range(layers)]
    return {**config, **picked}
