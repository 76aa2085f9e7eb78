"""GPT-2 and GPTBigCode (SantaCoder, StarCoder): learned positions, LayerNorm, biases everywhere, an MLP without gate.

GPTBigCode is GPT-2 with plain matrices and, by default, multi-query attention: one KV head for all query heads.
"""

from __future__ import annotations

from typing import Any

from ridgeline.errors import Unsupported
from ridgeline.models import settings
from ridgeline.models.config import GELUS, ModelConfig
from ridgeline.models.decoder import forward, logits
from ridgeline.models.header import Header, decoder
from ridgeline.models.keys import Keys

__all__ = ["forward", "from_gguf", "from_hf", "logits"]

_UNUSED = (  # of heads that are not for language, of how float16 is trained, of a serving stack of the time
    "n_ctx summary_type summary_use_proj summary_activation summary_proj_to_labels summary_first_dropout "
    "predict_special_tokens n_special "
    "reorder_and_upcast_attn attention_softmax_in_fp32 scale_attention_softmax_in_fp32 inference_runner "
    "max_batch_size max_sequence_length pad_key_length pre_allocate_kv_cache validate_runner_input"
)


def from_hf(k: Keys, name: str) -> ModelConfig:
    k.skip(_UNUSED)
    k.only(scale_attn_weights=True, scale_attn_by_inverse_layer_idx=False, add_cross_attention=False)
    k.rename(n_embd="hidden_size", n_layer="num_hidden_layers", n_head="num_attention_heads")
    k.rename(n_positions="max_position_embeddings", n_inner="intermediate_size")
    fields = settings.decoder(k, context=1024, tied=True)
    heads = fields["n_heads"]
    kv_heads = 1 if name == "gpt_bigcode" and k.flag("multi_query", True) else heads
    if name == "gpt_bigcode":
        k.only(num_key_value_heads=kv_heads)
    default = "gelu_new" if name == "gpt2" else "gelu_pytorch_tanh"
    return ModelConfig(
        n_kv_heads=kv_heads,
        ffn=k.integer("intermediate_size", 4 * fields["hidden"]),
        norm_eps=k.number("layer_norm_epsilon", 1e-5),
        qkv_bias=True,
        o_bias=True,
        mlp_bias=True,
        **_shape(name, GELUS[k.choice("activation_function", GELUS, default)]),
        **fields,
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
