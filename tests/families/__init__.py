"""Tiny random models of every supported family; one module for each group of kin."""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType
from typing import Any

from families import bloom, falcon, gemma, gpt2, llama, neox, phi3, starcoder2

MODULES = (llama, gemma, gpt2, starcoder2, phi3, neox, falcon, bloom)
CONFIGS: dict[str, dict[str, Any]] = {name: c for module in MODULES for name, c in module.CONFIGS.items()}
GGUF_CONFIGS = [name for module in MODULES for name in module.CONFIGS if name not in module.NOT_GGUF]


def module_of(c: Mapping[str, Any]) -> ModuleType:
    return next(module for module in MODULES if c["model_type"] in module.MODEL_TYPES)
