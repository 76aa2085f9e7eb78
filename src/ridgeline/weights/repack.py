"""Pack a stored matrix anew in another format, some rows at a time: no float32 copy of a whole weight exists."""

from __future__ import annotations

import numpy as np

from ridgeline.quant.format import FORMATS, row_bytes
from ridgeline.quant.pack import F32
from ridgeline.weights.source import Raw

_PIECE = 1 << 18  # weights at a time


def repacked(raw: Raw, name: str, scale: F32 | None = None) -> Raw:
    """The matrix `raw` in format `name`, its columns multiplied by `scale` [K] if there is one."""
    fmt, (rows, k) = FORMATS[name], raw.shape
    data = np.empty((rows, row_bytes(fmt, k)), np.uint8)
    step = max(1, _PIECE // k)
    for at in range(0, rows, step):
        values = FORMATS[raw.format].unpack(raw.data[at : at + step])
        data[at : at + step] = fmt.pack(values if scale is None else values * scale)
    return Raw(name, raw.shape, data)
