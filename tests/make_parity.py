"""Make tests/data/parity.npz: logits that transformers computes for the tiny models of tiny.py.

Run by hand, with torch and transformers installed, when a tiny config changes:  python tests/make_parity.py
The tests compare with the stored values and need neither.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import tiny

STORED = Path(__file__).parent / "data" / "parity.npz"
LENGTHS = (1, 17, 200)
POSITIONS = {1: [0], 17: list(range(17)), 200: [23, 64, 130, 199]}  # whose logits are stored, by prompt length


def transformers_config(c: Mapping[str, Any]) -> Any:
    """transformers' config of the keys of a config.json. It gets a copy, for it writes into rope settings."""
    from transformers import AutoConfig

    return AutoConfig.for_model(**copy.deepcopy({k: x for k, x in c.items() if k != "torch_dtype"}))


def transformers_model(c: dict[str, Any], tensors: tiny.Arrays, attention: str = "eager") -> Any:
    """The model of a config.json with the given weights in float32, by plain attention unless told otherwise."""
    import torch
    from transformers import AutoModelForCausalLM

    attention = "sdpa" if c.get("alibi") else attention  # Falcon's plain attention adds the bias twice
    model = AutoModelForCausalLM.from_config(transformers_config(c), attn_implementation=attention, dtype=torch.float32)
    named = {k.replace("embed_out.", "lm_head."): torch.from_numpy(x.copy()) for k, x in tensors.items()}
    missing = model.load_state_dict(named, strict=False)
    assert not missing.unexpected_keys, missing.unexpected_keys
    assert set(missing.missing_keys) <= ({"lm_head.weight"} if c["tie_word_embeddings"] else set()), missing
    model.tie_weights()
    return model.eval()


def transformers_logits(model: Any, ids: Sequence[int]) -> np.ndarray:
    """Logits [len(ids), vocab], float32."""
    import torch

    with torch.no_grad():
        return model(torch.tensor([list(ids)])).logits[0].float().numpy()


def main() -> None:
    stored = {}
    for name, c in tiny.CONFIGS.items():
        model = transformers_model(c, tiny.weights(c))
        for length in LENGTHS:
            logits = transformers_logits(model, tiny.prompt(length))
            stored[f"{name}/{length}"] = logits[POSITIONS[length]].astype(np.float32)
    STORED.parent.mkdir(exist_ok=True)
    np.savez_compressed(STORED, **stored)
    print(f"{STORED.name}: {len(stored)} arrays, {STORED.stat().st_size} bytes")


if __name__ == "__main__":
    main()
