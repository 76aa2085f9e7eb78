"""ModelConfig: what a model function needs to know of a checkpoint, and what is derived from it.

Reading it from files lives with each family; settings.py (config.json), header.py (GGUF) and rope.py hold what the
families share there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from ridgeline.errors import ModelFileError
from ridgeline.program.ir import State

NORMS = ("rms", "layer")
RESIDUALS = ("sequential", "parallel", "sandwich")
ACTIVATIONS = ("silu", "gelu", "gelu_tanh")
GELUS = {  # Hugging Face's names of an activation -> ours
    "gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_fast": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh",
}  # fmt: skip
_MOST = 1e12  # settings of rope beyond it, or below its inverse, are no model's and overflow
_WIDEST = {"n_heads": 1 << 14, "n_kv_heads": 1 << 14, "head_dim": 1 << 14}  # lists as long are made of them


@dataclass(frozen=True)
class Rope:
    """Rotary embedding: base, rotated columns per head, and how long contexts are scaled.

    kind: "default", "linear", "llama3", "yarn"; `factors` divide the frequencies one by one (GGUF's
    rope_freqs, LongRoPE).
    """

    theta: float
    dims: int
    kind: str = "default"
    factor: float = 1.0
    original_context: int = 0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    factors: tuple[float, ...] = ()
    short_factors: tuple[float, ...] = ()  # LongRoPE's for contexts up to the original one; see `for_context`

    def __post_init__(self) -> None:
        if not 1 < self.theta < _MOST:
            raise ModelFileError(f"model config: rope theta must be over 1 and usual, is {self.theta}")
        for name in ("factor", "low_freq_factor", "high_freq_factor", "beta_fast", "beta_slow"):
            value = getattr(self, name)
            if not 1 / _MOST < value < _MOST:
                raise ModelFileError(f"model config: rope {name} must be positive and usual, is {value}")
        if self.kind in ("llama3", "yarn") and self.original_context <= 0:
            raise ModelFileError(f"model config: rope's original context must be positive, is {self.original_context}")
        if not self.low_freq_factor < self.high_freq_factor:
            raise ModelFileError(
                f"model config: rope low_freq_factor {self.low_freq_factor} must be below "
                f"high_freq_factor {self.high_freq_factor}"
            )
        if not self.beta_slow <= self.beta_fast:
            raise ModelFileError(
                f"model config: rope beta_slow {self.beta_slow} must not be over beta_fast {self.beta_fast}"
            )


@dataclass(frozen=True)
class ModelConfig:
    """A decoder's shape and switches. The defaults are Llama's; a family sets what it does differently."""

    family: str
    vocab: int
    hidden: int
    layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    ffn: int
    norm_eps: float
    rope: Rope | None  # None: no rotary positions
    context: int
    tied: bool
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    windows: tuple[int, ...] = ()  # of each layer, in keys; 0 = full attention
    local_rope: Rope | None = None  # of the layers with a window; None: as the others
    learned_positions: bool = False
    alibi: float = 0.0  # factor on ALiBi's slopes; 0 = none
    attention_scale: float = 0.0  # of scores; 0 = head_dim ** -0.5
    attention_softcap: float = 0.0
    logit_softcap: float = 0.0
    embed_scale: float = 1.0
    embed_norm: bool = False
    norm: str = "rms"  # or "layer", with biases
    activation: str = "silu"
    gated: bool = True  # down(act(gate) * up), else down(act(up))
    residual: str = "sequential"  # "parallel": attention and MLP read the same x; "sandwich": norms after both too
    shared_norm: bool = False  # parallel only: attention and MLP read the same norm
    names: str = ""  # row of names.NAMES, where it is not the family's

    def __post_init__(self) -> None:
        for name in ("vocab", "hidden", "layers", "n_heads", "n_kv_heads", "head_dim", "ffn", "context"):
            value, most = getattr(self, name), _WIDEST.get(name, 1 << 24)
            if not 0 < value <= most:
                raise ModelFileError(f"model config: {name} = {value} is outside 1..{most}")
        if self.layers > 1000:
            raise ModelFileError(f"model config: {self.layers} layers; at most 1000 are supported")
        if self.n_heads % self.n_kv_heads:
            raise ModelFileError(f"model config: {self.n_heads} heads are not a multiple of {self.n_kv_heads} KV heads")
        for rope in (self.rope, self.local_rope):
            if rope and (rope.dims % 2 or not 0 < rope.dims <= self.head_dim):
                raise ModelFileError(
                    f"model config: rotary dims {rope.dims} must be even and within head_dim {self.head_dim}"
                )
        if not self.norm_eps > 0:
            raise ModelFileError(f"model config: norm_eps must be positive, is {self.norm_eps}")
        if min(self.attention_scale, self.attention_softcap, self.logit_softcap, self.alibi) < 0:
            raise ModelFileError("model config: attention scale, soft caps and ALiBi factor must not be negative")
        if self.windows and len(self.windows) != self.layers:
            raise ModelFileError(f"model config: {len(self.windows)} windows for {self.layers} layers")
        if any(not 0 <= w <= 1 << 24 for w in self.windows):
            raise ModelFileError(f"model config: a sliding window is outside 0..{1 << 24}")
        assert not (self.gated and self.activation == "gelu"), "gelu_mul is the tanh one"
        assert self.norm in NORMS and self.activation in ACTIVATIONS and self.residual in RESIDUALS

    def window(self, layer: int) -> int:
        """Sliding window of a layer in keys, 0 = none."""
        return self.windows[layer] if self.windows else 0


def state_of_layers(c: ModelConfig) -> list[tuple[State, int]]:
    """For each layer its state group and its index within the group.

    Layers with equal windows share a group; all groups hold the same number of layers (the greatest that divides
    each count), so that their pages have equal bytes.
    """
    windows = [c.window(i) for i in range(c.layers)]
    counts = {w: windows.count(w) for w in windows}
    per_group = math.gcd(*counts.values())
    seen = dict.fromkeys(counts, 0)
    placed = []
    for w in windows:
        group, layer = divmod(seen[w], per_group)
        name = f"kv{w or ''}" if counts[w] == per_group else f"kv{w or ''}_{group}"
        placed.append((State(name, per_group, c.n_kv_heads, c.head_dim, window=w), layer))
        seen[w] += 1
    return placed


def for_context(c: ModelConfig, context: int) -> ModelConfig:
    """The config for a context that the user chose: LongRoPE takes its short factors up to the original context."""
    if c.rope is None or not c.rope.short_factors or not 0 < context <= c.rope.original_context:
        return c
    return replace(c, rope=replace(c.rope, factors=c.rope.short_factors))


def inv_freq(rope: Rope) -> tuple[float, ...]:
    """Rotary frequencies [dims / 2] with the scaling applied (Llama 3.1 report; YaRN, Peng et al. 2023)."""
    half = rope.dims // 2
    freqs = [rope.theta ** (-2 * i / rope.dims) for i in range(half)]
    if rope.factors:
        return tuple(f / d for f, d in zip(freqs, rope.factors, strict=True))
    match rope.kind:
        case "linear":
            return tuple(f / rope.factor for f in freqs)
        case "llama3":
            return tuple(_llama3(f, rope) for f in freqs)
        case "yarn":
            return _yarn(freqs, rope)
        case _:
            return tuple(freqs)


def rope_scale(rope: Rope) -> float:
    """Factor on cos and sin: the attention temperature of YaRN and LongRoPE, 1 otherwise."""
    if rope.attention_factor is not None:
        return rope.attention_factor
    return 0.1 * math.log(rope.factor) + 1.0 if rope.kind == "yarn" and rope.factor > 1 else 1.0


def alibi_slopes(heads: int) -> tuple[float, ...]:
    """A slope for each head (Press et al. 2022): powers of 2 ** (-8 / n) for n heads, n a power of two; the heads
    beyond it take every other slope of twice as many."""
    n = 1 << (heads.bit_length() - 1)
    slopes = [2.0 ** (-8 * (i + 1) / n) for i in range(n)]
    return tuple(slopes + [2.0 ** (-4 * (2 * i + 1) / n) for i in range(heads - n)])


def _llama3(f: float, rope: Rope) -> float:
    """Long wavelengths are divided by factor, short ones kept, the band between interpolated."""
    turns = rope.original_context * f / (2 * math.pi)
    if turns < rope.low_freq_factor:
        return f / rope.factor
    if turns > rope.high_freq_factor:
        return f
    smooth = (turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
    return (1 - smooth) * f / rope.factor + smooth * f


def _yarn(freqs: list[float], rope: Rope) -> tuple[float, ...]:
    """Dimensions that turn often keep their frequency, slow ones are divided, with a linear ramp between."""

    def dimension(turns: float) -> float:
        return rope.dims * math.log(rope.original_context / (turns * 2 * math.pi)) / (2 * math.log(rope.theta))

    low = max(math.floor(dimension(rope.beta_fast)), 0)
    high = min(math.ceil(dimension(rope.beta_slow)), rope.dims - 1)
    span = max(high - low, 0.001)
    ramps = [min(1.0, max(0.0, (i - low) / span)) for i in range(len(freqs))]
    return tuple(f / rope.factor * r + f * (1 - r) for f, r in zip(freqs, ramps, strict=True))
