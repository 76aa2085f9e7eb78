"""The table of weight formats: block shape, exact float32 meaning, packer, and the codes files use for it.

A format is one row of `FORMATS` and one unpack function (plus a packer in `pack.py`). Weights are packed
along the last axis K: `block` consecutive weights take `block_bytes` bytes. Unpacking follows GGUF's
definitions bit for bit. Must not know about files, tensors' names, ops or kernels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ridgeline.errors import Unsupported
from ridgeline.quant import pack
from ridgeline.quant.pack import F32, U8, U32


@dataclass(frozen=True)
class Format:
    """One packed layout. `*_blocks` map uint8 [n, block_bytes] to float32 [n, block] and back."""

    name: str
    block: int  # weights per block along K
    block_bytes: int
    unpack_blocks: Callable[[U8], F32]
    pack_blocks: Callable[[F32], U8]
    ggml_type: int  # tensor type number in GGUF files
    safetensors: str | None = None  # dtype name in safetensors files

    @property
    def bits(self) -> float:
        """Bits per weight, scales included."""
        return 8 * self.block_bytes / self.block

    def unpack(self, raw: U8) -> F32:
        """uint8 [rows, row_bytes] to float32 [rows, K]; f32 may come back as a view of `raw`."""
        rows, row = raw.shape
        if row % self.block_bytes:
            raise Unsupported(f"{self.name} blocks have {self.block_bytes} bytes; {row} is not a multiple")
        k = row // self.block_bytes * self.block
        with np.errstate(all="ignore"):  # a file may hold inf or nan scales; the result shows them
            return self.unpack_blocks(raw.reshape(-1, self.block_bytes)).reshape(rows, k)

    def pack(self, x: F32) -> U8:
        """float32 [rows, K] to uint8 [rows, row_bytes]; refuses a K that is not whole blocks."""
        rows, k = x.shape
        row = row_bytes(self, k)
        x = np.ascontiguousarray(x, dtype=np.float32)
        return self.pack_blocks(x.reshape(-1, self.block)).reshape(rows, row)


def row_bytes(fmt: Format, k: int) -> int:
    """Bytes of one packed row of k weights; Unsupported when k is not a multiple of the block."""
    if k % fmt.block:
        raise Unsupported(
            f"format {fmt.name} packs {fmt.block} weights per block; a row of {k} is not a multiple (use f16 or bf16)"
        )
    return k // fmt.block * fmt.block_bytes


def get_format(name: str) -> Format:
    """The row called `name`; Unsupported, listing the known names, for any other."""
    if name not in FORMATS:
        raise Unsupported(f"weight format {name!r} is not supported; known: {', '.join(FORMATS)}")
    return FORMATS[name]


def _unpack_f32(blocks: U8) -> F32:
    return np.require(blocks.view(np.float32), np.float32, ["A"])


def _unpack_f16(blocks: U8) -> F32:
    return blocks.view(np.float16).astype(np.float32)


def _unpack_bf16(blocks: U8) -> F32:
    bits: U32 = blocks.view(np.uint16).astype(np.uint32) << np.uint32(16)
    return bits.view(np.float32)


def _unpack_q8_0(blocks: U8) -> F32:
    w = blocks[:, 2:].view(np.int8).astype(np.float32)
    w *= _unpack_f16(blocks[:, :2])
    return w


def _unpack_q4_0(blocks: U8) -> F32:
    w = _unpack_nibbles(blocks[:, 2:])
    w -= np.float32(8)
    w *= _unpack_f16(blocks[:, :2])
    return w


def _unpack_q4_1(blocks: U8) -> F32:
    w = _unpack_nibbles(blocks[:, 4:])
    w *= _unpack_f16(blocks[:, :2])
    w += _unpack_f16(blocks[:, 2:4])
    return w


def _unpack_nibbles(packed: U8) -> F32:
    """uint8 [n, 16] to float32 [n, 32] in 0..15: low halves are weights 0..15, high halves 16..31."""
    w = np.empty((len(packed), 2, 16), np.float32)
    w[:, 0] = packed & np.uint8(15)
    w[:, 1] = packed >> np.uint8(4)
    return w.reshape(-1, 32)


FORMATS: dict[str, Format] = {
    fmt.name: fmt
    for fmt in (
        Format("f32", 1, 4, _unpack_f32, pack.f32, ggml_type=0, safetensors="F32"),
        Format("f16", 1, 2, _unpack_f16, pack.f16, ggml_type=1, safetensors="F16"),
        Format("bf16", 1, 2, _unpack_bf16, pack.bf16, ggml_type=30, safetensors="BF16"),
        Format("q4_0", 32, 18, _unpack_q4_0, pack.q4_0, ggml_type=2),
        Format("q4_1", 32, 20, _unpack_q4_1, pack.q4_1, ggml_type=3),
        Format("q8_0", 32, 34, _unpack_q8_0, pack.q8_0, ggml_type=8),
    )
}
