"""Model families: one small file each. A family reads its settings and says what its program is."""

from __future__ import annotations

from typing import Any, Protocol

from ridgeline.models import bloom, falcon, gemma, gpt2, llama, neox, phi3, starcoder2
from ridgeline.models.config import ModelConfig
from ridgeline.models.header import Header
from ridgeline.models.keys import Keys
from ridgeline.program.capture import Context, capture
from ridgeline.program.ir import Program


class Family(Protocol):
    """A module that knows a family, or several kin. `name` is the one of FAMILIES it was found by."""

    def from_hf(self, k: Keys, name: str) -> ModelConfig:
        """The config that config.json describes. Unsupported names a key or value that is not built, ModelFileError
        one that is wrong."""

    def from_gguf(self, h: Header, name: str) -> ModelConfig:
        """The config that a GGUF header describes; errors as from_hf."""

    def forward(self, m: Context, c: ModelConfig) -> tuple[Any, Any]:
        """(kept rows, final hidden), both [L, hidden]."""

    def logits(self, m: Context, c: ModelConfig, hidden: Any) -> Any:
        """[L, vocab]."""


FAMILIES: dict[str, Family] = {  # by the model_type of config.json
    "llama": llama,
    "mistral": llama,
    "qwen2": llama,
    "qwen3": llama,
    "gemma": gemma,
    "gemma2": gemma,
    "gemma3_text": gemma,
    "gpt2": gpt2,
    "gpt_bigcode": gpt2,
    "starcoder2": starcoder2,
    "phi3": phi3,
    "gpt_neox": neox,
    "falcon": falcon,
    "bloom": bloom,
}
ARCHITECTURES = {  # what GGUF calls them
    "llama": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "gemma": "gemma",
    "gemma2": "gemma2",
    "gemma3": "gemma3_text",
    "gpt2": "gpt2",
    "starcoder": "gpt_bigcode",
    "starcoder2": "starcoder2",
    "phi3": "phi3",
    "gptneox": "gpt_neox",
    "falcon": "falcon",
    "bloom": "bloom",
}


def build(c: ModelConfig) -> Program:
    """Capture the program of a model; no tensor is touched."""
    family = FAMILIES[c.family]
    return capture(c.family, lambda m: family.forward(m, c), lambda m, hidden: family.logits(m, c, hidden))
