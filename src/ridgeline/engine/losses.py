"""Measured losses of approximate programs, kept in the cache: `ridgeline eval` writes them, loading shows them."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import msgspec

from ridgeline.program.approximations import approximations, key
from ridgeline.program.ir import Program
from ridgeline.weights.fingerprint import fingerprint
from ridgeline.weights.load import Checkpoint

FILE = "losses.json"
_MAX_BYTES = 8 << 20


class Loss(msgspec.Struct, frozen=True):
    """Against the model as stored with float32 rows: mean KL in nats, top-1 agreement, perplexity over the exact one's;
    over how many tokens of which text (16 hex digits of its SHA-256), in windows of how many."""

    kl: float
    top1: float
    perplexity_ratio: float
    tokens: int
    window: int
    text: str

    def __str__(self) -> str:
        worse = 100 * (self.perplexity_ratio - 1)
        return (
            f"KL {self.kl:.4f} nats, top-1 {100 * self.top1:.1f} %, perplexity {worse:+.2f} %"
            f" ({self.tokens} tokens of text {self.text[:8]})"
        )


def kept(cache: Path) -> dict[str, Loss]:
    """All losses of the cache; none where the file is missing or damaged."""
    file = cache / FILE
    try:
        if file.stat().st_size > _MAX_BYTES:
            return {}
        return msgspec.json.decode(file.read_bytes(), type=dict[str, Loss])
    except (OSError, msgspec.MsgspecError):
        return {}


def keep(cache: Path, checkpoint: Checkpoint, program: Program, loss: Loss) -> None:
    """Remember a loss; where the cache cannot be written it is not."""
    import tempfile  # not at the top: loading only reads

    losses = {**kept(cache), _name(checkpoint, program): loss}
    with contextlib.suppress(OSError):
        cache.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.NamedTemporaryFile(dir=cache, delete=False) as f:
            f.write(msgspec.json.encode(losses))
        os.replace(f.name, cache / FILE)


def notes(cache: Path, checkpoint: Checkpoint, program: Program) -> tuple[str, ...]:
    """What whoever loads should know: the roundings of a program and their loss. Nothing where it is exact."""
    roundings = approximations(program)
    if not roundings:
        return ()
    losses = kept(cache)
    loss = losses.get(_name(checkpoint, program)) if losses else None
    measured = f"loss: {loss}" if loss else "loss not measured: `ridgeline eval --against-activations float32` does it"
    return (f"approximate: {', '.join(roundings)}", measured)


def _name(checkpoint: Checkpoint, program: Program) -> str:
    return f"{fingerprint(checkpoint)}-{key(program)}"
