"""Tiny random models of every supported family, written as a Hugging Face folder or as GGUF, and a way to run them.

Shapes are odd on purpose: 3 KV heads, a vocabulary that is not a multiple of 64, heads wider than hidden / heads.
Weights are declared here by hand, under Hugging Face's names, independently of the model functions they test.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ridgeline.backends.base import Backend, Step
from ridgeline.models import build
from ridgeline.ops.attention import PAGE
from ridgeline.program.batch import WANT_IDS, WANT_LOGITS, Batch, BatchLayout, Limits, StepResult
from ridgeline.program.ir import Program
from ridgeline.program.passes import pipeline
from ridgeline.weights.load import Checkpoint

VOCAB = 131
CONTEXT = 512
Arrays = dict[str, np.ndarray]


def _config(family: str, hidden: int, heads: int, layers: int = 2, **more: Any) -> dict[str, Any]:
    return {
        "model_type": family, "vocab_size": VOCAB, "hidden_size": hidden, "intermediate_size": 136,
        "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": 3, "hidden_act": "silu",
        "rms_norm_eps": 1e-5, "max_position_embeddings": CONTEXT, "tie_word_embeddings": False,
        "bos_token_id": 1, "eos_token_id": 2, "torch_dtype": "float32", **more,
    }  # fmt: skip


_LLAMA3 = {
    "rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
_YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}

CONFIGS: dict[str, dict[str, Any]] = {
    "llama": _config("llama", 96, 6, rope_theta=10000.0, rope_scaling=None),
    "llama3": _config("llama", 96, 6, rope_parameters={"rope_theta": 500000.0, **_LLAMA3}),
    "linear": _config("llama", 96, 3, rope_theta=1e4, rope_scaling={"type": "linear", "factor": 2.5}),
    "yarn": _config("llama", 96, 6, rope_theta=1e4, rope_scaling=_YARN),
    "biased": _config("llama", 96, 6, attention_bias=True, mlp_bias=True, rope_theta=1e4),
    "mistral": _config("mistral", 96, 6, layers=3, head_dim=24, sliding_window=24, rope_theta=1e4),
    "smollm": _config("llama", 144, 9, layers=3, tie_word_embeddings=True, rope_theta=1e5, rope_interleaved=False),
    "qwen2": _config("qwen2", 96, 6, rope_theta=1e6, sliding_window=512, use_sliding_window=False, max_window_layers=2),
    "qwen2w": _config(
        "qwen2", 96, 6, 4, rope_theta=1e6, sliding_window=40, use_sliding_window=True, max_window_layers=2
    ),
    "qwen3": _config("qwen3", 96, 6, layers=3, head_dim=80, rope_theta=1e6, tie_word_embeddings=True),
}  # fmt: skip
GGUF_CONFIGS = [name for name in CONFIGS if name != "qwen2w"]  # GGUF cannot say which layers have a window


def head_dim(c: Mapping[str, Any]) -> int:
    return int(c.get("head_dim") or c["hidden_size"] // c["num_attention_heads"])


def shapes(c: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Every tensor of a model under its Hugging Face name."""
    hidden, ffn, dim = c["hidden_size"], c["intermediate_size"], head_dim(c)
    q, kv = c["num_attention_heads"] * dim, c["num_key_value_heads"] * dim
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (c["vocab_size"], hidden)}
    for i in range(c["num_hidden_layers"]):
        p = f"model.layers.{i}"
        matrices = {
            "self_attn.q_proj": (q, hidden), "self_attn.k_proj": (kv, hidden), "self_attn.v_proj": (kv, hidden),
            "self_attn.o_proj": (hidden, q), "mlp.gate_proj": (ffn, hidden), "mlp.up_proj": (ffn, hidden),
            "mlp.down_proj": (hidden, ffn),
        }  # fmt: skip
        found |= {f"{p}.{name}.weight": shape for name, shape in matrices.items()}
        found |= {f"{p}.{name}.bias": matrices[name][:1] for name in _biased(c)}
        found |= {f"{p}.input_layernorm.weight": (hidden,), f"{p}.post_attention_layernorm.weight": (hidden,)}
        if c["model_type"] == "qwen3":
            found |= {f"{p}.self_attn.{x}_norm.weight": (dim,) for x in "qk"}
    found["model.norm.weight"] = (hidden,)
    if not c["tie_word_embeddings"]:
        found["lm_head.weight"] = (c["vocab_size"], hidden)
    return found


def _biased(c: Mapping[str, Any]) -> list[str]:
    names = []
    if c["model_type"] == "qwen2" or c.get("attention_bias"):
        names += ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]
    if c.get("attention_bias"):
        names += ["self_attn.o_proj"]
    if c.get("mlp_bias"):
        names += ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]
    return names


def weights(c: Mapping[str, Any], seed: int = 0) -> Arrays:
    """Seeded float32 weights: rows of unit gain, norms near 1, biases near 0.3. RandomState's stream never changes."""
    rng = np.random.RandomState(seed)
    made = {}
    for name, shape in shapes(c).items():
        x = rng.standard_normal(shape)
        if name.endswith("norm.weight"):
            x = 1 + 0.2 * x
        elif name.endswith(".bias"):
            x = 0.3 * x
        elif "embed" not in name:
            x = x / math.sqrt(shape[-1])
        made[name] = x.astype(np.float32)
    return made


