"""From a stored tensor to one weight of ours: which of its rows, in which order, turned and shifted as names.py says.

Everything works on packed rows, so a block format passes through unchanged; only vectors are computed with.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ridgeline.errors import ModelFileError, Unsupported
from ridgeline.models.config import ModelConfig
from ridgeline.models.names import GGUF, HF, ends_with, names_of
from ridgeline.quant.format import FORMATS
from ridgeline.quant.pack import F32
from ridgeline.weights.source import Raw

Rows = npt.NDArray[np.intp]


def stored_shape(c: ModelConfig, part: str, kind: int, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of the stored tensor that holds `part`, a weight of `shape`."""
    names, shared = names_of(c), _shared(c, part, kind)
    if shared:
        shape = (sum(_height(c, w) for w in shared), *shape[1:])
    return shape[::-1] if kind == HF and ends_with(part, names.hf_transposed) else shape


def arrange(c: ModelConfig, part: str, kind: int, raw: Raw) -> Raw:
    """The rows of the stored tensor `raw` that make `part`. ModelFileError where it has not that many."""
    names = names_of(c)
    if kind == HF and ends_with(part, names.hf_transposed):
        raw = _transposed(raw)
    if kind == HF and ends_with(part, names.hf_minus_one):
        return vector(raw.float32() + np.float32(1))
    if _shared(c, part, kind):
        return take(raw, _fused_rows(c, part, kind, raw.shape[0]))
    if kind == GGUF and ends_with(part, names.gguf_paired):
        return take(raw, _unpaired_rows(c, part, raw.shape[0]))
    return raw


def take(raw: Raw, rows: Rows | slice) -> Raw:
    """Some rows of a packed matrix, or elements of a vector."""
    if len(raw.shape) == 1:
        return vector(raw.float32()[rows])
    data = raw.data[rows]
    return Raw(raw.format, (len(data), raw.shape[1]), data)


def vector(values: F32) -> Raw:
    """A float32 vector as a packed one."""
    return Raw("f32", values.shape, np.ascontiguousarray(values).view(np.uint8).reshape(1, -1))


def _leaf(part: str) -> str:
    return part.split(".")[-2]


def _shared(c: ModelConfig, part: str, kind: int) -> list[str]:
    """The weights that lie in one stored tensor with `part`, itself among them; none where it has its own."""
    names = names_of(c)
    shared = names.shares(part, kind) if names.fused[kind] else []
    return shared if len(shared) > 1 else []


def _height(c: ModelConfig, part: str) -> int:
    """Rows of a weight that shares its tensor."""
    wide, narrow = c.n_heads * c.head_dim, c.n_kv_heads * c.head_dim
    return {"q": wide, "k": narrow, "v": narrow, "gate": c.ffn, "up": c.ffn}[_leaf(part)]


def _fused_rows(c: ModelConfig, part: str, kind: int, rows: int) -> Rows:
    """Where `part` lies in a stored tensor of `rows` rows, which must be those of all that share it."""
    leaf, shared = _leaf(part), _shared(c, part, kind)
    if rows != sum(_height(c, w) for w in shared):
        raise ModelFileError(f"the tensor of {', '.join(shared)} has {rows} rows, not theirs together")
    if names_of(c).fused[kind] == "groups" and leaf in ("q", "k", "v"):
        group = c.n_heads // c.n_kv_heads
        heads = np.arange(c.n_kv_heads * (group + 2) * c.head_dim).reshape(c.n_kv_heads, group + 2, c.head_dim)
        cut = {"q": slice(0, group), "k": slice(group, group + 1), "v": slice(group + 1, group + 2)}[leaf]
        rows: Rows = heads[:, cut].reshape(-1)
        return rows
    at = [_leaf(w) for w in shared].index(leaf)
    start = sum(_height(c, w) for w in shared[:at])
    return np.arange(start, start + _height(c, part))


def _unpaired_rows(c: ModelConfig, part: str, rows: int) -> Rows:
    """Rows of each head stored as (pair, half), in the order (half, pair)."""
    heads = c.n_heads if _leaf(part) == "q" else c.n_kv_heads
    if rows % (2 * heads):
        raise ModelFileError(f"{part} has {rows} rows, not {heads} heads of even size")
    order: Rows = np.arange(rows).reshape(heads, rows // heads // 2, 2).swapaxes(1, 2).reshape(-1)
    return order


def _transposed(raw: Raw) -> Raw:
    fmt = FORMATS[raw.format]
    if len(raw.shape) == 1:
        return raw
    if fmt.block > 1:
        raise Unsupported(f"a transposed matrix in format {fmt.name} cannot be turned; use f32, f16 or bf16")
    rows, columns = raw.shape
    turned = raw.data.reshape(rows, columns, fmt.block_bytes).swapaxes(0, 1)
    return Raw(raw.format, (columns, rows), np.ascontiguousarray(turned).reshape(columns, rows * fmt.block_bytes))
