"""Names: what files call a family's weights, and what the loader does to the rows it finds there. Data only.

`{i}` stands for the layer. A model function asks for q, k and v (gate and up) one by one even where a file holds them
in one tensor: `fused` says how its rows lie.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from ridgeline.models.config import ModelConfig

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


def names_of(c: ModelConfig) -> Names:
    """What files call the weights of a model."""
    return NAMES[c.names or c.family]


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


def _both(stems: Mapping[str, tuple[str, str]]) -> dict[str, tuple[str, str]]:
    """Weight and bias of each stem."""
    kinds = ("weight", "bias")
    return {f"{ours}.{x}": (f"{hf}.{x}", f"{gguf}.{x}") for ours, (hf, gguf) in stems.items() for x in kinds}


_LLAMA_NORMS = _both({
    "norm": ("model.norm", "output_norm"),
    "layers.{i}.attn_norm": ("model.layers.{i}.input_layernorm", "blk.{i}.attn_norm"),
    "layers.{i}.mlp_norm": ("model.layers.{i}.post_attention_layernorm", "blk.{i}.ffn_norm"),
})  # fmt: skip
_STARCODER2 = {**LLAMA, **_LLAMA_NORMS, **_both({
    "layers.{i}.mlp.up": ("model.layers.{i}.mlp.c_fc", "blk.{i}.ffn_up"),
    "layers.{i}.mlp.down": ("model.layers.{i}.mlp.c_proj", "blk.{i}.ffn_down"),
})}  # fmt: skip
_PHI3_FUSED = {
    **{f"layers.{{i}}.attn.{x}.weight": ("model.layers.{i}.self_attn.qkv_proj.weight", "blk.{i}.attn_qkv.weight")
       for x in "qkv"},
    **{f"layers.{{i}}.mlp.{x}.weight": ("model.layers.{i}.mlp.gate_up_proj.weight", "blk.{i}.ffn_up.weight")
       for x in ("gate", "up")},
}  # fmt: skip
_GPT2 = {
    "embed.weight": ("transformer.wte.weight", "token_embd.weight"),
    "position.weight": ("transformer.wpe.weight", "position_embd.weight"),
    "head.weight": ("lm_head.weight", "output.weight"),
    **_both({
        "norm": ("transformer.ln_f", "output_norm"),
        "layers.{i}.attn_norm": ("transformer.h.{i}.ln_1", "blk.{i}.attn_norm"),
        "layers.{i}.attn.q": ("transformer.h.{i}.attn.c_attn", "blk.{i}.attn_qkv"),
        "layers.{i}.attn.k": ("transformer.h.{i}.attn.c_attn", "blk.{i}.attn_qkv"),
        "layers.{i}.attn.v": ("transformer.h.{i}.attn.c_attn", "blk.{i}.attn_qkv"),
        "layers.{i}.attn.o": ("transformer.h.{i}.attn.c_proj", "blk.{i}.attn_output"),
        "layers.{i}.mlp_norm": ("transformer.h.{i}.ln_2", "blk.{i}.ffn_norm"),
        "layers.{i}.mlp.up": ("transformer.h.{i}.mlp.c_fc", "blk.{i}.ffn_up"),
        "layers.{i}.mlp.down": ("transformer.h.{i}.mlp.c_proj", "blk.{i}.ffn_down"),
    }),
}  # fmt: skip
_GPT2_MATRICES = tuple(f"{x}.weight" for x in ("attn.q", "attn.k", "attn.v", "attn.o", "mlp.up", "mlp.down"))
_MASKS = (".attn.bias", ".attn.masked_bias")


def _megatron(layer: str, attention: str) -> dict[str, tuple[str, str]]:
    """Layers as Megatron names them: q, k and v in one tensor, norms and linears with biases."""
    return _both({
        "layers.{i}.attn_norm": (f"{layer}.input_layernorm", "blk.{i}.attn_norm"),
        "layers.{i}.attn.q": (f"{layer}.{attention}.query_key_value", "blk.{i}.attn_qkv"),
        "layers.{i}.attn.k": (f"{layer}.{attention}.query_key_value", "blk.{i}.attn_qkv"),
        "layers.{i}.attn.v": (f"{layer}.{attention}.query_key_value", "blk.{i}.attn_qkv"),
        "layers.{i}.attn.o": (f"{layer}.{attention}.dense", "blk.{i}.attn_output"),
        "layers.{i}.mlp_norm": (f"{layer}.post_attention_layernorm", "blk.{i}.ffn_norm"),
        "layers.{i}.mlp.up": (f"{layer}.mlp.dense_h_to_4h", "blk.{i}.ffn_up"),
        "layers.{i}.mlp.down": (f"{layer}.mlp.dense_4h_to_h", "blk.{i}.ffn_down"),
    })  # fmt: skip


_NEOX = {
    "embed.weight": ("gpt_neox.embed_in.weight", "token_embd.weight"),
    "head.weight": ("embed_out.weight", "output.weight"),
    **_both({"norm": ("gpt_neox.final_layer_norm", "output_norm")}),
    **_megatron("gpt_neox.layers.{i}", "attention"),
}
_FALCON = {
    "embed.weight": ("transformer.word_embeddings.weight", "token_embd.weight"),
    "head.weight": ("lm_head.weight", "output.weight"),
    **_both({"norm": ("transformer.ln_f", "output_norm")}),
    **_megatron("transformer.h.{i}", "self_attention"),
}
_FALCON_TWO_NORMS = {**_FALCON, **_both({
    "layers.{i}.attn_norm": ("transformer.h.{i}.ln_attn", "blk.{i}.attn_norm_2"),
    "layers.{i}.mlp_norm": ("transformer.h.{i}.ln_mlp", "blk.{i}.attn_norm"),
})}  # fmt: skip
_BLOOM = {**_FALCON, **_both({"embed_norm": ("transformer.word_embeddings_layernorm", "token_embd_norm")})}

NAMES = {
    "llama": Names(LLAMA, gguf_paired=_QK),
    "mistral": Names(LLAMA),  # its GGUF files say "llama"
    "qwen2": Names(LLAMA),
    "qwen3": Names(LLAMA),
    "gemma": Names(LLAMA, hf_minus_one=_GEMMA_NORMS),
    "gemma2": _GEMMA2,
    "gemma3_text": _GEMMA2,
    "gpt2": Names(
        _GPT2, fused=("blocks", "blocks"), hf_prefix="transformer.", hf_transposed=_GPT2_MATRICES, spare=_MASKS
    ),
    "gpt_bigcode": Names(_GPT2, fused=("groups", "groups"), hf_prefix="transformer.", spare=_MASKS),
    "starcoder2": Names(_STARCODER2),
    "phi3": Names(
        {**LLAMA, **_PHI3_FUSED},
        fused=("blocks", "blocks"),
        spare=("rope_factors_long.weight", "rope_factors_short.weight"),
    ),
    "gpt_neox": Names(_NEOX, fused=("groups", "blocks"), spare=(".attention.bias", ".attention.masked_bias")),
    "falcon": Names(_FALCON, fused=("groups", "blocks")),
    "falcon/two_norms": Names(_FALCON_TWO_NORMS, fused=("groups", "blocks")),
    "bloom": Names(_BLOOM, fused=("groups", "blocks"), hf_prefix="transformer."),
}
