"""Parts that decoder families share, written over the op set. A variant is a flag of the config."""

from __future__ import annotations

from typing import Any

from ridgeline.models.config import ModelConfig
from ridgeline.ops import attention, linear, rms_norm, rope, silu_mul
from ridgeline.program.capture import Context
from ridgeline.program.ir import State


def projection(m: Context, name: str, x: Any, shape: tuple[int, int], axes: tuple[str, str], bias: bool) -> Any:
    """x · W^T (+ b): [T, shape[0]]."""
    b = m.weight(f"{name}.bias", shape[:1], axes[:1]) if bias else None
    return linear(x, m.weight(f"{name}.weight", shape, axes), b)


def norm(m: Context, name: str, x: Any, c: ModelConfig, width: int = 0) -> Any:
    """RMS norm over rows, or over each run of `width` columns."""
    w = m.weight(f"{name}.weight", (width or c.hidden,), ("",))
    return rms_norm(x, w, eps=c.norm_eps, width=width)


def self_attention(m: Context, c: ModelConfig, prefix: str, x: Any, angles: Any, state: tuple[State, int]) -> Any:
    """Grouped-query attention with rotary positions over paged state: [T, hidden]."""
    wide, narrow = c.n_heads * c.head_dim, c.n_kv_heads * c.head_dim
    q = projection(m, f"{prefix}.q", x, (wide, c.hidden), ("heads", ""), c.qkv_bias)  # [T, n_heads * head_dim]
    k = projection(m, f"{prefix}.k", x, (narrow, c.hidden), ("kv_heads", ""), c.qkv_bias)
    v = projection(m, f"{prefix}.v", x, (narrow, c.hidden), ("kv_heads", ""), c.qkv_bias)
    if c.qk_norm:
        q = norm(m, f"{prefix}.q_norm", q, c, c.head_dim)
        k = norm(m, f"{prefix}.k_norm", k, c, c.head_dim)
    q = rope(q, angles, head_dim=c.head_dim)
    k = rope(k, angles, head_dim=c.head_dim)
    group, layer = state
    page_table, kv_slot = m.field(f"page_table.{group.name}"), m.field(f"kv_slot.{group.name}")
    shared = (m.field(name) for name in ("kv_len", "request", "path", "span"))
    y = attention(
        q, k, v, m.state(group, layer), page_table, kv_slot, *shared,
        n_heads=c.n_heads, scale=c.head_dim**-0.5, window=group.window,
    )  # fmt: skip
    return projection(m, f"{prefix}.o", y, (c.hidden, wide), ("", "heads"), c.o_bias)


def gated_mlp(m: Context, c: ModelConfig, prefix: str, x: Any) -> Any:
    """down(silu(gate(x)) * up(x)): [T, hidden]."""
    gate = projection(m, f"{prefix}.gate", x, (c.ffn, c.hidden), ("ffn", ""), c.mlp_bias)
    up = projection(m, f"{prefix}.up", x, (c.ffn, c.hidden), ("ffn", ""), c.mlp_bias)
    return projection(m, f"{prefix}.down", silu_mul(gate, up), (c.hidden, c.ffn), ("", "ffn"), c.mlp_bias)
