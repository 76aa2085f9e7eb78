"""A whole tiny model folder, tokenizer and chat template included, for tests that start at the command line."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tiny
from ridgeline.text.bpe import ALPHABET

CONTEXT = 256
TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:"
CONFIG = tiny.changed(tiny.CONFIGS["llama"], vocab_size=260, max_position_embeddings=CONTEXT)
WINDOWED = tiny.changed(tiny.CONFIGS["mistral"], vocab_size=260, max_position_embeddings=CONTEXT)
REFERENCE = ("--backend", "reference", "--activations", "float32", "--kv-format", "f32")

# SmolLM2-135M's own shape; its files are not needed for what a program costs.
SMOLLM2 = {
    "model_type": "llama", "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536,
    "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3, "hidden_act": "silu",
    "rms_norm_eps": 1e-5, "max_position_embeddings": 8192, "tie_word_embeddings": True, "rope_theta": 1e5,
    "bos_token_id": 1, "eos_token_id": 2, "torch_dtype": "bfloat16",
}  # fmt: skip


def write(folder: Path, config: Mapping[str, Any] = CONFIG, template: str | None = TEMPLATE) -> Path:
    """A folder with config.json, float32 weights, a byte tokenizer and, unless None, a chat template."""
    tiny.write_hf(folder, config, tiny.weights(config))
    _write_tokenizer(folder, template)
    return folder


def write_hollow(folder: Path, config: Mapping[str, Any]) -> Path:
    """The same with bf16 weights that are one hole in a sparse file: any size, no disk."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    header, at = {}, 0
    for name, shape in tiny.shapes(config).items():
        size = 2 * shape[0] * (shape[1] if len(shape) > 1 else 1)
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with (folder / "model.safetensors").open("wb") as f:
        f.write(len(text).to_bytes(8, "little") + text)
        f.truncate(8 + len(text) + at)
    _write_tokenizer(folder, None)
    return folder


def _write_tokenizer(folder: Path, template: str | None) -> None:
    vocab = {"<s>": 1, "</s>": 2, "<pad>": 0} | {char: i + 3 for i, char in enumerate(ALPHABET)}
    special = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    tokenizer = {
        "version": "1.0",
        "added_tokens": [{"id": i, "content": name, **special} for name, i in list(vocab.items())[:3]],
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {"type": "BPE", "vocab": vocab, "merges": []},
    }
    settings = {"bos_token": "<s>", "eos_token": "</s>"} | ({"chat_template": template} if template else {})
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
