"""Reading of GGUF metadata into ModelConfig: finds the family of the architecture and lets it read its keys."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

from ridgeline.errors import Unsupported
from ridgeline.models import ARCHITECTURES, FAMILIES
from ridgeline.models.config import ModelConfig
from ridgeline.models.header import Header
from ridgeline.models.keys import Keys


def from_gguf(
    metadata: Mapping[str, Any], tensors: Collection[str], vector: Callable[[str], list[float]], where: str
) -> ModelConfig:
    """ModelConfig of a GGUF file. `tensors` are its tensor names, `vector(name)` reads a small float tensor."""
    arch = metadata.get("general.architecture")
    if not isinstance(arch, str) or arch not in ARCHITECTURES:
        raise Unsupported(f"{where}: architecture {arch!r:.80} is not supported; supported: {', '.join(ARCHITECTURES)}")
    prefix, tokens = f"{arch}.", metadata.get("tokenizer.ggml.tokens")
    own = {key[len(prefix) :]: value for key, value in metadata.items() if key.startswith(prefix)}
    keys = Keys(own, where, prefix)
    family = ARCHITECTURES[arch]
    header = Header(keys, tensors, vector, len(tokens) if isinstance(tokens, list) else None)
    config = FAMILIES[family].from_gguf(header, family)
    keys.finish(arch)
    return config
