"""What config.json files say alike for all decoders: sizes, head width, windows. The counterpart of header.py."""

from __future__ import annotations

from typing import Any

from ridgeline.errors import ModelFileError, Unsupported
from ridgeline.models.keys import Keys


def decoder(k: Keys, *, context: int | None, tied: bool, head_dim: int | None = None) -> dict[str, Any]:
    """Fields of ModelConfig under the names most families use; `context`, `tied` and `head_dim` (None: an equal share
    of the hidden columns) are what a missing key means. Sizes are bounded, since lists of them are made."""
    hidden, heads = k.integer("hidden_size"), k.integer("num_attention_heads")
    layers = k.integer("num_hidden_layers")
    if not 0 < heads <= hidden or not 0 < layers <= 1000:
        names = k.name("num_attention_heads"), k.name("num_hidden_layers")
        raise ModelFileError(f"{k.where}: {names[0]} {heads}, {names[1]} {layers} are out of range")
    if "head_dim" not in k and head_dim is None and hidden % heads:
        raise k.wrong("hidden_size", f"{hidden} is not a multiple of {k.name('num_attention_heads')} {heads}")
    return {
        "vocab": k.integer("vocab_size"),
        "hidden": hidden,
        "layers": layers,
        "n_heads": heads,
        "head_dim": k.integer("head_dim", head_dim or hidden // heads),
        "context": k.integer("max_position_embeddings", context),
        "tied": k.flag("tie_word_embeddings", tied),
    }


def window(k: Keys, default: int | None = None) -> int:
    """The sliding window, which must be positive."""
    found = k.integer("sliding_window", default)
    if found <= 0:
        raise k.wrong("sliding_window", f"must be positive, is {found}")
    return found


def one_window(k: Keys, layers: int) -> tuple[int, ...]:
    """The sliding window of the config in every layer; none where it names none."""
    return (window(k),) * layers if "sliding_window" in k else ()


def layer_types(k: Keys, layers: int) -> list[bool] | None:
    """For each layer whether it has a sliding window, if the config lists it."""
    types, known = k.get("layer_types"), ("full_attention", "sliding_attention")
    if types is None:
        return None
    if not isinstance(types, list) or len(types) != layers or any(t not in known for t in types):
        raise Unsupported(f"{k.where}: layer_types must list {layers} of {', '.join(known)}")
    return [t == known[1] for t in types]
