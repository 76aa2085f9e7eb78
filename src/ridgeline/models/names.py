"""Names: what files call a family's weights, and what the loader does to the rows it finds there. Data only.

`{i}` stands for the layer. A model function asks for q, k and v (gate and up) one by one even where a file holds them
in one tensor: `fused` says how its rows lie.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

HF, GGUF = 0, 1
_LAYER = re.compile(r"\.(\d+)\.")


@dataclass(frozen=True)
class Names:
    """Canonical name -> (Hugging Face name, GGUF name), and how the stored rows differ from ours.

    fused: for (HF, GGUF), the order of the rows of tensors that hold several weights. "blocks": all of q, then all
    of k, then v (gate, then up). "groups": for each KV head its query heads, its key, its value.
    """

    weights: Mapping[str, tuple[str, str]]
    fused: tuple[str, str] = ("", "")
    hf_prefix: str = ""  # of HF names, which files of the bare model leave out
    hf_transposed: tuple[str, ...] = ()  # matrices stored [in, out]
    hf_minus_one: tuple[str, ...] = ()  # vectors stored as weight - 1
    gguf_paired: tuple[str, ...] = ()  # rows of each head stored as (pair, half) instead of (half, pair)
    spare: tuple[str, ...] = ()  # endings of stored tensors that carry nothing: causal masks, frequencies

    def stored(self, name: str, kind: int) -> str:
        """What a file of `kind` (HF or GGUF) calls the weight `name`."""
        found = _LAYER.search(name)
        stored = self.weights[_LAYER.sub(".{i}.", name)][kind]
        return stored.replace("{i}", found.group(1)) if found else stored

    def shares(self, name: str, kind: int) -> list[str]:
        """The weights, `name` among them, that one stored tensor holds, in canonical order."""
        stored = self.weights[_LAYER.sub(".{i}.", name)][kind]
        return [w for w, names in self.weights.items() if names[kind] == stored]


def ends_with(name: str, endings: tuple[str, ...]) -> bool:
    """Whether `name` is one of a layer's weights listed as `endings` ("attn.q.weight")."""
    return name.split(".", 2)[-1] in endings or name in endings


LLAMA = {
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
_QK = ("attn.q.weight", "attn.k.weight", "attn.q.bias", "attn.k.bias")
_SANDWICH = {
    "layers.{i}.mlp_norm.weight": ("model.layers.{i}.pre_feedforward_layernorm.weight", "blk.{i}.ffn_norm.weight"),
    "layers.{i}.attn_post_norm.weight": (
        "model.layers.{i}.post_attention_layernorm.weight",
        "blk.{i}.post_attention_norm.weight",
    ),
    "layers.{i}.mlp_post_norm.weight": (
        "model.layers.{i}.post_feedforward_layernorm.weight",
        "blk.{i}.post_ffw_norm.weight",
    ),
}
_GEMMA_NORMS = (
    "norm.weight", "attn_norm.weight", "mlp_norm.weight", "attn_post_norm.weight", "mlp_post_norm.weight",
    "attn.q_norm.weight", "attn.k_norm.weight",
)  # fmt: skip
_GEMMA2 = Names({**LLAMA, **_SANDWICH}, hf_minus_one=_GEMMA_NORMS)

NAMES = {
    "llama": Names(LLAMA, gguf_paired=_QK),
    "mistral": Names(LLAMA),  # its GGUF files say "llama"
    "qwen2": Names(LLAMA),
    "qwen3": Names(LLAMA),
    "gemma": Names(LLAMA, hf_minus_one=_GEMMA_NORMS),
    "gemma2": _GEMMA2,
    "gemma3_text": _GEMMA2,
}
