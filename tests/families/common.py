"""What the tiny models of all families share: sizes, the usual keys of a config, and their spelling in GGUF."""

from __future__ import annotations

from typing import Any

import numpy as np

VOCAB = 131
CONTEXT = 512
Arrays = dict[str, np.ndarray]


def config(family: str, hidden: int, heads: int, layers: int = 2, **more: Any) -> dict[str, Any]:
    return {
        "model_type": family, "vocab_size": VOCAB, "hidden_size": hidden, "intermediate_size": 136,
        "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": 3, "hidden_act": "silu",
        "rms_norm_eps": 1e-5, "max_position_embeddings": CONTEXT, "tie_word_embeddings": False,
        "bos_token_id": 1, "eos_token_id": 2, "torch_dtype": "float32", **more,
    }  # fmt: skip
