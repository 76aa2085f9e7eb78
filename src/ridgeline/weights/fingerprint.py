"""What tells one model's weights from another's without reading them all: for results that are kept between runs."""

from __future__ import annotations

import hashlib

from ridgeline.quant.format import FORMATS
from ridgeline.weights.load import Checkpoint

_ROW = 4096  # bytes of a tensor's first row that count


def fingerprint(checkpoint: Checkpoint) -> str:
    """16 hex digits over the config and each tensor's name, shape, format and first row.

    Not a proof of equality: weights that differ only beyond their first rows look alike.
    """
    source, digest = checkpoint.source, hashlib.sha256(repr(checkpoint.config).encode())
    for name in sorted(source.names()):
        info = source.info(name)
        digest.update(repr((name, info.shape, info.format)).encode())
        if info.format in FORMATS:
            raw = source.read(name, slice(0, 1) if len(info.shape) > 1 else None)
            digest.update(raw.data.reshape(-1)[:_ROW].tobytes())
    return digest.hexdigest()[:16]
