"""Falcon: attention and MLP in parallel, few KV heads, LayerNorm, an MLP without gate.

7B: one KV head (multi-query), one norm for both. 40B and 180B (the new decoder): grouped queries, a norm for each;
11B: the new decoder with one norm. RW: an older kind, sequential, a KV head for each head, biases, ALiBi instead of
rope. Falcon's ALiBi is scaled together with the scores. transformers rounds it to bfloat16; here it is exact.
"""

from __future__ import annotations

from typing import Any

from ridgeline.errors import Unsupported
from ridgeline.models import settings
from ridgeline.models.config import GELUS, ModelConfig
from ridgeline.models.decoder import forward, logits
from ridgeline.models.header import Header, decoder
from ridgeline.models.keys import Keys
from ridgeline.models.rope import rope_from_gguf, rope_from_hf

__all__ = ["forward", "from_gguf", "from_hf", "logits"]

_TWO_NORMS = "falcon/two_norms"


def from_hf(k: Keys, name: str) -> ModelConfig:
    k.rename(n_embed="hidden_size", n_layer="num_hidden_layers", n_head="num_attention_heads", n_head_kv="num_kv_heads")
    k.skip("ff_factor")  # of ffn_hidden_size, which counts
    fields, alibi, biased = settings.decoder(k, context=2048, tied=True), k.flag("alibi", False), k.flag("bias", False)
    hidden, heads, head_dim = fields["hidden"], fields["n_heads"], fields["head_dim"]
    k.only(apply_residual_connection_post_layernorm=False, head_dim=hidden // heads)
    rope = rope_from_hf(k, head_dim)
    return ModelConfig(
        family=name,
        ffn=k.integer("ffn_hidden_size", 4 * hidden),
        norm_eps=k.number("layer_norm_epsilon", 1e-5),
        rope=None if alibi else rope,
        alibi=head_dim**-0.5 if alibi else 0.0,
        qkv_bias=biased,
        o_bias=biased,
        mlp_bias=biased,
        norm="layer",
        gated=False,
        activation=GELUS[k.choice("activation", GELUS, "gelu")],
        **_decoder(k, heads),
        **fields,
    )


def from_gguf(h: Header, name: str) -> ModelConfig:
    """What files of 7B, 40B, 180B and 11B say: there are none of RW. They leave out the rope base, which 11B has its
    own of."""
    h.keys.only(tensor_data_layout="jploski")  # all of q, then k, then v
    fields = decoder(h, "attention.layer_norm_epsilon")
    two = "blk.0.attn_norm_2.weight" in h.tensors
    eleven = not two and (fields["hidden"], fields["layers"], fields["n_kv_heads"]) == (4096, 60, 8)
    return ModelConfig(
        family=name,
        rope=rope_from_gguf(h, fields["head_dim"], 500042.0 if eleven else 10000.0),
        norm="layer",
        gated=False,
        activation="gelu",
        residual="parallel",
        shared_norm=not two,
        names=_TWO_NORMS if two else "",
        **fields,
    )


def _decoder(k: Keys, heads: int) -> dict[str, Any]:
    """KV heads, residual and norms of the old decoder or the new one, which ignores multi_query."""
    new, parallel = k.flag("new_decoder_architecture", False), k.flag("parallel_attn", True)
    shared = k.flag("multi_query", True) and not new
    if new and not parallel:
        raise Unsupported(f"{k.label('parallel_attn')} = False is not supported for the new decoder")
    if shared:
        k.skip("num_kv_heads")  # files of 7B may say 71 there, the number of its heads
    elif not new:
        k.only(num_kv_heads=heads)
    norms = k.integer("num_ln_in_parallel_attn", 2 if new else 1)
    if parallel and norms not in ((1, 2) if new else (1,)):
        raise Unsupported(f"{k.label('num_ln_in_parallel_attn')} = {norms} is not supported for this decoder")
    return {
        "n_kv_heads": 1 if shared else k.integer("num_kv_heads", heads),
        "residual": "parallel" if parallel else "sequential",
        "shared_norm": parallel and norms == 1,
        "names": _TWO_NORMS if parallel and norms == 2 else "",
    }