def prompt(count: int, seed: int = 7) -> list[int]:
    """Token ids of a prompt; a longer one starts with the same ids."""
    return [int(i) for i in np.random.RandomState(seed).randint(0, VOCAB, 256)[:count]]


# --- files


def write_safetensors(path: Path, tensors: Arrays) -> None:
    """A float32 .safetensors file."""
    header, at = {}, 0
    for name, x in tensors.items():
        header[name] = {"dtype": "F32", "shape": list(x.shape), "data_offsets": [at, at + x.nbytes]}
        at += x.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(x.tobytes() for x in tensors.values()))


def write_hf(folder: Path, c: Mapping[str, Any], tensors: Arrays, shards: int = 1) -> Path:
    """A Hugging Face folder: config.json and one .safetensors file, or `shards` of them with an index."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(c))
    if shards == 1:
        write_safetensors(folder / "model.safetensors", tensors)
        return folder
    index = {}
    for i in range(shards):
        name = f"model-{i + 1:05d}-of-{shards:05d}.safetensors"
        part = {k: tensors[k] for k in list(tensors)[i::shards]}
        write_safetensors(folder / name, part)
        index |= dict.fromkeys(part, name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    return folder


_GGUF_NAMES = {
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm",
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip


def gguf_name(name: str) -> str:
    """A Hugging Face tensor name as GGUF spells it."""
    stem, kind = name.rsplit(".", 1)
    if stem.startswith("model.layers."):
        _, _, i, rest = stem.split(".", 3)
        return f"blk.{i}.{_GGUF_NAMES[rest]}.{kind}"
    return f"{_GGUF_NAMES[stem]}.{kind}"


def _permuted(c: Mapping[str, Any], name: str, x: np.ndarray) -> np.ndarray:
    """Rows as Llama's GGUF files order them: the two halves of each head interleaved."""
    heads = {"q_proj": c["num_attention_heads"], "k_proj": c["num_key_value_heads"]}.get(name.split(".")[-2])
    if heads is None or c["model_type"] not in ("llama", "mistral"):
        return x
    return x.reshape(heads, 2, len(x) // heads // 2, -1).swapaxes(1, 2).reshape(x.shape)


def _rope_of(c: Mapping[str, Any]) -> tuple[float, Mapping[str, Any]]:
    scaling = c.get("rope_parameters") or c.get("rope_scaling") or {}
    return scaling.get("rope_theta", c.get("rope_theta")), scaling


def _llama3_factors(c: Mapping[str, Any]) -> np.ndarray:
    """What Llama 3's scaling divides each frequency by, from wavelengths (the rope_freqs tensor of GGUF files)."""
    theta, s = _rope_of(c)
    wave = 2 * np.pi * theta ** (np.arange(0, head_dim(c), 2) / head_dim(c))
    old, low, high = s["original_max_position_embeddings"], s["low_freq_factor"], s["high_freq_factor"]
    smooth = (old / wave - low) / (high - low)
    middle = 1 / ((1 - smooth) / s["factor"] + smooth)
    return np.where(wave < old / high, 1.0, np.where(wave > old / low, s["factor"], middle)).astype(np.float32)


def gguf_metadata(c: Mapping[str, Any]) -> dict[str, Any]:
    """Keys of a GGUF file by name; the architecture's own ones carry its prefix."""
    arch = "llama" if c["model_type"] == "mistral" else c["model_type"]
    theta, scaling = _rope_of(c)
    keys = {
        "vocab_size": c["vocab_size"], "context_length": c["max_position_embeddings"],
        "embedding_length": c["hidden_size"], "block_count": c["num_hidden_layers"],
        "feed_forward_length": c["intermediate_size"], "attention.head_count": c["num_attention_heads"],
        "attention.head_count_kv": c["num_key_value_heads"], "attention.layer_norm_rms_epsilon": c["rms_norm_eps"],
        "attention.key_length": head_dim(c), "attention.value_length": head_dim(c),
        "rope.dimension_count": head_dim(c), "rope.freq_base": theta,
    }  # fmt: skip
    kind = scaling.get("rope_type", scaling.get("type"))
    if kind in ("linear", "yarn"):
        keys |= {"rope.scaling.type": kind, "rope.scaling.factor": scaling["factor"]}
    if kind == "yarn":
        keys["rope.scaling.original_context_length"] = scaling["original_max_position_embeddings"]
    if c["model_type"] == "mistral":
        keys["attention.sliding_window"] = c["sliding_window"]
    return {"general.architecture": arch, **{f"{arch}.{k}": v for k, v in keys.items()}}


def gguf_tensors(c: Mapping[str, Any], tensors: Arrays) -> Arrays:
    """Tensors under their GGUF names, with the rows of q and k in GGUF's order."""
    found = {gguf_name(name): _permuted(c, name, x) for name, x in tensors.items()}
    if _rope_of(c)[1].get("rope_type") == "llama3":
        found["rope_freqs.weight"] = _llama3_factors(c)
    return found


def write_gguf(
    path: Path, metadata: Mapping[str, Any], tensors: Arrays, format: str = "F32", also: Mapping[str, str] | None = None
) -> Path:
    """A GGUF file by the gguf package; matrices whose rows are whole blocks are quantised to `format`, or to the one
    that `also` gives for a part of their name."""
    import gguf

    kinds = {str: gguf.GGUFValueType.STRING, int: gguf.GGUFValueType.UINT32, float: gguf.GGUFValueType.FLOAT32}
    writer = gguf.GGUFWriter(path, metadata["general.architecture"])
    for key, value in metadata.items():
        if key != "general.architecture":
            writer.add_key_value(key, value, kinds[type(value)])
    for name, x in tensors.items():
        wanted = next((f for part, f in (also or {}).items() if part in name), format)
        kind = gguf.GGMLQuantizationType[wanted if x.ndim > 1 and x.shape[-1] % 32 == 0 else "F32"]
        writer.add_tensor(name, gguf.quants.quantize(x, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


# --- running


def compile_model(
    checkpoint: Checkpoint, backend: Backend, *, kv_format: str = "f32", fused: bool = True, tokens: int = 256,
    context: int = CONTEXT,
) -> Step:  # fmt: skip
    """A step over float32 activations, with pages for two sequences, all of them full of NaN where we can."""
    program = program_of(checkpoint, backend, kv_format=kv_format, fused=fused)
    c = checkpoint.config
    pages = -(-context // PAGE)
    limits = Limits(tokens=tokens, requests=2, rows=tokens, pages=pages, vocab=c.vocab, hidden=c.hidden)
    layout = BatchLayout.of(limits, program.states)
    step = backend.compile(program, checkpoint.read, layout, 2 * pages * len(program.states))
    for store in getattr(step, "states", {}).values():
        store.poison()
    return step


def program_of(checkpoint: Checkpoint, backend: Backend, *, kv_format: str = "f32", fused: bool = True) -> Program:
    """The program of a checkpoint as the backend would hold it."""
    program = build(checkpoint.config)
    checkpoint.check_all_used(program.weights.values())
    listed = pipeline.passes(checkpoint.format_of, kv_format, fused=fused, held_as=backend.held_as)
    return pipeline.run(program, listed)


class Runner:
    """One sequence on shuffled pages, fed in chunks by hand-made batches."""

    def __init__(self, step: Step, layout: BatchLayout, seed: int = 0) -> None:
        self.step, self.layout, self.length = step, layout, 0
        per_group = layout.limits.pages
        pages = np.random.RandomState(seed).permutation(2 * per_group * len(layout.groups)).astype(np.int32)
        self.tables = {g: pages[i * per_group : (i + 1) * per_group] for i, g in enumerate(layout.groups)}

    def feed(self, ids: Sequence[int]) -> StepResult:
        """Run one chunk; every token wants its logits, and its greedy successor."""
        b, n = Batch(self.layout), len(ids)
        at = np.arange(self.length, self.length + n, dtype=np.int32)
        b.resize(step=1, T=n, R=1, L=n)
        b["ids"][:], b["positions"][:], b["kv_len"][:] = ids, at, at + 1
        for group, table in self.tables.items():
            used = -(-(self.length + n) // PAGE)
            b[f"page_table.{group}"][0, :used] = table[:used]
            b[f"kv_slot.{group}"][:] = table[at // PAGE] * PAGE + at % PAGE
        b["out_rows"][:] = np.arange(n)
        b["want"][:] = WANT_IDS | WANT_LOGITS
        s = b["sampler"]
        s["target"], s["mask_row"], s["top_p"], s["repetition"] = -1, -1, 1, 1
        self.length += n
        return self.step.run(b)


def run_step(
    step: Step, layout: BatchLayout, ids: Sequence[int], chunks: Sequence[int] = (), seed: int = 0
) -> np.ndarray:
    """Logits [len(ids), vocab] of one sequence, given in `chunks` (sizes, the last repeated; none = whole)."""
    runner, out, sizes = Runner(step, layout, seed=seed), [], list(chunks) or [len(ids)]
    at = 0
    while at < len(ids):
        size = sizes.pop(0) if len(sizes) > 1 else sizes[0]
        logits = runner.feed(ids[at : at + size]).logits
        assert logits is not None
        out.append(np.array(logits))
        at += size
    return np.concatenate(out)


def greedy(step: Step, layout: BatchLayout, ids: Sequence[int], count: int) -> list[int]:
    """The next `count` tokens by argmax, one step each."""
    runner = Runner(step, layout)
    picked = [int(runner.feed(ids).ids[-1])]
    while len(picked) < count:
        picked.append(int(runner.feed(picked[-1:]).ids[-1]))
    return picked


def changed(c: Mapping[str, Any], **values: Any) -> dict[str, Any]:
    """A config with some keys set; a value of `...` removes the key."""
    return {k: v for k, v in {**c, **values}.items() if v is not ...}
