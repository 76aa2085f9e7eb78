"""Seeded random models of known shapes, for speed work without a download: `random:1b`, `random:8b`."""

from __future__ import annotations

from ridgeline.errors import ModelNotFound
from ridgeline.models import build
from ridgeline.models.config import ModelConfig, Rope
from ridgeline.weights.load import Checkpoint
from ridgeline.weights.source import RandomSource

_VOCAB = 49152  # SmolLM2's, whose tokenizer these models borrow

SHAPES = {
    # Llama-3.2-1B and Llama-3.1-8B but for the vocabulary
    "random:1b": ModelConfig("llama", _VOCAB, 2048, 16, 32, 8, 64, 8192, 1e-5, Rope(5e5, 64), 8192, tied=True),
    "random:8b": ModelConfig("llama", _VOCAB, 4096, 32, 32, 8, 128, 14336, 1e-5, Rope(5e5, 128), 8192, tied=False),
}


def random_checkpoint(name: str, format: str, seed: int) -> Checkpoint:
    """The named shape with random weights in `format`; vectors are float32."""
    if name not in SHAPES:
        raise ModelNotFound(f"{name!r} is not a known random model; known: {', '.join(SHAPES)}")
    config = SHAPES[name]
    shapes = {w.name: w.shape for w in build(config).weights.values() if w.constant is None}
    return Checkpoint(config, RandomSource(shapes, format, seed), "random", name, {})
