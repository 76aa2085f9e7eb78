"""GPT-2 and GPTBigCode (SantaCoder, StarCoder): learned positions, LayerNorm, biases everywhere, an MLP without gate.

GPTBigCode is GPT-2 with plain matrices and, by default, multi-query attention: one KV head for all query heads.
"""

from __future__ import annotations

from typing import Any

from ridgeline.errors import ModelFileError, Unsupported
from ridgeline.models.config import GELUS, ModelConfig
from ridgeline.models.decoder import forward, logits
from ridgeline.models.header import Header, decoder
from ridgeline.models.keys import Keys

__all__ = ["forward", "from_gguf", "from_hf", "logits"]

_UNUSED = (  # of heads that are not for language, of how float16 is trained, of a serving stack of the time
    "n_ctx summary_type summary_use_proj summary_activation summary_proj_to_labels summary_first_dropout "
    "reorder_and_upcast_attn attention_softmax_in_fp32 scale_attention_softmax_in_fp32 inference_runner "
    "max_batch_size max_sequence_length pad_key_length pre_allocate_kv_cache validate_runner_input"
)


def from_hf(k: Keys, name: str) -> ModelConfig:
    k.skip(_UNUSED)
    k.only(scale_attn_weights=True, scale_attn_by_inverse_layer_idx=False, add_cross_attention=False)
    hidden, heads = k.integer("n_embd"), k.integer("n_head")
    if not 0 < heads <= hidden or hidden % heads:
        raise ModelFileError(f"{k.where}: n_embd {hidden} is not a multiple of n_head {heads}")
    shared = name == "gpt_bigcode" and k.flag("multi_query", True)
    default = "gelu_new" if name == "gpt2" else "gelu_pytorch_tanh"
    return ModelConfig(
        vocab=k.integer("vocab_size"),
        hidden=hidden,
        layers=k.integer("n_layer"),
        n_heads=heads,
        n_kv_heads=1 if shared else heads,
        head_dim=hidden // heads,
        ffn=k.integer("n_inner", 4 * hidden),
        norm_eps=k.number("layer_norm_epsilon", 1e-5),
        context=k.integer("n_positions", 1024),
        tied=k.flag("tie_word_embeddings", True),
        qkv_bias=True,
        o_bias=True,
        mlp_bias=True,
        **_shape(name, GELUS[k.choice("activation_function", GELUS, default)]),
    )


def from_gguf(h: Header, name: str) -> ModelConfig:
    """A file does not name its activation; what reads such files takes the tanh form of GELU for both families."""
    fields = decoder(h, "attention.layer_norm_epsilon")
    if name == "gpt_bigcode" and fields["n_kv_heads"] != 1:
        raise Unsupported(
            f"{h.keys.label('attention.head_count_kv')} = {fields['n_kv_heads']} is not supported; "
            "1 is: how else the rows of attn_qkv lie is not known"
        )
    return ModelConfig(**_shape(name, "gelu_tanh"), **fields)


def _shape(name: str, activation: str) -> dict[str, Any]:
    return {
        "family": name,
        "rope": None,
        "learned_positions": True,
        "norm": "layer",
        "gated": False,
        "activation": activation,
    }
