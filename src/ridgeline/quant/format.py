"""The table of weight formats: block shape, exact float32 meaning, packer, and the codes files use for it.

A format is one row of `FORMATS`: an unpack function (`unpack.py`, `kquants.py`) and, where weights can be packed in
it here, a packer (`pack.py`). Weights are packed along the last axis K: `block` consecutive weights take `block_bytes`
bytes. Unpacking follows GGUF's definitions bit for bit. Must not know about files, tensors' names, ops or kernels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ridgeline.errors import Unsupported
from ridgeline.quant import kquants, pack, unpack
from ridgeline.quant.pack import F32, U8

_PIECE = 1 << 16  # weights unpacked at a time, so that what is between bytes and floats stays small and in cache


@dataclass(frozen=True)
class Format:
    """One packed layout. `*_blocks` map uint8 [n, block_bytes] to float32 [n, block] and back."""

    name: str
    block: int  # weights per block along K
    block_bytes: int
    unpack_blocks: Callable[[U8], F32]
    pack_blocks: Callable[[F32], U8] | None  # None: read only
    ggml_type: int  # tensor type number in GGUF files
    safetensors: str | None = None  # dtype name in safetensors files

    @property
    def bits(self) -> float:
        """Bits per weight, scales included."""
        return 8 * self.block_bytes / self.block

    def packer(self) -> Callable[[F32], U8]:
        """`pack_blocks`; Unsupported, listing the formats that have one, where there is none."""
        if self.pack_blocks is None:
            able = ", ".join(f.name for f in FORMATS.values() if f.pack_blocks)
            raise Unsupported(f"weights can be read from {self.name} but not packed in it; choose one of {able}")
        return self.pack_blocks

    def unpack(self, raw: U8) -> F32:
        """uint8 [rows, row_bytes] to float32 [rows, K]; f32 may come back as a view of `raw`."""
        rows, row = raw.shape
        if row % self.block_bytes:
            raise Unsupported(f"{self.name} blocks have {self.block_bytes} bytes; {row} is not a multiple")
        k = row // self.block_bytes * self.block
        blocks = raw.reshape(-1, self.block_bytes)
        with np.errstate(all="ignore"):  # a file may hold inf or nan scales; the result shows them
            w = self.unpack_blocks(blocks) if self.block == 1 else self._unpack_pieces(blocks)
        return w.reshape(rows, k)

    def _unpack_pieces(self, blocks: U8) -> F32:
        w = np.empty((len(blocks), self.block), np.float32)
        step = _PIECE // self.block
        for i in range(0, len(blocks), step):
            w[i : i + step] = self.unpack_blocks(blocks[i : i + step])
        return w

    def pack(self, x: F32) -> U8:
        """float32 [rows, K] to uint8 [rows, row_bytes]; Unsupported for a read-only format and for a K that is not
        whole blocks."""
        rows, k = x.shape
        row, pack_blocks = row_bytes(self, k), self.packer()
        x = np.ascontiguousarray(x, dtype=np.float32)
        return pack_blocks(x.reshape(-1, self.block)).reshape(rows, row)


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


FORMATS: dict[str, Format] = {
    fmt.name: fmt
    for fmt in (
        Format("f32", 1, 4, unpack.f32, pack.f32, ggml_type=0, safetensors="F32"),
        Format("f16", 1, 2, unpack.f16, pack.f16, ggml_type=1, safetensors="F16"),
        Format("bf16", 1, 2, unpack.bf16, pack.bf16, ggml_type=30, safetensors="BF16"),
        Format("q4_0", 32, 18, unpack.q4_0, pack.q4_0, ggml_type=2),
        Format("q4_1", 32, 20, unpack.q4_1, pack.q4_1, ggml_type=3),
        Format("q5_0", 32, 22, unpack.q5_0, pack.q5_0, ggml_type=6),
        Format("q5_1", 32, 24, unpack.q5_1, pack.q5_1, ggml_type=7),
        Format("q8_0", 32, 34, unpack.q8_0, pack.q8_0, ggml_type=8),
        Format("iq4_nl", 32, 18, unpack.iq4_nl, None, ggml_type=20),
        Format("q2_k", 256, 84, kquants.q2_k, None, ggml_type=10),
        Format("q3_k", 256, 110, kquants.q3_k, None, ggml_type=11),
        Format("q4_k", 256, 144, kquants.q4_k, None, ggml_type=12),
        Format("q5_k", 256, 176, kquants.q5_k, None, ggml_type=13),
        Format("q6_k", 256, 210, kquants.q6_k, None, ggml_type=14),
        Format("q8_k", 256, 292, kquants.q8_k, None, ggml_type=15),
        Format("iq4_xs", 256, 136, kquants.iq4_xs, None, ggml_type=23),
    )
}
