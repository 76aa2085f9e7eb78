"""Llama and its kin: Llama 1-3.x, SmolLM2, Mistral (window), Qwen2 (q/k/v bias), Qwen3 (QK-norm, free head_dim)."""

from __future__ import annotations

from typing import Any

from ridgeline.models.blocks import gated_mlp, norm, self_attention
from ridgeline.models.config import ModelConfig, inv_freq, rope_scale, state_of_layers
from ridgeline.ops import add, embedding, linear, rotary, take_rows
from ridgeline.program.capture import Context


def forward(m: Context, c: ModelConfig) -> tuple[Any, Any]:
    """(kept rows, final hidden), both [L, hidden]."""
    table = m.weight("embed.weight", (c.vocab, c.hidden), ("vocab", ""))
    x = embedding(m.field("ids"), table, m.field("input_row"), m.field("input_rows"))  # [T, hidden]
    angles = rotary(m.field("positions"), m.constant("rope.inv_freq", inv_freq(c.rope)), scale=rope_scale(c.rope))
    for i, state in enumerate(state_of_layers(c)):
        with m.scope(f"layers.{i}.attn"):
            y = norm(m, f"layers.{i}.attn_norm", x, c)
            x = add(x, self_attention(m, c, f"layers.{i}.attn", y, angles, state))
        with m.scope(f"layers.{i}.mlp"):
            x = add(x, gated_mlp(m, c, f"layers.{i}.mlp", norm(m, f"layers.{i}.mlp_norm", x, c)))
    with m.scope("out"):
        kept = take_rows(x, m.field("out_rows"), m.field("held"))
        return kept, norm(m, "norm", kept, c)


def logits(m: Context, c: ModelConfig, hidden: Any) -> Any:
    """[L, vocab]."""
    name = "embed.weight" if c.tied else "head.weight"
    return linear(hidden, m.weight(name, (c.vocab, c.hidden), ("vocab", "")))
