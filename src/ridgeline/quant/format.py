"""The table of weight formats: block shape, exact float32 meaning, packer, and the codes files use for it.

A format is one row of `FORMATS`: an unpack function (`unpack.py`, `kquants.py`) and, where weights can be packed in
it here, a packer (`pack.py`). Weights are packed along the last axis K: `block` consecutive weights take `block_bytes`
bytes, after `row_header` bytes that belong to the whole row. Unpacking follows GGUF's definitions bit for bit; formats
without a GGUF type are ours. Must not know about files, tensors' names, ops or kernels.
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
    """One packed layout. `*_blocks` map uint8 [n, block_bytes] to float32 [n, block] and back; in a format with a row
    header they map whole rows, uint8 [n, row_header + K * block_bytes / block] to float32 [n, K]."""

    name: str
    block: int  # weights per block along K
    block_bytes: int
    unpack_blocks: Callable[[U8], F32]
    pack_blocks: Callable[[F32], U8] | None  # None: read only
    ggml_type: int | None = None  # tensor type number in GGUF files
    safetensors: str | None = None  # dtype name in safetensors files
    row_header: int = 0  # bytes before the blocks of each row

    @property
    def bits(self) -> float:
        """Bits per weight, scales of blocks included, a row's header not."""
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
        if row < self.row_header or (row - self.row_header) % self.block_bytes:
            after = f" after {self.row_header}" if self.row_header else ""
            raise Unsupported(f"{self.name} blocks have {self.block_bytes} bytes{after}; {row} is not a multiple")
        k = (row - self.row_header) // self.block_bytes * self.block
        if self.row_header:
            return self._unpack_rows(raw, k)
        blocks = raw.reshape(-1, self.block_bytes)
        with np.errstate(all="ignore"):  # a file may hold inf or nan scales; the result shows them
            w = self.unpack_blocks(blocks) if self.block == 1 else self._unpack_pieces(blocks)
        return w.reshape(rows, k)

    def _unpack_rows(self, raw: U8, k: int) -> F32:
        w = np.empty((len(raw), k), np.float32)
        step = max(1, _PIECE // max(1, k))
        with np.errstate(all="ignore"):
            for i in range(0, len(raw), step):
                w[i : i + step] = self.unpack_blocks(raw[i : i + step])
        return w

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
        if self.row_header:
            return pack_blocks(x)
        return pack_blocks(x.reshape(-1, self.block)).reshape(rows, row)


def row_bytes(fmt: Format, k: int) -> int:
    """Bytes of one packed row of k weights; Unsupported when k is not a multiple of the block."""
    if k % fmt.block:
        raise Unsupported(
            f"format {fmt.name} packs {fmt.block} weights per block; a row of {k} is not a multiple "
            f"(use {', '.join(_fitting(fmt, k))})"
        )
    return fmt.row_header + k // fmt.block * fmt.block_bytes


# Layouts that only a backend holds, losslessly equal to a stored one: (weights, bytes) of a block. Codes of k-quants
# have 4 or 8 bits there, their groups' scales a byte each; iq4_xs becomes k8, q5_1 uint8_g32.
HELD_BLOCKS = {
    "uint8_g32": (32, 36), "k2": (256, 164), "k3": (256, 146), "k4": (256, 148), "k5": (256, 276), "k6": (256, 274),
    "k8": (256, 266),
}  # fmt: skip


def held_row_bytes(name: str, k: int) -> int:
    """Bytes of a row of k weights in a stored format, or in one that a backend holds."""
    if name in FORMATS:
        return row_bytes(FORMATS[name], k)
    block, size = HELD_BLOCKS[name]
    return k // block * size


def _fitting(wanted: Format, k: int) -> list[str]:
    """Formats that rows of k can be packed in: those of smaller blocks named alike, and those that take any row."""
    family = wanted.name.rstrip("0123456789")
    like = [f for f in FORMATS.values() if f.name.startswith(family) and f.block > 1 and k % f.block == 0]
    return [*(f.name for f in like if f.pack_blocks), "int8", "f16", "bf16"]


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
        Format("int8", 1, 1, unpack.int8, pack.int8, row_header=4),
        Format("int8_g128", 128, 130, unpack.q8_0, pack.q8_0),
        Format("int4_g64", 64, 34, unpack.q4_0, pack.q4_0),
        Format("int4_g128", 128, 66, unpack.q4_0, pack.q4_0),
        Format("uint4_g64", 64, 36, unpack.q4_1, pack.q4_1),
        Format("uint4_g128", 128, 68, unpack.q4_1, pack.q4_1),
    )
}
