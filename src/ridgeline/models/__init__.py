"""Model families: one small file each. FAMILIES maps a family's name to its two functions."""

from __future__ import annotations

from ridgeline.models import llama
from ridgeline.models.config import ModelConfig
from ridgeline.program.capture import capture
from ridgeline.program.ir import Program

FAMILIES = {
    "llama": llama,
    "mistral": llama,
    "qwen2": llama,
    "qwen3": llama,
}


def build(c: ModelConfig) -> Program:
    """Capture the program of a model; no tensor is touched."""
    family = FAMILIES[c.family]
    return capture(c.family, lambda m: family.forward(m, c), lambda m, hidden: family.logits(m, c, hidden))
