"""Parts that decoder families share, written over the op set. A variant is a flag of the config."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ridgeline.models.config import ModelConfig, Rope, alibi_slopes, inv_freq, rope_scale
from ridgeline.ops import (
    add,
    attention,
    embedding,
    gelu,
    gelu_mul,
    layer_norm,
    linear,
    rms_norm,
    rope,
    rotary,
    silu_mul,
)
from ridgeline.program.capture import Context
from ridgeline.program.ir import State


@dataclass(frozen=True)
class Place:
    """Where a layer keeps its keys and how it tells positions: rotary angles and ALiBi slopes, None for none."""

    state: State
    layer: int  # within the state
    angles: Any
    slopes: Any


def projection(m: Context, name: str, x: Any, shape: tuple[int, int], axes: tuple[str, str], bias: bool) -> Any:
    """x · W^T (+ b): [T, shape[0]]."""
    b = m.weight(f"{name}.bias", shape[:1], axes[:1]) if bias else None
    return linear(x, m.weight(f"{name}.weight", shape, axes), b)


def norm(m: Context, name: str, x: Any, c: ModelConfig, width: int = 0) -> Any:
    """The family's norm over rows, or (RMS only) over each run of `width` columns."""
    w = m.weight(f"{name}.weight", (width or c.hidden,), ("",))
    if c.norm == "layer":
        return layer_norm(x, w, m.weight(f"{name}.bias", (c.hidden,), ("",)), eps=c.norm_eps)
    return rms_norm(x, w, eps=c.norm_eps, width=width)


def embed(m: Context, c: ModelConfig) -> Any:
    """Rows of the embedding table (or given ones), scaled, with learned positions and a norm as asked: [T, hidden]."""
    table = m.weight("embed.weight", (c.vocab, c.hidden), ("vocab", ""))
    x = embedding(m.field("ids"), table, m.field("input_row"), m.field("input_rows"), scale=c.embed_scale)
    if c.learned_positions:
        places = m.weight("position.weight", (c.context, c.hidden), ("", ""))
        x = add(x, embedding(m.field("positions"), places, axis=0))
    return norm(m, "embed_norm", x, c) if c.embed_norm else x


def rotations(m: Context, c: ModelConfig) -> tuple[Any, Any]:
    """cos | sin of the step's positions, for layers of full attention and for those with a window; None: no rope."""
    whole = _angles(m, "rope.inv_freq", c.rope)
    return whole, whole if c.local_rope is None else _angles(m, "rope.local_inv_freq", c.local_rope)


def _angles(m: Context, name: str, r: Rope | None) -> Any:
    return r and rotary(m.field("positions"), m.constant(name, inv_freq(r)), scale=rope_scale(r))


def slopes(m: Context, c: ModelConfig) -> Any:
    """ALiBi's slopes [n_heads], or None."""
    return m.constant("alibi.slopes", [c.alibi * s for s in alibi_slopes(c.n_heads)]) if c.alibi else None


def self_attention(m: Context, c: ModelConfig, prefix: str, x: Any, place: Place) -> Any:
    """Grouped-query attention over paged state: [T, hidden]."""
    wide, narrow = c.n_heads * c.head_dim, c.n_kv_heads * c.head_dim
    q = projection(m, f"{prefix}.q", x, (wide, c.hidden), ("heads", ""), c.qkv_bias)  # [T, n_heads * head_dim]
    k = projection(m, f"{prefix}.k", x, (narrow, c.hidden), ("kv_heads", ""), c.qkv_bias)
    v = projection(m, f"{prefix}.v", x, (narrow, c.hidden), ("kv_heads", ""), c.qkv_bias)
    if c.qk_norm:
        q = norm(m, f"{prefix}.q_norm", q, c, c.head_dim)
        k = norm(m, f"{prefix}.k_norm", k, c, c.head_dim)
    if place.angles is not None:
        q = rope(q, place.angles, head_dim=c.head_dim)
        k = rope(k, place.angles, head_dim=c.head_dim)
    group = place.state
    page_table, kv_slot = m.field(f"page_table.{group.name}"), m.field(f"kv_slot.{group.name}")
    shared = (m.field(name) for name in ("kv_len", "request", "path", "span"))
    y = attention(
        q, k, v, m.state(group, place.layer), page_table, kv_slot, *shared, None, place.slopes,
        n_heads=c.n_heads, scale=c.attention_scale or c.head_dim**-0.5, window=group.window,
        softcap=c.attention_softcap,
    )  # fmt: skip
    return projection(m, f"{prefix}.o", y, (c.hidden, wide), ("", "heads"), c.o_bias)


def mlp(m: Context, c: ModelConfig, prefix: str, x: Any) -> Any:
    """down(act(gate(x)) * up(x)), or down(act(up(x))) where the family has no gate: [T, hidden]."""
    if c.gated:
        gate = projection(m, f"{prefix}.gate", x, (c.ffn, c.hidden), ("ffn", ""), c.mlp_bias)
    up = projection(m, f"{prefix}.up", x, (c.ffn, c.hidden), ("ffn", ""), c.mlp_bias)
    if c.gated:
        inner = (silu_mul if c.activation == "silu" else gelu_mul)(gate, up)
    else:
        inner = gelu(up, exact=c.activation == "gelu")
    return projection(m, f"{prefix}.down", inner, (c.hidden, c.ffn), ("", "ffn"), c.mlp_bias)
