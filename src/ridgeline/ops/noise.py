"""The hash that sampling's noise and its green lists are drawn from: splitmix64 (Steele et al. 2014), on one number or
on many. Must not know what is drawn.
"""

from __future__ import annotations

import numpy as np

from ridgeline.ops.spec import Array

GOLDEN = 0x9E3779B97F4A7C15
_MASK64 = 0xFFFFFFFFFFFFFFFF


def mix(x: int) -> int:
    """splitmix64's finaliser."""
    x &= _MASK64
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK64
    return x ^ (x >> 31)


def mix_with(key: int | Array, ids: Array) -> Array:
    """uint64 hashes of token ids under a key, or a key for each."""
    with np.errstate(over="ignore"):
        x = np.asarray(key, np.uint64) + (ids.astype(np.uint64) + np.uint64(1)) * np.uint64(GOLDEN)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        hashed: Array = x ^ (x >> np.uint64(31))
    return hashed
