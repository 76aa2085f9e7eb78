"""Tensor names as data: the canonical name of each weight, and what Hugging Face and GGUF files call it.

`{i}` stands for the layer. GGUF's Llama architecture stores the rows of q and k with the two halves of each head
interleaved (as its rope wants them); UNPERMUTE lists the weights whose rows the loader puts back in order.
"""

from __future__ import annotations

import re

_LLAMA = {
    "embed.weight": ("model.embed_tokens.weight", "token_embd.weight"),
    "norm.weight": ("model.norm.weight", "output_norm.weight"),
    "head.weight": ("lm_head.weight", "output.weight"),
    "layers.{i}.attn_norm.weight": ("model.layers.{i}.input_layernorm.weight", "blk.{i}.attn_norm.weight"),
    "layers.{i}.attn.q.weight": ("model.layers.{i}.self_attn.q_proj.weight", "blk.{i}.attn_q.weight"),
    "layers.{i}.attn.k.weight": ("model.layers.{i}.self_attn.k_proj.weight", "blk.{i}.attn_k.weight"),
    "layers.{i}.attn.v.weight": ("model.layers.{i}.self_attn.v_proj.weight", "blk.{i}.attn_v.weight"),
    "layers.{i}.attn.o.weight": ("model.layers.{i}.self_attn.o_proj.weight", "blk.{i}.attn_output.weight"),
    "layers.{i}.attn.q.bias": ("model.layers.{i}.self_attn.q_proj.bias", "blk.{i}.attn_q.bias"),
    "layers.{i}.attn.k.bias": ("model.layers.{i}.self_attn.k_proj.bias", "blk.{i}.attn_k.bias"),
    "layers.{i}.attn.v.bias": ("model.layers.{i}.self_attn.v_proj.bias", "blk.{i}.attn_v.bias"),
    "layers.{i}.attn.o.bias": ("model.layers.{i}.self_attn.o_proj.bias", "blk.{i}.attn_output.bias"),
    "layers.{i}.attn.q_norm.weight": ("model.layers.{i}.self_attn.q_norm.weight", "blk.{i}.attn_q_norm.weight"),
    "layers.{i}.attn.k_norm.weight": ("model.layers.{i}.self_attn.k_norm.weight", "blk.{i}.attn_k_norm.weight"),
    "layers.{i}.mlp_norm.weight": ("model.layers.{i}.post_attention_layernorm.weight", "blk.{i}.ffn_norm.weight"),
    "layers.{i}.mlp.gate.weight": ("model.layers.{i}.mlp.gate_proj.weight", "blk.{i}.ffn_gate.weight"),
    "layers.{i}.mlp.up.weight": ("model.layers.{i}.mlp.up_proj.weight", "blk.{i}.ffn_up.weight"),
    "layers.{i}.mlp.down.weight": ("model.layers.{i}.mlp.down_proj.weight", "blk.{i}.ffn_down.weight"),
    "layers.{i}.mlp.gate.bias": ("model.layers.{i}.mlp.gate_proj.bias", "blk.{i}.ffn_gate.bias"),
    "layers.{i}.mlp.up.bias": ("model.layers.{i}.mlp.up_proj.bias", "blk.{i}.ffn_up.bias"),
    "layers.{i}.mlp.down.bias": ("model.layers.{i}.mlp.down_proj.bias", "blk.{i}.ffn_down.bias"),
}
NAMES = dict.fromkeys(("llama", "mistral", "qwen2", "qwen3"), _LLAMA)
UNPERMUTE = {"llama": ("attn.q.weight", "attn.k.weight", "attn.q.bias", "attn.k.bias")}
_LAYER = re.compile(r"\.(\d+)\.")


def stored_name(family: str, name: str, kind: str) -> str:
    """What a file of `kind` ("hf" or "gguf") calls the weight `name`."""
    found = _LAYER.search(name)
    pattern = _LAYER.sub(".{i}.", name)
    stored = NAMES[family][pattern][0 if kind == "hf" else 1]
    return stored.replace("{i}", found.group(1)) if found else stored
