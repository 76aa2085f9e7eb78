"""The decoder that most families are: embedding, layers of attention and MLP around a residual, norm, head.

A family's differences are switches of its ModelConfig; what does not fit them gets a forward of its own.
"""

from __future__ import annotations

from typing import Any

from ridgeline.models.blocks import Place, embed, mlp, norm, rotations, self_attention, slopes
from ridgeline.models.config import ModelConfig, state_of_layers
from ridgeline.ops import add, linear, softcap, take_rows
from ridgeline.program.capture import Context


def forward(m: Context, c: ModelConfig) -> tuple[Any, Any]:
    """(kept rows, final hidden), both [L, hidden]."""
    x = embed(m, c)  # [T, hidden]
    angles, bias, layer = rotations(m, c), slopes(m, c), LAYERS[c.residual]
    for i, (state, index) in enumerate(state_of_layers(c)):
        x = layer(m, c, f"layers.{i}", x, Place(state, index, angles[state.window > 0], bias))
    with m.scope("out"):
        kept = take_rows(x, m.field("out_rows"), m.field("held"))
        return kept, norm(m, "norm", kept, c)


def logits(m: Context, c: ModelConfig, hidden: Any) -> Any:
    """[L, vocab]."""
    name = "embed.weight" if c.tied else "head.weight"
    scores = linear(hidden, m.weight(name, (c.vocab, c.hidden), ("vocab", "")))
    return softcap(scores, cap=c.logit_softcap) if c.logit_softcap else scores


def _sequential(m: Context, c: ModelConfig, at: str, x: Any, place: Place) -> Any:
    """x + attention(norm(x)), then x + mlp(norm(x))."""
    with m.scope(f"{at}.attn"):
        x = add(x, self_attention(m, c, f"{at}.attn", norm(m, f"{at}.attn_norm", x, c), place))
    with m.scope(f"{at}.mlp"):
        return add(x, mlp(m, c, f"{at}.mlp", norm(m, f"{at}.mlp_norm", x, c)))


def _parallel(m: Context, c: ModelConfig, at: str, x: Any, place: Place) -> Any:
    """x + attention(norm(x)) + mlp(norm(x)), with one norm or two (GPT-J, GPT-NeoX, Falcon)."""
    with m.scope(f"{at}.attn"):
        y = norm(m, f"{at}.attn_norm", x, c)
        attended = add(x, self_attention(m, c, f"{at}.attn", y, place))
    with m.scope(f"{at}.mlp"):
        z = y if c.shared_norm else norm(m, f"{at}.mlp_norm", x, c)
        return add(attended, mlp(m, c, f"{at}.mlp", z))


def _sandwich(m: Context, c: ModelConfig, at: str, x: Any, place: Place) -> Any:
    """As sequential, with a norm after attention and MLP too (Gemma 2 and 3)."""
    with m.scope(f"{at}.attn"):
        y = self_attention(m, c, f"{at}.attn", norm(m, f"{at}.attn_norm", x, c), place)
        x = add(x, norm(m, f"{at}.attn_post_norm", y, c))
    with m.scope(f"{at}.mlp"):
        y = mlp(m, c, f"{at}.mlp", norm(m, f"{at}.mlp_norm", x, c))
        return add(x, norm(m, f"{at}.mlp_post_norm", y, c))


LAYERS = {"sequential": _sequential, "parallel": _parallel, "sandwich": _sandwich}
